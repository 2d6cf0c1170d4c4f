"""`apply_rotary` beside the way of most libraries: cosine and sine written out for both halves, and a copy of
the vectors with their halves exchanged. Both start from the angles."""

import torch
from torch import Tensor

from annotated_attention.rotary import apply_rotary, rotary_angles
from benchmarks.measure import device, passes


def peer(x: Tensor, angles: Tensor) -> Tensor:
    both = torch.cat([angles, angles], dim=-1)
    first, second = x.chunk(2, dim=-1)
    exchanged = torch.cat([-second, first], dim=-1)
    return x * both.cos().to(x.dtype) + exchanged * both.sin().to(x.dtype)


def run() -> list[dict]:
    cases = []
    for t in (1, 128, 2048):
        x = torch.randn(2, 8, t, 64, device=device())
        angles = rotary_angles(torch.arange(t, device=device()), 64)
        about = {"b": 2, "h": 8, "t": t, "d": 64}
        cases += passes(
            lambda y, angles=angles: apply_rotary(y, angles),
            lambda y, angles=angles: peer(y, angles),
            [x],
            about,
        )
    return cases
