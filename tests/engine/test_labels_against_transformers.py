"""Logits of labelled priors equal those of `transformers` 4.57.6 on the same random weights, in FP32, for windows
anywhere in a song."""

import dataclasses

import pytest
import torch
from fastjukebox.engine.config import LyricConfig
from fastjukebox.engine.prior import Prior
from labelled_cases import KINDS, LABELS, RATE, UNIT, conditions, make_inputs

peer = pytest.importorskip("fastjukebox.bench.transformers_peer", reason="needs transformers 4.57.6")


@pytest.fixture(autouse=True)
def _rate(monkeypatch):
    build = peer._prior_config

    def with_rate(config, level):
        theirs = build(config, level)
        theirs.sampling_rate = RATE
        return theirs

    monkeypatch.setattr(peer, "_prior_config", with_rate)


def assert_same_logits(prior, start, labels=LABELS):
    config = prior.config
    codes, upper_codes = make_inputs(config)
    with torch.no_grad():
        frame_cond, start_cond, lyrics = conditions(prior, codes, upper_codes, start, labels)
        lyrics = None if lyrics is None else lyrics.expand(len(codes), -1, -1)
        ours = prior(codes, frame_cond, start_cond, lyrics=lyrics)[:, config.lyric_len :]
    given = codes[:, config.lyric_len :]
    upper_codes = upper_codes if config.conditioner else None
    theirs = peer.labelled_logits(peer.build_prior(prior), config, labels, given, start, UNIT, upper_codes)
    assert theirs.std() > 0.3
    assert ours.shape == theirs.shape == (*given.shape, config.codebook_size)
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("start", [0, 60, 165])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_a_window(randomize, kind, start):
    assert_same_logits(randomize(Prior(KINDS[kind]), scale=0.5), start)


@pytest.mark.parametrize("kind", ["before", "encoder"])
def test_lyrics_shorter_than_the_window_takes(randomize, kind):
    assert_same_logits(randomize(Prior(KINDS[kind]), scale=0.5), 5, LABELS._replace(lyrics=(3, 1, 4)))


def test_a_layer_that_sees_lyrics_and_codes_alike(randomize):
    # 48 layers: the last is the dense one.
    config = dataclasses.replace(KINDS["before"], depth=48, width=16, scale_residual=True)
    assert_same_logits(randomize(Prior(config), scale=0.5), 20)


@pytest.mark.parametrize("length", [7, 13, 14])
def test_lyrics_of_another_length(randomize, length):
    config = KINDS["before"]
    lyrics = LyricConfig(13, length)
    # As many codes as make whole rows.
    config = dataclasses.replace(config, lyrics=lyrics, context_len=length + 42 + -length % 7)
    assert_same_logits(randomize(Prior(config), scale=0.5), 9, LABELS._replace(lyrics=tuple(range(13)) * 9))
