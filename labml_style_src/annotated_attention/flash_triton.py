r"""# FlashAttention in Triton

Page to come.
"""

import importlib.util
import os
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from annotated_attention.flash import flash_attention
from annotated_attention.scaled_dot_product import check_inputs

__all__ = ["TritonFlashAttention", "flash_attention_triton", "flash_in_blocks"]


def has_kernels(query: Tensor) -> bool:
    if query.dtype == torch.float64:
        return False
    if not query.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return False
    return importlib.util.find_spec("triton") is not None


class TritonFlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, sinks, slopes, *options):
        from annotated_attention.flash_triton_kernels import launch_forward

        inputs = query, key, value, sinks, slopes
        with torch.cuda.device_of(query):
            output, lse = launch_forward(*inputs, *options)
        ctx.save_for_backward(*inputs, output, lse)
        ctx.options = options
        return output, lse

    @staticmethod
    def backward(ctx, *grad_outputs):
        from annotated_attention.flash_triton_kernels_backward import launch_backward

        if torch.is_grad_enabled():
            came = "create_graph=True asks for a gradient of the gradient"
            raise RuntimeError(f"{came}, which flash_attention_triton lacks")
        saved = ctx.saved_tensors
        wants_slopes = ctx.needs_input_grad[4]
        options = *ctx.options, wants_slopes
        with torch.cuda.device_of(saved[0]):
            gradients = launch_backward(*grad_outputs, *saved, *options)
        return *gradients, None, None, None, None, None, None


def flash_attention_triton(
    query: Float[Tensor, "b h t d"],
    key: Float[Tensor, "b g s d"],
    value: Float[Tensor, "b g s e"],
    *,
    is_causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
    alibi_slopes: Float[Tensor, "h"] | None = None,
    sink_logits: Float[Tensor, "h"] | None = None,
    soft_cap: float | None = None,
    documents: Sequence[int] | None = None,
) -> tuple[Float[Tensor, "b h t e"], Float[Tensor, "b h t"]]:
    r"""## The function"""
    check_inputs(query, key, value, None, is_causal, enable_gqa=True)
    check_options(query, key, window, alibi_slopes, sink_logits, soft_cap)
    t, s = query.shape[2], key.shape[2]
    scale = query.shape[3] ** -0.5 if scale is None else scale

    options = window, alibi_slopes, sink_logits, soft_cap, documents
    is_plain = all(option is None for option in options)
    kernels = has_kernels(query)
    if is_plain and not kernels:
        return flash_attention(query, key, value, is_causal=is_causal, scale=scale)

    before = t + s if window is None else window - 1
    after = 0 if is_causal else before
    starts, ends = bounds(documents, query, key)
    if not kernels:
        return flash_in_blocks(
            query, key, value, sink_logits, alibi_slopes,
            before, after, starts, ends, scale, soft_cap,
        )  # fmt: skip

    # A score is $\lambda$ times what the seam makes of a product.
    if scale <= 0:
        query, scale = query * -float(scale < 0), abs(scale) or 1.0
    slopes = None if alibi_slopes is None else alibi_slopes.float()
    sinks = None if sink_logits is None else sink_logits.float()
    return TritonFlashAttention.apply(
        query, key, value, sinks, slopes,
        before, after, starts, ends, scale, soft_cap,
    )  # fmt: skip


def check_options(query, key, window, alibi_slopes, sink_logits, soft_cap):
    h = query.shape[1]
    if window is not None and window < 1:
        raise ValueError(f"window is {window}: at least 1 is wanted")
    if soft_cap is not None and not soft_cap > 0:
        raise ValueError(f"soft_cap is {soft_cap}: it must be greater than 0")
    vectors = {"alibi_slopes": alibi_slopes, "sink_logits": sink_logits}
    for name, x in vectors.items():
        if x is not None and (x.shape != (h,) or x.device != query.device):
            came = f"{name} has shape {tuple(x.shape)} on {x.device}"
            raise ValueError(f"{came}: {(h,)} on {query.device} is wanted")


def bounds(
    documents: Sequence[int] | None, query: Tensor, key: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    if documents is None:
        return None, None
    t, s = query.shape[2], key.shape[2]
    marks = torch.as_tensor(documents, dtype=torch.int32)
    lengths = marks.diff()
    is_packed = len(marks) > 0 and marks[0] == 0 and marks[-1] == t == s
    if not is_packed or (lengths < 0).any():
        came = f"documents is {list(documents)}, with {t} queries and {s} keys"
        wanted = "it must ascend from 0 to the number of both"
        raise ValueError(f"{came}: {wanted}")
    starts, ends = (x.repeat_interleave(lengths).to(query.device) for x in (marks[:-1], marks[1:]))
    return starts, ends


def attend_to_block(query, key, value, sinks, slopes, i, j, before, after, starts, ends, scale, cap):
    wide = torch.promote_types(query.dtype, torch.float32)
    g = key.shape[1]
    q = rearrange(query.to(wide), "b (g r) t d -> b g r t d", g=g)
    scores = torch.einsum("b g r t d, b g s d -> b g r t s", q, key.to(wide))
    scores = rearrange(scores, "b g r t s -> b (g r) t s") * scale
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    distance = i[:, None] - j
    if slopes is not None:
        scores = scores - slopes.to(wide)[:, None, None] * distance.abs()
    seen = (distance <= before) & (-distance <= after)
    if starts is not None:
        seen &= (j >= starts[i, None]) & (j < ends[i, None])
    scores = scores.masked_fill(~seen, -torch.inf)

    lse = scores.logsumexp(dim=-1)
    if sinks is not None:
        lse = torch.logaddexp(lse, sinks.to(wide)[:, None])
    lowest = torch.finfo(wide).min
    weights = torch.exp(scores - lse.clamp(min=lowest)[..., None])
    weights = rearrange(weights, "b (g r) t s -> b g r t s", g=g)
    output = torch.einsum("b g r t s, b g s e -> b g r t e", weights, value.to(wide))
    output = rearrange(output, "b g r t e -> b (g r) t e")
    return output.to(query.dtype), lse


def flash_in_blocks(
    query, key, value, sinks, slopes, before, after, starts, ends, scale, cap,
    block: int = 256,
):  # fmt: skip
    t, s = query.shape[2], key.shape[2]
    parts = []
    for first in range(0, max(t, 1), block):
        last = max(min(first + block, t) - 1, first)
        low, high = max(first - before, 0), min(last + after + 1, s)
        if starts is not None and t:
            low, high = max(low, int(starts[first])), min(high, int(ends[last]))
        low, high = min(low, s), max(low, high)
        i = torch.arange(first, min(first + block, t), device=query.device)
        j = torch.arange(low, high, device=query.device)
        parts.append(checkpoint(
            attend_to_block, query[:, :, first : first + block], key[:, :, low:high],
            value[:, :, low:high], sinks, slopes, i, j, before, after, starts, ends,
            scale, cap, use_reentrant=False, preserve_rng_state=False,
        ))  # fmt: skip
    outputs, lses = zip(*parts, strict=True)
    return torch.cat(outputs, 2), torch.cat(lses, 2)


def example(axes: dict[str, int]) -> None:
    """Run once on primes: the shapes beside the code are read off this run."""
    b, g, r, t, s, d, e = (axes[letter] for letter in "bgrtsde")
    query = torch.randn(b, g * r, t, d)
    key, value = torch.randn(b, g, s, d), torch.randn(b, g, s, e)
    flash_attention_triton(query, key, value, is_causal=True, window=3)
