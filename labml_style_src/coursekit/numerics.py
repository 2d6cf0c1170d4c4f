"""How close is close enough: a bound derived from a float64 oracle, never a tolerance picked by taste.

An answer in some dtype is judged against the same formula in float64 (the *oracle*), beside a trusted
implementation in the same dtype (the *peer*):

    max|ours - oracle|  <=  factor * max|peer - oracle|  +  2 * rounding

where `rounding` is the error of adding 0.3 to the oracle's values in that dtype and taking it away again. This
is the rule of FlashAttention-3's tests; the factor is 2 for outputs and 3 for gradients.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

OUTPUT_FACTOR = 2.0
GRADIENT_FACTOR = 3.0


@dataclass(frozen=True)
class Measured:
    """One comparison: the worst absolute error, the bound it had to keep, and where the worst error sits."""

    error: float
    bound: float
    index: tuple[int, ...]

    @property
    def passed(self) -> bool:
        return self.error <= self.bound

    @property
    def ratio(self) -> float:
        """Error over bound: 1 is the limit."""
        return self.error / self.bound if self.bound > 0 else (0.0 if self.error == 0 else float("inf"))


def to_float64(array: Any) -> np.ndarray:
    """A plain float64 copy of a tensor or array, so that no subclass on the other side takes part in a
    comparison."""
    if isinstance(array, torch.Tensor):
        array = array.detach().to("cpu", torch.float64).numpy()
    return np.array(array, dtype=np.float64, subok=False)


def errors(ours: np.ndarray, oracle: np.ndarray) -> np.ndarray:
    """Absolute differences, where equal infinities agree and a NaN that the oracle lacks is infinitely wrong."""
    agree = (ours == oracle) | (np.isnan(ours) & np.isnan(oracle))
    with np.errstate(invalid="ignore"):
        difference = np.abs(ours - oracle)
    return np.where(agree, 0.0, np.where(np.isnan(difference), np.inf, difference))


def rounding(oracle: np.ndarray, dtype: torch.dtype) -> float:
    """The largest error of adding 0.3 to the oracle's finite values and taking it away again, in `dtype`."""
    values = torch.from_numpy(oracle[np.isfinite(oracle)]).to(dtype)
    if values.numel() == 0:
        return 0.0
    return ((values + 0.3 - 0.3).double() - values.double()).abs().max().item()


def measure(
    ours: Any, peer: Any, oracle: Any, *, dtype: torch.dtype | None = None, factor: float = OUTPUT_FACTOR
) -> Measured:
    """Compare `ours` with `oracle`, allowing what `peer` needs.

    `dtype` is the dtype under test; by default that of `ours` (float64 for a NumPy array of float64).

    Raises `ValueError` if the shapes differ: a broadcast comparison would hide a wrong answer.
    """
    if dtype is None:
        dtype = ours.dtype if isinstance(ours, torch.Tensor) else torch.from_numpy(np.asarray(ours)).dtype
    ours, peer, oracle = to_float64(ours), to_float64(peer), to_float64(oracle)
    if not ours.shape == peer.shape == oracle.shape:
        raise ValueError(f"shapes differ: ours {ours.shape}, peer {peer.shape}, oracle {oracle.shape}")
    bound = factor * errors(peer, oracle).max(initial=0.0) + 2 * rounding(oracle, dtype)
    difference = errors(ours, oracle)
    index = np.unravel_index(difference.argmax(), difference.shape) if difference.size else ()
    return Measured(float(difference.max(initial=0.0)), float(bound), tuple(int(i) for i in index))
