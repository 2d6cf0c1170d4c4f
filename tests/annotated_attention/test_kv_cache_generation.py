"""The proof of `kv_cache` on whole models: reading in pieces and writing in batches changes nothing."""

import copy
import functools
import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import proof
from tests.proof import Case, assert_close, normal
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from annotated_attention import kv_cache
from annotated_attention.alibi import alibi_slopes
from annotated_attention.kv_cache import (
    KVCache,
    decode_cost,
    generate_batch,
    kv_cache_bytes,
    make_caches,
    prefill,
)
from annotated_attention.language_model import (
    LanguageModel,
    LanguageModelConfig,
    SelfAttention,
    causal_attention,
    causal_mask,
    generate,
)
from annotated_attention.rotary import rotary_attention
from annotated_attention.scaled_dot_product import scaled_dot_product_attention

VOCABULARY, LENGTH, LAYERS, HEADS, WIDTH = 37, 23, 3, 2, 6


def by_position(query: Tensor, key: Tensor, value: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """ALiBi from positions, as texts of different lengths need it."""
    wide = torch.promote_types(query.dtype, torch.float32)
    distance = (i[..., :, None] - j[..., None, :]).to(wide)
    slopes = alibi_slopes(query.shape[1], dtype=wide, device=query.device)
    bias = -slopes[:, None, None] * distance.unsqueeze(-3)
    return scaled_dot_product_attention(query, key, value, bias.masked_fill(~causal_mask(i, j), -torch.inf))


ATTENDS = {"plain": causal_attention, "alibi": by_position, "rotary": partial(rotary_attention, base=100.0)}
each_attend = pytest.mark.parametrize("attend", ATTENDS)


def small_model(attend: str = "plain", dtype: torch.dtype = torch.float64, device: str = "cpu"):
    """Three layers, whose attention is sharp enough to depend on every key."""

    def make(config: LanguageModelConfig, layer: int) -> SelfAttention:
        return SelfAttention(config.d_model, config.n_heads, attend=ATTENDS[attend])

    config = LanguageModelConfig(
        vocab_size=VOCABULARY,
        max_length=2 * LENGTH,
        d_model=HEADS * WIDTH,
        n_layers=LAYERS,
        n_heads=HEADS,
        position_embedding="learned" if attend == "plain" else "none",
        make_attention=make,
    )
    model = LanguageModel(config).double()
    for name, parameter in model.named_parameters():
        spread = 0.1 if parameter.ndim == 1 else 0.5
        parameter.data = normal(name, *parameter.shape) * spread + name.endswith("norm.weight")
    # Tokens of one length: with tied weights a long one would be written again and again.
    model.embedding.weight.data = F.normalize(model.embedding.weight.data)
    return model.to(device, dtype).eval()


def text(n: int, batch: int = 2, device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(proof.SEED + n)
    return torch.randint(VOCABULARY, (batch, n), generator=generator).to(device)


def prompts_of(*lengths: int, device: str = "cpu") -> list[Tensor]:
    return [text(n, 1, device)[0] for n in lengths]


def in_pieces(model: LanguageModel, tokens: Tensor, marks: list[int], caches: list[KVCache]) -> Tensor:
    """The logits of `tokens`, read from one mark to the next."""
    pieces = [model(tokens[:, a:z], caches=caches) for a, z in itertools.pairwise(marks)]
    return torch.cat(pieces, dim=1)


@functools.cache
def read_again(attend: str, n: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """Logits of every position, each from a pass over the text up to it, as lesson 3 does without a cache;
    and all in one pass in float64. Their difference is what another order of addition costs."""
    model, tokens = small_model(attend, dtype, device), text(n, device=device)
    again = torch.cat([model(tokens[:, : i + 1])[:, -1:] for i in range(n)], dim=1)
    return again, model.double()(tokens)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@each_attend
@proof.each_dtype
def test_equals_the_full_forward_pass(attend: str, dtype: torch.dtype, device: str) -> None:
    model, tokens = small_model(attend, dtype, device), text(LENGTH, device=device)
    one_by_one = in_pieces(model, tokens, list(range(LENGTH + 1)), make_caches(model, LENGTH))
    again, exact = read_again(attend, LENGTH, dtype, device)
    # In float64 the whole pass is the oracle, and cannot be the peer too.
    assert_close(one_by_one, again if dtype == torch.float64 else model(tokens), exact)


@each_attend
@settings(max_examples=8)
@given(cuts=st.sets(st.integers(1, LENGTH - 1)))
def test_cuts_are_invisible(attend: str, cuts: set[int], device: str) -> None:
    model, tokens = small_model(attend, device=device), text(LENGTH, device=device)
    pieces = in_pieces(model, tokens, [0, *sorted(cuts), LENGTH], make_caches(model, LENGTH))
    assert_close(pieces, *read_again(attend, LENGTH, torch.float64, device))


def keys_of(model: LanguageModel, tokens: Tensor) -> list[Tensor]:
    """The keys of each layer after the whole text was read."""
    caches = make_caches(model, tokens.shape[1])
    model(tokens, caches=caches)
    return [cache.keys for cache in caches]


@each_attend
@pytest.mark.parametrize("dtype", proof.DTYPES[:2], ids=["float64", "float32"])
def test_the_past_never_changes(attend: str, dtype: torch.dtype, device: str) -> None:
    model, tokens = small_model(attend, dtype, device), text(LENGTH, device=device)
    wide = copy.deepcopy(model).double()
    runs = [keys_of(model, tokens), keys_of(model, tokens[:, :11]), keys_of(wide, tokens[:, :11])]
    for later, before, exact in zip(*runs, strict=True):
        assert_close(later[:, :, :11], before, exact)


def test_without_causality_the_past_changes(device: str, monkeypatch) -> None:
    def attend_to_all(query, key, value, i, j):
        return scaled_dot_product_attention(query, key, value)

    monkeypatch.setitem(ATTENDS, "plain", attend_to_all)
    model, tokens = small_model(device=device), text(LENGTH, device=device)
    pairs = list(zip(keys_of(model, tokens), keys_of(model, tokens[:, :11]), strict=True))
    moved = [(later[:, :, :11] - before).abs().amax((0, 1, 3)) for later, before in pairs]
    assert moved[0].max() < 1e-12
    assert all(layer.min() > 1e-4 for layer in moved[1:])


def test_an_edit_spoils_what_follows(device: str) -> None:
    model, tokens = small_model(device=device), text(LENGTH, device=device)
    edited = tokens.clone()
    edited[:, 11] = (edited[:, 11] + 1) % VOCABULARY
    pairs = zip(keys_of(model, tokens), keys_of(model, edited), strict=True)
    for layer, (before, after) in enumerate(pairs):
        moved = (before - after).abs().amax((0, 1, 3)) > 1e-9
        wrong = range(11, LENGTH) if layer else [11]
        assert moved.nonzero()[:, 0].tolist() == list(wrong)


def test_what_is_forgotten_leaves_no_trace(device: str) -> None:
    model, tokens = small_model(device=device), text(LENGTH, device=device)
    never, drafted = make_caches(model, 2 * LENGTH), make_caches(model, 2 * LENGTH)
    in_pieces(model, tokens, [0, 11], never)
    in_pieces(model, tokens, [0, 11, 17], drafted)
    for cache in drafted:
        junk = torch.full_like(cache.keys[:, :, :3], float("nan"))
        cache.update(junk, junk)
        cache.truncate([11, 11])
    for ours, theirs in zip(drafted, never, strict=True):
        assert torch.equal(ours.keys[:, :, 11:], theirs.keys[:, :, 11:])
        assert torch.equal(ours.values[:, :, 11:], theirs.values[:, :, 11:])
        assert torch.equal(ours.positions, theirs.positions)
    again, exact = read_again("plain", LENGTH, torch.float64, device)
    assert_close(in_pieces(model, tokens, [11, LENGTH], drafted), again[:, 11:], exact[:, 11:])


def test_a_row_can_be_given_to_another_text(device: str) -> None:
    model = small_model(device=device)
    old, new, other = prompts_of(13, 9, LENGTH, device=device)
    caches = make_caches(model, LENGTH)
    prefill(model, [old, other[:7]], caches)
    # A text that failed must not spoil the one that comes after it.
    for cache in caches:
        cache.values[0, :, 12] = float("nan")
        cache.truncate([0, 7])
    logits = model(torch.stack([new, other[7:16]]), caches=caches)
    for row, n, seen in ((0, 9, slice(9)), (1, LENGTH, slice(7, 16))):
        again, exact = (x[0, seen] for x in read_again("plain", n, torch.float64, device))
        assert_close(logits[row], again, exact)


@pytest.mark.parametrize("dtype", proof.DTYPES, ids=lambda dtype: str(dtype)[6:])
def test_bytes_are_as_predicted(dtype: torch.dtype, device: str) -> None:
    model, prompts = small_model(dtype=dtype, device=device), prompts_of(5, 11, 7, device=device)
    caches = make_caches(model, 17)
    prefill(model, prompts, caches)
    measured = sum(x.untyped_storage().nbytes() for cache in caches for x in (cache.keys, cache.values))
    assert measured == sum(cache.nbytes for cache in caches)
    assert measured == kv_cache_bytes(LAYERS, HEADS, WIDTH, 17, batch=3, dtype=dtype)
    wider = KVCache(17)
    wider.update(*(x.to(dtype) for x in Case("t=s").inputs(device=device)[1:]))
    assert wider.nbytes == kv_cache_bytes(1, 3, 11, 17, batch=2, dtype=dtype, e=13)


@each_attend
@settings(max_examples=8)
@given(chunk_size=st.integers(1, LENGTH + 2))
def test_chunk_size_is_irrelevant(attend: str, chunk_size: int, device: str) -> None:
    model, lengths = small_model(attend, device=device), (5, LENGTH, 9)
    caches = make_caches(model, LENGTH)
    logits = prefill(model, prompts_of(*lengths, device=device), caches, chunk_size=chunk_size)
    for row, n in enumerate(lengths):
        assert_close(logits[row], *(x[0, -1] for x in read_again(attend, n, torch.float64, device)))
    assert caches[-1].lengths.tolist() == list(lengths)


def test_a_conversation_goes_on(device: str) -> None:
    model, texts = small_model(device=device), prompts_of(LENGTH, 15, device=device)
    caches = make_caches(model, LENGTH)
    for a, z in (([0, 0], [3, 7]), ([3, 7], [11, 8]), ([11, 8], [LENGTH, 15])):
        turn = [line[a[row] : z[row]] for row, line in enumerate(texts)]
        logits = prefill(model, turn, caches, chunk_size=5)
        for row, (line, end) in enumerate(zip(texts, z, strict=True)):
            again, exact = read_again("plain", len(line), torch.float64, device)
            assert_close(logits[row], again[0, end - 1], exact[0, end - 1])


def test_padding_takes_places(device: str) -> None:
    model, (short, long) = small_model(device=device), prompts_of(5, 15, device=device)
    caches = make_caches(model, LENGTH)
    prefill(model, [short, long], caches)
    with pytest.raises(ValueError, match="holds 15 of 23 tokens, 15 more came"):
        prefill(model, [long, short], caches)
    # Emptied, they take another number of texts.
    caches = make_caches(model, LENGTH)
    prefill(model, [short, long], caches)
    for cache in caches:
        cache.truncate([0, 0])
    logits = prefill(model, [long], caches)
    assert_close(logits, prefill(model, [long], make_caches(model, 15)), model(long[None])[:, -1])
    assert caches[0].lengths.tolist() == [15]


@each_attend
def test_a_batch_equals_each_text_alone(attend: str, device: str) -> None:
    model, prompts = small_model(attend, device=device), prompts_of(5, 11, 7, device=device)
    together = generate_batch(model, prompts, 9, temperature=0.0, chunk_size=4)
    for prompt, written in zip(prompts, together, strict=True):
        alone = generate(model, prompt[None], 9, temperature=0.0)
        cached = generate(model, prompt[None], 9, temperature=0.0, caches=make_caches(model, 19))
        assert torch.equal(written, alone[0])
        assert torch.equal(cached, alone)
        assert len(set(written[-9:].tolist())) > 1, "a text that repeats itself proves little"
    assert all(map(torch.equal, generate_batch(model, prompts, 0), prompts))


def test_the_last_token_needs_no_slot(device: str, monkeypatch) -> None:
    model, made = small_model(device=device), []
    monkeypatch.setattr(kv_cache, "make_caches", lambda *asked: made.extend(make_caches(*asked)) or made)
    generate_batch(model, prompts_of(5, 11, 7, device=device), 9)
    assert {(cache.longest, cache.capacity) for cache in made} == {(19, 19)}


def test_generation_is_sampled_as_asked(device: str) -> None:
    model, (prompt,) = small_model(device=device), prompts_of(5, device=device)
    how = {"temperature": 1.3, "top_p": 0.8}
    seeded = [torch.Generator(device).manual_seed(3) for _ in range(2)]
    (written,) = generate_batch(model, [prompt], 17, **how, generator=seeded[0])
    assert torch.equal(written, generate(model, prompt[None], 17, **how, generator=seeded[1])[0])


def counted(model: LanguageModel, *arguments, **options) -> int:
    with FlopCounterMode(display=False) as counter:
        model(*arguments, **options)
    return counter.get_total_flops()


@pytest.mark.parametrize("batch", [1, 3])
def test_decode_cost_counts_the_products(batch: int, device: str) -> None:
    model, tokens = small_model("alibi", device=device), text(LENGTH, batch, device)
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    caches = make_caches(model, LENGTH)
    model(tokens[:, :-1], caches=caches)
    operations, read = decode_cost(matrices, LAYERS, HEADS, WIDTH, LENGTH, batch=batch, dtype=torch.float64)
    assert operations == counted(model, tokens[:, -1:], caches=caches)
    assert LENGTH * operations == counted(model, tokens)
    assert read == 8 * matrices + sum(cache.nbytes for cache in caches)


def test_prompts_that_cannot_be_read_are_refused(device: str) -> None:
    model, (prompt,) = small_model(device=device), prompts_of(3, device=device)
    for prompts, chunk_size in (([], None), ([prompt, prompt[:0]], 2), ([prompt], 0)):
        with pytest.raises(ValueError, match=f"prompts have .*, chunk_size is {chunk_size or 0}: at least 1"):
            prefill(model, prompts, make_caches(model, 8), chunk_size=chunk_size)
        with pytest.raises(ValueError, match="prompts have"):
            generate_batch(model, prompts, 5, chunk_size=chunk_size)


def test_dropout_never_enters_the_cache(device: str) -> None:
    model, prompts = small_model(device=device), prompts_of(5, 9, device=device)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    before = generate_batch(model, prompts, 7, temperature=0.0)
    written = generate_batch(model.train(), prompts, 7, temperature=0.0)
    assert model.training
    assert all(map(torch.equal, written, before))
    with pytest.raises(ValueError, match="cache holds 0 of 8"):
        prefill(model, prompts, make_caches(model, 8))
    assert model.training


def test_bytes_of_text_stay_bytes(device: str) -> None:
    model, prompts = small_model(device=device), prompts_of(5, 9, device=device)
    written = generate_batch(model, [prompt.to(torch.uint8) for prompt in prompts], 3, temperature=0.0)
    assert {line.dtype for line in written} == {torch.uint8}
    pairs = zip(written, generate_batch(model, prompts, 3, temperature=0.0), strict=True)
    assert all(torch.equal(narrow.long(), wide) for narrow, wide in pairs)
