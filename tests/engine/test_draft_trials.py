"""How long drafts are, and whether there are any, is found out by trials."""

import pytest
from fastjukebox.engine.native_decoder import NativeDecoder
from fastjukebox.engine.speculative_decoder import SpeculativeDecoder, expected_codes
from fastjukebox.kernels import native_library
from native_cases import decode, make_prior, make_task

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


def test_what_a_call_is_held_to_is_a_step_of_all_items(monkeypatch):
    """Three items, of whose drafts of four codes half are right: a call is given checks for as many codes of each as it
    has time for, and is measured by what they give each in the mean."""
    prior, measured, asked = make_prior(), [], []
    decoder = SpeculativeDecoder(*(NativeDecoder(prior, 3) for _ in range(2)), 3)
    decoder.begin(make_task(prior, 3))
    decoder.right, decoder.written, decoder.seen = 500, 1000, 30

    def speculate(draft, positions, stop, length, checks, threads):
        asked.append((list(positions), stop, length, checks))
        positions[:] = [60, 60, 60] if len(asked) > 1 else [41, 30, 37]
        return 9, 6, 24

    monkeypatch.setattr(decoder.target, "speculate", speculate)
    monkeypatch.setattr(decoder, "_next_call", lambda: (1, 4, 10))
    monkeypatch.setattr(decoder, "_measured", lambda *call: measured.append(call[:3]))
    decoder.run(30, 60)
    # A draft of four codes gives 1 + 1/2 + 1/4 + 1/8.
    assert asked[0] == ([30, 30, 30], 60, 4, 5) and asked[1][0] == [41, 30, 37]
    share = (500 + 9) / (1000 + 18)
    assert measured[0] == (1, 4, pytest.approx(2 * sum(share**number for number in range(4))))


def test_items_that_are_behind_catch_up_before_codes_are_decoded_without_drafts(monkeypatch):
    prior, calls = make_prior(), []
    decoder = SpeculativeDecoder(*(NativeDecoder(prior, 2) for _ in range(2)), 2)
    decoder.begin(make_task(prior, 2))
    decoder.seen = 30
    lengths = iter([8, 1, 1, 8, 8, 1])

    def speculate(draft, positions, stop, length, checks, threads):
        calls.append((list(positions), stop, length))
        # As many as catching up may take, if nothing is drafted right.
        assert length > 2 or checks >= stop - min(positions)
        positions[:] = [40, 34] if len(calls) == 1 else [stop, stop]
        return 1, 1, 1

    monkeypatch.setattr(decoder.target, "speculate", speculate)
    monkeypatch.setattr(decoder.target, "decode", lambda first, stop, threads: calls.append((first, stop)))
    monkeypatch.setattr(decoder.draft, "extend", lambda start, stop: calls.append(("seen", start, stop)))
    monkeypatch.setattr(decoder, "_next_call", lambda: (1, next(lengths), 10))
    decoder.run(30, 70)
    # The shortest drafts there are; what is decoded without, the draft sees before it is asked again.
    caught_up, without = [([40, 34], 40, 2)], [(40, 50), (50, 60)]
    assert calls == [([30, 30], 70, 8), *caught_up, *without, ("seen", 40, 60), ([60, 60], 70, 8)]
    # Where that is all there is to do, nothing is decoded, nor measured.
    del calls[1:]
    monkeypatch.setattr(decoder, "_measured", lambda *call: calls.append(call[:2]))

    def catch_up(draft, positions, stop, length, checks, threads):
        calls.append((list(positions), stop, length))
        positions[:] = [80, 71] if length == 8 else [80, 80]
        return 1, 1, 1

    monkeypatch.setattr(decoder.target, "speculate", catch_up)
    decoder.run(70, 80)
    assert calls[1:] == [([70, 70], 80, 8), (1, 8), ([80, 71], 80, 2)]


def test_trials_of_one_item_are_not_those_of_several():
    prior = make_prior()
    decoder = SpeculativeDecoder(*(NativeDecoder(prior, 3) for _ in range(2)), 3)
    decoder.target.use_threads(1)
    for items in (1, 3):
        decode(decoder, make_task(prior, items, 60))
    assert decoder.lengths.keys() == {(1, 1), (3, 1)}
