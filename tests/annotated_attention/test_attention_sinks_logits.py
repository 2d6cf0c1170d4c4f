"""The proof of `attention_sinks_logits`: each test is a claim that its page makes."""

import torch
from tests.proof import Case, assert_close

from annotated_attention.attention_sinks import sink_attention


def test_no_sink_is_pytorch(device: str) -> None:
    query, key, value = Case("t<s").inputs(torch.float32, device)
    none = torch.full((3,), -torch.inf, device=device)
    peer = torch.nn.functional.scaled_dot_product_attention
    exact = peer(query.double(), key.double(), value.double())
    assert_close(sink_attention(query, key, value, none), peer(query, key, value), exact)
