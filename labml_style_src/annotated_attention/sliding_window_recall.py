r"""# A planted fact"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor, nn

from annotated_attention.language_model import (
    Attend,
    LanguageModel,
    LanguageModelConfig,
    SelfAttention,
)
from annotated_attention.language_model_training import rate_factor

__all__ = ["heard", "planted_facts", "reader", "teach"]


def planted_facts(
    b: int,
    t: int,
    n_facts: int,
    n_values: int,
    *,
    places: tuple[int, int] = (0, 1),
    generator: torch.Generator | None = None,
) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"], Int[Tensor, "b t"]]:
    first, stop = places
    if not 0 < n_facts <= stop - first or not 0 <= first < stop <= t:
        came = f"n_facts is {n_facts}, places are {places}, t is {t}"
        raise ValueError(f"{came}: a place in the text for each is wanted")
    lots = torch.rand(b, stop - first, generator=generator)
    where = first + lots.argsort(dim=-1)[:, :n_facts]
    values = torch.randint(n_values, (b, n_facts), generator=generator)
    facts = n_facts + torch.arange(n_facts) * n_values + values

    asked = torch.randint(n_facts, (b, t), generator=generator)
    tokens = asked.scatter(1, where, facts)
    targets = facts.gather(1, asked).scatter(1, where, -100)
    return tokens, targets, where.gather(1, asked)


def heard(
    mask: Bool[Tensor, "t t"],
    n_layers: int,
) -> Bool[Tensor, "t t"]:
    ways = torch.eye(len(mask), device=mask.device)
    sees = mask.to(ways.dtype) + ways
    for _ in range(n_layers):
        ways = ((sees @ ways) > 0).to(ways.dtype)
    return ways > 0


def reader(
    attend: Attend,
    *,
    n_layers: int,
    n_facts: int,
    n_values: int,
    length: int,
    d_model: int = 32,
    n_heads: int = 2,
) -> LanguageModel:
    def attention(config: LanguageModelConfig, layer: int) -> nn.Module:
        return SelfAttention(d_model, n_heads, attend=attend)

    config = LanguageModelConfig(
        vocab_size=n_facts * (1 + n_values),
        max_length=length,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        position_embedding="none",
        make_attention=attention,
    )
    model = LanguageModel(config)
    key = 0.1 * torch.randn(n_facts, d_model)
    value = 0.1 * torch.randn(n_values, d_model)
    fact = (key[:, None] + value).flatten(0, 1)
    with torch.no_grad():
        model.embedding.weight.copy_(torch.cat([key, fact]))
    return model


def teach(
    model: nn.Module,
    draw: Callable[[], tuple[Tensor, Tensor]],
    *,
    steps: int,
    learning_rate: float = 6e-3,
    report: Callable[[int], None] | None = None,
) -> None:
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(steps):
        tokens, targets = draw()
        logits = model(tokens).flatten(0, 1)
        loss = F.cross_entropy(logits, targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            factor = rate_factor(step, steps, warmup=20)
            group["lr"] = learning_rate * factor
        optimizer.step()
        if report is not None:
            report(step + 1)
