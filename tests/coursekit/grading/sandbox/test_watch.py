"""Ready-made attention that is called is noted, by whatever name, and answers as before."""

import json
import subprocess
import sys

import pytest

from coursekit.grading.sandbox import watch

HEAD = """
import json, sys, warnings
warnings.simplefilter("error")
import torch
import torch.nn.functional as F
from torch import nn
from coursekit.grading.sandbox import watch
torch.manual_seed(0)
q = torch.randn(1, 2, 5, 8, requires_grad=True)
x = torch.randn(2, 3, 8)
layer = nn.MultiheadAttention(8, 2, batch_first=True).eval()
encoder = nn.TransformerEncoderLayer(8, 2, batch_first=True).eval()
def gradient():
    return torch.autograd.grad(F.scaled_dot_product_attention(q, q, q, is_causal=True).sum(), q)[0]
before = F.scaled_dot_product_attention(q, q, q), gradient(), layer(x, x, x)[0], encoder(x)
watch.install()
watch.install()
after = F.scaled_dot_product_attention(q, q, q), gradient(), layer(x, x, x)[0], encoder(x)
same = all(torch.equal(one, other) for one, other in zip(before, after))
watch.taken()
warnings.simplefilter("ignore")
"""
SCALED = "scaled_dot_product_attention"
FLASH = "_scaled_dot_product_flash_attention_for_cpu"
CALLS = {
    "F.scaled_dot_product_attention(q, q, q)": [SCALED, FLASH],
    "torch._C._nn.scaled_dot_product_attention(q, q, q)": [SCALED, FLASH],
    "torch.ops.aten.scaled_dot_product_attention(q, q, q)": [SCALED, FLASH],
    "getattr(F, 'scaled_dot' + '_product_attention')(q, q, q)": [SCALED, FLASH],
    "torch.no_grad()(F.scaled_dot_product_attention)(q, q, q)": [SCALED, FLASH],
    "torch.inference_mode()(F.scaled_dot_product_attention)(q, q, q)": [SCALED, FLASH],
    "gradient()": [SCALED, FLASH],
    "torch._scaled_dot_product_attention_math(q, q, q)": ["_scaled_dot_product_attention_math"],
    "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, q, q)": [FLASH],
    "layer(x, x, x)": ["multi_head_attention_forward"],
    "layer(x, x, x, need_weights=False)": ["multi_head_attention_forward", SCALED, FLASH],
    "torch.no_grad()(layer)(x, x, x)": ["_native_multi_head_attention"],
    "torch.no_grad()(encoder)(x)": ["_transformer_encoder_layer_fwd", "_native_multi_head_attention"],
    "__import__('threading').Thread(target=gradient).run()": [SCALED, FLASH],
    "__import__('torch.nn.attention.flex_attention').nn.attention.flex_attention.flex_attention": [],
    "torch.nn.attention.flex_attention.flex_attention(1, 2, 3)": ["flex_attention"],
    "F.softmax(q @ q.mT, -1) @ q, F.linear(x, x[0]), torch.einsum('bhtd,bhsd->bhts', q, q)": [],
}


@pytest.fixture(scope="module")
def found() -> dict:
    code = (
        HEAD
        + f"calls = {list(CALLS)!r}\n"
        + """
told = {"same": same}
for call in calls:
    try:
        exec(call)
    except Exception:
        pass
    told[call] = watch.taken()
print(json.dumps(told))
"""
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("call", CALLS)
def test_what_is_called_is_noted(found: dict, call: str):
    assert found[call] == CALLS[call]


def test_values_and_gradients_stay_bit_for_bit(found: dict):
    assert found["same"] is True


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        (["flex_attention", "rm -rf /", 3, None, [], {}, "x" * 10**6], ["flex_attention"]),
        (("flex_attention",), ["flex_attention"]),
        ("flex_attention", []),
        ({"flex_attention": 1}, []),
        (None, []),
    ],
)
def test_of_what_a_child_tells_only_known_names_are_kept(told, kept):
    assert watch.known(told) == kept
