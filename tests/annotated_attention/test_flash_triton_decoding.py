"""The proof of `flash_triton_decoding`: each test is a claim that its page makes."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests import proof
from tests.annotated_attention.test_flash_details import assert_lse
from tests.proof import Case, apart, assert_close, normal
from torch import Tensor

from annotated_attention.flash import flash_attention
from annotated_attention.flash_triton import has_kernels
from annotated_attention.flash_triton_decoding import (
    decode_plainly,
    decoding_cost,
    flash_decoding_triton,
    number_of_parts,
    paged_attention_triton,
)

# Three drafted tokens, four query heads on two, texts of several lengths: odd, fewer than there are queries, none.
CACHE = Case("cache", b=3, g=2, r=2, t=3, s=53)
LENGTHS = [41, 2, 0]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"scale": -0.3},
    "window": {"window": 20},
    "alibi": {"alibi_slopes": True},
    "sinks": {"sink_logits": True},
    "cap": {"soft_cap": 1.5},
    "all": {"scale": 0.5, "window": 30, "alibi_slopes": True, "sink_logits": True, "soft_cap": 3.0},
}
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
NAMES = ["float32", "float16", "bfloat16", "float64"]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=NAMES)
# Every option in float32, and all at once in every dtype.
CASES = [(DTYPES[0], name) for name in OPTIONS] + [(dtype, "all") for dtype in DTYPES[1:]]


def options(name: str, device: str = "cpu") -> dict[str, Any]:
    """Slopes and sinks are drawn here, one a head."""
    drawn = {"alibi_slopes": normal("slopes", CACHE.h).abs(), "sink_logits": normal("sinks", CACHE.h)}
    return {
        key: drawn[key].to(device, torch.float32) if value is True else value
        for key, value in OPTIONS[name].items()
    }


def plain_decoding(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    *,
    scale: float | None = None,
    window: int | None = None,
    alibi_slopes: Tensor | None = None,
    sink_logits: Tensor | None = None,
    soft_cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The formula, text by text and query by query, over the keys that are seen and no others."""
    wide = torch.promote_types(query.dtype, torch.float32)
    (b, h, t, d), r = query.shape, query.shape[1] // key.shape[1]
    output = query.new_zeros(b, h, t, value.shape[3])
    lse = torch.full((b, h, t), float("-inf"), dtype=wide, device=query.device)
    for text, n in enumerate(lengths):
        for row in range(t):
            i = n - t + row
            first = 0 if window is None else max(i - window + 1, 0)
            k, v = (x[text, :, first : max(i + 1, 0)].to(wide).repeat_interleave(r, 0) for x in (key, value))
            scores = torch.einsum("hd,hsd->hs", query[text, :, row].to(wide), k)
            scores = scores * (d**-0.5 if scale is None else scale)
            if soft_cap is not None:
                scores = soft_cap * torch.tanh(scores / soft_cap)
            if alibi_slopes is not None:
                distance = i - torch.arange(first, max(i + 1, first), device=query.device)
                scores = scores - alibi_slopes.to(wide)[:, None] * distance
            if sink_logits is not None:
                scores = torch.cat([scores, sink_logits.to(wide)[:, None]], 1)
                v = F.pad(v, (0, 0, 0, 1))
            if scores.shape[1]:
                output[text, :, row] = torch.einsum("hs,hse->he", scores.softmax(1), v).to(query.dtype)
                lse[text, :, row] = scores.logsumexp(1)
    return output, lse


def assert_decodes(
    found: tuple[Tensor, Tensor], inputs: Sequence[Tensor], *rest: Any, **settings: Any
) -> None:
    """Within the bound of the plain formula in the same dtype, from that in float64."""
    peer = plain_decoding(*inputs, *rest, **settings)
    exact = plain_decoding(*(x.double() for x in inputs), *rest, **settings)
    assert found[0].dtype == inputs[0].dtype
    assert_close(found[0], peer[0], exact[0])
    assert found[1].dtype == torch.promote_types(inputs[0].dtype, torch.float32)
    assert_lse(found[1], peer[1], exact[1])


@pytest.mark.parametrize(("dtype", "name"), CASES, ids=lambda x: str(x).removeprefix("torch."))
def test_agrees_with_the_plain_formula(dtype: torch.dtype, name: str, device: str) -> None:
    inputs = CACHE.inputs(dtype, device)
    lengths = torch.tensor(LENGTHS, device=device)
    found = flash_decoding_triton(*inputs, lengths=lengths, **options(name, device))
    assert_decodes(found, inputs, LENGTHS, **options(name, device))


@each_dtype
def test_a_step_is_sdpa_over_the_text_so_far(dtype: torch.dtype, device: str) -> None:
    inputs = Case("step", b=2, g=1, r=5, t=1, s=41).inputs(dtype, device)
    lengths = [41, 1]
    output, lse = flash_decoding_triton(*inputs, lengths=torch.tensor(lengths, device=device))
    for text, n in enumerate(lengths):
        query, key, value = (x[text : text + 1] for x in inputs)
        seen = query, key[:, :, :n], value[:, :, :n]
        peer = F.scaled_dot_product_attention(*seen, enable_gqa=True)
        exact = [x.double() for x in flash_attention(*(x.double() for x in seen))]
        assert_close(output[text : text + 1], peer, exact[0])
        assert_close(lse[text : text + 1], flash_attention(*seen)[1], exact[1])


@pytest.mark.parametrize(
    ("dtype", "n_splits"), [(DTYPES[0], 1), (DTYPES[0], 2), (DTYPES[0], 3), (DTYPES[0], 7), (DTYPES[1], 3)]
)
def test_any_number_of_parts_is_one(dtype: torch.dtype, n_splits: int, device: str) -> None:
    case = Case("parts", b=2, g=1, r=3, t=5, s=53 if dtype == torch.float32 else 300)
    inputs, lengths = case.inputs(dtype, device), [case.s, case.s // 2]
    at = torch.tensor(lengths, device=device)
    found = flash_decoding_triton(*inputs, lengths=at, n_splits=n_splits)
    assert_decodes(found, inputs, lengths)
    both = {"window": 40, "sink_logits": normal("sinks", 3, dtype=torch.float32, device=device)}
    found = flash_decoding_triton(*inputs, lengths=at, n_splits=n_splits, **both)
    assert_decodes(found, inputs, lengths, **both)


def test_drafted_tokens_are_steps_taken_at_once(device: str) -> None:
    query, key, value = Case("draft", b=2, g=1, t=4, s=23).inputs(torch.float32, device)
    lengths = torch.tensor([23, 9], device=device)
    found = flash_decoding_triton(query, key, value, lengths=lengths, window=8)
    for i in range(4):
        step = query[:, :, i : i + 1]
        output, lse = flash_decoding_triton(step, key, value, lengths=lengths - 3 + i, window=8)
        exact = plain_decoding(
            step.double(), key.double(), value.double(), (lengths - 3 + i).tolist(), window=8
        )
        assert_close(found[0][:, :, i : i + 1], output, exact[0])
        assert_close(found[1][:, :, i : i + 1], lse, exact[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_what_lies_behind_a_text_moves_nothing(dtype: torch.dtype, device: str) -> None:
    """A key behind a text moves nothing, and a key that only the last query sees moves only that one."""
    query, key, value = CACHE.inputs(dtype, device)
    lengths = torch.tensor(LENGTHS, device=device)
    before = flash_decoding_triton(query, key, value, lengths=lengths)
    changed = [x.clone() for x in (key, value)]
    for x in changed:
        x[:, :, 41:] = float("nan")
        x[1, :, 2:] = float("nan")
        x[0, :, 40] += 1
    after = flash_decoding_triton(query, *changed, lengths=lengths)
    for old, new in zip(before, after, strict=True):
        moved = (old != new).transpose(1, 2).flatten(2).any(2)
        assert moved.tolist() == [[False, False, True], *[[False] * 3] * 2]


def test_strides_may_be_any(device: str) -> None:
    inputs = CACHE.inputs(torch.float32, device)
    lengths = torch.tensor(LENGTHS, dtype=torch.int32, device=device)
    whole = flash_decoding_triton(*inputs, lengths=lengths, **options("all", device))
    spread = {
        name: torch.stack([x, x], 1)[:, 0] if isinstance(x, Tensor) else x
        for name, x in options("all", device).items()
    }
    found = flash_decoding_triton(*map(apart, inputs), lengths=torch.stack([lengths] * 2, 1)[:, 0], **spread)
    assert all(torch.equal(x, y) for x, y in zip(found, whole, strict=True))


@pytest.mark.parametrize("sizes", [{"b": 0}, {"t": 0}, {"s": 0}], ids=["batch", "queries", "keys"])
def test_nothing_to_do(sizes: dict[str, int], device: str) -> None:
    inputs = Case("nothing", **sizes).inputs(torch.float32, device)
    output, lse = flash_decoding_triton(*inputs)
    assert output.shape == (*inputs[0].shape[:3], 13)
    assert lse.shape == inputs[0].shape[:3]
    assert not output.any()
    assert (lse == float("-inf")).all()


# Pages


def in_pages(
    key: Tensor, value: Tensor, lengths: Sequence[int], n: int, *, shared: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The cache cut into pages that lie in any order, with NaN wherever there is no token, and a table that holds
    numbers of no page where no text has come. With `shared`, all texts begin with the first page of text 0."""
    b, s = len(lengths), key.shape[2]
    width = -(-s // n) + 1
    n_pages = sum(-(-m // n) for m in lengths) + 2
    order = torch.randperm(n_pages, generator=torch.Generator().manual_seed(7)).tolist()
    pages = [x.new_full((n_pages, x.shape[1], n, x.shape[3]), float("nan")) for x in (key, value)]
    table = torch.full((b, width), 2**30, dtype=torch.int32)
    table[:, 1::2] = -(2**30)
    for text, m in enumerate(lengths):
        for x in range(-(-m // n)):
            if shared and text and x == 0:
                table[text, 0] = table[0, 0]
                continue
            table[text, x] = page = order.pop()
            for memory, whole in zip(pages, (key, value), strict=True):
                part = whole[text, :, x * n : min(x * n + n, m)]
                memory[page, :, : part.shape[1]] = part
    return *pages, table.to(key.device)


@pytest.mark.parametrize(("dtype", "n"), [*zip(DTYPES, (5, 5, 16, 5), strict=True), (torch.float32, 16)])
def test_pages_are_the_text(dtype: torch.dtype, n: int, device: str) -> None:
    """In any order, and of the table's other entries and the pages' other slots, none is read."""
    query, key, value = CACHE.inputs(dtype, device)
    lengths = torch.tensor(LENGTHS, dtype=torch.int32, device=device)
    found = paged_attention_triton(
        query, *in_pages(key, value, LENGTHS, n), lengths, **options("all", device)
    )
    assert_decodes(found, (query, key, value), LENGTHS, **options("all", device))
    whole = flash_decoding_triton(query, key, value, lengths=lengths, **options("all", device))
    assert all(torch.equal(x, y) for x, y in zip(found, whole, strict=True))


def test_texts_may_share_pages(device: str) -> None:
    query, key, value = Case("shared", b=3, g=1, r=2, t=2, s=40).inputs(torch.float32, device)
    key[:, :, :8], value[:, :, :8] = key[:1, :, :8], value[:1, :, :8]
    lengths = [40, 9, 25]
    *pages, table = in_pages(key, value, lengths, 8, shared=True)
    assert len(table[:, 0].unique()) == 1
    found = paged_attention_triton(query, *pages, table, torch.tensor(lengths, device=device))
    assert_decodes(found, (query, key, value), lengths)


# What it costs


def test_what_splitting_wins_and_costs() -> None:
    """Llama-3-8B in bf16, one text: 32 query heads on 8 of keys, 128 wide, on a device of 132 processors."""
    n = number_of_parts(8, 32768, 64, 132)
    assert (n, 8 * n, 32768 // n) == (32, 256, 1024)
    operations, cache, parts = decoding_cost(1, 8, 4, 1, 32768, 128, 128, n)
    assert operations / cache == 4
    assert decoding_cost(1, 8, 16, 1, 32768, 128, 128, n)[0] / cache == 16
    assert (cache, round(parts / cache, 3)) == (2**27, 0.008)
    assert [number_of_parts(programs, 32768, 64, 132) for programs in (132, 133, 1000)] == [2, 1, 1]
    n = number_of_parts(8, 2048, 64, 132)
    _, cache, parts = decoding_cost(1, 8, 4, 1, 2048, 128, 128, n)
    assert (n, 2048 // n, round(parts / cache, 3)) == (8, 256, 0.031)


def test_parts_fill_the_device_and_are_not_too_short() -> None:
    for programs in (1, 3, 8, 64, 131, 200, 264, 300, 4096):
        for longest in (0, 1, 63, 64, 65, 640, 4000, 32768, 10**6):
            n = number_of_parts(programs, longest, 64, 132)
            tiles = -(-longest // 64)
            part = -(-tiles // n)
            assert n >= 1
            # Every part has work; two programs to a processor at most; four tiles to a part at least.
            assert (n - 1) * part < max(tiles, 1)
            assert n == 1 or (n * programs <= 264 and part >= 4)
            # And no more could be had.
            more = number_of_parts(programs, longest, 64, 10**9)
            assert n == more or (n + 1) * programs > 264 or -(-tiles // (n + 1)) == part or part == 4


# Where there is no kernel


def test_falls_back_without_a_kernel(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, lengths = CACHE.inputs(torch.float32, device), torch.tensor(LENGTHS, device=device)
    assert has_kernels(inputs[0])
    kernel = flash_decoding_triton(*inputs, lengths=lengths, **options("all", device))
    monkeypatch.setattr("annotated_attention.flash_triton_decoding.has_kernels", lambda query: False)
    plain = flash_decoding_triton(*inputs, lengths=lengths, **options("all", device))
    assert not torch.equal(kernel[0], plain[0])
    for found in (kernel, plain):
        assert_decodes(found, inputs, LENGTHS, **options("all", device))


def test_wide_heads_fall_back(device: str) -> None:
    inputs = Case("wide", b=1, g=1, t=1, d=257, e=3).inputs(torch.float32, device)
    found = flash_decoding_triton(*inputs)
    plain = decode_plainly(*inputs, torch.tensor([7], device=device), 257**-0.5, None, None, None, None)
    assert all(torch.equal(x, y) for x, y in zip(found, plain, strict=True))


def test_a_gradient_is_refused() -> None:
    inputs = CACHE.inputs(torch.float32)
    for n, name in enumerate(("query", "key", "value")):
        wanting = [x.clone().requires_grad_(m == n) for m, x in enumerate(inputs)]
        with pytest.raises(ValueError, match=rf"{name} wants a gradient: torch.no_grad\(\) is wanted"):
            flash_decoding_triton(*wanting)
        with torch.no_grad():
            assert not flash_decoding_triton(*wanting)[0].requires_grad
    sinks = torch.zeros(4, requires_grad=True)
    with pytest.raises(ValueError, match="sink_logits wants a gradient"):
        flash_decoding_triton(*inputs, sink_logits=sinks)


def test_wrong_input_is_refused() -> None:
    query, key, value = CACHE.inputs(torch.float32)
    ours, paged = proof.bare(flash_decoding_triton), proof.bare(paged_attention_triton)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"lengths": torch.zeros(2, dtype=torch.int32)}, r"lengths is torch.int32 of shape \(2,\)"),
        ({"lengths": torch.zeros(3)}, "lengths is torch.float32"),
        ({"lengths": torch.tensor([54, 0, 0])}, r"lengths is \[54, 0, 0\]: 0 to 53 are wanted"),
        ({"lengths": torch.tensor([5, -1, 0])}, "0 to 53 are wanted"),
        ({"lengths": torch.zeros(3, dtype=torch.int32, device="meta")}, r"tensors are on \['cpu', 'meta'\]"),
        ({"window": 0}, "window is 0: at least 1 is wanted"),
        ({"n_splits": 0}, "n_splits is 0: at least 1 is wanted"),
        ({"soft_cap": 0.0}, "soft_cap is 0.0"),
        ({"alibi_slopes": torch.zeros(2)}, r"alibi_slopes .*\(2,\)"),
        ({"sink_logits": torch.zeros(4, 1)}, r"sink_logits .*\(4, 1\)"),
    ]
    for settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            ours(query, key, value, **settings)
    with pytest.raises(ValueError, match="key has 2 heads, query has 3"):
        ours(query[:, :3], key, value)
    pages, lengths = in_pages(key, value, LENGTHS, 16), torch.tensor(LENGTHS)
    with pytest.raises(ValueError, match="key has shape"):
        paged(query[..., :7], *pages, lengths)
    with pytest.raises(ValueError, match="as many pages, of at least one token, are wanted"):
        paged(query, pages[0], pages[1][:-1], pages[2], lengths)
    with pytest.raises(ValueError, match=r"block_table is torch.int32 of shape \(2, 5\)"):
        paged(query, *pages[:2], pages[2][:2], lengths)
    for part in (1, 2):
        away = [x.to("meta") if k == part else x for k, x in enumerate(pages)]
        with pytest.raises(ValueError, match=r"tensors are on \['cpu', 'meta'\]: one device is wanted"):
            paged(query, *away, lengths)
    with pytest.raises(ValueError, match="block_table is torch"):
        paged(query, *pages[:2], pages[2].float(), lengths)
    table = pages[2].clone()
    table[0, 2] = 99
    with pytest.raises(ValueError, match=r"block_table has pages \d+ to 99: of 6 pages, 0 to 5 are wanted"):
        paged(query, *pages[:2], table, lengths)
    with pytest.raises(ValueError, match=r"lengths is .*: 0 to 80 are wanted"):
        paged(query, *pages, torch.tensor([81, 0, 0]))
