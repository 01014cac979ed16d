"""A prompt that the native decoder takes in leaves what later positions see as decoding it would, to the bit."""

import pytest
import torch
from fastjukebox.engine.config import LabelConfig, LyricConfig
from fastjukebox.engine.decoder import EagerDecoder, WindowTask
from fastjukebox.engine.native_decoder import NativeDecoder
from fastjukebox.engine.patterns import Pattern
from fastjukebox.kernels import native_library
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import decode, kept, make_prior, make_task, seen, with_team

pytestmark = pytest.mark.skipif(
    native_library.missing() is not None, reason=f"native decoder: {native_library.missing()}"
)
CYCLE = (Pattern.ROW, Pattern.COLUMN, Pattern.PREVIOUS_ROW, Pattern.DENSE)


def poisoned(decoder):
    """What is read before it was written shows."""
    for layer in decoder.cache if isinstance(decoder, NativeDecoder) else decoder.cache.layers:
        layer.keys.fill_(float("nan"))
        layer.values.fill_(float("nan"))
    return decoder


def with_prompt(task: WindowTask, prompt_len: int) -> WindowTask:
    codes = torch.full_like(task.codes, -1)
    codes[:, :prompt_len] = task.codes[:, :prompt_len]
    return WindowTask(**{**vars(task), "codes": codes, "prompt_len": prompt_len})


@settings(max_examples=25, deadline=None)
@given(
    prompt_len=st.integers(1, 95),
    batch=st.integers(1, 3),
    # With 64, heads are whole vectors, which threads divide between them.
    width=st.sampled_from([48, 64]),
    row_len=st.sampled_from([3, 12, 32, 96]),
    threads=st.integers(1, 3),
    isa=st.sampled_from(native_library.INSTRUCTION_SETS),
    int8=st.booleans(),
    seed=st.integers(0, 9),
    cycle=st.sampled_from(
        [CYCLE, CYCLE[:3], (Pattern.COLUMN, Pattern.ROW, Pattern.PREVIOUS_ROW), CYCLE[:1], CYCLE[2:3]]
    ),
    depth=st.integers(1, 6),
)
def test_a_prompt_leaves_what_decoding_leaves(
    prompt_len, batch, width, row_len, threads, isa, int8, seed, cycle, depth
):
    prior = make_prior(seed, width=width, num_rows=96 // row_len, pattern_cycle=cycle, depth=depth)
    with native_library.limited_to(isa):
        decoder, task = poisoned(NativeDecoder(prior, batch, int8)), make_task(prior, batch, cond=True)
        decode(decoder, task, prompt_len)
        left = seen(decoder, prompt_len)
        decoder.run(prompt_len, task.codes.shape[1])
        other, again = with_team(poisoned(NativeDecoder(prior, batch, int8)), threads), with_prompt(task, prompt_len)
        other.prefill(again)
        for one, both in zip(seen(other, prompt_len), left):
            assert torch.equal(one, both)
        other.run(prompt_len, again.codes.shape[1])
    assert torch.equal(again.codes, task.codes)


@pytest.mark.parametrize("prompt_len", [1, 12, 50, 95])
def test_keys_and_values_are_those_of_eager(prompt_len):
    prior = make_prior(pattern_cycle=CYCLE)
    task = make_task(prior, 2, prompt_len, cond=True)
    ours, theirs = poisoned(NativeDecoder(prior, 2)), poisoned(EagerDecoder(prior, 2))
    ours.prefill(task)
    theirs.prefill(task)
    exact = EagerDecoder(make_prior(pattern_cycle=CYCLE).double(), 2)
    exact.prefill(WindowTask(**{**vars(task), "frame_cond": task.frame_cond.double()}))
    for our, their, true in zip(*(seen(decoder, prompt_len) for decoder in (ours, theirs, exact))):
        if our.numel():
            assert (our - true).abs().max() <= 4 * (their - true).abs().max() + 1e-6


@pytest.mark.parametrize("threads", [1, 2])
def test_layers_that_later_positions_do_not_need_are_left_out(threads):
    """Above the last layer that sees the whole window all but the last row or two are."""
    cycle = (Pattern.ROW, Pattern.COLUMN, Pattern.PREVIOUS_ROW, Pattern.ROW)
    prior = make_prior(pattern_cycle=cycle, num_rows=4, depth=8, width=64)
    decoder = with_team(poisoned(NativeDecoder(prior, 1)), threads)
    decoder.prefill(make_task(prior, 1, 60))
    there = [[bool(part.isfinite().any()) for part in kv[1, 0, 0].split(24)] for kv in kept(decoder)]
    # 60 is in the middle of the third row; the first two were prompts of other rows.
    assert there[4:] == [[True], [True, True, True, True], [True, True], [True]]
    assert kept(decoder)[7][1, 0, 0].isfinite().all(dim=1).tolist() == [column < 12 for column in range(24)]
    assert kept(decoder)[0][1].isfinite().all()


def test_no_thread_writes_over_keys_that_another_still_reads():
    """Two layers are needed of the rows before the last, and the lower one keeps a single row."""
    cycle = (Pattern.ROW, Pattern.COLUMN, Pattern.ROW)
    prior = make_prior(pattern_cycle=cycle, depth=3, context_len=512, num_rows=8, width=64)
    task = make_task(prior, 1, 511)
    alone, team = (with_team(NativeDecoder(prior, 1), threads) for threads in (1, 4))
    alone.prefill(task)
    team.prefill(task)
    for one, other in zip(seen(alone, 511), seen(team, 511)):
        assert torch.equal(one, other)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_prompt_of_several_stretches_that_go_through_layer_by_layer(threads, int8):
    """Each has 512 KiB of activations, here 14 times 64 positions."""
    prior = make_prior(pattern_cycle=CYCLE[:3], depth=4, width=128, context_len=2048, num_rows=16)
    task = make_task(prior, 1)
    decoder, other = (
        poisoned(NativeDecoder(prior, 1, int8)),
        with_team(poisoned(NativeDecoder(prior, 1, int8)), threads),
    )
    decode(decoder, task, 2000)
    # In one call.
    again = with_prompt(task, 2000)
    other.begin(again)
    other.model.prefill(other._native_task, 0, 2000, 2000, threads)
    for one, both in zip(seen(other, 2000), seen(decoder, 2000)):
        assert torch.equal(one, both)


@pytest.mark.parametrize("threads", [1, 2])
def test_lyrics_that_the_last_layer_alone_reads_are_taken_in(threads):
    told = {"labels": LabelConfig(2, 2, 1), "lyrics": LyricConfig(9, 20)}
    prior = make_prior(pattern_cycle=(Pattern.ROW, Pattern.ROW, Pattern.LYRICS), depth=3, num_rows=6, **told)
    task = make_task(prior, 1)
    decoder, other = poisoned(NativeDecoder(prior, 1)), with_team(poisoned(NativeDecoder(prior, 1)), threads)
    decode(decoder, task, 80)
    other.prefill(with_prompt(task, 80))
    for one, both in zip(seen(other, 80), seen(decoder, 80)):
        assert torch.equal(one, both)


def test_start_cond_and_calls_of_any_length(monkeypatch):
    prior = make_prior()
    task = make_task(prior, 2, 60, cond=True)
    task = WindowTask(**{**vars(task), "start_cond": torch.randn(2, 1, prior.config.width)})
    whole = poisoned(NativeDecoder(prior, 2))
    whole.prefill(task)
    # On a slow machine calls begin and end within rows.
    monkeypatch.setattr(NativeDecoder, "SECONDS_PER_CALL", 0.0)
    monkeypatch.setattr(NativeDecoder, "FEWEST_POSITIONS", 5)
    pieces, calls = with_team(poisoned(NativeDecoder(prior, 2)), 1), []
    prefill = pieces.model.prefill
    monkeypatch.setattr(pieces.model, "prefill", lambda task, *ends: (calls.append(ends[:2]), prefill(task, *ends)))
    pieces.prefill(task)
    assert calls == [(start, start + 5) for start in range(0, 60, 5)] and prior.config.row_len > 5
    eager = poisoned(EagerDecoder(prior, 2))
    eager.prefill(task)
    for one, other, plain in zip(*(seen(decoder, 60) for decoder in (whole, pieces, eager))):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, plain, rtol=1e-4, atol=1e-4)
