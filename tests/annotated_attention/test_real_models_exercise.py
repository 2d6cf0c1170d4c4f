"""What the exercise of lesson 15 teaches is what Transformers does: its solution stands in for the library's
own functions, on models drawn at random."""

import importlib.util
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")

from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    BloomConfig,
    FalconConfig,
    FalconModel,
    GPT2Config,
    GPT2Model,
    GPTNeoXConfig,
    GPTNeoXModel,
    GptOssConfig,
    GptOssModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3Model,
    T5Model,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.bloom.modeling_bloom import BloomAttention, build_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention, T5Config

EXERCISE = Path(__file__).parents[2] / "lessons/15_real_models/exercise.py"
SIZES = {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 20}
SIZES |= {"vocab_size": 23, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}


@pytest.fixture(scope="module")
def port():
    """The exercise's solution."""
    spec = importlib.util.spec_from_file_location("real_models_exercise", EXERCISE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def made(architecture, config, **options):
    """A model with random weights, large enough to tell mistakes apart, in float64."""
    model = architecture(config, **options).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def heads(x, n):
    return x.unflatten(-1, (n, -1)).transpose(1, 2)


@pytest.mark.parametrize(("t", "s", "is_causal"), [(5, 5, True), (3, 7, True), (1, 7, True), (5, 7, False)])
@pytest.mark.parametrize("kind", ["none", "bool", "float"])
def test_the_seam_is_that_of_sdpa(port, t, s, is_causal, kind):
    query, key, value = (torch.randn(2, n, x, 4, dtype=torch.float64) for n, x in ((6, t), (3, s), (3, s)))
    mask = {"none": None, "bool": torch.rand(2, 1, t, s) < 0.5, "float": torch.randn(2, 1, t, s).double()}[
        kind
    ]
    if kind == "bool":
        mask[0, :, 0] = False
    layer = types.SimpleNamespace(num_key_value_groups=2, is_causal=is_causal)
    theirs, _ = sdpa_attention_forward(layer, query, key, value, mask, scaling=0.3)
    ours, _ = port.attention_forward(query, key, value, mask, scaling=0.3, is_causal=is_causal)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def seen_by(model, port, name, **inputs):
    """What a model hands over at its seam when it writes two tokens, and what it writes; the exercise's
    function is its attention."""
    calls, positions = [], []

    def attention(layer, query, key, value, attention_mask, **options):
        calls.append((attention_mask, key.shape[2]))
        return port.attention_forward(query, key, value, attention_mask, **options)

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, sdpa_mask)
    model.model.rotary_emb.register_forward_pre_hook(
        lambda _, args, kwargs: positions.append(kwargs.get("position_ids", args[-1])), with_kwargs=True
    )
    options = {
        "max_new_tokens": 3,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    model.set_attn_implementation("sdpa")
    theirs = model.generate(**inputs, **options)
    positions.clear()
    model.set_attn_implementation(name)
    ours = model.generate(**inputs, **options)
    return calls, positions, torch.stack(ours.logits), torch.stack(theirs.logits)


def test_a_model_writes_the_same_through_the_seam_with_padding_and_a_window(port):
    config = MistralConfig(**SIZES, num_hidden_layers=1, sliding_window=3)
    model = made(MistralForCausalLM, config)
    attention_mask = torch.tensor([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]])
    inputs = {"input_ids": torch.randint(2, 23, (2, 5)), "attention_mask": attention_mask}
    calls, positions, ours, theirs = seen_by(model, port, "exercise_padded", **inputs)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)

    # What comes at the seam is what task 5 makes: the whole text first, then a token at a time.
    assert len(calls) == len(positions) == 3
    for n, ((mask, s), where) in enumerate(zip(calls, positions, strict=True)):
        told = F.pad(attention_mask, (0, n), value=1)
        t = 5 if n == 0 else 1
        wanted, seen = port.padded_inputs(told, t, sliding_window=3)
        real = told[:, -t:].bool()
        assert torch.equal(where[real], wanted[real])
        if mask is None:
            assert seen[..., -s:].all()
        else:
            assert torch.equal(mask[:, 0][real], seen[:, 0, :, -s:][real])


def test_positions_are_those_of_generate(port):
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]])
    model = made(LlamaForCausalLM, LlamaConfig(**SIZES, num_hidden_layers=1))
    theirs = model._prepare_position_ids_for_generation(mask, {"attention_mask": mask, "input_ids": mask})
    assert torch.equal(port.padded_inputs(mask, 5)[0], theirs)


@pytest.mark.parametrize("n_heads", [4, 6])
def test_bloom_counts_as_in_task_5(port, n_heads):
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]])
    theirs = build_alibi_tensor(mask, n_heads, torch.float32)
    whole = build_alibi_tensor(torch.ones(1, 2, dtype=torch.long), n_heads, torch.float32)
    ours = port.bloom_alibi(mask, whole[:, 0, 1])
    assert torch.equal(ours.flatten(0, 1), theirs)


def test_columns_would_do_as_well(port):
    """Within a row both counts differ by one number for all keys that are seen."""
    mask, slopes = torch.tensor([[0, 0, 1, 1, 1]]), torch.tensor([0.5, 0.25]).double()
    query, key, value = torch.randn(3, 1, 2, 5, 4, dtype=torch.float64)
    _, seen = port.padded_inputs(mask, 5)
    outputs = [
        port.attention_forward(query, key, value, bias.masked_fill(~seen, -torch.inf))[0]
        for bias in (port.bloom_alibi(mask, slopes), port.bloom_alibi(torch.ones_like(mask), slopes))
    ]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-14)


def test_split_gpt2(port):
    config = GPT2Config(n_embd=12, n_head=3, n_layer=1, vocab_size=5, n_positions=7)
    layer, x = made(GPT2Model, config).h[0].attn.c_attn, torch.randn(2, 5, 12, dtype=torch.float64)
    weights, biases = (port.split_qkv(part, "gpt2", 3, 3) for part in (layer.weight, layer.bias))
    for ours, bias, theirs in zip(weights, biases, layer(x).split(12, dim=2), strict=True):
        torch.testing.assert_close(F.linear(x, ours, bias), theirs)


def test_split_bloom_and_gpt_neox(port):
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    bloom = made(BloomAttention, BloomConfig(hidden_size=12, n_head=3), layer_idx=0)
    fused = bloom.query_key_value
    weights, biases = (port.split_qkv(part, "bloom", 3, 3) for part in (fused.weight, fused.bias))
    for ours, bias, theirs in zip(weights, biases, bloom._reshape(fused(x)), strict=True):
        torch.testing.assert_close(heads(F.linear(x, ours, bias), 3), theirs)
    neox = GPTNeoXConfig(
        hidden_size=12, num_attention_heads=3, num_hidden_layers=1, intermediate_size=7, vocab_size=5
    )
    fused = made(GPTNeoXModel, neox).layers[0].attention.query_key_value
    theirs = fused(x).view(2, 5, 3, 12).transpose(1, 2).chunk(3, dim=-1)
    for ours, bias, wanted in zip(
        *(port.split_qkv(y, "bloom", 3, 3) for y in (fused.weight, fused.bias)), theirs, strict=True
    ):
        torch.testing.assert_close(heads(F.linear(x, ours, bias), 3), wanted)


@pytest.mark.parametrize("g", [1, 2, 6])
def test_split_falcon(port, g):
    config = FalconConfig(
        hidden_size=12,
        num_attention_heads=6,
        num_kv_heads=g,
        num_hidden_layers=1,
        vocab_size=5,
        new_decoder_architecture=True,
    )
    layer, x = made(FalconModel, config).h[0].self_attention, torch.randn(2, 5, 12, dtype=torch.float64)
    weights = port.split_qkv(layer.query_key_value.weight, "falcon", 6, g)
    theirs = layer._split_heads(layer.query_key_value(x))
    for ours, n, wanted in zip(weights, (6, g, g), theirs, strict=True):
        split = (x @ ours.T).unflatten(-1, (n, 2))
        # Falcon hands each query head a key head of its own.
        torch.testing.assert_close(split.repeat_interleave(6 // n, dim=2), wanted)


def meta_logits(state, tokens, h, g, n_layers):
    """A Llama by Meta's names and conventions, with pairs of neighbours as complex numbers."""

    def norm(x, name):
        return x * (x.square().mean(dim=-1, keepdim=True) + 1e-6).rsqrt() * state[f"{name}.weight"]

    def linear(x, name):
        return x @ state[f"{name}.weight"].T

    def turned(x):
        d, t = x.shape[-1], x.shape[2]
        angles = torch.outer(torch.arange(t).float(), 10000.0 ** (-torch.arange(0, d, 2).float() / d))
        turns = torch.polar(torch.ones_like(angles).double(), angles.double())
        return torch.view_as_real(
            torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turns
        ).flatten(-2)

    x = state["tok_embeddings.weight"][tokens]
    for n in range(n_layers):
        y = norm(x, f"layers.{n}.attention_norm")
        query, key, value = (
            heads(linear(y, f"layers.{n}.attention.{w}"), k) for w, k in (("wq", h), ("wk", g), ("wv", g))
        )
        y = F.scaled_dot_product_attention(turned(query), turned(key), value, is_causal=True, enable_gqa=True)
        x = x + linear(y.transpose(1, 2).flatten(2), f"layers.{n}.attention.wo")
        y, name = norm(x, f"layers.{n}.ffn_norm"), f"layers.{n}.feed_forward"
        x = x + linear(F.silu(linear(y, f"{name}.w1")) * linear(y, f"{name}.w3"), f"{name}.w2")
    return linear(norm(x, "norm"), "output" if "output.weight" in state else "tok_embeddings")


@pytest.mark.parametrize("tied", [False, True])
def test_a_converted_llama_says_the_same(port, tied):
    h, g, d, m, f, v = 4, 2, 6, 8, 10, 23
    shapes = {"tok_embeddings": (v, m), "norm": (m,)} | ({} if tied else {"output": (v, m)})
    for n in range(2):
        layer = {"attention_norm": (m,), "ffn_norm": (m,), "attention.wo": (m, h * d)}
        layer |= {"attention.wq": (h * d, m), "attention.wk": (g * d, m), "attention.wv": (g * d, m)}
        layer |= {"feed_forward.w1": (f, m), "feed_forward.w2": (m, f), "feed_forward.w3": (f, m)}
        shapes |= {f"layers.{n}.{name}": shape for name, shape in layer.items()}
    state = {f"{name}.weight": torch.randn(shape).double() * 0.5 for name, shape in shapes.items()}
    state["rope.freqs"] = torch.zeros(d // 2)

    config = LlamaConfig(
        vocab_size=v,
        hidden_size=m,
        intermediate_size=f,
        num_hidden_layers=2,
        num_attention_heads=h,
        num_key_value_heads=g,
        head_dim=d,
        tie_word_embeddings=tied,
        rms_norm_eps=1e-6,
    )
    model = LlamaForCausalLM(config).double().eval()
    model.load_state_dict(port.convert_llama(state, h, g), strict=True)
    tokens = torch.randint(0, v, (2, 11))
    with torch.no_grad():
        theirs = model(tokens).logits
    ours = meta_logits(state, tokens, h, g, 2)
    # The library makes its angles in float32.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * ours.abs().max().item())


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("n_buckets", "max_distance"), [(32, 128), (8, 16), (14, 50), (10, 9)])
def test_buckets_are_those_of_t5(port, bidirectional, n_buckets, max_distance):
    relative = torch.arange(-300, 301)
    ours = port.t5_buckets(
        relative, n_buckets=n_buckets, max_distance=max_distance, bidirectional=bidirectional
    )
    theirs = T5Attention._relative_position_bucket(relative, bidirectional, n_buckets, max_distance)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("is_decoder", [True, False])
def test_bias_is_that_of_t5(port, is_decoder):
    config = T5Config(
        d_model=12, d_kv=4, num_heads=3, relative_attention_num_buckets=8, is_decoder=is_decoder
    )
    config.relative_attention_max_distance = 16
    layer = made(T5Attention, config, has_relative_attention_bias=True, layer_idx=0)
    theirs = layer.compute_bias(3, 13, past_seen_tokens=10)
    table = layer.relative_attention_bias.weight
    ours = port.t5_bias(table, 3, 13, offset=10, max_distance=16, bidirectional=not is_decoder)
    assert torch.equal(ours, theirs)


def recorded(model, layer, fused, out, tokens):
    """What goes into a layer's fused matrix, and what its heads say: the input of the matrix behind them."""
    kept = {}
    for name, module in (("x", fused), ("heads", out)):
        module.register_forward_pre_hook(lambda _, args, name=name: kept.update({name: args[0]}))
    with torch.no_grad():
        model(tokens)
    return kept["x"], kept["heads"]


def test_readings_find_phi3_and_falcon(port):
    tokens = torch.randint(2, 23, (2, 7))
    phi3 = made(Phi3Model, Phi3Config(**SIZES, num_hidden_layers=1, sliding_window=3))
    layer = phi3.layers[0].self_attn
    x, heads_say = recorded(phi3, layer, layer.qkv_proj, layer.o_proj, tokens)
    found = port.readings_that_fit(x, layer.qkv_proj.weight, heads_say.half(), 6, 3, 3)
    assert found == [("phi3", "halves", "neighbours", 3)]

    config = FalconConfig(
        hidden_size=24,
        num_attention_heads=6,
        num_kv_heads=3,
        num_hidden_layers=1,
        vocab_size=23,
        new_decoder_architecture=True,
        alibi=False,
    )
    falcon = made(FalconModel, config)
    layer = falcon.h[0].self_attention
    x, heads_say = recorded(falcon, layer, layer.query_key_value, layer.dense, tokens)
    # Falcon has no window: no text tells 7 from 8 before its eighth token.
    found = port.readings_that_fit(x, layer.query_key_value.weight, heads_say.half(), 6, 3, 7)
    assert found == [("falcon", "halves", "neighbours", 7), ("falcon", "halves", "neighbours", 8)]


@pytest.mark.parametrize("word", ["s_aux", "position_bias"])
def test_models_do_pass_what_must_not_be_swallowed(port, word):
    def attention(layer, *inputs, **options):
        return port.attention_forward(*inputs, **options)

    AttentionInterface.register("exercise_strict", attention)
    if word == "s_aux":
        config = GptOssConfig(**SIZES, head_dim=4, num_hidden_layers=1, num_local_experts=2)
        model, inputs = GptOssModel(config), {}
    else:
        model = T5Model(T5Config(d_model=12, d_kv=4, d_ff=7, num_heads=3, num_layers=1, vocab_size=5))
        inputs = {"decoder_input_ids": torch.ones(1, 3, dtype=torch.long)}
    model.set_attn_implementation("exercise_strict")
    with pytest.raises(ValueError, match=word):
        model(torch.ones(1, 3, dtype=torch.long), **inputs)
