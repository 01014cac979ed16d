import pytest
import shapes
import torch
from decode_case import assert_step_within_budget, draw, packed
from fastjukebox.kernels import fused
from hypothesis import given
from hypothesis import strategies as st


def make(batch=3, hidden=45, width=33, int8=False, res_scale=1.0):
    weight, scale = packed(hidden, width, int8)
    x = draw(batch, width, mean=3.0)
    return {
        "out": draw(batch, width),
        "hidden": draw(batch, hidden, mean=1.0),
        "x": x,
        "h": x + draw(batch, width),
        "weight": weight,
        "bias": draw(width),
        "scale": scale,
        "res_scale": res_scale,
    }


@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("res_scale", [1.0, 1 / 72])
def test_stored_dtypes(device, kind, res_scale):
    args = make(int8=kind == "int8", res_scale=res_scale)
    assert_step_within_budget("down_residual", args, ("out",), device, kind)


def test_inputs_wider_than_a_block(device):
    assert_step_within_budget("down_residual", make(2, 2100, 5), ("out",), device)


def test_the_result_may_replace_the_input(device):
    args = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in make().items()}
    fused.down_residual(**args)
    apart = args["out"]
    fused.down_residual(**(args | {"out": args["x"]}))
    assert torch.equal(args["x"], apart)


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e3])
def test_small_and_large_inputs_keep_their_bits_beside_fp16_weights(device, size):
    args = {key: value.to(device) for key, value in make(2, 128, 16).items() if isinstance(value, torch.Tensor)}
    for key in ("x", "h", "bias"):
        args[key] = torch.zeros_like(args[key])
    args |= {"hidden": size * torch.rand_like(args["hidden"]), "weight": args["weight"].half(), "scale": None}
    fused.down_residual(**args)
    hidden, weight = args["hidden"].double(), args["weight"].double()
    assert ((args["out"] - hidden @ weight).abs() <= 2**-18 * (hidden @ weight.abs())).all()


@shapes.few_examples
@given(shapes.batches, shapes.widths, shapes.widths, shapes.kinds, st.floats(0.01, 2.0))
def test_any_shape(device, batch, hidden, width, kind, res_scale):
    args = make(batch, hidden, width, kind == "int8", res_scale)
    assert_step_within_budget("down_residual", args, ("out",), device, kind, shapes.FLOOR)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("width", [1920, 2048, 4800])
def test_the_models_sizes(device, kind, width):
    for batch in (1, 9):
        assert_step_within_budget("down_residual", make(batch, width, width, kind == "int8"), ("out",), device, kind)
