"""Triton's prefill attention, forward and backward, against the reference."""

import pytest
import torch
from budget import assert_within_budget
from fastjukebox.kernels import pattern_groups, reference
from fastjukebox.kernels.prefill_attention import prefill_attention
from hypothesis import given, settings
from hypothesis import strategies as st

PATTERNS = ["row", "column", "previous_row", "dense"]
# The interpreter computes BF16 products wrongly.
DTYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]


def projection(batch, length, heads, head_dim, device, dtype=torch.float32):
    """[B, T, 3, H, D], what queries, keys and values are views of; its mean shows padding that leaks in."""
    return (torch.randn(batch, length, 3, heads, head_dim) + 0.7).to(device, dtype)


@pytest.fixture
def small_tiles(monkeypatch):
    """Groups of more than 16 members take several tiles, which the GPU's tiles would take from 65 or 129 on."""
    tiny = dict.fromkeys(pattern_groups.TILES, pattern_groups.Tiles(16, 16, 16, 4, 1))
    monkeypatch.setattr(pattern_groups, "TILES", tiny)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_attention_and_gradients_are_within_budget(pattern, dtype, device):
    q, k, v = projection(1, 19, 2, 20, device, dtype).unbind(2)
    assert_within_budget(prefill_attention, reference.prefill_attention, q, k, v, pattern, 7, grad=True)


@pytest.mark.parametrize(("pattern", "row_len"), [("row", 21), ("previous_row", 21), ("column", 1), ("dense", 4)])
def test_groups_larger_than_a_tile(pattern, row_len, small_tiles, device):
    q, k, v = projection(1, 38, 1, 18, device).unbind(2)
    assert_within_budget(prefill_attention, reference.prefill_attention, q, k, v, pattern, row_len, grad=True)


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 2),
    head_dim=st.sampled_from([1, 16, 33]),
    row_len=st.integers(3, 10),
    start=st.integers(0, 12),
    length=st.integers(1, 12),
    early=st.booleans(),
)
def test_any_shape(pattern, batch, heads, head_dim, row_len, start, length, early):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows_back = 1 if pattern == "previous_row" else 0
    key_start = max(0, start // row_len - rows_back) * row_len
    if early or pattern in ("column", "dense"):
        key_start = 0
    q, k, v = projection(batch, start + length, heads, head_dim, device).unbind(2)
    args = (q[:, start:], k[:, key_start:], v[:, key_start:], pattern, row_len, start, key_start)
    assert_within_budget(prefill_attention, reference.prefill_attention, *args, grad=True)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_chunked_prefill_equals_whole(pattern, device):
    q, k, v = projection(1, 21, 1, 16, device).unbind(2)
    whole = prefill_attention(q, k, v, pattern, 6)
    chunks = [
        prefill_attention(q[:, start:stop], k[:, :stop], v[:, :stop], pattern, 6, start)
        for start, stop in ((0, 8), (8, 9), (9, 21))
    ]
    torch.testing.assert_close(torch.cat(chunks, dim=1), whole, rtol=1e-5, atol=1e-5)


def test_previous_row_of_row_zero_is_zero_and_has_no_gradient(device):
    q, k, v = (x.detach().requires_grad_() for x in projection(1, 13, 1, 16, device).unbind(2))
    out = prefill_attention(q, k, v, "previous_row", 5)
    grads = torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
    assert (out[:, :5] == 0).all()
    assert (out[:, 5:] != 0).all()
    assert (grads[0][:, :5] == 0).all()
    # No query sees the last row's keys and values.
    assert all((grad[:, 10:] == 0).all() for grad in grads[1:])
    assert all((grad[:, :10] != 0).any(-1).all() for grad in grads[1:])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_element_is_written_and_none_before_it_is_read(pattern, device, monkeypatch):
    q, k, v = projection(1, 17, 1, 16, device).unbind(2)
    empty, empty_like = torch.empty, torch.empty_like
    monkeypatch.setattr(torch, "empty", lambda *a, **kw: empty(*a, **kw).fill_(float("nan")))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **kw: empty_like(*a, **kw).fill_(float("nan")))
    args = [x.detach().requires_grad_() for x in (q, k, v)]
    out = prefill_attention(*args, pattern, 6)
    assert out.isfinite().all()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.sum(), args))


@pytest.mark.parametrize("pattern", ["row", "previous_row"])
def test_what_no_query_sees_may_be_garbage(pattern, device):
    # Around the tensors lies memory that is not theirs, here NaN, and rows before the first query's are not looked at.
    store = torch.full((1, 40, 3, 3, 16), float("nan"), device=device)
    store[:, 10:27, :, 1] = projection(1, 17, 1, 16, device).select(3, 0)
    q, k, v = store[:, 10:27, :, 1:2].unbind(2)
    expected = reference.prefill_attention(q, k, v, pattern, 5)
    torch.testing.assert_close(prefill_attention(q, k, v, pattern, 5), expected, rtol=1e-5, atol=1e-5)
    k[:, :5], v[:, :5] = float("nan"), float("nan")
    start = 10 if pattern == "previous_row" else 5
    out = prefill_attention(q[:, start:], k, v, pattern, 5, start)
    torch.testing.assert_close(out, expected[:, start:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pattern", ["row", "column"])
def test_any_strides_are_taken(pattern, device):
    q = projection(1, 12, 2, 16, device)[:, :, 0].transpose(2, 3).contiguous().transpose(2, 3)
    k = projection(2, 12, 2, 16, device)[:1, :, 1]
    v = projection(1, 24, 2, 16, device)[:, ::2, 2]
    assert_within_budget(prefill_attention, reference.prefill_attention, q, k, v, pattern, 5, grad=True)


def test_large_scores_do_not_overflow(device):
    q, k, v = (60 * projection(1, 9, 1, 16, device)).unbind(2)
    assert_within_budget(prefill_attention, reference.prefill_attention, q, k, v, "row", 5)


def test_what_does_not_fit_is_refused(device):
    q, k, v = projection(1, 12, 1, 16, device).unbind(2)
    with pytest.raises(ValueError, match=r"\(1, 12, 1, 16\).*\(1, 11, 1, 16\)"):
        prefill_attention(q, k, v[:, 1:], "row", 4)
    with pytest.raises(ValueError, match="and end where queries"):
        prefill_attention(q[:, 4:], k, v, "row", 4, 3)
    with pytest.raises(ValueError, match="do not start a row of 4"):
        prefill_attention(q[:, 4:], k[:, 2:], v[:, 2:], "row", 4, 4, 2)
    with pytest.raises(ValueError, match="unknown pattern"):
        prefill_attention(q, k, v, "diagonal", 4)
    with pytest.raises(ValueError, match="float16"):
        prefill_attention(q, k.half(), v, "row", 4)


# Row length, rows, heads and head dim of the models: upsampler, top, 5b, 1b_lyrics, and a partial last row.
LARGE = [(64, 128, 1, 480), (96, 64, 2, 256), (64, 128, 8, 150), (102, 64, 2, 256), (64, 40.5, 1, 32)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pattern", ["row", "column", "previous_row"])
@pytest.mark.parametrize(("row_len", "rows", "heads", "head_dim"), LARGE)
def test_models_shapes(row_len, rows, heads, head_dim, pattern, dtype, device):
    q, k, v = projection(1, int(row_len * rows), heads, head_dim, device, dtype).unbind(2)
    assert_within_budget(prefill_attention, reference.prefill_attention, q, k, v, pattern, row_len, grad=True)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dense_at_the_size_of_the_lyrics_model(dtype, device):
    q, k, v = projection(1, 2 * 1632, 2, 256, device, dtype).unbind(2)
    assert_within_budget(prefill_attention, reference.prefill_attention, q, k, v, "dense", 102, grad=True)


@pytest.mark.gpu
@pytest.mark.parametrize("pattern", PATTERNS)
def test_repeated_runs_give_the_same_bits(pattern, device):
    args = [x.detach().requires_grad_() for x in projection(2, 4096, 1, 480, device, torch.bfloat16).unbind(2)]

    def run():
        out = prefill_attention(*args, pattern, 64)
        return out, *torch.autograd.grad(out, args, torch.ones_like(out))

    first = run()
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))
