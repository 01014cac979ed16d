import pytest
import shapes
import torch
from decode_case import assert_step_within_budget, draw, packed
from hypothesis import given
from hypothesis import strategies as st


def make(batch=2, parts=2, heads=3, head_dim=5, width=33, int8=False):
    weight, scale = packed(heads * head_dim, width, int8)
    return {
        "out": draw(batch, width),
        "sums": draw(batch, parts, heads, head_dim, mean=1.0),
        "peaks": draw(batch, parts, heads, std=3.0),
        "masses": draw(batch, parts, heads).abs() + 1,
        "x": draw(batch, width, mean=3.0),
        "weight": weight,
        "bias": draw(width),
        "scale": scale,
    }


@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16", "int8"])
def test_stored_dtypes(device, kind):
    assert_step_within_budget("project_attention", make(int8=kind == "int8"), ("out",), device, kind)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("heads", [2, 3])
def test_parts_without_keys_count_for_nothing(device, parts, heads):
    args = make(batch=3, parts=parts, heads=heads)
    # One part without keys, and one item without any.
    for key, value in (("peaks", float("-inf")), ("masses", 0.0), ("sums", 0.0)):
        args[key][0, 0], args[key][1] = value, value
    out = assert_step_within_budget("project_attention", args, ("out",), device)["out"]
    torch.testing.assert_close(out[1], args["x"][1] + args["bias"])


@pytest.mark.parametrize("higher", [0, 1])
def test_parts_of_far_larger_scores_do_not_overflow(device, higher):
    args = make()
    args["peaks"][:, higher] += 300
    assert_step_within_budget("project_attention", args, ("out",), device)


def test_inputs_wider_than_a_block(device):
    assert_step_within_budget("project_attention", make(heads=3, head_dim=700, batch=1, width=7), ("out",), device)


@shapes.few_examples
@given(shapes.batches, st.integers(1, 3), shapes.heads, shapes.head_dims, shapes.widths, shapes.kinds)
def test_any_shape(device, batch, parts, heads, head_dim, width, kind):
    args = make(batch, parts, heads, head_dim, width, kind == "int8")
    assert_step_within_budget("project_attention", args, ("out",), device, kind, shapes.FLOOR)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize(("heads", "head_dim", "width"), [(1, 480, 1920), (2, 256, 2048), (8, 150, 4800)])
def test_the_models_sizes(device, kind, heads, head_dim, width):
    for batch in (1, 9):
        args = make(batch, 8, heads, head_dim, width, kind == "int8")
        assert_step_within_budget("project_attention", args, ("out",), device, kind)
