"""The distance between attention maps: the reference against explicit maps, Triton against the reference."""

import pytest
import torch
from budget import assert_within_budget
from fastjukebox.engine.patterns import Pattern, mask
from fastjukebox.kernels import pattern_groups, reference
from fastjukebox.kernels.attention_distance import attention_distance
from hypothesis import given, settings
from hypothesis import strategies as st

PATTERNS = ["row", "column", "previous_row", "dense"]
DTYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]


def student_and_teacher(batch, length, heads, head_dim, device="cpu", dtype=torch.float32):
    """Queries and keys of both as strided views of two projections, the teacher near the student."""
    student = torch.randn(batch, length, 3, heads, head_dim) + 0.7
    teacher = student + 0.5 * torch.randn(student.shape)
    return [x.to(device, dtype).select(2, part) for x in (student, teacher) for part in (0, 1)]


def explicit_maps(q, k, pattern, row_len):
    """[B, H, T, T], zero where `mask` shows nothing."""
    visible = mask(Pattern(pattern), q.shape[1], row_len)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return weights.masked_fill(~visible, 0.0)


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 2),
    head_dim=st.sampled_from([1, 3, 8]),
    row_len=st.integers(1, 9),
    length=st.integers(1, 30),
)
def test_reference_is_the_mean_over_explicit_maps(pattern, batch, heads, head_dim, row_len, length):
    args = [x.double() for x in student_and_teacher(batch, length, heads, head_dim)]
    difference = explicit_maps(*args[:2], pattern, row_len) - explicit_maps(*args[2:], pattern, row_len)
    expected = difference.square().sum(dim=-1).mean()
    torch.testing.assert_close(reference.attention_distance(*args, pattern, row_len), expected)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_reference_gradient_agrees_with_finite_differences(pattern):
    q, k, *teacher = (x.double() for x in student_and_teacher(1, 7, 1, 2))
    assert torch.autograd.gradcheck(
        lambda q, k: reference.attention_distance(q, k, *teacher, pattern, 3), (q.requires_grad_(), k.requires_grad_())
    )


@pytest.fixture
def small_tiles(monkeypatch):
    """Groups of more than 16 members take several tiles, which the GPU's tiles would take from 65 or 129 on."""
    tiny = dict.fromkeys(pattern_groups.TILES, pattern_groups.Tiles(16, 16, 16, 4, 1))
    monkeypatch.setattr(pattern_groups, "TILES", tiny)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_distance_and_gradients_are_within_budget(pattern, dtype, device):
    args = student_and_teacher(1, 19, 2, 20, device, dtype)
    assert_within_budget(attention_distance, reference.attention_distance, *args, pattern, 7, grad=True)


@pytest.mark.parametrize(("pattern", "row_len"), [("row", 21), ("previous_row", 21), ("column", 1), ("dense", 4)])
def test_groups_larger_than_a_tile(pattern, row_len, small_tiles, device):
    args = student_and_teacher(1, 38, 1, 18, device)
    assert_within_budget(attention_distance, reference.attention_distance, *args, pattern, row_len, grad=True)


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 2),
    head_dim=st.sampled_from([1, 16, 33]),
    row_len=st.integers(3, 10),
    length=st.integers(1, 20),
)
def test_any_shape(pattern, batch, heads, head_dim, row_len, length):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    args = student_and_teacher(batch, length, heads, head_dim, device)
    assert_within_budget(attention_distance, reference.attention_distance, *args, pattern, row_len, grad=True)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_equal_maps_have_no_distance_and_no_gradient(pattern, device):
    q, k, *_ = student_and_teacher(1, 14, 1, 16, device)
    args = [x.detach().requires_grad_() for x in (q, k)]
    out = attention_distance(*args, q, k, pattern, 5)
    assert out.item() == 0
    assert all((grad == 0).all() for grad in torch.autograd.grad(out, args))


@pytest.mark.parametrize(("pattern", "tiles"), [("row", 64), ("previous_row", 64), ("dense", 16), ("row", 16)])
def test_every_element_is_written(pattern, tiles, device, monkeypatch):
    q, k, *teacher = student_and_teacher(1, 37, 1, 16, device)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **kw: empty(*a, **kw).fill_(float("nan")))
    sizes = dict.fromkeys(pattern_groups.TILES, pattern_groups.Tiles(tiles, tiles, 16, 4, 1))
    monkeypatch.setattr(pattern_groups, "TILES", sizes)
    args = [x.detach().requires_grad_() for x in (q, k)]
    out = attention_distance(*args, *teacher, pattern, 20)
    assert out.isfinite()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out, args))
    # Without gradients the same distance comes out.
    assert attention_distance(q, k, *teacher, pattern, 20) == out


def test_the_gradient_takes_the_loss_scale_in_fp16(device):
    args = [x.detach().requires_grad_() for x in student_and_teacher(1, 12, 1, 16, device, torch.float16)[:2]]
    teacher = student_and_teacher(1, 12, 1, 16, device, torch.float16)[2:]
    out = attention_distance(*args, *teacher, "row", 6)
    plain, scaled = (torch.autograd.grad(out * scale, args, retain_graph=True) for scale in (1.0, 1024.0))
    for a, b in zip(plain, scaled, strict=True):
        torch.testing.assert_close(a.float() * 1024, b.float(), rtol=2e-3, atol=1024 * 6e-8)


def test_shapes_that_differ_are_refused(device):
    q, k, *teacher = student_and_teacher(1, 12, 1, 16, device)
    for distance in (attention_distance, reference.attention_distance):
        with pytest.raises(ValueError, match=r"\(1, 12, 1, 16\) and \(1, 11, 1, 16\)"):
            distance(q, k[:, 1:], *teacher, "row", 4)
        with pytest.raises(ValueError, match="unknown pattern"):
            distance(q, k, *teacher, "diagonal", 4)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pattern", ["row", "column", "previous_row"])
@pytest.mark.parametrize(
    ("row_len", "rows", "heads", "head_dim"), [(64, 128, 1, 480), (96, 64, 2, 256), (64, 128, 8, 150), (64, 9.5, 1, 32)]
)
def test_models_shapes(row_len, rows, heads, head_dim, pattern, dtype, device):
    args = student_and_teacher(1, int(row_len * rows), heads, head_dim, device, dtype)
    first = assert_within_budget(attention_distance, reference.attention_distance, *args, pattern, row_len, grad=True)
    again = assert_within_budget(attention_distance, reference.attention_distance, *args, pattern, row_len, grad=True)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
