r"""# What linear attention saves, and against whom

**Claim.** Katharopoulos et al. (2020), arXiv:2006.16236: time and memory grow like the text, not like its square, and
a token is written at the same cost wherever it stands. On MNIST, 784 pixels, 142.8 images a second in place of 0.45,
317 times as many (table 1); but that softmax reads the whole prefix again for each pixel. Against one with a cache of
keys and values, on CIFAR-10, 3,072 numbers: 55.8 times the throughput, and 1.15 times the speed of a single image.

**Prediction.** Heads of width 64, float32.

1. *Reading.* By operations, chunks of 64 take 32,896 a token and a causal softmax $128\,(t+1)$: they are even at 257
   tokens. Measured, they will be even later, between 257 and 1,024 tokens: the chunks are einsums in Python, the
   softmax is one fused kernel. From 4,096 tokens on, twice the text takes linear attention about twice the time and
   softmax about four times.
2. *Memory* of a step of training is linear for both, since the kernel keeps no weights. Linear attention will take
   *more*, at every length, by a constant factor: features and states stand beside the inputs.
3. *Writing one token.* By numbers moved, a cache of $128\,s$ passes a state of 4,160, read and written, at 65 tokens.
   Measured for one text, some thousand tokens later, for a step is a dozen small calls whatever it computes; for 16
   texts earlier, since the calls are shared.
4. *A whole model, whom to compare with.* For 784 tokens one by one: against reading the prefix again, states are more
   than 20 times as fast (not 317: the processor has no idle lanes for small steps to waste). Against a cache, less than
   twice, for most of a token's time goes to projections. With 16 texts and 3,072 tokens the advantage over a cache is
   larger than with one text.

**Setting.** Timed, in turn, medians; three repetitions as seeds, on random inputs. Reading: `linear_attention` and
PyTorch's fused kernel, 8 heads, forward, and the most memory that new tensors held in a step forward and back. Writing:
`linear_attention_step`, and the fused kernel over a cache that is written in place. Whole model: lesson 3's, 8 layers,
256 wide, 8 heads, with random weights: one token behind a `LinearCache`, one behind a `KVCache`, and the prefix again;
times over a text are sums over its tokens, by trapezoids between measured lengths.
"""
