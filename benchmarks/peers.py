"""The peers, each behind the same few functions: who else computes this mechanism, on the tensors of the course?

`dense`, `window`, `alibi`, `soft_cap`, `sinks` and `linear` give makers by name. A maker gives a function of query, key
and value (`b h t d`), or raises; what it raises, there or in the first call, is why that peer is `absent` from a
result. So a backend that a processor lacks, a package that is not installed and a kernel that wants a GPU are all
said in the peer's own words, and none is left out in silence.
"""

import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from annotated_attention.scaled_dot_product import scaled_dot_product_attention
from benchmarks.measure import Function, device

Maker = Callable[[], Function]

BACKENDS = {
    "SDPA, math": SDPBackend.MATH,
    "SDPA, flash": SDPBackend.FLASH_ATTENTION,
    "SDPA, efficient": SDPBackend.EFFICIENT_ATTENTION,
    "SDPA, cuDNN": SDPBackend.CUDNN_ATTENTION,
}
FLEX = "FlexAttention, compiled"

# Whoever is no part of PyTorch: the name of the module, and of the distribution that brings it.
PACKAGES = {
    "Transformers": ("transformers", "transformers"),
    "xformers": ("xformers.ops", "xformers"),
    "flash-attn": ("flash_attn", "flash-attn"),
    "flash-linear-attention": ("fla.ops.linear_attn", "flash-linear-attention"),
}


class Absent(Exception):
    """A peer cannot run here; the message says why."""


class Tried(NamedTuple):
    """Calls that can be timed, and why the others cannot, both by the peer's name."""

    calls: dict[str, Callable[[], Any]]
    absent: dict[str, str]


def tried(makers: Mapping[str, Maker], prepared: Callable[[Function], Callable[[], Any]]) -> Tried:
    """Call each once, as `prepared` makes a call of it: what ends well is a peer. The first call also compiles what has
    to be compiled."""
    calls, absent = {}, {}
    for name, make in makers.items():
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            try:
                call = prepared(make())
                call()
                calls[name] = call
            except Exception as error:
                absent[name] = reason(error, [str(each.message) for each in heard])
    return Tried(calls, absent)


def reason(error: Exception, heard: Sequence[str] = ()) -> str:
    """In one line: PyTorch tells in warnings why a backend refuses, and then raises."""
    words = [str(error) or type(error).__name__, *heard]
    said = next((word for word in heard if "because" in word or "not" in word), words[0])
    line = " ".join(said.split("(Triggered internally")[0].split())
    return line if len(line) <= 200 else f"{line[:199]}…"


def package(peer: str) -> Any:
    """The peer's module. Raises `Absent` if it is not installed."""
    module, distribution = PACKAGES[peer]
    try:
        version(distribution)
    except PackageNotFoundError:
        raise Absent(f"{distribution} is not installed") from None
    return importlib.import_module(module)


def versions() -> dict[str, str]:
    """Of the packages that are installed."""
    found = {}
    for _, distribution in PACKAGES.values():
        try:
            found[distribution] = version(distribution)
        except PackageNotFoundError:
            continue
    return found


def sdpa(backend: SDPBackend, **options: Any) -> Function:
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(query, key, value, **options)

    return attend


def flex(
    t: int,
    mask_mod: Callable[..., Tensor] | None = None,
    score_mod: Callable[..., Tensor] | None = None,
    finish: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Function:
    """FlexAttention, compiled with all that belongs to it; its blocks are chosen here, so that this is not counted.
    `finish` is given the output and the logsumexp."""
    import torch._dynamo.config
    from torch.nn.attention import flex_attention as module

    # A new length is compiled anew, and PyTorch would stop doing so after eight.
    torch._dynamo.config.recompile_limit = 64
    mask = module.create_block_mask(mask_mod, None, None, t, t, device=device()) if mask_mod else None
    attend = partial(module.flex_attention, block_mask=mask, score_mod=score_mod)
    # `AuxRequest` is there since 2.9.
    asked: dict[str, Any] = {"return_lse": True}
    if hasattr(module, "AuxRequest"):
        asked = {"return_aux": module.AuxRequest(lse=True)}

    def whole(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if finish is None:
            return attend(query, key, value)
        output, aux = attend(query, key, value, **asked)
        return finish(output, aux.lse if "return_aux" in asked else aux)

    return torch.compile(whole, dynamic=False)


def causal_mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return i >= j


def dense(t: int, is_causal: bool) -> dict[str, Maker]:
    return {
        "naive": lambda: partial(scaled_dot_product_attention, is_causal=is_causal),
        **{name: partial(sdpa, backend, is_causal=is_causal) for name, backend in BACKENDS.items()},
        FLEX: partial(flex, t, causal_mod if is_causal else None),
        "Transformers": partial(transformers_sdpa, is_causal),
        "xformers": partial(xformers, is_causal),
        "flash-attn": partial(flash_attn, causal=is_causal),
    }


def transformers_sdpa(is_causal: bool) -> Function:
    package("Transformers")
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    module = torch.nn.Module()
    module.num_key_value_groups = 1

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output, _ = sdpa_attention_forward(module, query, key, value, None, is_causal=is_causal)
        return output.transpose(1, 2)

    return attend


def xformers(is_causal: bool, window: int | None = None) -> Function:
    ops = package("xformers")
    bias = ops.LowerTriangularMask() if is_causal else None
    if window is not None:
        bias = ops.fmha.attn_bias.LocalAttentionFromBottomRightMask(window_left=window - 1, window_right=0)
    return in_tokens(partial(ops.memory_efficient_attention, attn_bias=bias))


def flash_attn(**options: Any) -> Function:
    return in_tokens(partial(package("flash-attn").flash_attn_func, **options))


def in_tokens(function: Function) -> Function:
    """Of a function on `b t h d`, one on `b h t d`."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return function(*(x.transpose(1, 2) for x in (query, key, value))).transpose(1, 2)

    return attend


def window(t: int, size: int) -> dict[str, Maker]:
    """Causal; the query counts as one of `size` keys."""

    def masked() -> Function:
        i = torch.arange(t, device=device())
        distance = i[:, None] - i
        return partial(F.scaled_dot_product_attention, attn_mask=(distance >= 0) & (distance < size))

    return {
        "SDPA, mask": masked,
        FLEX: partial(flex, t, lambda b, h, i, j: (i >= j) & (i - j < size)),
        "xformers": partial(xformers, True, size),
        "flash-attn": partial(flash_attn, causal=True, window_size=(size - 1, 0)),
    }


def alibi(t: int, slopes: Tensor) -> dict[str, Maker]:
    """Causal."""

    def masked() -> Function:
        i = torch.arange(t, device=device())
        distance = i[:, None] - i
        bias = -slopes[:, None, None] * distance
        return partial(F.scaled_dot_product_attention, attn_mask=bias.masked_fill(distance < 0, -torch.inf))

    def distant(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score - slopes[h] * (i - j)

    return {
        "SDPA, mask": masked,
        FLEX: partial(flex, t, causal_mod, distant),
        "flash-attn": partial(flash_attn, causal=True, alibi_slopes=slopes),
    }


def soft_cap(t: int, cap: float) -> dict[str, Maker]:
    """Causal."""

    def capped(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return {
        FLEX: partial(flex, t, causal_mod, capped),
        "flash-attn": partial(flash_attn, causal=True, softcap=cap),
    }


def sinks(t: int, logits: Tensor) -> dict[str, Maker]:
    """Causal. FlexAttention has no sink: its logsumexp says how much of the weight one would have taken."""

    def finish(output: Tensor, lse: Tensor) -> Tensor:
        return output * torch.sigmoid(lse - logits[:, None])[..., None].to(output.dtype)

    return {FLEX: partial(flex, t, causal_mod, finish=finish)}


def linear() -> dict[str, Maker]:
    """Causal, of features."""

    def fla() -> Function:
        operation = package("flash-linear-attention").chunk_linear_attn
        takes = inspect.signature(operation).parameters
        options = {"scale": 1.0, "normalize": True, "head_first": False}
        found = {name: option for name, option in options.items() if name in takes}

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            features = [F.elu(x) + 1 for x in (query, key)]
            output = in_tokens(lambda *inputs: operation(*inputs, **found)[0])(*features, value)
            return output

        return attend

    return {"flash-linear-attention": fla}
