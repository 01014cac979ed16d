import pytest
import shapes
from decode_case import assert_step_within_budget, draw, packed
from hypothesis import given


def make(batch=3, width=33, hidden=45, int8=False):
    weight, scale = packed(width, hidden, int8)
    return {
        "out": draw(batch, hidden),
        "x": draw(batch, width, mean=3.0),
        "ln_weight": draw(width, mean=1.0, std=0.3),
        "ln_bias": draw(width),
        "weight": weight,
        "bias": draw(hidden),
        "scale": scale,
    }


@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16", "int8"])
def test_stored_dtypes(device, kind):
    assert_step_within_budget("norm_up", make(int8=kind == "int8"), ("out",), device, kind)


@pytest.mark.parametrize("width", [1, 2100, 4097])
def test_narrow_and_wide_inputs(device, width):
    assert_step_within_budget("norm_up", make(2, width, 5), ("out",), device)


def test_more_outputs_than_a_block_and_items_than_a_group(device):
    assert_step_within_budget("norm_up", make(9, 16, 70), ("out",), device)


def test_large_inputs_do_not_overflow_the_gelu(device):
    args = make()
    args["weight"] *= 100
    assert_step_within_budget("norm_up", args, ("out",), device)


@shapes.few_examples
@given(shapes.batches, shapes.widths, shapes.widths, shapes.kinds)
def test_any_shape(device, batch, width, hidden, kind):
    args = make(batch, width, hidden, kind == "int8")
    assert_step_within_budget("norm_up", args, ("out",), device, kind, shapes.FLOOR)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("width", [1920, 2048, 4800])
def test_the_models_sizes(device, kind, width):
    for batch in (1, 9):
        assert_step_within_budget("norm_up", make(batch, width, width, kind == "int8"), ("out",), device, kind)
