"""The proof of `language_model_slot`: each test is a claim that its page makes."""

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import proof
from tests.proof import Case, assert_agrees, assert_close, changed, normal, plain_attention
from torch import Tensor, nn

from annotated_attention.alibi import alibi_attention
from annotated_attention.kv_cache import KVCache
from annotated_attention.language_model import LanguageModel, LanguageModelConfig
from annotated_attention.language_model_slot import (
    Cache,
    SelfAttention,
    causal_attention,
    causal_mask,
    placed,
)
from annotated_attention.multi_head import MultiHeadAttention
from annotated_attention.scaled_dot_product import scaled_dot_product_attention

B, T, M, H = 2, 11, 21, 3


class Memory:
    """Keeps every key, hands them out in an order drawn anew each time, and gives row `b` its positions from
    `-padding[b]` on."""

    def __init__(self, padding: tuple[int, ...] = (0,)) -> None:
        self.held: tuple[Tensor, ...] = ()
        self.padding = torch.tensor(padding)
        self.order = torch.arange(0)

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        new = (key, value)
        self.held = tuple(torch.cat(x, 2) for x in zip(self.held, new, strict=True)) if self.held else new
        s = self.held[0].shape[2]
        self.order = torch.randperm(s, generator=torch.Generator().manual_seed(s))
        return self.held[0][:, :, self.order], self.held[1][:, :, self.order]

    @property
    def positions(self) -> Tensor:
        device = self.held[0].device if self.held else "cpu"
        positions = self.order - self.padding[:, None]
        return (positions if len(self.padding) > 1 else positions[0]).to(device)

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in self.held)


class Ring(Memory):
    """The last `window` keys, each in the place of the one that it pushed out."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window, self.seen = window, 0

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if not self.held:
            shape = (*key.shape[:2], self.window)
            self.held = (key.new_zeros(*shape, key.shape[3]), key.new_zeros(*shape, value.shape[3]))
            self.order = torch.full((self.window,), -1)
        for memory, new in zip(self.held, (key, value), strict=True):
            memory[:, :, self.seen % self.window] = new[:, :, 0]
        self.order[self.seen % self.window] = self.seen
        self.seen += 1
        return self.held[0], self.held[1]


class RingOfPieces(Memory):
    """Forgets what is out of every window when the next piece comes: until then its queries may need it."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window, self.seen = window, 0

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        old = [x[:, :, max(0, x.shape[2] - self.window + 1) :] for x in self.held or (key[:, :, :0],) * 2]
        self.held = tuple(torch.cat(pair, 2) for pair in zip(old, (key, value), strict=True))
        self.seen += key.shape[2]
        self.order = torch.arange(self.seen - self.held[0].shape[2], self.seen)
        return self.held[0], self.held[1]


class Renumbered(Memory):
    """The first key and the last three, counted from 0 as if they were a text."""

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        super().update(key, value)
        self.held = tuple(torch.cat([x[:, :, :1], x[:, :, 1:][:, :, -3:]], 2) for x in self.held)
        self.order = torch.arange(self.held[0].shape[2])
        return self.held[0], self.held[1]


def by_distance(query: Tensor, key: Tensor, value: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """An attention that depends on where everything stands, and not on its order in memory."""
    distance = (i[..., :, None] - j[..., None, :]).to(query.dtype)
    bias = (-0.3 * distance)[..., None, :, :].masked_fill(~causal_mask(i, j), -torch.inf)
    return plain_attention(query, key, value, bias)


def layer(attend=by_distance, dtype: torch.dtype = torch.float64, device: str = "cpu") -> SelfAttention:
    torch.manual_seed(proof.SEED)
    return SelfAttention(M, H, attend=attend).to(device, dtype)


def test_mask_is_by_position() -> None:
    i, j = torch.tensor([[3, 0], [5, -1]]), torch.tensor([4, -2, 0, 3])
    expected = [[[0 <= k <= q for k in j.tolist()] for q in row] for row in i.tolist()]
    assert torch.equal(causal_mask(i, j), torch.tensor(expected)[:, None])
    assert torch.equal(causal_mask(i[0], j), torch.tensor(expected[0]))
    assert causal_mask(i[0], j.expand(5, 4)).shape == (5, 1, 2, 4)
    assert torch.equal(causal_mask(torch.arange(7), torch.arange(5)), proof.causal(7, 5))


def test_order_in_memory_does_not_matter(device: str) -> None:
    query, key, value = Case("text", t=7, s=7).inputs(device=device)
    i, order = torch.arange(7, device=device), torch.tensor([3, 0, 6, 1, 5, 2, 4], device=device)
    exact = plain_attention(query, key, value, proof.causal(7, 7, device))
    shuffled = causal_attention(query, key[:, :, order], value[:, :, order], i, order)
    assert_close(shuffled, exact, exact)


@proof.each_dtype
def test_padding_sees_nothing_and_moves_nothing(dtype: torch.dtype, device: str) -> None:
    inputs = [x.requires_grad_() for x in Case("text", t=7, s=7).inputs(dtype, device)]
    position = torch.arange(7, device=device) - torch.tensor([[0], [3]], device=device)
    output = causal_attention(*inputs, position, position)
    gradients = torch.autograd.grad(output.sum(), inputs)
    assert (output[1, :, :3] == 0).all()
    assert all(x.isfinite().all() for x in (output, *gradients))
    assert all((x[1, :, :3] == 0).all() for x in gradients)
    query, key, value = (x.detach() for x in inputs)
    key[1, :, :3] += 1
    assert torch.equal(causal_attention(query, key, value, position, position), output)


@proof.each_case
@proof.each_dtype
def test_lesson_1_fits_and_agrees(case: Case, dtype: torch.dtype, device: str) -> None:
    i, j = torch.arange(case.t, device=device) + max(case.s - case.t, 0), torch.arange(case.s, device=device)

    def lesson_1(query: Tensor, key: Tensor, value: Tensor, i=i, j=j) -> Tensor:
        return scaled_dot_product_attention(query, key, value, causal_mask(i, j))

    def filling(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return causal_attention(query, key, value, i, j)

    def formula(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return plain_attention(query, key, value, causal_mask(i, j))

    assert_agrees(filling, lesson_1, case.inputs(dtype, device), oracle=formula)
    x = normal("x", B, T, M, device=device)
    exact = layer(causal_attention, device=device)(x)
    assert_close(layer(lesson_1_of_the_slot, device=device)(x), exact, exact)


def lesson_1_of_the_slot(query: Tensor, key: Tensor, value: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return scaled_dot_product_attention(query, key, value, causal_mask(i, j))


def test_alibi_fits(device: str) -> None:
    def alibi(query: Tensor, key: Tensor, value: Tensor, i: Tensor, j: Tensor) -> Tensor:
        first = int(i[..., 0].unique())
        return alibi_attention(query, key, value, offset=first)

    attention, x = layer(alibi, device=device), normal("x", B, T, M, device=device)
    whole = attention(x)
    # The keys of this memory come in the order of the text, as `alibi_attention` expects them.
    cache = Renumbered()
    pieces = [attention(x[:, n : n + 1], cache=cache) for n in range(4)]
    assert_close(torch.cat(pieces, 1), whole[:, :4], whole[:, :4])
    # Lesson 7's has positions for each row, and these may differ: that is refused, not guessed.
    cache = KVCache(T)
    with torch.no_grad():
        pieces = [attention(x[:, a:z], cache=cache) for a, z in ((0, 6), (6, 7), (7, T))]
        assert_close(torch.cat(pieces, 1), whole, whole)
        cache.truncate([3, 5])
        with pytest.raises((ValueError, RuntimeError)):
            attention(x[:, :2], cache=cache)
    assert (whole - layer(causal_attention, device=device)(x)).abs().max() > 0.01


class Wrapped(nn.Module):
    """Lesson 2's layer under the slot's custom."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = MultiHeadAttention(M, H)

    def forward(self, x: Tensor, *, positions: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        return self.inner(x, x, x, is_causal=True)[0]


class Gate(nn.Module):
    """An `attend` that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.ones(H))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return self.gate[:, None, None] * causal_attention(query, key, value, i, j)


def test_attend_may_have_parameters() -> None:
    attention = SelfAttention(M, H, attend=Gate())
    attention(normal("x", B, T, M, dtype=torch.float32)).sum().backward()
    assert "attend.gate" in dict(attention.named_parameters())
    assert attention.attend.gate.grad.abs().min() > 0


def test_every_layer_may_have_an_attention_of_its_own(device: str) -> None:
    choices = [Wrapped, lambda: SelfAttention(M, H), lambda: SelfAttention(M, H, attend=by_distance)]
    config = LanguageModelConfig(
        vocab_size=17,
        d_model=M,
        n_heads=H,
        n_layers=3,
        make_attention=lambda config, layer: choices[layer](),
    )
    torch.manual_seed(0)
    model = LanguageModel(config).to(device)
    tokens = torch.randint(17, (B, T), device=device)
    logits = model(tokens)
    tokens[:, 6] = (tokens[:, 6] + 1) % 17
    assert (logits != model(tokens)).any(-1).any(0).tolist() == [n >= 6 for n in range(T)]
    assert isinstance(model.blocks[0].attention, Wrapped)


@pytest.mark.parametrize("dtype", proof.DTYPES[:3], ids=["float64", "float32", "bfloat16"])
@given(cuts=st.sets(st.integers(1, T - 1)))
def test_reading_in_pieces_is_reading_at_once(dtype: torch.dtype, cuts: set[int], device: str) -> None:
    attention, x = layer(dtype=dtype, device=device), normal("x", B, T, M, dtype=dtype, device=device)
    cache = Memory()
    assert isinstance(cache, Cache)
    pieces = [attention(x[:, a:z], cache=cache) for a, z in itertools.pairwise([0, *sorted(cuts), T])]
    exact = copy.deepcopy(attention).double()(x.double())
    assert_close(torch.cat(pieces, 1), attention(x), exact)


def test_rows_of_different_lengths(device: str) -> None:
    attention, x = layer(device=device), normal("x", B, T, M, device=device)
    cache = Memory(padding=(4, 1))
    read = torch.cat([attention(x[:, a:z], cache=cache) for a, z in ((0, 6), (6, 7), (7, T))], 1)
    for row, padding in enumerate((4, 1)):
        alone = attention(x[row : row + 1, padding:])
        assert_close(read[row : row + 1, padding:], alone, alone)
        assert (read[row, :padding] == 0).all()


def test_a_ring_is_a_window(device: str) -> None:
    attention, x = layer(device=device), normal("x", B, T, M, device=device)
    cache = Ring(4)
    read = torch.cat([attention(x[:, n : n + 1], cache=cache) for n in range(T)], 1)
    for n in range(T):
        first = max(0, n - 3)
        alone = attention(x[:, first : n + 1])[:, -1:]
        assert_close(read[:, n : n + 1], alone, alone)


@given(cuts=st.sets(st.integers(1, T - 1)))
def test_a_ring_reads_in_pieces(cuts: set[int], device: str) -> None:
    def window(query: Tensor, key: Tensor, value: Tensor, i: Tensor, j: Tensor) -> Tensor:
        seen = causal_mask(i, j) & (i[..., :, None] - j[..., None, :] < 4)
        return plain_attention(query, key, value, seen)

    attention, x = layer(window, device=device), normal("x", B, T, M, device=device)
    cache, marks = RingOfPieces(4), itertools.pairwise([0, *sorted(cuts), T])
    whole = attention(x)
    read, sizes = [], []
    for a, z in marks:
        read.append(attention(x[:, a:z], cache=cache))
        sizes.append(cache.positions.numel() - (z - a))
    assert_close(torch.cat(read, 1), whole, whole)
    assert max(sizes) <= 3


def test_a_window_counted_anew(device: str) -> None:
    attention, x = layer(device=device), normal("x", B, T, M, device=device)
    cache = Renumbered()
    read = torch.cat([attention(x[:, n : n + 1], cache=cache) for n in range(T)], 1)
    for n in range(T):
        kept = [0, *range(max(1, n - 2), n + 1)] if n else [0]
        alone = attention(x[:, kept])[:, -1:]
        assert_close(read[:, n : n + 1], alone, alone)


def test_positions_that_are_given_are_used(device: str) -> None:
    attention, x = layer(device=device), normal("x", B, T, M, device=device)
    far = torch.arange(T, device=device) * 2
    assert (attention(x, positions=far) - attention(x)).abs().max() > 0.01
    cache = Memory()
    attention(x, cache=cache)
    key = normal("key", B, H, 1, 7, device=device)
    i, j, keys, values = placed(key, key, far[-1:], cache)
    assert i.tolist() == [20]
    assert j.sort().values.tolist() == list(range(T + 1))
    assert keys.shape == values.shape == (B, H, T + 1, 7)


def test_texts_do_not_meet(device: str) -> None:
    attention, x = layer(causal_attention, device=device), normal("x", B, T, M, device=device)
    moved = (attention(x) != attention(changed(x, 0, 1))).flatten(1).any(1)
    assert moved.tolist() == [False, True]


def test_wrong_widths_are_refused() -> None:
    for d_model, n_heads in ((21, 2), (21, 0), (0, 1)):
        with pytest.raises(ValueError, match=f"d_model is {d_model}, n_heads is {n_heads}"):
            SelfAttention(d_model, n_heads)
