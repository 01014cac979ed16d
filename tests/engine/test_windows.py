"""The schedule against a literal restatement of its rule: original Jukebox's windows, cut to what is still to do."""

import dataclasses
import itertools
import math
from types import SimpleNamespace

import pytest
from fastjukebox.engine import SamplingParams
from fastjukebox.engine.config import ConditionerConfig, JukeboxConfig, PriorConfig, VQVAEConfig
from fastjukebox.engine.progress import Meter
from fastjukebox.engine.windows import LevelPlan, Window, level_windows, plan_levels, schedule, window_starts
from hypothesis import given, settings
from hypothesis import strategies as st

examples = settings(max_examples=100, deadline=None, derandomize=True)
HOPS = (0.5, 0.5, 0.125)


def starts_by_the_rule(length, context_len, hop):
    """Every hop, until a window reaches the end; that one is moved back so that it ends there."""
    starts, start = [], 0
    while start + context_len < length:
        starts.append(start)
        start += hop
    return [*starts, max(0, length - context_len)]


@st.composite
def requests(draw):
    """(config, samples, hop_fractions, known, bottom) with the levels' own context lengths."""
    vqvae = VQVAEConfig(37)
    upper = ConditionerConfig(width=8, depth=1)
    priors = tuple(
        PriorConfig(
            level, 8, 1, 1, 16 * draw(st.integers(1, 6)), 2, codebook_size=37, conditioner=upper if level < 2 else None
        )
        for level in range(3)
    )
    hops = tuple(draw(st.sampled_from((0.25, 0.5, 0.75, 1.0))) for _ in range(3))
    samples = draw(st.integers(1, 40_000))
    known = draw(st.lists(st.integers(0, 1000), min_size=3, max_size=3) | st.just([0, 0, 0]))
    return JukeboxConfig(vqvae, priors), samples, hops, known, draw(st.integers(0, 2))


def planned(request):
    config, samples, hops, known, bottom = request
    return plan_levels(config, samples, hops, known, bottom)


@examples
@given(st.integers(1, 400), st.integers(1, 60), st.data())
def test_windows_start_where_the_rule_says(length, context_len, data):
    hop = data.draw(st.integers(1, context_len))
    starts = window_starts(length, context_len, hop)
    assert starts == starts_by_the_rule(length, context_len, hop)
    if length >= context_len:
        assert starts[-1] + context_len == length
    else:
        assert starts == [0]


def test_windows_of_the_published_sizes():
    assert window_starts(8192, 8192, 1024) == [0]
    assert window_starts(8193, 8192, 1024) == [0, 1]
    assert window_starts(20672, 6144, 768) == [*range(0, 14528, 768), 14528]
    assert window_starts(10336, 8192, 4096) == [0, 2144]


@examples
@given(st.integers(1, 400), st.integers(1, 60), st.integers(0, 450), st.data())
def test_windows_sample_every_missing_code_once_and_are_full(length, context_len, known, data):
    hop = data.draw(st.integers(1, context_len))
    windows = level_windows(1, LevelPlan(length, context_len, hop, known))
    sampled = [code for window in windows for code in range(window.first, window.stop)]
    assert sampled == list(range(known, length))
    assert sum(window.new_codes for window in windows) == max(0, length - known)
    for window in windows:
        assert window.start <= window.first < window.stop <= length
        assert window.stop - window.start == min(context_len, length)
        # The next window begins where this one still reaches: nothing is ever left without a prompt that exists.
        assert window.start == 0 or window.first > window.start or hop == context_len
        assert window.level == 1 and window.upper_needed == 0
    assert all(after.first == before.stop for before, after in itertools.pairwise(windows))


@examples
@given(st.integers(1, 400), st.integers(1, 60), st.data())
def test_stopping_after_any_window_leaves_the_windows_that_followed(length, context_len, data):
    plan = LevelPlan(length, context_len, data.draw(st.integers(1, context_len)))
    windows = level_windows(0, plan)
    for done, window in enumerate(windows):
        rest = level_windows(0, dataclasses.replace(plan, known=window.stop))
        assert rest == windows[done + 1 :]


@examples
@given(requests())
def test_levels_that_are_not_sampled_need_no_hop(request_):
    config, samples, hops, known, bottom = request_
    plans = plan_levels(config, samples, [-1.0] * bottom + list(hops[bottom:]), known, bottom)
    assert plans[bottom:] == planned(request_)[bottom:]
    with pytest.raises(ValueError, match=f"of level {bottom}"):
        plan_levels(config, samples, [0.0] * 3, known, bottom)


@examples
@given(requests(), st.sampled_from(["level", "time"]))
def test_upper_codes_exist_when_a_window_is_reached(request_, order):
    config, _, _, known, bottom = request_
    plans = planned(request_)
    filled = list(known)
    for window in schedule(plans, order, bottom):
        level, prior = window.level, config.priors[window.level]
        assert window.first == filled[level]
        if level < 2:
            assert window.start % 4 == 0
            assert window.upper_needed == (window.start + prior.context_len) // 4
            assert filled[level + 1] >= window.upper_needed
        filled[level] = window.stop
    assert filled[bottom] >= plans[bottom].length
    assert filled[:bottom] == known[:bottom]


@examples
@given(requests())
def test_both_orders_hold_the_same_windows(request_):
    bottom, plans = request_[4], planned(request_)
    by_level, by_time = (list(schedule(plans, order, bottom)) for order in ("level", "time"))
    assert [window.level for window in by_level] == sorted((window.level for window in by_time), reverse=True)
    for level in range(3):
        assert [w for w in by_level if w.level == level] == [w for w in by_time if w.level == level]


@examples
@given(requests())
def test_by_time_nothing_comes_before_it_is_needed(request_):
    windows = list(schedule(planned(request_), "time", request_[4]))
    for index, window in enumerate(windows):
        if window.level > request_[4]:
            # Some lower window between this one and the next of its level could not do without it.
            waiting = next(w for w in windows[index:] if w.level == window.level - 1)
            assert waiting.upper_needed > window.first
            between = windows[index + 1 : windows.index(waiting)]
            assert all(w.level >= window.level for w in between)


def test_by_time_the_first_bottom_window_waits_for_one_window_per_level(tiny_config):
    plans = plan_levels(tiny_config, 20_000, HOPS, [0, 0, 0])
    windows = list(schedule(plans, "time"))
    assert [window.level for window in windows[:3]] == [2, 1, 0]
    assert len(windows) > 30


def test_levels_with_their_codes_given_are_left_alone_with_all_above(tiny_config):
    plans = plan_levels(tiny_config, 3840, HOPS, [0, 120, 0])
    for order in ("level", "time"):
        assert {window.level for window in schedule(plans, order)} == {0}


def test_unknown_order_is_refused(tiny_config):
    with pytest.raises(ValueError, match="'level' or 'time', not 'backwards'"):
        list(schedule(plan_levels(tiny_config, 100, HOPS, [0, 0, 0]), "backwards"))


@examples
@given(requests())
def test_levels_cover_the_target_in_whole_top_codes(request_):
    config, samples, _, _, bottom = request_
    plans = planned(request_)
    top_codes = math.ceil(samples / 128)
    assert plans[bottom].length == top_codes * (16, 4, 1)[bottom]
    for level, plan in enumerate(plans):
        assert plan.length >= top_codes * (16, 4, 1)[level]
        assert plan.length * (8, 32, 128)[level] >= samples
        if level > bottom:
            below = config.priors[level - 1].context_len, plans[level - 1].length
            # A full window of upper codes for the level below, and nothing beyond that.
            assert plan.length >= max(below) // 4
            assert plan.length - max(top_codes * (16, 4, 1)[level], max(below) // 4) < (16, 4, 1)[level]


@pytest.mark.parametrize(
    ("samples", "lengths"),
    [
        (1, [16, 12, 8]),
        (128, [16, 12, 8]),
        (129, [32, 12, 8]),
        (400, [64, 16, 8]),
        (3072, [384, 96, 24]),
        (3073, [400, 100, 25]),
    ],
)
def test_short_targets_ask_for_longer_upper_levels(tiny_config, samples, lengths):
    assert [plan.length for plan in plan_levels(tiny_config, samples, HOPS, [0, 0, 0])] == lengths


def test_levels_between_are_whole_top_codes_too(tiny_config):
    """Else the next level's last window would begin within one of its upper codes."""
    bottom = dataclasses.replace(tiny_config.priors[0], context_len=36)
    config = dataclasses.replace(tiny_config, priors=(bottom, *tiny_config.priors[1:]))
    # 36 codes are 9 of level 1, which are more than 2 of level 2.
    assert [plan.length for plan in plan_levels(config, 1, (1.0, 1.0, 1.0), [0, 0, 0])] == [16, 12, 8]


def test_windows_move_as_in_the_original_unless_asked_otherwise():
    assert SamplingParams().per_level("hop_fraction", 3) == HOPS


@pytest.mark.parametrize(("width", "at_most"), [(32, 2.0), (2048, 1.0)])
def test_the_time_left_follows_the_work_left(tiny_config, monkeypatch, width, at_most):
    now, reports = iter([10.0, 12.0, 14.0, 16.0]), []
    monkeypatch.setattr("fastjukebox.engine.progress.time", SimpleNamespace(monotonic=lambda: next(now)))
    top = dataclasses.replace(tiny_config.priors[2], width=width)
    config = dataclasses.replace(tiny_config, priors=(*tiny_config.priors[:2], top))
    meter = Meter([Window(2, 0, 0, 12, 0), Window(1, 0, 0, 12, 3)], config, [2, 2, 2], reports.append)
    for level, codes in ((2, 24), (1, 12), (1, 12)):
        meter.add(level, codes)
    assert [(report.done, report.total) for report in reports] == [(24, 48), (36, 48), (48, 48)]
    if width == 32:
        assert [report.eta for report in reports] == pytest.approx([2.0, 4 / 3, 0.0])
    # A code of a wide level is more work.
    assert 0 < reports[0].eta <= at_most


def test_a_preview_asks_for_nothing_below_it(tiny_config):
    assert [plan.length for plan in plan_levels(tiny_config, 1, HOPS, [0, 0, 0], bottom=1)] == [16, 4, 8]
    assert [plan.length for plan in plan_levels(tiny_config, 1, HOPS, [0, 0, 0], bottom=2)] == [16, 4, 1]


@pytest.mark.parametrize(
    ("hops", "message"),
    [
        ((1 / 48, 0.5, 0.125), "level 0: 1 of 48 codes is not a positive multiple of 4"),
        ((0.3, 0.5, 0.125), "level 0: 14.4 of 48"),
        ((0.5, 1 / 16, 0.125), "level 1: 2 of 32"),
        ((0.5, 0.5, 0.1), "level 2: 2.4 of 24 codes is not a positive multiple of 1"),
        ((0.5, 0.5, 0.0), "level 2: 0 of 24"),
        ((0.5, 1.5, 0.125), "level 1: 48 of 32"),
        ((-0.5, 0.5, 0.125), "level 0: -24 of 48"),
    ],
)
def test_hops_that_do_not_fit_are_refused(tiny_config, hops, message):
    with pytest.raises(ValueError, match=message):
        plan_levels(tiny_config, 1000, hops, [0, 0, 0])
