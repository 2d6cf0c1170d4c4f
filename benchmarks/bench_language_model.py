"""One step of training the default model, beside the same step with lesson 1's function in the slot, and beside
PyTorch's own layers: `nn.TransformerEncoderLayer(norm_first=True)` under a causal mask."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from annotated_attention.language_model import (
    LanguageModel,
    LanguageModelConfig,
    SelfAttention,
    causal_mask,
)
from annotated_attention.scaled_dot_product import scaled_dot_product_attention
from benchmarks.measure import compare, device


def run() -> list[dict]:
    config = LanguageModelConfig()
    peers = {"lesson 1 in the slot": LanguageModel(with_lesson_1(config)), "PyTorch's layers": Layers(config)}
    tokens = torch.randint(config.vocab_size, (16, config.max_length + 1), device=device())
    about = {"b": 16, "t": config.max_length, "m": config.d_model, "layers": config.n_layers}
    ours = step_of(LanguageModel(config), tokens)
    return [{**about, "peer": name, **compare(ours, step_of(peer, tokens))} for name, peer in peers.items()]


def step_of(model: nn.Module, tokens: Tensor):
    model = model.to(device())
    return partial(step, model, torch.optim.AdamW(model.parameters()), tokens)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, tokens: Tensor) -> None:
    loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def with_lesson_1(config: LanguageModelConfig) -> LanguageModelConfig:
    def attend(query: Tensor, key: Tensor, value: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return scaled_dot_product_attention(query, key, value, causal_mask(i, j))

    def make_attention(config: LanguageModelConfig, layer: int) -> nn.Module:
        return SelfAttention(config.d_model, config.n_heads, attend=attend)

    return LanguageModelConfig(make_attention=make_attention)


class Layers(nn.Module):
    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        m = config.d_model
        self.embedding = nn.Embedding(config.vocab_size, m)
        self.positions = nn.Embedding(config.max_length, m)
        options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        layer = nn.TransformerEncoderLayer(m, config.n_heads, 4 * m, **options)
        self.layers = nn.TransformerEncoder(
            layer, config.n_layers, nn.LayerNorm(m), enable_nested_tensor=False
        )

    def forward(self, tokens: Tensor) -> Tensor:
        t = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(t, device=tokens.device)
        x = self.embedding(tokens) + self.positions.weight[:t]
        return F.linear(self.layers(x, mask=mask, is_causal=True), self.embedding.weight)
