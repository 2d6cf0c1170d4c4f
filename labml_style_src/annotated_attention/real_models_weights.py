r"""# Published weights

A checkpoint is a table of names and matrices, and a few numbers on how to read them. Nothing in it says which
code it was trained with. So a published Llama can run on this course alone: lesson 8's heads, lesson 5's turns,
lesson 7's cache, lesson 3's loop that writes. The library only fetches the file.

```python
published = AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M")
model = Llama.from_transformers(published)
generate(model, tokens, 20, caches=model.make_caches(64))
```

Every logit stays where it was [check:test_llama_without_the_library], also with each key head shared
[check:test_llama_without_the_library|as in Llama 3], and so does every token that is written, from lesson 7's
cache [check:test_it_writes_the_same_tokens].

## What Llama is, beside attention

Four differences from lesson 3's model, each of one line. Norms divide by the root of the mean square and have no
bias (Zhang and Sennrich 2019, arXiv:1910.07467). The MLP has a gate, $W_2(\operatorname{SiLU}(W_1 x) \odot
W_3 x)$ (Shazeer 2020, arXiv:2002.05202). Positions are turns. And the matrix that reads out logits is one of
its own, if the configuration does not tie it to the embedding.

## Two orders of one matrix

Meta stores the rows of $W_Q$ and $W_K$ so that neighbours turn together; Transformers wants one number of each
half. Its converter exchanges rows, head by head, as `half_split_order` does in lesson 5
[check:test_rows_are_those_of_the_converter]. Run the published file without it and everything works: the
shapes, the norms of all vectors, the first token, for at position 0 nothing turns; then it drifts
[check:test_a_forgotten_permutation_is_right_at_the_first_token].

![Three ways to misread one checkpoint: the error of all logits, token by token, against their size. Two of them
leave the first token as it was.](figure:mistakes)

Not everything is in the matrices. The base of the turns, the constant inside the norms and the number of key
heads are in the configuration, and a wrong one runs as well. Read with the base of Llama 2, which is a
fiftieth of its own, Llama 3 takes near words for far ones: its slow pairs turn almost 50 times as fast
[check:test_a_wrong_base_is_silent].

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $W_Q, W_K$ | `weight` | – | rows of queries or keys, $d$ to a head |
| $W_1$ | `self.w_1` | – | the gate of the MLP |
| $W_2$ | `self.w_2` | – | back to the model's width |
| $W_3$ | `self.w_3` | – | what is let through |
| $B$ | `rotary_base` | scalar | base of the turns, `rope_theta` |

**Source.** Touvron et al. (2023), arXiv:2302.13971, section 2.2. The converter is
`convert_llama_weights_to_hf.py` in Transformers, its `permute`.
"""

import os
import threading
import urllib.request
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from annotated_attention.grouped_query import (
    GroupedQueryAttention,
    causal_grouped_attention,
)
from annotated_attention.kv_cache import KVCache
from annotated_attention.language_model import Attend, Cache
from annotated_attention.real_models_interface import library
from annotated_attention.rotary import half_split_order, rotary_attention

__all__ = ["Llama", "LlamaBlock", "halves_from_neighbours"]
__all__ += ["is_reachable", "load"]


def halves_from_neighbours(
    weight: Float[Tensor, "hd ..."],
    n_heads: int,
) -> Float[Tensor, "hd ..."]:
    r"""## From Meta's rows to Transformers'

    A product of a query and a key is the same if both are permuted alike. So is an output, for values are not
    turned, and $W_V$ stays.

    **Raises.** `ValueError` if the rows are no multiple of `n_heads`, or a head has an odd number.
    """
    rows = weight.shape[0]
    if n_heads < 1 or rows % n_heads:
        wanted = f"a multiple of {n_heads} heads"
        raise ValueError(f"weight has {rows} rows: {wanted} is wanted")
    order = half_split_order(rows // n_heads, device=weight.device)
    heads = weight.unflatten(0, (n_heads, -1))
    return heads[:, order].flatten(0, 1)


class LlamaBlock(nn.Module):
    """## A layer

    Attention, then the gated MLP, each behind a norm and added to its input: lesson 3's block, with other
    parts. `attend` is what stands in lesson 8's layer behind the turn; a window is `partial` of lesson 9's
    [check:test_mistral_is_llama_with_a_window].
    """

    def __init__(self, config: Any, attend: Attend) -> None:
        super().__init__()
        m, inner = config.hidden_size, config.intermediate_size
        norm = partial(nn.RMSNorm, m, eps=config.rms_norm_eps)
        self.attention_norm, self.mlp_norm = norm(), norm()
        turned = partial(
            rotary_attention,
            base=rotary_base(config),
            attend=attend,
        )
        self.attention = GroupedQueryAttention(
            m,
            config.num_attention_heads,
            config.num_key_value_heads,
            attend=turned,
        )
        self.w_1 = nn.Linear(m, inner, bias=False)
        self.w_3 = nn.Linear(m, inner, bias=False)
        self.w_2 = nn.Linear(inner, m, bias=False)

    def forward(
        self,
        x: Float[Tensor, "b t m"],
        cache: Cache | None = None,
    ) -> Float[Tensor, "b t m"]:
        x = x + self.attention(self.attention_norm(x), cache=cache)
        y = self.mlp_norm(x)
        return x + self.w_2(F.silu(self.w_1(y)) * self.w_3(y))


def rotary_base(config: Any) -> float:
    """`rope_theta`, wherever the version keeps it. Frequencies that are bent for long texts (Llama 3.1, YaRN)
    are refused: lesson 5 has them, but a base does not say them."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        came = f"rope_type is {rope['rope_type']}"
        raise ValueError(f"{came}: default is wanted")
    return rope.get("rope_theta") or config.rope_theta


class Llama(nn.Module):
    """## The model

    Tokens in, logits out, and lesson 3's way with caches: one for each layer, any of this course.
    """

    def __init__(
        self,
        config: Any,
        *,
        attend: Attend = causal_grouped_attention,
    ) -> None:
        super().__init__()
        v, m = config.vocab_size, config.hidden_size
        check_config(config, attend)
        self.embedding = nn.Embedding(v, m)
        layers = range(config.num_hidden_layers)
        blocks = [LlamaBlock(config, attend) for _ in layers]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.RMSNorm(m, eps=config.rms_norm_eps)
        self.read_out = nn.Linear(m, v, bias=False)

    def forward(
        self,
        tokens: Integer[Tensor, "b t"],
        *,
        caches: Sequence[Cache] | None = None,
    ) -> Float[Tensor, "b t v"]:
        x = self.embedding(tokens)
        for n, block in enumerate(self.blocks):
            x = block(x, None if caches is None else caches[n])
        return self.read_out(self.norm(x))

    def make_caches(self, capacity: int) -> list[KVCache]:
        """Lesson 7's, one for each layer."""
        return [KVCache(capacity) for _ in self.blocks]

    @classmethod
    def from_transformers(
        cls,
        source: Any,
        *,
        attend: Attend = causal_grouped_attention,
    ) -> "Llama":
        r"""### Names for names

        A table of two columns is all that separates the two. `load_state_dict` is strict: a name that is left
        over, in either model, is an error. Biases would be such names, so Qwen's do not get lost
        [check:test_what_does_not_fit_is_refused].
        """
        state = source.state_dict()
        names = {
            "model.embed_tokens": "embedding",
            "model.layers": "blocks",
            "model.norm": "norm",
            "lm_head": "read_out",
            "input_layernorm": "attention_norm",
            "post_attention_layernorm": "mlp_norm",
            "self_attn.q_proj": "attention.w_q",
            "self_attn.k_proj": "attention.w_k",
            "self_attn.v_proj": "attention.w_v",
            "self_attn.o_proj": "attention.w_o",
            "mlp.gate_proj": "w_1",
            "mlp.down_proj": "w_2",
            "mlp.up_proj": "w_3",
        }
        for theirs, ours in names.items():
            renamed = (name.replace(theirs, ours) for name in state)
            state = dict(zip(renamed, state.values(), strict=True))
        model = cls(source.config, attend=attend)
        model.to(source.lm_head.weight).load_state_dict(state)
        return model.eval()


def check_config(config: Any, attend: Attend) -> None:
    """What the layers above do not have. Granite and SmolLM3 have the very names of Llama, and are not it: one
    multiplies what is added, the other leaves the turn out of some layers."""
    kind = getattr(config, "model_type", "llama")
    if kind not in ("llama", "mistral"):
        raise ValueError(f"model_type is {kind}: llama or mistral is wanted")
    window = getattr(config, "sliding_window", None)
    if window is not None and attend is causal_grouped_attention:
        wanted = "attend=partial(causal_window_attention, window=...)"
        raise ValueError(f"sliding_window is {window}: {wanted} is wanted")
    d = getattr(config, "head_dim", None)
    wanted = config.hidden_size // config.num_attention_heads
    if d not in (None, wanted):
        raise ValueError(f"head_dim is {d}: {wanted} is wanted")
    if config.hidden_act != "silu":
        came = f"hidden_act is {config.hidden_act}"
        raise ValueError(f"{came}: silu is wanted")


def is_reachable(timeout: float = 3.0) -> bool:
    """## Is anybody there?

    The library tries five times and longer each time, 23 seconds on a machine without a network, and a name
    server that never answers holds up every one. So one question is asked first, in a thread that need not
    come back [check:test_offline_is_noticed_in_seconds].
    """
    told = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    yes = ("1", "ON", "YES", "TRUE")
    if any(os.environ.get(name, "").upper() in yes for name in told):
        return False
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    answers = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(address, timeout=timeout):
                answers.append(True)
        except OSError:
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return bool(answers)


def load(
    name: str,
    otherwise: Callable[[], nn.Module],
) -> tuple[Any, str]:
    """## Weights where there are some

    Returns a model and where its weights come from: this machine's cache or the network, and if neither has
    them, `otherwise()`, which is to build the same architecture, with weights as they come
    [check:test_load_says_what_it_has]. They are loaded in float32, or a comparison would measure bfloat16.
    """
    find = partial(
        library().AutoModelForCausalLM.from_pretrained,
        dtype=torch.float32,
    )
    try:
        return find(name, local_files_only=True).eval(), f"{name}, cached"
    except OSError:
        pass
    if is_reachable():
        try:
            return find(name).eval(), f"{name}, downloaded"
        except OSError:
            pass
    return otherwise().eval(), f"random, for {name} is out of reach"


def example(axes: dict[str, int]) -> None:
    """A model with random weights, read off a configuration."""
    from types import SimpleNamespace

    b, g, r, t, d, v = (axes[letter] for letter in "bgrtdv")
    config = SimpleNamespace(
        **{"hidden_size": g * r * 2 * d, "intermediate_size": 2 * d, "rms_norm_eps": 1e-6},
        **{"num_attention_heads": g * r, "num_key_value_heads": g, "rope_theta": 1e4},
        **{"vocab_size": v, "hidden_act": "silu", "num_hidden_layers": 1},
    )
    halves_from_neighbours(torch.randn(g * 2 * d, t), g)
    model = Llama(config)
    x = model(torch.zeros(b, t, dtype=torch.long))
    model.blocks[0](x.new_zeros(b, t, g * r * 2 * d))
