"""Which ready-made attention a submission called while it ran: evidence beside what `notes.py` reads.

`install()` puts a listener in front of PyTorch's own kernels, below every name they have in Python, and then
lets the kernel go on, so that values and gradients stay what they were. No other operation passes by it.
Where there is no kernel of its own to listen at (`multi_head_attention_forward`, which multiplies matrices, and
`flex_attention`, which is compiled), the function is replaced by one that notes the call and makes it.

It runs in the student's process, where a student can silence it or make it tell what is not so. Its word is
for a person who looks at the code, never for the points alone.
"""

import contextlib
import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

# Operations of PyTorch's namespace `aten`, and where a function stands that is no operation.
OPERATIONS = (
    *("scaled_dot_product_attention", "_scaled_dot_product_attention_math"),
    *("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu"),
    *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"),
    *("_scaled_dot_product_fused_attention_overrideable", "_scaled_dot_product_attention_math_for_mps"),
    *("_flash_attention_forward", "_efficient_attention_forward", "_cudnn_attention_forward"),
    *("_native_multi_head_attention", "_transformer_encoder_layer_fwd"),
    *("_triton_multi_head_attention", "_triton_scaled_dot_attention"),
)
FUNCTIONS = {
    "multi_head_attention_forward": "torch.nn.functional",
    "flex_attention": "torch.nn.attention.flex_attention",
}
NAMES = frozenset({*OPERATIONS, *FUNCTIONS})

_called: dict[str, None] = {}
_kept: list[Any] = []


def taken() -> list[str]:
    """What was called since the last time, each name once, in the order of the first calls."""
    names = list(_called)
    _called.clear()
    return names


def known(told: Any) -> list[str]:
    """On the grader's side: of what a child told, the names that mean something."""
    names = told if isinstance(told, list | tuple) else ()
    return [name for name in names if isinstance(name, str) and name in NAMES]


def install() -> None:
    """Listen from now on, once a process. PyTorch is imported. An operation that this version of PyTorch lacks
    is passed over."""
    import torch

    if _kept:
        return
    library = torch.library.Library("aten", "IMPL")
    _kept.append(library)
    for name in OPERATIONS:
        packet = getattr(torch.ops.aten, name, None)
        for overload in packet.overloads() if packet else ():
            _listen(library, name, overload)
    for name, place in FUNCTIONS.items():
        with contextlib.suppress(ImportError):
            _wrap(importlib.import_module(place), name)


def _listen(library: Any, name: str, overload: str) -> None:
    """Stand before the kernels of an operation, with and without gradients."""
    import torch

    operation = getattr(getattr(torch.ops.aten, name), overload)
    full = name if overload == "default" else f"{name}.{overload}"

    def above(keys: Any, *args: Any, **kwargs: Any) -> Any:
        _called[name] = None
        return operation.redispatch(keys & torch._C._after_autograd_keyset, *args, **kwargs)

    def below(keys: Any, *args: Any, **kwargs: Any) -> Any:
        _called[name] = None
        return operation.redispatch(keys.remove(torch._C.DispatchKey.BackendSelect), *args, **kwargs)

    # Every call passes BackendSelect, which these operations leave unused: below it is the kernel itself.
    library.impl(full, below, "BackendSelect", with_keyset=True)
    # One that is made of others is taken apart before that, where gradients are recorded.
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{full}", "CompositeImplicitAutograd"):
        library.impl(full, above, "AutogradCPU", with_keyset=True)


def _wrap(module: ModuleType, name: str) -> None:
    function: Callable[..., Any] = getattr(module, name)

    @functools.wraps(function)
    def noted(*args: Any, **kwargs: Any) -> Any:
        _called[name] = None
        return function(*args, **kwargs)

    setattr(module, name, noted)
