import pytest
import shapes
import torch
from decode_case import assert_step_within_budget, draw, packed
from fastjukebox.kernels import fused
from hypothesis import given
from hypothesis import strategies as st


def make(positions=(0, 3, 5), width=33, size=37, int8=False, conditioned=True, context=6, shared=0):
    """shared: see shapes."""
    weight, scale = packed(width, size, int8)
    batch = len(positions)
    return {
        "logits": draw(batch, size),
        "x": draw(batch, width, mean=1.0),
        "frame_cond": draw(shapes.lanes(batch, shared), context, width) if conditioned else None,
        "positions": torch.tensor(positions),
        "weight": weight,
        "scale": scale,
    }


@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("conditioned", [False, True])
def test_stored_dtypes(device, kind, conditioned):
    args = make(int8=kind == "int8", conditioned=conditioned)
    assert_step_within_budget("head_logits", args, ("logits",), device, kind)


def test_inputs_wider_than_a_block(device):
    assert_step_within_budget("head_logits", make(width=2100, size=5), ("logits",), device)


@shapes.few_examples
@given(shapes.windows(), shapes.widths, shapes.widths, shapes.kinds, st.booleans(), shapes.shared)
def test_any_shape(device, window, width, size, kind, conditioned, shared):
    args = make(window.positions, width, size, kind == "int8", conditioned, window.context_len, shared)
    assert_step_within_budget("head_logits", args, ("logits",), device, kind, shapes.FLOOR)


def test_conditions_of_other_items_are_refused():
    args = make()
    args["frame_cond"] = args["frame_cond"][:2]
    with pytest.raises(ValueError, match="conditions of 2 items for 3"):
        fused.head_logits(**args)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("width", [1920, 2048])
def test_the_models_sizes(device, kind, width):
    for positions in ((7,), range(9)):
        args = make(positions, width, 2048, kind == "int8", context=16)
        assert_step_within_budget("head_logits", args, ("logits",), device, kind)
