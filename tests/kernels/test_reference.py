"""The specification itself: attention against explicit masks in FP64, the sampler against a literal restatement."""

import pytest
import torch
from fastjukebox.engine.patterns import Pattern, mask
from fastjukebox.kernels import reference
from hypothesis import given, settings
from hypothesis import strategies as st

# Of prefill_attention; lyric_attention is that of the other two.
PATTERNS = [Pattern.ROW, Pattern.COLUMN, Pattern.PREVIOUS_ROW, Pattern.DENSE]


def explicit_attention(q, k, v, pattern, row_len, query_start=0, reach=0):
    """softmax over the positions that `mask` names, zero where it names none; k and v start at position 0."""
    if pattern is Pattern.CROSS:
        visible = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
    else:
        visible = mask(pattern, query_start + q.shape[1], row_len, reach)[query_start:, : k.shape[1]]
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    weights = weights.masked_fill(~visible, 0.0)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v)


@pytest.mark.parametrize(("start", "length", "keys"), [(0, 9, 5), (0, 4, 4), (3, 4, 6), (7, 5, 6), (0, 1, 1)])
def test_lyric_attention_is_softmax_over_what_is_seen(start, length, keys):
    q, k, v = (torch.randn(2, n, 3, 4, dtype=torch.float64) + 0.5 for n in (length, keys, keys))
    for pattern, query_start in ((Pattern.LYRICS, start), (Pattern.CROSS, None)):
        found = reference.lyric_attention(q, k, v, query_start)
        torch.testing.assert_close(found, explicit_attention(q, k, v, pattern, 4, start, reach=keys))


def first_key(pattern, start, row_len, early):
    """The start of the first row that a query at `start` needs; 0 if `early`."""
    row = start // row_len
    if early or pattern in (Pattern.COLUMN, Pattern.DENSE):
        return 0
    return max(0, row - (pattern is Pattern.PREVIOUS_ROW)) * row_len


def random_qkv(batch, length, heads, head_dim, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, length, heads, head_dim)
    # A mean far from zero shows padding that leaks in.
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).add(0.7).to(dtype) for _ in range(3))


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([1, 3, 8, 15]),
    row_len=st.integers(1, 9),
    start=st.integers(0, 30),
    length=st.integers(1, 30),
    early=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_prefill_attention_is_softmax_over_the_mask(
    pattern, batch, heads, head_dim, row_len, start, length, early, seed
):
    q, k, v = random_qkv(batch, start + length, heads, head_dim, seed)
    key_start = first_key(pattern, start, row_len, early)
    out = reference.prefill_attention(
        q[:, start:], k[:, key_start:], v[:, key_start:], pattern.value, row_len, start, key_start
    )
    expected = explicit_attention(q[:, start:], k, v, pattern, row_len, start)
    assert out.shape == expected.shape
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_prefill_attention_is_within_rounding_of_fp64(pattern, dtype):
    q, k, v = random_qkv(2, 45, 2, 12, dtype=dtype)
    out = reference.prefill_attention(q, k, v, pattern.value, 8)
    assert out.dtype == dtype
    expected = explicit_attention(q.double(), k.double(), v.double(), pattern, 8)
    # A handful of roundings of values of order 3, in and out of the softmax.
    assert (out.double() - expected).abs().max() < 12 * torch.finfo(dtype).eps


@pytest.mark.parametrize("pattern", PATTERNS)
def test_gradient_reaches_exactly_what_the_mask_shows(pattern):
    row_len, length = 4, 15
    visible = mask(pattern, length, row_len)
    q, k, v = (t.requires_grad_() for t in random_qkv(1, length, 1, 5))
    out = reference.prefill_attention(q, k, v, pattern.value, row_len)
    for pos in range(length):
        grads = torch.autograd.grad(out[0, pos].square().sum(), (q, k, v), retain_graph=True)
        reached_q, reached_k, reached_v = ((g[0].abs().sum(dim=(1, 2)) > 0) for g in grads)
        assert torch.equal(reached_v, visible[pos])
        # With one key the weights do not depend on query or key: the gradient is zero but for rounding.
        if visible[pos].sum() > 1:
            assert torch.equal(reached_k, visible[pos])
            assert reached_q.nonzero().flatten().tolist() == [pos]
        else:
            assert not reached_q[torch.arange(length) != pos].any()
            assert not reached_k[~visible[pos]].any()


@pytest.mark.parametrize("length", [3, 8, 20])
def test_previous_row_sees_nothing_in_row_zero(length):
    q, k, v = random_qkv(2, length, 2, 4)
    out = reference.prefill_attention(q, k, v, "previous_row", 8)
    assert (out[:, :8] == 0).all()
    assert (out[:, 8:] != 0).all()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_later_garbage_does_not_leak(pattern):
    # The last row is padded to its full length; what a padded query or key yields must not be seen.
    q, k, v = random_qkv(1, 13, 1, 4)
    whole = reference.prefill_attention(q, k, v, pattern.value, 5)
    k[:, 7:], v[:, 7:] = 1e6, float("inf")
    out = reference.prefill_attention(q[:, :7], k[:, :7], v[:, :7], pattern.value, 5)
    torch.testing.assert_close(out, whole[:, :7], rtol=1e-12, atol=1e-12)


def test_keys_that_do_not_end_with_the_queries_are_refused():
    q, k, v = random_qkv(1, 12, 1, 4)
    with pytest.raises(ValueError, match="do not end where"):
        reference.prefill_attention(q[:, 4:], k, v, "row", 4, 3, 0)
    with pytest.raises(ValueError, match="unknown pattern"):
        reference.prefill_attention(q, k, v, "diagonal", 4)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 17, 5), (3, 1, 64, 33)])
def test_decode_attention_is_softmax_over_all_keys(shape):
    batch, heads, slots, head_dim = shape
    q = torch.randn(batch, heads, 1, head_dim, dtype=torch.float64) + 0.7
    keys, values = (torch.randn(batch, heads, slots, head_dim, dtype=torch.float64) + 0.7 for _ in range(2))
    out = reference.decode_attention(q, keys, values)
    weights = ((q * keys).sum(-1) * head_dim**-0.5).softmax(dim=-1)
    torch.testing.assert_close(out, (weights[..., None] * values).sum(dim=2, keepdim=True), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_decode_attention_agrees_with_prefill_attention(pattern):
    row_len, length = 5, 23
    q, k, v = random_qkv(2, length, 2, 6)
    whole = reference.prefill_attention(q, k, v, pattern.value, row_len)
    visible = mask(pattern, length, row_len)
    for pos in range(length):
        if visible[pos].any():
            keys, values = (t[:, visible[pos]].transpose(1, 2) for t in (k, v))
            one = reference.decode_attention(q[:, pos, :, None], keys, values)
            torch.testing.assert_close(one.squeeze(2), whole[:, pos])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 7, 128, 1920])
def test_layer_norm_is_within_rounding_of_fp64(dtype, width):
    x = (3 * torch.randn(5, width) + 10).to(dtype)
    weight, bias = (1 + 0.25 * torch.randn(width)).to(dtype), torch.randn(width).to(dtype)
    out = reference.layer_norm(x, weight, bias)
    assert out.dtype == dtype
    centred = x.double() - x.double().mean(dim=-1, keepdim=True)
    scale = (centred.square().mean(dim=-1, keepdim=True) + 1e-5).rsqrt()
    expected = centred * scale * weight.double() + bias.double()
    # Half a unit in the last place for the result, and the FP32 statistics, whose cancellation the mean of 10 costs.
    budget = torch.finfo(dtype).eps * expected.abs() + 64 * torch.finfo(torch.float32).eps
    assert ((out.double() - expected).abs() <= budget).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_quick_gelu(dtype):
    x = torch.linspace(-8, 8, 101).to(dtype)
    expected = x.double() / (1 + (-1.702 * x.double()).exp())
    out = reference.quick_gelu(x)
    assert out.dtype == dtype
    # 1.702 x is rounded before the exponential, which turns its last place into |x| last places.
    budget = 4 * torch.finfo(dtype).eps * (1 + x.double().abs()) * expected.abs() + torch.finfo(dtype).tiny
    assert ((out.double() - expected).abs() <= budget).all()


@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 5), (1, 1, 5)])
def test_linear_weights_are_input_by_output(shape):
    x, weight, bias = torch.randn(shape), torch.randn(5, 7), torch.randn(7)
    torch.testing.assert_close(reference.linear(x, weight, bias), torch.einsum("...i,io->...o", x, weight) + bias)


def kept_codes(logits, temperature, top_k, top_p):
    """Which codes may be drawn, restated in plain loops over one list of logits."""
    scaled = [value / temperature for value in logits]
    kept = list(range(len(scaled)))
    if top_k:
        last = sorted(scaled, reverse=True)[min(top_k, len(scaled)) - 1]
        kept = [code for code in kept if scaled[code] >= last]
    if top_p < 1.0:
        weights = torch.tensor([scaled[code] for code in kept], dtype=torch.float64).softmax(dim=0).tolist()
        ranked = sorted(zip(kept, weights, strict=True), key=lambda pair: -pair[1])
        mass, count = 0.0, 0
        for _, weight in ranked:
            if mass > top_p:
                break
            mass, count = mass + weight, count + 1
        last = ranked[count - 1][1]
        kept = [code for code, weight in ranked if weight >= last]
    return sorted(kept)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    # Quarters tie often; an odd temperature keeps cumulative sums away from the threshold.
    values=st.lists(st.integers(-12, 12), min_size=1, max_size=20),
    temperature=st.sampled_from([0.31, 0.99, 1.0, 2.7]),
    top_k=st.integers(0, 22),
    top_p=st.sampled_from([0.05, 0.313, 0.717, 0.9, 0.997, 1.0]),
)
def test_filter_keeps_what_the_rule_says(values, temperature, top_k, top_p):
    logits = [value / 4 for value in values]
    out = reference.filter_logits(torch.tensor(logits, dtype=torch.float64), temperature, top_k, top_p)
    kept = kept_codes(logits, temperature, top_k, top_p)
    assert (out > float("-inf")).nonzero().flatten().tolist() == kept
    torch.testing.assert_close(out[kept], torch.tensor(logits, dtype=torch.float64)[kept] / temperature)


def test_filter_treats_rows_alone():
    logits = 3 * torch.randn(4, 3, 50)
    whole = reference.filter_logits(logits, 0.9, 20, 0.8)
    rows = [reference.filter_logits(row, 0.9, 20, 0.8) for row in logits.flatten(0, 1)]
    assert torch.equal(whole.flatten(0, 1), torch.stack(rows))


def test_top_k_keeps_codes_that_tie_with_the_last():
    out = reference.filter_logits(torch.tensor([3.0, 1.0, 2.0, 2.0, 0.0, 2.0]), 1.0, top_k=2)
    assert (out > float("-inf")).tolist() == [True, False, True, True, False, True]


def test_top_p_keeps_the_code_that_crosses_the_threshold():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    kept = [(reference.filter_logits(logits, 1.0, top_p=p) > float("-inf")).sum().item() for p in (0.1, 0.6, 0.9, 0.97)]
    assert kept == [1, 2, 3, 4]


def test_top_p_that_is_met_but_not_exceeded_takes_one_more():
    # Probabilities 1/2, 1/4, 1/4, exactly.
    logits = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64).log()
    assert logits.softmax(dim=0)[0] == 0.5
    kept = [(reference.filter_logits(logits, 1.0, top_p=p) > float("-inf")).sum().item() for p in (0.4999, 0.5)]
    assert kept == [1, 3]


@pytest.mark.parametrize("options", [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.3, 5, 1.0), (1.0, 0, 0.8), (0.9, 7, 0.85)])
def test_samples_follow_the_filtered_softmax(options):
    draws = 40_000
    logits = torch.linspace(-1.5, 1.5, 12).roll(5) ** 3 / 2
    uniform = torch.rand(draws, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    codes = reference.sample_logits(logits.expand(draws, -1), -(-uniform.log()).log(), *options)
    counts = codes.bincount(minlength=12).double()
    expected = draws * reference.filter_logits(logits.double(), *options).softmax(dim=-1)
    assert (counts[expected == 0] == 0).all()
    seen = expected > 0
    chi_square = ((counts - expected).square() / expected)[seen].sum()
    freedom = seen.sum() - 1
    # Mean and standard deviation of the distribution are freedom and sqrt(2 freedom).
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


def test_sampling_nearly_cold_takes_the_most_likely_code():
    logits = torch.randn(50, 30, dtype=torch.float16)
    codes = reference.sample_logits(logits, torch.zeros(50, 30), 1e-4)
    assert torch.equal(codes, logits.float().argmax(dim=-1))


@given(st.sampled_from(PATTERNS), st.integers(1, 200), st.integers(1, 130))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_attention_parts_cover_what_can_be_seen(pattern, row_len, num_rows):
    slots = {Pattern.ROW: 1, Pattern.PREVIOUS_ROW: 2}.get(pattern, num_rows) * row_len
    parts, part = reference.attention_parts(pattern.value, row_len, slots)
    keys = {Pattern.COLUMN: num_rows, Pattern.DENSE: slots}.get(pattern, row_len)
    assert 1 <= parts <= 16
    assert part * (parts - 1) < keys <= part * parts
