"""Claims about sink logits that their page need not make: a logit of minus infinity is no sink."""

import pytest
import torch
from tests import proof
from tests.proof import SQUARE, Case, assert_close

from annotated_attention.attention_sinks_logits import SinkLogits, fused_sink_attention, sink_attention
from annotated_attention.language_model import causal_attention


@pytest.mark.parametrize("e", [8, 5])
def test_a_sink_that_is_not_there(e: int, device: str) -> None:
    query, key, value = Case("even", t=4, s=7, d=8, e=e).inputs(device=device)
    gone, mask = (
        torch.full((3,), -torch.inf, device=device),
        torch.ones(4, 7, dtype=torch.bool, device=device),
    )
    mask[2] = False
    inputs = [x.requires_grad_() for x in (query, key, value)]
    output = fused_sink_attention(*inputs, gone, mask)
    assert_close(output, sink_attention(*inputs, gone, mask), proof.plain_attention(*inputs, mask))
    assert (output[:, :, 2] == 0).all()
    assert all(x.isfinite().all() for x in torch.autograd.grad(output.sum(), inputs))


def test_without_sinks_the_slot_is_lesson_3(device: str) -> None:
    attend = SinkLogits(3).to(device)
    attend.sink_logits.data.fill_(-torch.inf)
    query, key, value = SQUARE.inputs(torch.float32, device)
    i = torch.arange(7, device=device)
    exact = causal_attention(query.double(), key.double(), value.double(), i, i)
    assert_close(attend(query, key, value, i, i), causal_attention(query, key, value, i, i), exact)
