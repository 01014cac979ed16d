"""A prompt that the native decoder takes in leaves the cache that decoding it would, to the bit."""

import pytest
import torch
from fastjukebox.engine.decoder import EagerDecoder, WindowTask
from fastjukebox.engine.native_decoder import NativeDecoder
from fastjukebox.engine.patterns import Pattern
from fastjukebox.kernels import native
from hypothesis import given, settings
from hypothesis import strategies as st
from native_cases import decode, make_prior, make_task

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=f"native decoder: {native.missing()}")
CYCLE = (Pattern.ROW, Pattern.COLUMN, Pattern.PREVIOUS_ROW, Pattern.DENSE)


def poisoned(decoder):
    """What is read before it was written shows."""
    for layer in decoder.cache.layers:
        layer.kv.fill_(float("nan"))
    return decoder


def with_prompt(task: WindowTask, prompt_len: int) -> WindowTask:
    codes = torch.full_like(task.codes, -1)
    codes[:, :prompt_len] = task.codes[:, :prompt_len]
    return WindowTask(**{**vars(task), "codes": codes, "prompt_len": prompt_len})


@settings(max_examples=25, deadline=None)
@given(
    prompt_len=st.integers(1, 95),
    batch=st.integers(1, 3),
    row_len=st.sampled_from([3, 12, 32, 96]),
    threads=st.integers(1, 3),
    isa=st.sampled_from(native.INSTRUCTION_SETS),
    int8=st.booleans(),
    seed=st.integers(0, 9),
)
def test_a_prompt_leaves_the_cache_that_decoding_leaves(prompt_len, batch, row_len, threads, isa, int8, seed):
    prior = make_prior(seed, num_rows=96 // row_len, pattern_cycle=CYCLE)
    with native.limited_to(isa):
        decoder, task = poisoned(NativeDecoder(prior, batch, int8)), make_task(prior, batch, cond=True)
        decode(decoder, task, prompt_len)
        left = [layer.kv.clone() for layer in decoder.cache.layers]
        decoder.run(prompt_len, task.codes.shape[1])
        other, again = poisoned(NativeDecoder(prior, batch, int8)), with_prompt(task, prompt_len)
        other.team.counts = [threads]
        other.prefill(again)
        for layer, kept in zip(other.cache.layers, left):
            assert torch.equal(layer.kv.nan_to_num(7.0), kept.nan_to_num(7.0))
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
    for our, their, true in zip(ours.cache.layers, theirs.cache.layers, exact.cache.layers):
        # Eager leaves out what no later position sees.
        kept = ~their.kv.isnan()
        error = (our.kv - true.kv)[kept].abs().max()
        assert kept.any() and error <= 4 * (their.kv - true.kv)[kept].abs().max() + 1e-6


def test_start_cond_and_calls_of_any_length(monkeypatch):
    prior = make_prior()
    task = make_task(prior, 2, 60, cond=True)
    task = WindowTask(**{**vars(task), "start_cond": torch.randn(2, 1, prior.config.width)})
    whole, pieces = poisoned(NativeDecoder(prior, 2)), poisoned(NativeDecoder(prior, 2))
    whole.prefill(task)
    # A call for every row.
    monkeypatch.setattr(NativeDecoder, "SECONDS_PER_CALL", 0.0)
    pieces.prefill(task)
    eager = poisoned(EagerDecoder(prior, 2))
    eager.prefill(task)
    for one, other, plain in zip(whole.cache.layers, pieces.cache.layers, eager.cache.layers):
        assert torch.equal(one.kv.nan_to_num(7.0), other.kv.nan_to_num(7.0))
        kept = ~plain.kv.isnan()
        torch.testing.assert_close(one.kv[kept], plain.kv[kept], rtol=1e-4, atol=1e-4)
