"""One function, three ways to compute it: whole, in chunks, code by code; and what the cache may and may not hold."""

import dataclasses

import pytest
import torch
from fastjukebox.engine.config import ConditionerConfig, LabelConfig, LyricConfig, PriorConfig
from fastjukebox.engine.kv_cache import KVCache, LayerCache
from fastjukebox.engine.patterns import Pattern, visible
from fastjukebox.engine.prior import Prior

ROW_LEN = 6
CONFIG = PriorConfig(level=2, width=32, depth=4, heads=2, context_len=42, num_rows=7, codebook_size=20)
CYCLES = {
    "row": (Pattern.ROW,),
    "column": (Pattern.COLUMN,),
    "previous_row": (Pattern.PREVIOUS_ROW,),
    "dense": (Pattern.DENSE,),
    "default": CONFIG.pattern_cycle,
}
each_cycle = pytest.mark.parametrize("cycle", CYCLES.values(), ids=CYCLES)


def make_prior(randomize, cycle=CONFIG.pattern_cycle, **changes):
    # In FP64 the three ways differ by little rounding.
    return randomize(Prior(dataclasses.replace(CONFIG, pattern_cycle=cycle, **changes)), scale=0.7).double()


def make_inputs(config, batch=2, length=None, dtype=torch.float64):
    """Codes, frame condition and start condition."""
    length = config.context_len if length is None else length
    codes = torch.randint(config.codebook_size, (batch, length))
    return codes, *(torch.randn(batch, n, config.width, dtype=dtype) / 2 for n in (config.context_len, 1))


def make_cache(prior, batch):
    """Full of NaN: whatever is read before it was written shows in the logits."""
    cache = KVCache(prior.config, batch, prior.device, prior.dtype)
    for layer in cache.layers:
        layer.kv.fill_(float("nan"))
    return cache


@torch.no_grad()
def logits_in_chunks(prior, codes, chunks, frame_cond=None, start_cond=None, cache=None):
    """Logits [B, sum(chunks), V] by prefill of the chunks one after another."""
    cache = cache or make_cache(prior, len(codes))
    parts, start = [], 0
    for chunk in chunks:
        stop = start + chunk
        x = prior.prefill(codes[:, max(0, start - 1) : stop - 1], cache, start, frame_cond, start_cond)
        assert x.shape == (len(codes), chunk, prior.config.width)
        parts.append(prior.logits(x, None if frame_cond is None else frame_cond[:, start:stop]))
        start = stop
    return torch.cat(parts, dim=1)


@torch.no_grad()
def logits_by_code(prior, codes, start=0, frame_cond=None, start_cond=None, cache=None):
    """Logits [B, T - start, V] code by code, after `start` positions that are in the cache."""
    cache = cache or make_cache(prior, len(codes))
    steps = []
    for pos in range(start, codes.shape[1]):
        previous = codes[:, pos - 1] if pos else None
        steps.append(prior.decode_step(previous, pos, cache, frame_cond, start_cond))
    return torch.stack(steps, dim=1)


@torch.no_grad()
def whole_logits(prior, codes, frame_cond=None, start_cond=None):
    logits = prior(codes, None if frame_cond is None else frame_cond[:, : codes.shape[1]], start_cond)
    assert logits.dtype == torch.promote_types(prior.dtype, torch.float32)
    assert logits.std() > 0.1
    return logits


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@each_cycle
@pytest.mark.parametrize("conditioned", [False, True])
def test_code_by_code_equals_whole(randomize, cycle, conditioned):
    prior = make_prior(randomize, cycle)
    codes, frame_cond, start_cond = make_inputs(prior.config)
    conditions = (frame_cond, start_cond) if conditioned else (None, None)
    steps = logits_by_code(prior, codes, 0, *conditions)
    assert_close(steps, whole_logits(prior, codes, *conditions))


@each_cycle
@pytest.mark.parametrize("chunk", [1, 2, ROW_LEN - 1, ROW_LEN, ROW_LEN + 1, 2 * ROW_LEN, 3 * ROW_LEN + 2, 42])
def test_chunked_prefill_equals_whole(randomize, cycle, chunk):
    prior = make_prior(randomize, cycle)
    codes, frame_cond, start_cond = make_inputs(prior.config)
    length = codes.shape[1]
    chunks = [chunk] * (length // chunk) + [length % chunk] * (length % chunk > 0)
    chunked = logits_in_chunks(prior, codes, chunks, frame_cond, start_cond)
    assert_close(chunked, whole_logits(prior, codes, frame_cond, start_cond))


@each_cycle
@pytest.mark.parametrize("seed", range(4))
def test_chunks_of_random_sizes_then_codes_equal_whole(randomize, cycle, seed):
    prior = make_prior(randomize, cycle)
    length = 27 + 5 * seed
    codes, frame_cond, _ = make_inputs(prior.config, length=length)
    generator = torch.Generator().manual_seed(seed)
    chunks = torch.randint(1, 2 * ROW_LEN + 2, (3,), generator=generator).tolist()
    chunks = [chunk for i, chunk in enumerate(chunks) if sum(chunks[: i + 1]) < length]
    cache, start = make_cache(prior, len(codes)), sum(chunks)
    prefilled = logits_in_chunks(prior, codes, chunks, frame_cond, cache=cache) if chunks else codes.new_empty(2, 0, 20)
    decoded = logits_by_code(prior, codes, start, frame_cond, cache=cache)
    assert_close(torch.cat([prefilled.float(), decoded], dim=1), whole_logits(prior, codes, frame_cond))


@pytest.mark.parametrize("prompt_len", range(1, 3 * ROW_LEN + 2))
def test_any_prompt_length_can_be_continued(randomize, prompt_len):
    prior = make_prior(randomize)
    codes, _, _ = make_inputs(prior.config, batch=1)
    cache = make_cache(prior, 1)
    logits_in_chunks(prior, codes, [prompt_len], cache=cache)
    assert_close(logits_by_code(prior, codes, prompt_len, cache=cache), whole_logits(prior, codes)[:, prompt_len:])


@pytest.mark.parametrize("changes", [{"heads": 1, "depth": 1}, {"scale_residual": True}, {"mlp_ratio": 2.0}])
def test_code_by_code_equals_whole_in_other_sizes(randomize, changes):
    prior = make_prior(randomize, **changes)
    codes, _, _ = make_inputs(prior.config)
    assert_close(logits_by_code(prior, codes), whole_logits(prior, codes))


@each_cycle
def test_no_logit_depends_on_later_codes_or_conditions(randomize, cycle):
    prior = make_prior(randomize, cycle)
    codes, frame_cond, _ = make_inputs(prior.config, batch=1)
    before = whole_logits(prior, codes, frame_cond)
    for pos in (0, 5, 6, 17, 40):
        other = codes.clone()
        other[:, pos] = (codes[:, pos] + 1) % prior.config.codebook_size
        after = whole_logits(prior, other, frame_cond)
        assert_close(after[:, : pos + 1], before[:, : pos + 1])
        assert (after[:, pos + 1] - before[:, pos + 1]).abs().max() > 1e-3
        other_cond = frame_cond.clone()
        other_cond[:, pos] += 1
        after = whole_logits(prior, codes, other_cond)
        assert_close(after[:, :pos], before[:, :pos])
        assert (after[:, pos] - before[:, pos]).abs().max() > 1e-3


@pytest.mark.parametrize("width", [32, 128])
def test_rows_of_a_batch_do_not_touch_each_other(randomize, width):
    prior = randomize(Prior(dataclasses.replace(CONFIG, width=width)), scale=0.7)
    codes, frame_cond, _ = make_inputs(prior.config, batch=3, dtype=torch.float32)
    prompt_len, run = 9, {}
    for rows in ([0, 1, 2], [0, 1], [1, 2], [2, 0]):
        cache = make_cache(prior, len(rows))
        prompt = logits_in_chunks(prior, codes[rows], [prompt_len], frame_cond[rows], cache=cache)
        run[tuple(rows)] = prompt, logits_by_code(prior, codes[rows], prompt_len, frame_cond[rows], cache=cache)
    whole_prompt, whole_steps = run.pop((0, 1, 2))
    for rows, (prompt, steps) in run.items():
        assert torch.equal(prompt, whole_prompt[list(rows)])
        assert torch.equal(steps, whole_steps[list(rows)])


def test_a_prompt_alone_equals_the_prompt_in_a_batch(randomize):
    prior = randomize(Prior(CONFIG), scale=0.7)
    codes, _, _ = make_inputs(prior.config, batch=3)
    whole = logits_in_chunks(prior, codes, [20, 2, 20])
    for row in range(3):
        assert torch.equal(logits_in_chunks(prior, codes[row : row + 1], [20, 2, 20])[0], whole[row])


@each_cycle
def test_cache_holds_no_more_than_its_pattern_sees(randomize, cycle):
    prior = make_prior(randomize, cycle, depth=len(cycle))
    cache = KVCache(prior.config, 3, prior.device, torch.float16)
    slots = {"row": ROW_LEN, "column": 42, "previous_row": 2 * ROW_LEN, "dense": 42}
    for layer, pattern in zip(cache.layers, cycle, strict=True):
        assert layer.keys.shape == layer.values.shape == (3, 2, slots[pattern.value], 4)
        assert not layer.kv.any()
    assert cache.nbytes == sum(2 * 3 * 2 * slots[pattern.value] * 4 * 2 for pattern in cycle)


# Patterns over the window's own positions; the first 9 of these hold lyrics.
OWN = [pattern for pattern in Pattern if pattern is not Pattern.CROSS]
SUNG = dataclasses.replace(CONFIG, labels=LabelConfig(3, 3, 1), lyrics=LyricConfig(5, 9))


@pytest.mark.parametrize("pattern", OWN)
def test_visible_slots_hold_the_positions_that_the_pattern_names(pattern):
    config = dataclasses.replace(SUNG, pattern_cycle=(pattern,))
    layer = KVCache(config, 1, torch.device("cpu"), torch.float32).layers[0]
    held = {}
    for pos in range(CONFIG.context_len):
        if (slot := layer.slot(pos)) is not None:
            held[slot] = pos
        first, count = layer.visible(pos)
        seen = sorted(held[slot] for slot in range(first, first + count))
        positions = torch.arange(CONFIG.context_len)
        # The lyrics, and the first codes up to a whole number of rows.
        expected = visible(pattern, torch.tensor(pos), positions, ROW_LEN, reach=14).nonzero().flatten().tolist()
        assert seen == expected
        assert layer.first_seen(pos) % ROW_LEN == 0
        assert layer.first_seen(pos) <= min(expected, default=pos)


@pytest.mark.parametrize("pattern", OWN)
def test_a_stored_chunk_writes_no_slot_twice(pattern, monkeypatch):
    # Which of two writes to one slot lasts is undefined on a GPU.
    cache = LayerCache(pattern, SUNG, 1, torch.device("cpu"), torch.float32)
    written = []
    copy = torch.Tensor.index_copy_
    monkeypatch.setattr(
        torch.Tensor, "index_copy_", lambda x, dim, index, y: written.append(index) or copy(x, dim, index, y)
    )
    cache.store(torch.randn(2, 1, 4 * ROW_LEN + 2, CONFIG.heads, CONFIG.head_dim), 3)
    assert len(written) == 1 and len(written[0].unique()) == len(written[0])


def test_a_cache_can_be_used_for_another_window(randomize):
    prior = make_prior(randomize)
    first, second = (make_inputs(prior.config)[0] for _ in range(2))
    cache = make_cache(prior, 2)
    logits_by_code(prior, first, cache=cache)
    assert_close(logits_by_code(prior, second, cache=cache), whole_logits(prior, second))


@pytest.mark.parametrize("conditioner", [(1, 4, 3, None), (2, 2, 4, 2), (3, 2, 2, None), (1, 2, 8, 3)])
def test_upper_code_reaches_only_the_frames_around_it(conditioner):
    stages, stride, depth, cycle = conditioner
    config = ConditionerConfig(width=8, depth=depth, stages=stages, stride=stride, dilation_cycle=cycle)
    ratio, count = config.upper_ratio, 60
    prior = Prior(dataclasses.replace(CONFIG, context_len=ratio * count, num_rows=count, conditioner=config)).double()
    with torch.no_grad():
        # All positive: no ReLU hides a path.
        for parameter in prior.conditioner.upsampler.parameters():
            parameter.uniform_(0.1, 1.0)
    x = torch.rand(1, CONFIG.width, count, dtype=torch.float64).requires_grad_()
    frames = prior.conditioner.upsampler(x)
    assert frames.shape == (1, CONFIG.width, ratio * count)
    dilations = [3 ** (block % (cycle or depth)) for block in range(depth)]
    for index in (25, 30):
        reached = [
            frame
            for frame in range(ratio * count)
            if torch.autograd.grad(frames[0, 0, frame], x, retain_graph=True)[0][0, :, index].any()
        ]
        lo, hi = index - 1, index + 1
        for _ in range(stages):
            lo, hi = lo - sum(dilations), hi + sum(dilations)
            lo, hi = lo * stride - stride // 2, hi * stride + 2 * stride - 1 - stride // 2
        assert (reached[0], reached[-1]) == (max(0, lo), min(ratio * count - 1, hi))
        assert set(range(ratio * index, ratio * (index + 1))) <= set(reached)
        # As far to the left of the code's own frames as to the right.
        assert ratio * index - lo == hi - (ratio * (index + 1) - 1)


def test_condition_does_not_depend_on_its_batch(randomize):
    conditioner = ConditionerConfig(width=16, depth=3, stages=1, dilation_cycle=None)
    prior = randomize(Prior(dataclasses.replace(CONFIG, level=0, conditioner=conditioner)))
    upper_codes = torch.randint(CONFIG.codebook_size, (3, CONFIG.context_len // 2))
    with torch.no_grad():
        whole = prior.condition(upper_codes)
        assert whole.shape == (3, CONFIG.context_len, CONFIG.width)
        assert whole.std() > 0.3
        for row in range(3):
            assert torch.equal(prior.condition(upper_codes[row : row + 1])[0], whole[row])


def test_a_top_prior_has_no_frame_condition_to_compute():
    with pytest.raises(ValueError, match="level 2 prior has no conditioner"):
        Prior(CONFIG).condition(torch.zeros(1, 21, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_is_within_its_rounding_of_fp64(randomize, dtype):
    conditioner = ConditionerConfig(width=16, depth=3, stages=1, dilation_cycle=None)
    config = dataclasses.replace(CONFIG, level=0, width=128, depth=6, conditioner=conditioner)
    prior = randomize(Prior(config), scale=0.5).to(dtype)
    exact = Prior(config).double()
    exact.load_state_dict(prior.state_dict())
    codes, upper_codes = torch.randint(20, (2, 42)), torch.randint(20, (2, 21))
    with torch.no_grad():
        expected = whole_logits(exact, codes, exact.condition(upper_codes))
        frame_cond = prior.condition(upper_codes)
        assert frame_cond.dtype == dtype
        computed = {
            "whole": whole_logits(prior, codes, frame_cond),
            "chunked": logits_in_chunks(prior, codes, [20, 22], frame_cond),
            "code by code": logits_by_code(prior, codes, 0, frame_cond),
        }
    for name, logits in computed.items():
        # In units of the last place of a typical logit: six layers of about ten roundings each.
        error = (logits - expected).square().mean().sqrt() / expected.std() / torch.finfo(dtype).eps
        assert error < 4, name


def test_every_parameter_gets_a_gradient(randomize):
    conditioner = ConditionerConfig(width=16, depth=3, stages=1, dilation_cycle=None)
    prior = randomize(Prior(dataclasses.replace(CONFIG, level=0, conditioner=conditioner)), scale=0.5)
    codes, upper_codes = torch.randint(20, (2, 42)), torch.arange(42).view(2, 21) % 20
    frame_cond = prior.condition(upper_codes)
    torch.nn.functional.cross_entropy(prior(codes, frame_cond).flatten(0, 1), codes.flatten()).backward()
    for name, parameter in prior.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
