"""The proof of `language_model`: each test is a claim that its page makes."""

import math

import torch
import torch.nn.functional as F

from annotated_attention.language_model import LanguageModel, LanguageModelConfig, generate

CONFIG = LanguageModelConfig(vocab_size=17, max_length=23, d_model=22, n_layers=2, n_heads=2)


def test_untrained_loss_is_that_of_a_guess(device: str) -> None:
    torch.manual_seed(0)
    model = LanguageModel(CONFIG).to(device)
    tokens = torch.randint(17, (3, 13), device=device)
    loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert abs(loss.item() - math.log(17)) < 0.1
    assert generate(model, tokens, 5).shape == (3, 18)
