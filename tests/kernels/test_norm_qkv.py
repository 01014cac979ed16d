import pytest
import torch
from fastjukebox.kernels import fused
from fastjukebox.tests.kernels.decode_case import assert_within_budget, draw, packed

ROW_LEN, NUM_ROWS = 5, 3
SLOTS = {"row": ROW_LEN, "column": ROW_LEN * NUM_ROWS, "previous_row": 2 * ROW_LEN, "dense": ROW_LEN * NUM_ROWS}


def make(pattern="row", positions=(7,), width=33, heads=3, head_dim=5, int8=False):
    batch, attn_width = len(positions), heads * head_dim
    weight, scale = packed(width, 3 * attn_width, int8)
    return {
        "q": draw(batch, attn_width),
        "kv": draw(2, batch, heads, SLOTS[pattern], head_dim),
        "x": draw(batch, width, mean=3.0),
        "positions": torch.tensor(positions),
        "ln_weight": draw(width, mean=1.0, std=0.3),
        "ln_bias": draw(width),
        "weight": weight,
        "bias": draw(3 * attn_width),
        "scale": scale,
        "pattern": pattern,
        "row_len": ROW_LEN,
    }


@pytest.mark.parametrize("pattern", SLOTS)
def test_keys_and_values_go_to_their_slot(device, pattern):
    positions = (0, ROW_LEN - 1, ROW_LEN, ROW_LEN * NUM_ROWS - 1)
    assert_within_budget("norm_qkv", make(pattern, positions), ("q", "kv"), device)


@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16", "int8"])
def test_stored_dtypes(device, kind):
    assert_within_budget("norm_qkv", make(int8=kind == "int8"), ("q", "kv"), device, kind)


def test_inputs_wider_than_a_block(device):
    assert_within_budget("norm_qkv", make(width=2100), ("q", "kv"), device)


def test_more_items_than_a_group(device):
    assert_within_budget("norm_qkv", make(positions=range(9)), ("q", "kv"), device)


def test_a_weight_stored_the_wrong_way_is_refused():
    args = make()
    args["weight"] = args["weight"].contiguous()
    with pytest.raises(ValueError, match="output by output"):
        fused.norm_qkv(**args)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize(("width", "heads", "head_dim"), [(1920, 1, 480), (2048, 2, 256), (4800, 8, 150)])
def test_the_models_sizes(device, kind, width, heads, head_dim):
    for positions in ((7,), range(9)):
        args = make("column", positions, width, heads, head_dim, kind == "int8")
        assert_within_budget("norm_qkv", args, ("q", "kv"), device, kind)
