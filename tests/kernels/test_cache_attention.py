import math

import pytest
import shapes
import torch
from decode_case import assert_step_within_budget, draw
from fastjukebox.kernels import reference
from hypothesis import given
from hypothesis import strategies as st


def window(pattern, positions, row_len=21, num_rows=19):
    return shapes.Window(pattern, row_len, num_rows, positions)


def make(window, heads=2, head_dim=16, shared=0):
    """Keys and values; slots that no position may read hold NaN. shared: see shapes."""
    batch, place = len(window.positions), (window.pattern, window.row_len, window.slots)
    parts, _ = reference.attention_parts(*place)
    lanes = shapes.lanes(batch, shared)
    kv = torch.full((2, lanes, heads, window.slots, head_dim), float("nan"))
    for item, pos in enumerate(window.positions):
        first, count = reference.cache_visible(pos, *place)
        kv[:, item % lanes, :, first : first + count] = draw(2, heads, count, head_dim, mean=0.5)
    return {
        "sums": draw(batch, parts, heads, head_dim),
        "peaks": draw(batch, parts, heads),
        "masses": draw(batch, parts, heads),
        "q": draw(batch, heads * head_dim, std=2.0),
        "kv": kv,
        "positions": torch.tensor(window.positions),
        "pattern": window.pattern,
        "row_len": window.row_len,
    }


def attend(args, device, kind="fp32", floor=0.0):
    """The attention [B, H, D] that the fused parts stand for, after they were held against the reference."""
    # The peak of a part without keys is -inf in both; the rest of such a part is zero.
    parts = assert_step_within_budget("cache_attention", args, ("sums", "masses", "peaks"), device, kind, floor)
    batch, _, heads, head_dim = parts["sums"].shape
    out, zero = torch.empty(batch, heads * head_dim), torch.zeros(batch, heads * head_dim)
    eye = torch.eye(heads * head_dim)
    reference.project_attention(out, *(parts[key] for key in ("sums", "peaks", "masses")), zero, eye, zero[0], None)
    return out.view(batch, heads, head_dim)


@pytest.mark.parametrize("pattern", shapes.PATTERNS)
def test_what_is_visible_is_attended(device, pattern):
    # Several items of each: of few numbers plain PyTorch may find some exactly, by luck.
    positions = ((0, 20, 21 * 17 + 3) if pattern != "dense" else (0, 20, 37)) * 4
    args = make(window(pattern, positions), heads=1)
    # Scores so large that their rounding decides would make the budget a matter of luck.
    args["q"] /= 4
    found = attend(args, device)
    for item, pos in enumerate(positions):
        first, count = reference.cache_visible(pos, pattern, 21, args["kv"].shape[3])
        keys, values = args["kv"][:, item, :, first : first + count]
        scores = keys @ args["q"][item].view(1, -1, 1) / math.sqrt(16)
        expected = (scores.softmax(dim=1) * values).sum(dim=1) if count else torch.zeros(1, 16)
        torch.testing.assert_close(found[item], expected, rtol=1e-5, atol=1e-5)


def test_row_0_of_previous_row_gives_zeros(device):
    assert (attend(make(window("previous_row", (0, 20))), device) == 0).all()


@pytest.mark.parametrize("head_dim", [3, 150, 480])
@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16"])
def test_head_dims_and_stored_dtypes(device, head_dim, kind):
    args = make(window("row", (18,)), heads=1, head_dim=head_dim)
    attend(args | {"q": args["q"] / 4}, device, kind)


@shapes.few_examples
@given(shapes.windows(), shapes.heads, shapes.head_dims, st.sampled_from(["fp32", "fp16"]), shapes.shared)
def test_any_shape(device, window, heads, head_dim, kind, shared):
    args = make(window, heads, head_dim, shared)
    attend(args | {"q": args["q"] / 4}, device, kind, shapes.FLOOR)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(
    ("row_len", "num_rows", "heads", "head_dim"), [(64, 128, 1, 480), (96, 64, 2, 256), (102, 64, 8, 150)]
)
@pytest.mark.parametrize("pattern", ["row", "column", "previous_row"])
def test_the_models_sizes(device, kind, row_len, num_rows, heads, head_dim, pattern):
    positions = (0, row_len + 1, row_len * num_rows - 1)
    args = make(window(pattern, positions, row_len, num_rows), heads, head_dim)
    attend(args | {"q": args["q"] / 4}, device, kind)
