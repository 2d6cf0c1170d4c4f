"""The proof of `flash_triton_kernels`: each test is a claim that its page makes."""
