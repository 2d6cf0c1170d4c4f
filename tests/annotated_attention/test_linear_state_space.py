"""The proof of `linear_state_space`: each test is a claim that its page makes."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from tests import proof
from tests.proof import assert_agrees, assert_close, causal, changed, normal
from torch import Tensor

from annotated_attention.kv_cache import kv_cache_bytes
from annotated_attention.linear_decay import decayed_linear_attention
from annotated_attention.linear_state_space import (
    Mamba2Layer,
    selective_scan,
    state_bytes,
    state_space_attention,
    state_space_matrix,
    zero_order_hold,
)

b, g, r, t, d, e = 2, 3, 2, 7, 5, 11
NAMES = ("x", "dt", "A", "B", "C", "D")


def inputs_of(
    dtype: torch.dtype = torch.float64, device: str = "cpu", *, t: int = t, d: int = d, g: int = g, b: int = b
) -> list[Tensor]:
    """Six heads in groups of two, with steps and rates of their own."""
    shapes = (b, g * r, t, e), (b, g * r, t), (g * r,), (b, g, t, d), (b, g, t, d), (g * r,)
    x, dt, A, B, C, D = (
        normal(name, *shape, device=device) for name, shape in zip(NAMES, shapes, strict=True)
    )
    return [y.to(dtype) for y in (x, F.softplus(dt), -A.abs() - 0.1, B, C, D)]


def by_recurrence(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None) -> Tensor:
    """State by state, as in the first formula of the page with a hold in which the gain is the step."""
    wide = torch.promote_types(x.dtype, torch.float32)
    dtype, groups = x.dtype, x.shape[1] // B.shape[1]
    x, dt, A, B, C = (y.to(wide) for y in (x, dt, A, B, C))
    B, C = B.repeat_interleave(groups, 1), C.repeat_interleave(groups, 1)
    state, outputs = x.new_zeros(*x.shape[:2], B.shape[3], x.shape[3]), []
    for i in range(x.shape[2]):
        step = dt[:, :, i, None, None]
        state = (step * A[:, None, None]).exp() * state + step * B[:, :, i, :, None] * x[:, :, i, None]
        outputs.append((C[:, :, i, None] @ state)[:, :, 0])
    y = torch.stack(outputs, 2)
    return (y if D is None else y + D.to(wide)[:, None, None] * x).to(dtype)


def by_matrix(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    return state_space_matrix(dt, A, B, C) @ x + D[:, None, None] * x


@proof.each_dtype
@pytest.mark.parametrize("chunk_size", [3, 64])
def test_agrees_with_the_recurrence_and_the_matrix(dtype: torch.dtype, chunk_size: int, device: str) -> None:
    inputs = inputs_of(dtype, device)
    ours = partial(state_space_attention, chunk_size=chunk_size)
    assert_agrees(ours, by_recurrence, inputs, names=NAMES)
    assert_agrees(ours, by_recurrence, inputs[:5], names=NAMES[:5])
    if dtype == torch.float64:
        assert_agrees(ours, by_matrix, inputs, names=NAMES)
    empty = inputs_of(dtype, device, b=0)
    assert ours(*empty).shape == (0, g * r, t, e)


def test_gradcheck() -> None:
    inputs = inputs_of(t=3, d=2, g=1, b=1)
    proof.assert_gradcheck(partial(state_space_attention, chunk_size=2), inputs)


def test_one_rate_makes_it_attention(device: str) -> None:
    x, dt, A, B, C, _ = inputs_of(device=device)
    scanned = selective_scan(x, dt, A[:, None].expand(-1, d), B, C)
    exact = state_space_attention(x, dt, A, B, C)
    assert_close(scanned, exact, exact)
    # With two rates there is no one matrix of decays.
    two = selective_scan(x, dt, A[:, None] * torch.arange(1, d + 1, device=device), B, C)
    assert (two - exact).abs().max() > 0.1
    # Each coordinate for itself is attention of width 1, so Mamba is the sum of d of these.
    coordinates = (
        state_space_attention(x, dt, A * (n + 1), B[..., n, None], C[..., n, None]) for n in range(d)
    )
    exact = torch.stack(list(coordinates)).sum(0)
    assert_close(two, exact, exact)


def test_the_hold_is_exact(device: str) -> None:
    """Against the matrix exponential of the state and its constant input as one system."""
    dt = torch.tensor([1e-8, 1e-3, 0.3, 5.0], dtype=torch.float64, device=device)
    A = torch.tensor([-2.0, -0.7, -1.3, -3.0], dtype=torch.float64, device=device)
    held = (y.flatten() for y in zero_order_hold(dt[None, :, None], A))
    for step, rate, log_decay, gain in zip(dt, A, *held, strict=True):
        system = torch.zeros(2, 2, dtype=torch.float64, device=device)
        system[0, 0], system[0, 1] = rate, 1
        flow = torch.linalg.matrix_exp(step * system)
        assert log_decay.exp().item() == pytest.approx(flow[0, 0].item(), rel=1e-12)
        assert gain.item() == pytest.approx(flow[0, 1].item(), rel=1e-12)


def test_a_small_step_is_its_gain() -> None:
    dt, A = torch.tensor([[[1e-3, 1e-5]]], dtype=torch.float64), torch.tensor([-4.0])
    _, gain = zero_order_hold(dt, A.double())
    assert ((gain / dt - 1) + 2 * dt).abs().max() < 1e-5
    # In float32, 1 - exp would have lost it.
    _, gain = zero_order_hold(dt.float() * 1e-4, A)
    assert (gain / dt / 1e-4 - 1).abs().max() < 1e-6


def test_the_hold_is_a_gate() -> None:
    dt, A = normal("dt", 1, 1, 100).exp(), torch.tensor([-1.0], dtype=torch.float64)
    log_decay, gain = zero_order_hold(dt, A)
    forget = log_decay.exp()
    assert_close(gain, 1 - forget, 1 - forget)
    # With a softplus before it, f is a sigmoid.
    z = normal("z", 1, 1, 100)
    log_decay, _ = zero_order_hold(F.softplus(z), A)
    exact = torch.sigmoid(-z)
    assert_close(log_decay.exp(), exact, exact)


def test_constants_make_a_convolution(device: str) -> None:
    x, *_ = inputs_of(device=device)
    step, rate = 0.3, -0.8
    B, C = (normal(name, 1, 1, 1, d, device=device).expand(b, 1, t, d) for name in "BC")
    dt = torch.full((b, g * r, t), step, dtype=torch.float64, device=device)
    A = torch.full((g * r,), rate, dtype=torch.float64, device=device)
    ours = state_space_attention(x, dt, A, B, C)
    kernel = step * (C[0, 0, 0] @ B[0, 0, 0]) * (step * rate * torch.arange(t, device=device).double()).exp()
    signal = F.pad(x.mT.reshape(-1, 1, t), (t - 1, 0))
    exact = F.conv1d(signal, kernel.flip(0)[None, None]).view(b, g * r, e, t).mT
    assert_close(ours, exact, exact)


def blocks(matrix: Tensor) -> list[int]:
    """The rank of each block below the diagonal that reaches the corner."""
    size = matrix.shape[-1]
    return [int(torch.linalg.matrix_rank(matrix[n:, :n], rtol=1e-12)) for n in range(1, size)]


def test_blocks_have_the_rank_of_the_state() -> None:
    size, width = 24, 5
    dt, A = torch.full((1, 1, size), 0.1, dtype=torch.float64), torch.tensor([-1.0], dtype=torch.float64)
    B, C = normal("B", 1, 1, size, width), normal("C", 1, 1, size, width)
    matrix = state_space_matrix(dt, A, B, C)[0, 0]
    assert blocks(matrix) == [min(n, size - n, width) for n in range(1, size)]
    assert torch.linalg.matrix_rank(matrix) == size


def test_a_softmax_has_full_rank() -> None:
    size, width = 24, 5
    B, C = normal("B", size, width), normal("C", size, width)
    scores = (C @ B.mT).masked_fill(~causal(size, size), -torch.inf)
    assert blocks(scores.softmax(-1)) == [min(n, size - n) for n in range(1, size)]


def test_chunks_are_blocks_of_the_matrix(device: str) -> None:
    """The three factors of a block: what is read, what fades on the way, what is left at the border."""
    x, dt, A, B, C, _ = inputs_of(device=device, t=12)
    matrix = state_space_matrix(dt, A, B, C)
    logs, u = dt * A[:, None], 3
    B, C = (y.repeat_interleave(r, 1) for y in (B, C))
    for m in range(0, 12, u):
        for n in range(0, m, u):
            since = logs[:, :, m : m + u].cumsum(-1)
            until = logs[:, :, n + 1 : n + u].flip(-1).cumsum(-1).flip(-1)
            until = F.pad(until, (0, 1)).exp() * dt[:, :, n : n + u]
            between = logs[:, :, n + u : m].sum(-1).exp()
            read, left = since.exp()[..., None] * C[:, :, m : m + u], until[..., None] * B[:, :, n : n + u]
            exact = between[..., None, None] * read @ left.mT
            assert_close(matrix[:, :, m : m + u, n : n + u], exact, exact)
    exact = matrix @ x
    value = dt[..., None] * x
    assert_close(decayed_linear_attention(C, B, value, logs, chunk_size=u), exact, exact)


def test_nothing_fades_is_the_causal_mask() -> None:
    _, dt, A, B, C, _ = inputs_of()
    matrix = state_space_matrix(torch.ones_like(dt), 0 * A, B, C)
    exact = (C @ B.mT).tril().repeat_interleave(r, 1)
    assert_close(matrix, exact, exact)


def test_future_and_neighbours_move_nothing(device: str) -> None:
    x, dt, A, B, C, D = inputs_of(torch.float32, device)
    before = state_space_attention(x, dt, A, B, C, D, chunk_size=2)
    later = (changed(y, 2, 4) for y in (x, dt))
    read = (changed(y, 2, 4) for y in (B, C))
    after = state_space_attention(*later, A, *read, D, chunk_size=2)
    assert (before != after).any(-1).any(0).any(0).tolist() == [i >= 4 for i in range(t)]
    after = state_space_attention(x, dt, A, changed(B, 1, 1, 2), C, D, chunk_size=2)
    assert (before != after).flatten(2).any(-1).any(0).tolist() == [h // r == 1 for h in range(g * r)]


def test_a_state_that_fades_cannot_flip() -> None:
    """Parity asks for a factor of -1 at each 1. With rates below 0 a factor lies between 0 and 1."""
    log_decay, _ = zero_order_hold(F.softplus(normal("dt", 1, 100, 50)), -normal("A", 100).exp())
    factor = log_decay.exp()
    assert ((factor > 0) & (factor < 1)).all()


def test_bytes_of_a_state() -> None:
    config = pytest.importorskip("transformers").Mamba2Config()
    sizes = config.num_hidden_layers, config.num_heads, config.state_size, config.head_dim
    assert sizes == (64, 128, 128, 64)
    assert state_bytes(*sizes) == 256 * 2**20 == kv_cache_bytes(32, 8, 128, 2048)


@pytest.mark.parametrize("n_groups", [1, 2])
def test_transformers_mamba2_agrees(n_groups: int, device: str) -> None:
    mamba = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
    config = mamba.Mamba2Config(
        hidden_size=24,
        num_heads=4,
        head_dim=12,
        state_size=5,
        n_groups=n_groups,
        num_hidden_layers=1,
        chunk_size=8,
    )
    theirs = mamba.Mamba2Mixer(config, 0).to(device).eval()
    if n_groups > 1 and not hasattr(theirs.norm, "group_size"):
        pytest.skip("this Transformers has one norm for all groups, unlike mamba_ssm")
    for name, weight in theirs.named_parameters():
        weight.data += 0.3 * normal(name, *weight.shape, dtype=torch.float32, device=device)
    ours = Mamba2Layer(24, 4, 12, 5, n_groups).to(device)
    ours.load_state_dict(theirs.state_dict())
    x = normal("x", 2, 21, 24, dtype=torch.float32, device=device)
    with torch.no_grad():
        output = ours(x)
        peer, exact = theirs(x), ours.double()(x.double())
        assert_close(output, peer, exact, dtype=torch.float32)
        assert_close(peer, output, exact, dtype=torch.float32)
        moved = (ours(changed(x.double(), 1, 13)) != exact).any(-1).any(0)
    assert moved.tolist() == [i >= 13 for i in range(21)]
    assert exact.std() > 0.1


def test_wrong_input_is_refused() -> None:
    x, dt, A, B, C, D = inputs_of()
    ours = proof.bare(state_space_attention)
    wrong = [
        ((x, dt, A[:4], B, C), r"A is \(4,\)"),
        ((x[:, :5], dt[:, :5], A[:5], B, C), r"x is \(2, 5, 7, 11\), .* B is \(2, 3, 7, 5\)"),
        ((x, dt, A, B[:, :, :5], C), r"B is \(2, 3, 5, 5\)"),
        ((x, dt, A, B[:, :, :5], C[:, :, :5]), r"C is \(2, 3, 5, 5\)"),
        ((x, dt[:, :, :5], A, B, C), r"dt is \(2, 6, 5\)"),
        ((x, dt, A, B, C, D[:1]), r"D is \(1,\)"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=f"{message}.*: b h t e, .* are wanted"):
            ours(*arguments)
    with pytest.raises(ValueError, match="chunk_size is 0"):
        ours(x, dt, A, B, C, D, chunk_size=0)
