"""Priors with labels and lyrics: whole, in chunks, code by code, by every decoder; and what depends on which label."""

import dataclasses

import pytest
import torch
from fastjukebox.engine.decoder import EagerDecoder, LevelSampling, WindowTask
from fastjukebox.engine.graph_decoder import GraphDecoder
from fastjukebox.engine.kv_cache import KVCache
from fastjukebox.engine.native_decoder import NativeDecoder
from fastjukebox.engine.patterns import Pattern
from fastjukebox.engine.prior import Prior
from fastjukebox.kernels import native_library, reference
from labelled_cases import KINDS, LABELS, conditions, make_inputs

each_kind = pytest.mark.parametrize("kind", KINDS)
needs_native = pytest.mark.skipif(bool(native_library.missing()), reason="needs the native decoder")


def make_prior(randomize, kind, dtype=torch.float64, **changes):
    return randomize(Prior(dataclasses.replace(KINDS[kind], **changes)), scale=0.7).to(dtype)


def make_task(prior, batch=2, prompt_len=0, sampling=None):
    """prompt_len: codes; where lyrics lie in the window they come before."""
    torch.manual_seed(5)
    codes, upper_codes = make_inputs(prior.config, batch=3)
    with torch.no_grad():
        frame_cond, start_cond, lyrics = conditions(prior, codes, upper_codes)
    prompt_len += prior.config.lyric_len
    codes[:, prompt_len:] = 0
    frame_cond, start_cond = (None if cond is None else cond[:batch].contiguous() for cond in (frame_cond, start_cond))
    offset, sampling = 7 - prior.config.lyric_len, sampling or LevelSampling()
    items = torch.arange(batch)
    return WindowTask(codes[:batch], prompt_len, items, 99, 1, offset, sampling, frame_cond, start_cond, lyrics)


def on(device, task):
    tensors = {f.name: getattr(task, f.name) for f in dataclasses.fields(task)}
    moved = {name: value.to(device) for name, value in tensors.items() if isinstance(value, torch.Tensor)}
    return dataclasses.replace(task, **moved)


def decode(decoder, task):
    decoder.prefill(task)
    decoder.run(task.prompt_len, task.codes.shape[1])
    return task.codes


@needs_native
def test_one_thread_computes_what_becomes_of_labels_and_lyrics(randomize, monkeypatch):
    """Several would round it otherwise."""
    prior, threads, linear = make_prior(randomize, "encoder", torch.float32), [], reference.linear
    decoders, task = [EagerDecoder(prior, 1), NativeDecoder(prior, 1)], make_task(prior, batch=1)
    monkeypatch.setattr(reference, "linear", lambda *args: (threads.append(torch.get_num_threads()), linear(*args))[1])
    torch.set_num_threads(2)
    for work in (lambda: make_task(prior), *(lambda one=one: one.prefill(task) for one in decoders)):
        threads.clear()
        work()
        assert set(threads) == {1}
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


@each_kind
@pytest.mark.parametrize("chunk", [1, 4, 7, 9, 15, 42])
def test_chunks_and_codes_one_by_one_equal_the_whole(randomize, kind, chunk):
    prior = make_prior(randomize, kind)
    codes, upper_codes = make_inputs(prior.config)
    length = codes.shape[1]
    with torch.no_grad():
        frame_cond, start_cond, lyrics = conditions(prior, codes, upper_codes)
        expanded = None if lyrics is None else lyrics.expand(len(codes), -1, -1)
        whole = prior(codes, frame_cond, start_cond, lyrics=expanded)
        cache = KVCache(prior.config, len(codes), prior.device, prior.dtype)
        for layer in cache.layers:
            layer.kv.fill_(float("nan"))
        prior.read_lyrics(lyrics, cache.layers)
        # The first two thirds in chunks, then one by one.
        found, stop = [], 2 * length // 3
        for start in range(0, stop, chunk):
            last = min(start + chunk, stop)
            x = prior.prefill(codes[:, max(0, start - 1) : last - 1], cache, start, frame_cond, start_cond)
            found.append(prior.logits(x, None if frame_cond is None else frame_cond[:, start:last]))
        for pos in range(stop, length):
            found.append(prior.decode_step(codes[:, pos - 1], pos, cache, frame_cond, start_cond)[:, None])
    torch.testing.assert_close(torch.cat(found, dim=1), whole, rtol=1e-6, atol=1e-6)
    assert whole.std() > 0.1


@needs_native
@each_kind
@pytest.mark.parametrize("prompt_len", [0, 17])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_native_decoder_draws_the_codes_of_the_eager_one(randomize, kind, prompt_len, threads):
    prior = make_prior(randomize, kind, torch.float32).requires_grad_(False)
    # Random networks are sure of themselves.
    sampling = LevelSampling(4.0, top_k=15)
    native = NativeDecoder(prior, 2).twin(threads)
    codes = decode(native, make_task(prior, prompt_len=prompt_len, sampling=sampling))
    assert torch.equal(
        codes, decode(EagerDecoder(prior, 2), make_task(prior, prompt_len=prompt_len, sampling=sampling))
    )
    assert len(codes[:, prior.config.lyric_len :].unique()) > 8
    # A window of other lyrics after it leaves nothing behind.
    other = dataclasses.replace(make_task(prior, 1), lyrics=None if native.task.lyrics is None else -native.task.lyrics)
    decode(native, other)
    assert torch.equal(decode(native, make_task(prior, prompt_len=prompt_len, sampling=sampling)), codes)


@needs_native
@each_kind
def test_an_item_is_the_same_in_every_batch_and_after_every_prompt(randomize, kind):
    prior = make_prior(randomize, kind, torch.float32).requires_grad_(False)
    whole = decode(NativeDecoder(prior, 3), make_task(prior, 3))
    alone = make_task(prior, 1)
    assert torch.equal(decode(NativeDecoder(prior, 1), alone)[0], whole[0])
    # What the whole window drew, as a prompt.
    prompted = dataclasses.replace(make_task(prior, 3, 20), codes=whole.clone())
    assert torch.equal(decode(NativeDecoder(prior, 3), prompted), whole)


@each_kind
@pytest.mark.parametrize("ops", ["reference", "fused"])
def test_the_graph_decoder_draws_the_codes_of_the_eager_one(randomize, kind, ops):
    if ops == "fused":
        pytest.importorskip("triton")
        from fastjukebox.kernels import fused

        # The interpreter takes milliseconds a kernel.
        layers = {"before": 16, "encoder": 20}.get(kind, 3)
        small = {"depth": layers, "width": 16}
        operations, prompt_len = fused, KINDS[kind].window_len - 2
    else:
        small, operations, prompt_len = {}, reference, 5
    prior = make_prior(randomize, kind, torch.float32, **small)
    if ops == "fused" and kind == "encoder":
        # The last of them is a layer that attends to what the encoder gave.
        assert prior.config.layer_patterns[18] is Pattern.CROSS
    # The reference computes anywhere, the kernels where they are compiled for, or in the interpreter.
    device = torch.device("cuda" if ops == "fused" and torch.cuda.is_available() else "cpu")
    tasks = [on(device, make_task(prior, prompt_len=prompt_len)) for _ in range(2)]
    prior.to(device)
    codes = decode(GraphDecoder(prior, 2, ops=operations), tasks[0])
    assert torch.equal(codes, decode(EagerDecoder(prior, 2), tasks[1]))


@each_kind
def test_every_label_changes_the_logits(randomize, kind):
    prior = make_prior(randomize, kind)
    config = prior.config
    codes, upper_codes = make_inputs(config, batch=1)

    def logits(labels=LABELS, start=7):
        with torch.no_grad():
            frame_cond, start_cond, lyrics = conditions(prior, codes, upper_codes, start, labels)
            return prior(codes, frame_cond, start_cond, lyrics=lyrics)

    base = logits()
    changed = {
        "artist": logits(LABELS._replace(artist=5)),
        "genre": logits(LABELS._replace(genres=(2, 6))),
        "genres": logits(LABELS._replace(genres=(2,))),
    }
    if config.labels.time_bins:
        changed["song"] = logits(LABELS._replace(song_samples=4000))
        changed["start"] = logits(start=100)
    if config.lyrics:
        changed["lyrics"] = logits(LABELS._replace(lyrics=tuple(reversed(LABELS.lyrics))))
    for what, found in changed.items():
        assert (found - base).abs().amax() > 1e-3, what
    assert torch.equal(logits(LABELS._replace(genres=(5, 2))), base) or torch.allclose(
        logits(LABELS._replace(genres=(5, 2))), base
    )


def test_a_labelled_prior_without_labels_is_an_error(randomize):
    prior = make_prior(randomize, "labels")
    with pytest.raises(ValueError, match="needs labels"):
        prior(torch.zeros(1, 42, dtype=torch.long))
    prior = make_prior(randomize, "encoder")
    cache = KVCache(prior.config, 1, prior.device, prior.dtype)
    with pytest.raises(ValueError, match="needs what its encoder makes of lyrics"):
        prior.read_lyrics(None, cache.layers)
