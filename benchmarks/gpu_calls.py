"""What `benchmarks/gpu_measures.py` times: a function and its inputs become a call, with what comes before it done."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Function, device

Prepared = Callable[[Function], Callable[[], Any]]


def first_of(function: Callable[..., tuple[Tensor, ...]]) -> Function:
    """Without the logsumexp."""
    return lambda *inputs: function(*inputs)[0]


def of_query(function: Callable[..., tuple[Tensor, ...]]) -> Function:
    """It has its keys and values already."""
    return lambda query, *_: function(query)[0]


def groups_as_rows(attend: Function, g: int) -> Function:
    """A group of heads as one head with more queries: then each key is read once."""
    return lambda query, key, value: attend(query.unflatten(1, (g, -1)).squeeze(3), key, value)


def forward_of(inputs: Sequence[Tensor]) -> Prepared:
    def prepared(function: Function) -> Callable[[], Any]:
        def call() -> Any:
            with torch.no_grad():
                return function(*inputs)

        return call

    return prepared


def backward_of(inputs: Sequence[Tensor]) -> Prepared:
    """The backward pass alone: the graph is made once, and kept."""

    def prepared(function: Function) -> Callable[[], Any]:
        leaves = [x.detach().requires_grad_() for x in inputs]
        output = function(*leaves)
        grad = torch.randn_like(output)
        return lambda: torch.autograd.grad(output, leaves, grad, retain_graph=True)

    return prepared


def replayed(inputs: Sequence[Tensor]) -> Prepared:
    """The forward pass recorded once, and replayed: no time of Python's, as in a server."""

    def prepared(function: Function) -> Callable[[], Any]:
        call = forward_of(inputs)(function)
        if device() == "cpu":
            return call
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    return prepared


def most_mib(call: Callable[[], Any]) -> float | None:
    """The most memory that a call adds."""
    if device() == "cpu":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20
