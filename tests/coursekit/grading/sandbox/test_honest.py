"""What honest submissions use works behind every wall, although PyTorch loads much of it only when it is used."""

from collections.abc import Generator

import pytest

from coursekit.grading.backends import SecondProcess
from coursekit.grading.sandbox import Host
from coursekit.grading.submission import Submission
from coursekit.grading.verbs import Student

CODE = """
import io
from dataclasses import dataclass, field

import einops
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

X = torch.arange(6.0).reshape(2, 3)

def optimizer():
    layer = nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    layer(X).sum().backward()
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    return X.sum()

def checkpoint():
    from torch.utils.checkpoint import checkpoint
    x = X.clone().requires_grad_()
    checkpoint(torch.square, x, use_reentrant=False).sum().backward()
    return x.grad.sum() / 2

def jacobians():
    torch.func.jvp(torch.sin, (X,), (X,))
    torch.func.vmap(torch.sin)(X)
    torch.autograd.gradcheck(torch.sin, X.double().requires_grad_())
    return torch.func.grad(lambda x: (x * x).sum() / 2)(X).sum()

def own_gradient():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            context.save_for_backward(x)
            return x * x / 2

        @staticmethod
        def backward(context, grad):
            return grad * context.saved_tensors[0]

    x = X.clone().requires_grad_()
    Double.apply(x).sum().backward()
    return x.grad.sum()

@torch.compile
def compiled():
    return X.sum()

def shapes():
    X.numpy()
    y = einops.rearrange(X, "a b -> b a")
    einops.reduce(np.ones((2, 3)), "a b -> b", "mean")
    return torch.einsum("ab,ba->", X, torch.ones_like(y)) + 0 * einops.einsum(X, y, "a b, b c -> a c").sum()

def texts():
    print(X, nn.Linear(2, 3), np.ones(3), X.clone().requires_grad_())
    return f"{X.sum():g}"

def saved():
    buffer = io.BytesIO()
    torch.save(X, buffer)
    buffer.seek(0)
    return torch.load(buffer).sum()

def compared():
    torch.testing.assert_close(X, X)
    np.testing.assert_allclose(X.numpy(), X.numpy())
    return X.sum()

def drawn():
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        return X.sum()
    plt.imshow(X)
    plt.title("weights")
    plt.show()
    return X.sum()

def late_imports():
    import colorsys, doctest, wave
    import torch.distributions
    return X.sum()

def threads():
    torch.set_num_threads(2)
    big = torch.ones(300, 300)
    (big @ big).sum()
    return X.sum()

def odds():
    @dataclass
    class Cache:
        keys: list = field(default_factory=list)
    np.random.default_rng(0).normal(size=3)
    torch.Generator().manual_seed(1)
    torch.linalg.svd(torch.eye(3))
    nn.MultiheadAttention(4, 2)(*[torch.ones(2, 3, 4)] * 3)
    return X.sum() + len(Cache().keys)
"""
NAMES = [line[4 : line.index("(")] for line in CODE.splitlines() if line.startswith("def ")]


@pytest.fixture(scope="module")
def backend(host: Host) -> Generator[SecondProcess]:
    backend = SecondProcess(Submission(CODE, "honest.py", "honest.py"), host=host)
    yield backend
    backend.close()


@pytest.mark.parametrize("name", NAMES)
def test_it_works(backend: SecondProcess, name: str):
    student = Student(backend)
    student.begin(0)
    assert float(student.call(name)) == 15
    assert backend.events == []
