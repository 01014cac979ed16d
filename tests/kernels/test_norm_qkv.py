import pytest
import shapes
import torch
from decode_case import assert_step_within_budget, draw, packed
from fastjukebox.kernels import fused
from hypothesis import given

ROW_LEN, NUM_ROWS = 5, 3


def window(pattern="row", positions=(7,)):
    return shapes.Window(pattern, ROW_LEN, NUM_ROWS, tuple(positions))


def make(window, width=33, heads=3, head_dim=5, int8=False, shared=0):
    """shared: see shapes."""
    batch, attn_width = len(window.positions), heads * head_dim
    projected = attn_width if window.pattern == "cross" else 3 * attn_width
    weight, scale = packed(width, projected, int8)
    return {
        "q": draw(batch, attn_width),
        "kv": draw(2, shapes.lanes(batch, shared), heads, window.slots, head_dim),
        "x": draw(batch, width, mean=3.0),
        "positions": torch.tensor(window.positions),
        "ln_weight": draw(width, mean=1.0, std=0.3),
        "ln_bias": draw(width),
        "weight": weight,
        "bias": draw(projected),
        "scale": scale,
        "pattern": window.pattern,
        "row_len": window.row_len,
    }


@pytest.mark.parametrize("pattern", shapes.PATTERNS)
def test_keys_and_values_go_to_their_slot(device, pattern):
    positions = (0, ROW_LEN - 1, ROW_LEN, ROW_LEN * NUM_ROWS - 1)
    assert_step_within_budget("norm_qkv", make(window(pattern, positions)), ("q", "kv"), device)


@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16", "int8"])
def test_stored_dtypes(device, kind):
    assert_step_within_budget("norm_qkv", make(window(), int8=kind == "int8"), ("q", "kv"), device, kind)


@pytest.mark.parametrize("pattern", shapes.PATTERNS)
@pytest.mark.parametrize(("count", "items"), [(5, 1), (11, 1), (4, 3)])
def test_positions_of_an_item_share_its_cache(device, pattern, count, items):
    """Those at the end of a row, from the last but one on; lanes that are left over repeat the last."""
    places = [min(2 * ROW_LEN - 2 + number, 2 * ROW_LEN - 1) for number in range(count) for _ in range(items)]
    args = make(window(pattern, places), shared=items)
    for item in range(items):
        args["x"][2 * items + item :: items] = args["x"][items + item]
    assert_step_within_budget("norm_qkv", args, ("q", "kv"), device)


def test_a_cache_of_other_items_is_refused():
    args = make(window(positions=range(3)))
    args["kv"] = args["kv"][:, :2].clone()
    with pytest.raises(ValueError, match=r"for \(2, 2, 3, 5, 5\)"):
        fused.norm_qkv(**args)


def test_inputs_wider_than_a_block(device):
    assert_step_within_budget("norm_qkv", make(window(), width=2100), ("q", "kv"), device)


def test_more_items_than_a_group(device):
    assert_step_within_budget("norm_qkv", make(window(positions=range(9))), ("q", "kv"), device)


def test_a_weight_stored_the_wrong_way_is_refused():
    args = make(window())
    args["weight"] = args["weight"].contiguous()
    with pytest.raises(ValueError, match="output by output"):
        fused.norm_qkv(**args)


@shapes.few_examples
@given(shapes.windows(), shapes.widths, shapes.heads, shapes.head_dims, shapes.kinds)
def test_any_shape(device, window, width, heads, head_dim, kind):
    args = make(window, width=width, heads=heads, head_dim=head_dim, int8=kind == "int8")
    assert_step_within_budget("norm_qkv", args, ("q", "kv"), device, kind, shapes.FLOOR)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize(("width", "heads", "head_dim"), [(1920, 1, 480), (2048, 2, 256), (4800, 8, 150)])
def test_the_models_sizes(device, kind, width, heads, head_dim):
    for positions in ((7,), range(9)):
        args = make(window("column", positions), width, heads, head_dim, kind == "int8")
        assert_step_within_budget("norm_qkv", args, ("q", "kv"), device, kind)
