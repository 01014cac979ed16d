"""An item's numbers do not depend on how many items are decoded beside it: the same bits in every batch."""

import pytest
import torch
from decode_case import STORED, STORED_AS_GIVEN
from fastjukebox.kernels import fused
from fastjukebox.kernels.pattern_groups import COMPILED_FOR
from test_down_residual import make as down_residual
from test_head_logits import make as head_logits
from test_norm_qkv import make as norm_qkv
from test_norm_qkv import window
from test_norm_up import make as norm_up
from test_project_attention import make as project_attention

# The interpreter leaves products to NumPy, whose sums depend on all sizes.
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() and not COMPILED_FOR.get(), reason="needs compiled kernels (FASTJUKEBOX_PTX)"
)
ITEMS = 11
OPS = {
    "norm_qkv": (lambda width, int8: norm_qkv(window("row", range(ITEMS)), width, 1, 40, int8), ("q", "kv")),
    "project_attention": (lambda width, int8: project_attention(ITEMS, 3, 1, width, 40, int8), ("out",)),
    "norm_up": (lambda width, int8: norm_up(ITEMS, width, 40, int8), ("out",)),
    "down_residual": (lambda width, int8: down_residual(ITEMS, width, 40, int8), ("out",)),
    "head_logits": (lambda width, int8: head_logits(range(ITEMS), width, 40, int8, context=ITEMS), ("logits",)),
}
OF_ALL_ITEMS = ("weight", "scale", "bias", "ln_weight", "ln_bias", "pattern", "row_len", "res_scale")


# One warp and several, whole blocks and more than one, each way to multiply.
@pytest.mark.parametrize(
    ("width", "kind"),
    [(100, "fp32"), (100, "fp16"), (100, "int8"), (300, "bf16"), (1920, "fp16"), (1920, "int8"), (2500, "fp16")],
)
@pytest.mark.parametrize("name", OPS)
def test_an_item_is_the_same_in_every_batch(device, name, width, kind):
    make, outputs = OPS[name]
    given = {}
    for key, value in make(width, kind == "int8").items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            value = value.to(STORED[kind] if key in STORED_AS_GIVEN else torch.float32)
        given[key] = value.to(device) if isinstance(value, torch.Tensor) else value
    found = {}
    for items in (ITEMS, 1, 3, 8):
        args = {key: value if key in OF_ALL_ITEMS else first(value, items, key == "kv") for key, value in given.items()}
        getattr(fused, name)(**args)
        for key in outputs:
            out = args[key].nan_to_num(123)
            assert torch.equal(out, first(found.setdefault(key, out), items, key == "kv")), f"{key} of {items}"


def first(value, items, cache=False):
    """Those of the first items, in memory of their own."""
    if value is None:
        return None
    return (value[:, :items] if cache else value[:items]).clone(memory_format=torch.contiguous_format)
