"""The proof of `cross_attention`: each test is a claim that its page makes."""

from copy import deepcopy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests import proof
from tests.proof import Case, assert_agrees, assert_close, causal, changed, normal, plain_attention
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.flop_counter import FlopCounterMode

from annotated_attention import cross_attention as lesson
from annotated_attention.cross_attention import CrossAttention, DecoderBlock, VisionProjector, insert_features
from annotated_attention.language_model import LanguageModel, LanguageModelConfig
from annotated_attention.multi_head import split_heads

NAMES = ("x", "context")
CASE = Case("t<s")  # b=2, h=3, t=5, s=7, d=11; m = 33, c = 13


def tokens(case: Case, dtype: torch.dtype = torch.float64, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """`x`, `b t m`, and `context`, `b s c`: `c` is the case's `e`."""
    shapes = {"x": (case.t, case.h * case.d), "context": (case.s, case.e)}
    drawn = [normal(name, case.b, *shape, dtype=dtype, device=device) for name, shape in shapes.items()]
    x, context = [proof.apart(x[:, None])[:, 0] if case.strided else x for x in drawn]
    return x, context


def random(module: nn.Module) -> nn.Module:
    """Random numbers in every parameter, also where PyTorch begins with zeros or ones."""
    for name, parameter in module.double().named_parameters():
        parameter.data = normal(name, *parameter.shape) * parameter.shape[-1] ** -0.5
    return module


def layer(case: Case, dtype: torch.dtype = torch.float64, device: str = "cpu") -> CrossAttention:
    module = random(CrossAttention(case.h * case.d, case.e, case.h))
    if case.largest_score is not None:
        x, context = tokens(case)
        q, k = split_heads(module.w_q(x), case.h), split_heads(module.w_k(context), case.h)
        module.w_q.weight.data *= case.largest_score / (q @ k.mT * case.d**-0.5).abs().max().detach()
    return module.to(device, dtype)


def padding(device: str = "cpu") -> Tensor:
    """Two contexts, of seven and of four real vectors."""
    return torch.arange(7, device=device) < torch.tensor([[7], [4]], device=device)


def plain_layer(module, x, context, mask=None, attend=plain_attention, scale=None) -> Tensor:
    """The layer one head at a time, each with its own slices of the weights; the mask is `b t s` or `b 1 s`."""
    n, m, found = module.n_heads, module.d_model, []
    for h in range(n):
        own = slice(h * m // n, (h + 1) * m // n)
        pairs = (x, module.w_q), (context, module.w_k), (context, module.w_v)
        q, k, v = (F.linear(x, w.weight[own])[:, None] for x, w in pairs)
        found.append(attend(q, k, v, None if mask is None else mask[:, None], scale=scale)[:, 0])
    return F.linear(torch.cat(found, -1), module.w_o.weight)


def assert_same(result: Tensor, expected: Tensor) -> None:
    """Two ways to one float64 result."""
    assert_close(result, expected, expected)


@proof.each_case
@proof.each_dtype
def test_agrees_with_the_plain_formula(case: Case, dtype: torch.dtype, device: str) -> None:
    module = layer(case, dtype, device)
    peer = partial(plain_layer, module, attend=F.scaled_dot_product_attention)
    oracle = partial(plain_layer, deepcopy(module).double())
    assert_agrees(module, peer, tokens(case, dtype, device), oracle=oracle, names=NAMES)


def test_gradcheck() -> None:
    case, mask = Case("small", t=2, s=3, d=2, e=5), torch.tensor([[True, True, True], [True, False, True]])
    proof.assert_gradcheck(partial(layer(case), padding_mask=mask), tokens(case))


@proof.each_dtype
def test_agrees_with_torch_multihead_attention(dtype: torch.dtype, device: str) -> None:
    ours, mask = layer(CASE, dtype, device), padding(device)
    theirs = nn.MultiheadAttention(33, 3, bias=False, kdim=13, vdim=13, batch_first=True)
    theirs.q_proj_weight, theirs.k_proj_weight = ours.w_q.weight, ours.w_k.weight
    theirs.v_proj_weight, theirs.out_proj.weight = ours.w_v.weight, ours.w_o.weight

    def their_call(x: Tensor, context: Tensor, module: nn.Module = theirs) -> Tensor:
        return module(x, context, context, key_padding_mask=~mask, need_weights=False)[0]

    inputs, oracle = tokens(CASE, dtype, device), partial(their_call, module=deepcopy(theirs).double())
    assert_agrees(partial(ours, padding_mask=mask), their_call, inputs, oracle=oracle, names=NAMES)
    # Their mask means the opposite of ours: passed as it is, it gives something else.
    assert (ours(*inputs, padding_mask=mask.logical_not()) - their_call(*inputs))[1].abs().max() > 0.1


def test_each_query_reads_alone(device: str) -> None:
    module, (x, context) = layer(CASE, device=device), tokens(CASE, device=device)
    output = module(x, context)
    assert_same(torch.cat([module(x[:, i, None], context) for i in range(5)], 1), output)
    for i in range(5):
        moved = (module(changed(x, 1, i, i + 1), context) != output).any(-1)
        assert moved.tolist() == [[n == i for n in range(5)]] * 2
    # Nor does a text see another text, or another's context.
    moved = module(changed(x, 0, 1), changed(context, 0, 1)) != output
    assert (moved.any(-1) == torch.tensor([[False], [True]], device=device)).all()


def test_causal_mask_would_hide_the_end(device: str) -> None:
    module, (x, context) = layer(CASE, device=device), tokens(CASE, device=device)

    def sees(call) -> list[list[bool]]:  # whether query `i` (row) feels a change of context vector `j`
        others = [call(x, changed(context, 1, j, j + 1)) for j in range(7)]
        return torch.stack([(y != call(x, context)).any(-1).all(0) for y in others], 1).tolist()

    assert sees(module) == [[True] * 7] * 5
    masked = partial(plain_layer, module, mask=causal(5, 7, device).expand(2, 5, 7))
    assert sees(masked) == [[j <= i for j in range(7)] for i in range(5)]


@given(order=st.permutations(range(7)))
def test_context_is_a_set(order: list[int], device: str) -> None:
    module, (x, context), mask = layer(CASE, device=device), tokens(CASE, device=device), padding(device)
    shuffled = module(x, context[:, order], padding_mask=mask[:, order])
    assert_same(shuffled, module(x, context, padding_mask=mask))


def test_t5_scale_lives_in_its_weights(device: str) -> None:
    t5, (x, context) = layer(CASE, device=device), tokens(CASE, device=device)
    ours = deepcopy(t5)
    ours.w_q.weight.data *= 11**0.5
    assert_same(ours(x, context), plain_layer(t5, x, context, scale=1.0))


class TinyCache:
    """Keys and values in the order they came."""

    held = (torch.empty(0, 0, 0, 0),) * 2

    def update(self, *new: Tensor) -> tuple[Tensor, ...]:
        pairs = zip(self.held, new, strict=True)
        self.held = tuple(torch.cat([old, x], 2) if old.numel() else x for old, x in pairs)
        return self.held

    positions = property(lambda self: torch.arange(self.held[0].shape[2], device=self.held[0].device))
    nbytes = property(lambda self: sum(x.nbytes for x in self.held))


@pytest.mark.parametrize("cuts", [[1, 2, 3, 4], [2], [3, 4], []], ids=str)
@pytest.mark.parametrize("dtype", proof.DTYPES[:3], ids=str)
def test_decoding_equals_the_whole_text(cuts: list[int], dtype: torch.dtype, device: str) -> None:
    block, mask = random(DecoderBlock(33, 13, 3)).to(device, dtype), padding(device)
    x, context = tokens(CASE, dtype, device)
    keys_values, cache = block.cross_attention.project(context), TinyCache()
    decode = partial(block, keys_values=keys_values, padding_mask=mask, cache=cache)
    steps = [decode(part) for part in torch.tensor_split(x, cuts, dim=1)]
    exact = deepcopy(block).double()(x.double(), context.double(), padding_mask=mask)
    assert_close(torch.cat(steps, 1), block(x, context, padding_mask=mask), exact)


def test_context_is_projected_once() -> None:
    block, (x, context), calls = random(DecoderBlock(33, 13, 3)), tokens(CASE), []
    attention = block.cross_attention
    for projection in (attention.w_k, attention.w_v):
        projection.register_forward_hook(lambda *_: calls.append(1))
    for about, total in (({"keys_values": attention.project(context)}, 2), ({"context": context}, 12)):
        for i in range(5):
            block(x[:, : i + 1], **about)
        assert len(calls) == total


@proof.each_dtype
def test_padding_moves_nothing(dtype: torch.dtype, device: str) -> None:
    module, (x, context) = layer(CASE, dtype, device), tokens(CASE, dtype, device)
    output = module(x, context, padding_mask=padding(device))
    exact = deepcopy(module).double()(x.double()[1:], context.double()[1:, :4])
    assert_close(output[1:], module(x[1:], context[1:, :4]), exact)
    # Whatever stands there.
    context[1, 4:] = 1e4
    assert torch.equal(module(x, context, padding_mask=padding(device)), output)


def test_zero_padding_dilutes(device: str) -> None:
    module, (x, context) = layer(CASE, device=device), tokens(CASE, device=device)
    module.w_o.weight.data = torch.eye(33, dtype=torch.float64, device=device)
    q, k = split_heads(module.w_q(x), 3), split_heads(module.w_k(context), 3)
    real = (q @ k.mT * 11**-0.5).exp().sum(-1, keepdim=True)
    padded = split_heads(module(x, F.pad(context, (0, 0, 0, 5))), 3)
    assert_same(padded, split_heads(module(x, context), 3) * real / (real + 5))


@proof.each_dtype
def test_empty_context_gives_zero(dtype: torch.dtype, device: str) -> None:
    module, inputs = layer(CASE, dtype, device), [x.requires_grad_() for x in tokens(CASE, dtype, device)]
    mask = torch.tensor([[True], [False]], device=device).expand(2, 7)
    output = module(*inputs, padding_mask=mask)
    assert (output[1] == 0).all()
    assert (output[0] != 0).any(-1).all()
    assert all((g == 0).all() for g in torch.autograd.grad(output[1].sum(), inputs, retain_graph=True))
    gradients = torch.autograd.grad(output.sum(), [*inputs, *module.parameters()])
    assert all(g.isfinite().all() for g in gradients)
    assert (module(inputs[0], inputs[1][:, :0]) == 0).all()


def test_wrong_input_is_refused() -> None:
    module, (x, context) = layer(CASE), tokens(CASE)
    forward = partial(proof.bare(CrossAttention.forward), module)
    project, insert = proof.bare(CrossAttention.project), proof.bare(insert_features)
    pair, (places, three) = module.project(context), torch.arange(5) < torch.tensor([[[2], [3]], [[3], [3]]])
    for message, call in {
        "context, keys_values: neither came": partial(forward, x),
        "context, keys_values: both came": partial(forward, x, context, keys_values=pair),
        r"x has shape \(2, 5, 32\).*m = 33": partial(forward, x[..., :32], context),
        r"context has shape \(2, 5, 33\).*c = 13": partial(project, module, x),
        "mask is torch.float64": partial(forward, x, context, padding_mask=padding().double()),
        r"mask is torch.bool, \(7, 2\)": partial(forward, x, context, padding_mask=padding().T),
        r"features has shape .*, places \[2, 3\]: .*, 2, .* 2 a text": partial(insert, x, x[:, :2], places),
        r"features has shape \(2, 3, 32\), .*: \(2, 3, 33\)": partial(insert, x, x[:, :3, 1:], three),
        "is_image is torch.int64": partial(insert, x, x[:, :3], three.long()),
        r"is_image is torch.bool, \(2, 4\): .*\(2, 5\)": partial(insert, x, x[:, :3], three[:, :4]),
        "d_model=34, d_context=13, n_heads=3": partial(CrossAttention, 34, 13, 3),
        "d_model=33, d_context=0, n_heads=3": partial(CrossAttention, 33, 0, 3),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_zero_output_weights_leave_lesson_3(device: str) -> None:
    config = LanguageModelConfig(d_model=33, n_heads=3, n_layers=1)
    lesson_3, ours = random(LanguageModel(config).blocks[0]).to(device), DecoderBlock(33, 13, 3).to(device)
    ours.double().self_attention, ours.mlp = lesson_3.attention, lesson_3.mlp
    ours.self_norm, ours.mlp_norm = lesson_3.attention_norm, lesson_3.mlp_norm
    x, context = tokens(CASE, device=device)
    assert (ours(x, context) - lesson_3(x)).abs().max() > 0.01
    ours.cross_attention.w_o.weight.data.zero_()
    assert torch.equal(ours(x, context), lesson_3(x))


@pytest.mark.parametrize("dtype", proof.DTYPES[:2], ids=str)
def test_block_agrees_with_torch(dtype: torch.dtype, device: str) -> None:
    ours, mask = random(DecoderBlock(33, 33, 3)).to(device, dtype), padding(device)
    theirs = nn.TransformerDecoderLayer(33, 3, 132, 0.0, F.gelu, batch_first=True, norm_first=True)
    theirs.to(device, dtype)
    parts = (theirs.self_attn, theirs.multihead_attn), (ours.self_attention, ours.cross_attention)
    for attention, w in zip(*parts, strict=True):
        attention.in_proj_weight.data = torch.cat([w.w_q.weight, w.w_k.weight, w.w_v.weight]).detach()
        attention.out_proj.weight = w.w_o.weight
    theirs.norm1, theirs.norm2, theirs.norm3 = ours.self_norm, ours.cross_norm, ours.mlp_norm
    theirs.linear1, theirs.linear2 = ours.mlp[0], ours.mlp[2]
    masks = {"tgt_mask": ~causal(5, 5, device), "memory_key_padding_mask": ~mask}
    peer, oracle = partial(theirs, **masks), partial(deepcopy(theirs).double(), **masks)
    inputs = [normal(f"{n} tokens", 2, n, 33, dtype=dtype, device=device) for n in (5, 7)]
    assert_agrees(partial(ours, padding_mask=mask), peer, inputs, oracle=oracle, names=NAMES)


def operations(call, *inputs: Tensor, **more) -> int:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call(*inputs, **more)
    return counter.get_total_flops()


def test_cost_is_counted() -> None:
    module, x, context = CrossAttention(33, 13, 3), torch.randn(1, 5, 33), torch.randn(1, 7, 13)
    keys_values, cost = module.project(context), lesson.cross_attention_cost(7, 13, 33)
    assert cost.parameters == sum(w.numel() for w in module.parameters())
    assert cost.once == operations(module.project, context)
    assert 5 * cost.per_token == operations(module, x, keys_values=keys_values)
    assert cost.cache == sum(w.numel() for w in keys_values)

    # Seven vectors are inserted before five tokens, which come one by one.
    block = LanguageModel(LanguageModelConfig(d_model=33, n_heads=3)).blocks[0]
    image, nothing, cost = TinyCache(), TinyCache(), lesson.insertion_cost(7, 33)
    assert cost.once == operations(block, torch.randn(1, 7, 33), cache=image)
    assert (cost.cache, cost.parameters) == (image.nbytes // 4, 0)
    words = torch.randn(6, 1, 1, 33)  # the first is not counted: with one key a sum is no product
    more, less = ([operations(block, x, cache=cache) for x in words][1:] for cache in (image, nothing))
    assert 5 * cost.per_token == sum(more) - sum(less)


def test_sizes_of_whisper_and_llava() -> None:
    cost = lesson.cross_attention_cost(1500, 1280, 1280)
    assert [round(32 * n * 2 / 2**20) for n in (cost.cache, 2 * 448 * 1280)] == [234, 70]
    with torch.device("meta"):
        block, projector = DecoderBlock(1280, 1280, 20), VisionProjector(1024, 4096)
        x = torch.empty(1, 1500, 1280)
    keys_values, cache = block.cross_attention.project(x), TinyCache()
    block(x[:, :447], keys_values=keys_values, cache=cache)
    for held in (TinyCache(), cache):  # the first token and the last
        rest = operations(block, x[:, :1], keys_values=keys_values, cache=held)
        assert round(cost.once / rest, -1) == 180
    assert round(sum(x.numel() for x in projector.parameters()) / 1e6) == 21
    assert round(lesson.cross_attention_cost(576, 1024, 4096).parameters / 1e6) == 42


@given(s=st.integers(1, 999), c=st.integers(1, 999), m=st.integers(1, 999), t=st.integers(0, 9999))
def test_where_the_two_are_even(s: int, c: int, m: int, t: int) -> None:
    def dearer(s: int, c: int, m: int, t: int) -> int:
        ours, theirs = lesson.cross_attention_cost(s, c, m), lesson.insertion_cost(s, m)
        return (ours.once + t * ours.per_token) - (theirs.once + t * theirs.per_token)

    assert (dearer(s, c, m, t) < 0) == (t * m < s * (6 * m + s - c))
    assert [dearer(576, 1024, 4096, t) for t in (3392, 3393, 3394)] == [-4 * 4096**2, 0, 4 * 4096**2]


def test_projector_works_patch_by_patch(device: str) -> None:
    projector, features = random(VisionProjector(13, 33)).to(device), tokens(CASE, device=device)[1]
    hidden = F.gelu(features @ projector.w_in.weight.T + projector.w_in.bias)
    assert_same(projector(features), hidden @ projector.w_out.weight.T + projector.w_out.bias)
    moved = (projector(changed(features, 1, 3, 4)) != projector(features)).any(-1)
    assert moved.tolist() == [[j == 3 for j in range(7)]] * 2


def with_image(device: str) -> tuple[Tensor, ...]:
    """Seven embeddings, three features, and where they go, which differs between the two texts."""
    places = torch.tensor([[0, 0, 1, 1, 1, 0, 0], [1, 0, 0, 1, 0, 0, 1]], device=device).bool()
    return normal("x", 2, 7, 33, device=device), normal("features", 2, 3, 33, device=device), places


def test_features_take_the_places(device: str) -> None:
    x, features, places = with_image(device)
    inserted = insert_features(x, features, places)
    for n in range(2):
        assert torch.equal(inserted[n, places[n]], features[n])
        assert torch.equal(inserted[n, ~places[n]], x[n, ~places[n]])


def test_inserted_features_are_tokens(device: str) -> None:
    block = random(LanguageModel(LanguageModelConfig(d_model=33, n_heads=3)).blocks[0]).to(device)
    x, features, places = with_image(device)
    for k, is_patch in enumerate(places[0].tolist()):
        patch = min(int(places[0, :k].sum()), 2)
        another = changed(features, 1, patch, patch + 1)
        other = (x, another) if is_patch else (changed(x, 1, k, k + 1), features)
        before, after = (block(insert_features(*inputs, places))[0] for inputs in ((x, features), other))
        assert (before != after).any(-1).tolist() == [i >= k for i in range(7)]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("dtype", proof.DTYPES[:2], ids=str)
def test_production_kernels_agree(dtype: torch.dtype, device: str) -> None:
    inputs, mask = CASE.inputs(dtype, device), padding(device)
    block_mask = create_block_mask(lambda b, h, i, j: mask[b, j], 2, None, 5, 7, device=device)
    exact = plain_attention(*CASE.inputs(device=device), mask[:, None, None])
    sdpa = F.scaled_dot_product_attention(*inputs, mask[:, None, None, :])
    assert_close(flex_attention(*inputs, block_mask=block_mask), sdpa, exact)
