"""Memory, as an experiment or a benchmark counts it."""

import weakref
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Peak(TorchDispatchMode):
    """The most bytes that new tensors held at one time, on any device: `most`. Tensors that were `known` before do not
    count, nor does what a kernel takes for itself.

        with Peak(inputs) as seen:
            attend(*inputs)
        seen.most
    """

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.held = {x.untyped_storage()._cdata: 0 for x in known}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in self.held:
                storage = x.untyped_storage()
                self.held[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self.free, storage._cdata)
        return result

    def free(self, which: int) -> None:
        self.now -= self.held.pop(which)
