import math

import pytest
import torch
from fastjukebox.kernels import reference
from fastjukebox.tests.kernels.decode_case import assert_within_budget, draw

SLOTS = {"row": lambda r, n: r, "column": lambda r, n: r * n, "previous_row": lambda r, n: 2 * r}


def make(pattern, positions, row_len=21, num_rows=19, heads=2, head_dim=16):
    """Keys and values; slots that no position may read hold NaN."""
    slots = SLOTS.get(pattern, lambda r, n: r * n)(row_len, num_rows)
    batch = len(positions)
    parts, _ = reference.attention_parts(pattern, row_len, slots)
    kv = torch.full((2, batch, heads, slots, head_dim), float("nan"))
    for item, pos in enumerate(positions):
        first, count = reference.cache_visible(pos, pattern, row_len, slots)
        kv[:, item, :, first : first + count] = draw(2, heads, count, head_dim, mean=0.5)
    return {
        "sums": draw(batch, parts, heads, head_dim),
        "peaks": draw(batch, parts, heads),
        "masses": draw(batch, parts, heads),
        "q": draw(batch, heads * head_dim, std=2.0),
        "kv": kv,
        "positions": torch.tensor(positions),
        "pattern": pattern,
        "row_len": row_len,
    }


def attend(args, device, kind="fp32"):
    """The attention [B, H, D] that the fused parts stand for, after they were held against the reference."""
    # The peak of a part without keys is -inf in both; the rest of such a part is zero.
    parts = assert_within_budget("cache_attention", args, ("sums", "masses", "peaks"), device, kind)
    batch, _, heads, head_dim = parts["sums"].shape
    out, zero = torch.empty(batch, heads * head_dim), torch.zeros(batch, heads * head_dim)
    eye = torch.eye(heads * head_dim)
    reference.project_attention(out, *(parts[key] for key in ("sums", "peaks", "masses")), zero, eye, zero[0], None)
    return out.view(batch, heads, head_dim)


@pytest.mark.parametrize("pattern", ["row", "column", "previous_row", "dense"])
def test_what_is_visible_is_attended(device, pattern):
    positions = (0, 20, 21 * 17 + 3) if pattern != "dense" else (0, 20, 37)
    args = make(pattern, positions, heads=1)
    found = attend(args, device)
    for item, pos in enumerate(positions):
        first, count = reference.cache_visible(pos, pattern, 21, args["kv"].shape[3])
        keys, values = args["kv"][:, item, :, first : first + count]
        scores = keys @ args["q"][item].view(1, -1, 1) / math.sqrt(16)
        expected = (scores.softmax(dim=1) * values).sum(dim=1) if count else torch.zeros(1, 16)
        torch.testing.assert_close(found[item], expected, rtol=1e-5, atol=1e-5)


def test_row_0_of_previous_row_gives_zeros(device):
    assert (attend(make("previous_row", (0, 20)), device) == 0).all()


@pytest.mark.parametrize("head_dim", [3, 150, 480])
@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16"])
def test_head_dims_and_stored_dtypes(device, head_dim, kind):
    args = make("row", (18,), heads=1, head_dim=head_dim)
    attend(args | {"q": args["q"] / 4}, device, kind)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(
    ("row_len", "num_rows", "heads", "head_dim"), [(64, 128, 1, 480), (96, 64, 2, 256), (102, 64, 8, 150)]
)
@pytest.mark.parametrize("pattern", ["row", "column", "previous_row"])
def test_the_models_sizes(device, kind, row_len, num_rows, heads, head_dim, pattern):
    positions = (0, row_len + 1, row_len * num_rows - 1)
    args = make(pattern, positions, row_len, num_rows, heads, head_dim)
    attend(args | {"q": args["q"] / 4}, device, kind)
