"""How long drafts are, and whether there are any, is found out by trials."""

import pytest
from fastjukebox.engine.native_decoder import NativeDecoder
from fastjukebox.engine.speculative_decoder import SpeculativeDecoder, expected_codes
from fastjukebox.kernels import native_library
from native_cases import make_prior

pytestmark = pytest.mark.skipif(
    native_library.missing() is not None, reason=f"native decoder: {native_library.missing()}"
)


def test_drafts_are_no_longer_than_a_stop_may_wait_for(monkeypatch):
    prior, now, chosen = make_prior(), [0.0], set()
    monkeypatch.setattr("fastjukebox.engine.trials.time.monotonic", lambda: now[0])
    decoder = SpeculativeDecoder(NativeDecoder(prior, 1), NativeDecoder(prior, 1))
    decoder.target.use_threads(1)
    for call in range(60):
        threads, length, codes = decoder._next_call()
        # The first step of all waits for the weights' pages.
        seconds = codes * (20.0 if call == 0 else 0.3 / length**0.5)
        now[0] += seconds
        decoder._measured(threads, length, codes, seconds)
        chosen.add(length)
        assert call == 0 or seconds < 1.0
    assert chosen == {1, 2, 4} and decoder.lengths[1, 1].best == 4


def test_what_drafts_cost_is_held_against_decoding_without_again_and_again(monkeypatch):
    """As on networks that fit the caches: longer drafts are better than shorter ones, and none the best. The first call
    of all says nothing."""
    prior, now, chosen = make_prior(), [0.0], []
    monkeypatch.setattr("fastjukebox.engine.trials.time.monotonic", lambda: now[0])
    decoder = SpeculativeDecoder(NativeDecoder(prior, 1), NativeDecoder(prior, 1))
    decoder.target.use_threads(1)
    costs = {1: 2e-4, 2: 7e-4, 4: 6.5e-4, 8: 6e-4, 16: 5e-4}
    for call in range(400):
        threads, length, codes = decoder._next_call()
        seconds = codes * costs[length] * (10 if call == 0 or (call < 60 and length == 1) else 1)
        now[0] += seconds
        decoder._measured(threads, length, codes, seconds)
        chosen += [length] * codes
    assert decoder.lengths[1, 1].best == 1
    assert chosen[len(chosen) // 2 :].count(1) > 0.45 * len(chosen)


def test_more_threads_are_tried_with_the_best_drafts(monkeypatch):
    """As on wide networks: one core has memory's bandwidth alone where codes are decoded one by one."""
    prior, now, chosen = make_prior(), [0.0], []
    monkeypatch.setattr("fastjukebox.engine.trials.time.monotonic", lambda: now[0])
    decoder = SpeculativeDecoder(NativeDecoder(prior, 1), NativeDecoder(prior, 1))
    decoder.target.use_threads(2)
    for _ in range(300):
        threads, length, codes = decoder._next_call()
        seconds = codes * (0.05 + 0.001 * threads if length == 1 else 0.03 / threads)
        now[0] += seconds
        decoder._measured(threads, length, codes, seconds)
        chosen.append((threads, length > 1))
    assert chosen[150:].count((2, True)) > 75


@pytest.mark.parametrize(
    ("cost", "best"), [(lambda length: 1 / length, 16), (float, 1), (lambda length: abs(length - 8) + 1.0, 8)]
)
def test_drafts_that_help_are_kept_and_others_are_not(cost, best, monkeypatch):
    prior, now, chosen = make_prior(context_len=1024, num_rows=8), [0.0], []
    monkeypatch.setattr("fastjukebox.engine.trials.time.monotonic", lambda: now[0])
    decoder = SpeculativeDecoder(NativeDecoder(prior, 1), NativeDecoder(prior, 1))
    decoder.target.use_threads(1)
    for _ in range(200):
        threads, length, codes = decoder._next_call()
        now[0] += codes * 1e-3 * cost(length)
        decoder._measured(threads, length, codes, codes * 1e-3 * cost(length))
        chosen += [length] * codes
    assert decoder.lengths[1, 1].best == best
    assert chosen[len(chosen) // 2 :].count(best) > 0.45 * len(chosen)


def test_codes_to_expect_of_a_check():
    """One is always there; each further one if all before it were right."""
    for right in (0.0, 0.5, 0.9, 1.0):
        for length in (1, 4, 9):
            wanted = sum(right**number for number in range(length))
            assert expected_codes(length, right) == pytest.approx(wanted)
