"""The bound of `coursekit.numerics` has teeth: it kills each of these mistakes, and 1e-2 does not. And the
wrong input that must be refused."""

from functools import partial

import pytest
import torch
from tests.proof import Case, assert_close, causal, changed
from torch.nn import functional as F

from annotated_attention.scaled_dot_product import scaled_dot_product_attention
from coursekit import numerics

sdpa = F.scaled_dot_product_attention
SHARED, LARGE = Case("shared", g=2, r=3), Case("large-scores", largest_score=1e4)
TEETH, FIRST_SEVEN = Case("teeth", t=7, s=211, d=61), causal(7, 211)
EMPTY = FIRST_SEVEN & (torch.arange(7) != 3)[:, None]


def formula(query, key, value, mask=None, *, scale=None, blocked=-torch.inf, extra=0.0, shift=True, p=0.0):
    """Attention, with every part left open that is easily wrong."""
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = F.dropout(scores if mask is None else scores.masked_fill(~mask, blocked), p)
    exponentials = (scores - scores.amax(-1, keepdim=True)).exp() if shift else scores.exp()
    return exponentials / (exponentials.sum(-1, keepdim=True) + extra) @ value


def test_formula_without_a_mistake_passes():
    for options in ({}, {"mask": FIRST_SEVEN}):
        oracle = sdpa(*TEETH.inputs(), options.get("mask"))
        assert_close(formula(*TEETH.inputs(), **options), oracle, oracle)


# Name: the case, the options of the right answer, the wrong answer.
MUTANTS = {
    "scale of d + 1": (TEETH, {}, partial(formula, scale=62**-0.5)),
    "softmax off by one": (TEETH, {}, partial(formula, extra=1.0, shift=False)),
    "denominator + 0.1": (TEETH, {}, partial(formula, extra=0.1)),
    "scale twice": (TEETH, {}, partial(formula, scale=1 / 61)),
    "scale forgotten": (TEETH, {}, partial(formula, scale=1.0)),
    "maximum not subtracted": (LARGE, {}, partial(formula, shift=False)),
    "mask -1e9": (TEETH, {"attn_mask": EMPTY}, partial(formula, mask=EMPTY, blocked=-1e9)),
    "mask -1e4": (TEETH, {"attn_mask": EMPTY}, partial(formula, mask=EMPTY, blocked=-1e4)),
    "mask inverted": (TEETH, {"attn_mask": FIRST_SEVEN}, partial(formula, mask=~FIRST_SEVEN)),
    "causal sees one ahead": (TEETH, {"is_causal": True}, partial(formula, mask=causal(8, 211)[1:])),
    "causal bottom-right": (TEETH, {"is_causal": True}, partial(formula, mask=causal(211, 211)[-7:])),
    "heads in turn": (
        SHARED,
        {"enable_gqa": True},
        lambda q, *kv: formula(q, *(x.repeat(1, 3, 1, 1) for x in kv)),
    ),
    "dropout before softmax": (TEETH, {"dropout_p": 0.25}, partial(formula, p=0.25)),
    "dropout not rescaled": (TEETH, {"dropout_p": 0.25}, lambda *x: 0.75 * sdpa(*x, dropout_p=0.25)),
    "dropout forgotten": (TEETH, {"dropout_p": 0.25}, formula),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_die(name):
    case, options, mutant = MUTANTS[name]
    answers = []
    for function in (partial(scaled_dot_product_attention, **options), partial(sdpa, **options), mutant):
        torch.manual_seed(0)
        answers.append(function(*case.inputs()))
    ours, peer, wrong = answers
    assert_close(ours, peer, peer)
    assert not numerics.measure(wrong, peer, peer).passed
    # And a bound picked by taste would have let the first three live.
    assert name not in list(MUTANTS)[:3] or (wrong - peer).abs().max() < 1e-2


@pytest.mark.parametrize("dim", [0, 1], ids=["batch", "head"])
def test_batches_and_heads_are_independent(dim, device):
    inputs = Case("many", b=5).inputs(device=device)
    before = scaled_dot_product_attention(*inputs).unbind(dim)
    after = scaled_dot_product_attention(*(changed(x, dim, 1, 2) for x in inputs)).unbind(dim)
    equal = [torch.equal(*pair) for pair in zip(before, after, strict=True)]
    assert equal == [n != 1 for n in range(len(equal))]


# Name: what differs from good input, and the message. The last two are no error in PyTorch.
REFUSED = {
    "rank": ({"query": (2, 3, 5)}, r"query is .* of shape \(2, 3, 5\): b h t d"),
    "integers": ({"query_dtype": torch.int64}, "query is torch.int64 .* floating dtype, is wanted"),
    "key dtype": ({"key_dtype": torch.float64}, "key is torch.float64 .* one floating dtype, is wanted"),
    "key width": ({"key": (2, 3, 7, 13)}, r"key has shape \(2, 3, 7, 13\), .*: \(2, 3, 7, 11\) is wanted"),
    "value length": ({"value": (2, 3, 5, 13)}, r"value has shape .*: \(2, 3, 7, 13\) is wanted"),
    "heads": ({"query": (2, 6, 5, 11)}, "key has 3 heads, query has 6: .* without enable_gqa"),
    "multiple": ({"query": (2, 4, 5, 11), "gqa": True}, "3 heads, query has 4: .* a multiple of key heads"),
    "mask and is_causal": ({"mask": (5, 7), "causal": True}, "attn_mask .*: together with is_causal"),
    "mask of integers": ({"mask": (5, 7), "mask_dtype": torch.int64}, "attn_mask is torch.int64 .*: bool"),
    "mask of rank 1": ({"mask": (7,)}, "attn_mask .* rank 2 to 4"),
    "mask of rank 5": ({"mask": (1, 2, 3, 5, 7)}, "attn_mask .* rank 2 to 4"),
    "mask per batch": ({"mask": (2, 5, 7)}, r"attn_mask .* \(2, 5, 7\): .* fitting \(2, 3, 5, 7\)"),
    "key batch": ({"key": (1, 3, 7, 11)}, r"key has shape \(1, 3, 7, 11\), .*: \(2, 3, 7, 11\) is wanted"),
    "no width": ({"query": (2, 3, 5, 0), "key": (2, 3, 7, 0)}, "query is .* d > 0"),
}
