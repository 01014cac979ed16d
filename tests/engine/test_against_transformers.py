"""Logits, codes and audio equal those of `transformers` 4.57.6 on the same random weights, in FP32."""

import dataclasses

import pytest
import torch
from fastjukebox.engine.config import ConditionerConfig, PriorConfig, VQVAEConfig
from fastjukebox.engine.patterns import Pattern
from fastjukebox.engine.prior import Prior
from fastjukebox.engine.vqvae import VQVAE

peer = pytest.importorskip("fastjukebox.bench.transformers_peer", reason="needs transformers 4.57.6")

TOP = PriorConfig(level=2, width=64, depth=3, heads=1, context_len=48, num_rows=6, codebook_size=50)
UPSAMPLER = dataclasses.replace(
    TOP,
    level=0,
    conditioner=ConditionerConfig(width=24, depth=4, stages=2, dilation_growth=3, dilation_cycle=3),
)
VQVAES = {
    "jukebox_like": VQVAEConfig(codebook_size=64, code_dim=8, width=8, depth=3),
    "cycle": VQVAEConfig(
        codebook_size=64,
        code_dim=8,
        downs=(2, 1),
        strides=(2, 4),
        width=8,
        depth=5,
        multipliers=(1, 2),
        dilation_cycle=2,
    ),
    "one_level": VQVAEConfig(
        codebook_size=64, code_dim=8, downs=(3,), strides=(2,), width=8, depth=2, multipliers=(1,)
    ),
}


def assert_same_logits(prior, upper_codes=None):
    config = prior.config
    codes = torch.randint(config.codebook_size, (2, config.context_len))
    with torch.no_grad():
        frame_cond = None if upper_codes is None else prior.condition(upper_codes)
        ours = prior(codes, frame_cond)
    theirs = peer.prior_logits(peer.build_prior(prior), codes, upper_codes)
    assert theirs.std() > 0.3
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("depth", [1, 3, 7, 18])
def test_top_prior_logits(randomize, depth, heads):
    prior = randomize(Prior(dataclasses.replace(TOP, depth=depth, heads=heads)), scale=0.5)
    assert_same_logits(prior)


def test_top_prior_logits_with_scaled_residual(randomize):
    assert_same_logits(randomize(Prior(dataclasses.replace(TOP, depth=5, scale_residual=True))))


def test_top_prior_logits_with_other_widths(randomize):
    assert_same_logits(randomize(Prior(dataclasses.replace(TOP, attn_ratio=0.5, mlp_ratio=2.0, heads=2)), scale=0.5))


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("depth", [3, 4])
def test_upsampler_logits(randomize, level, depth):
    conditioner = dataclasses.replace(UPSAMPLER.conditioner, scale_residual=level == 1)
    prior = Prior(dataclasses.replace(UPSAMPLER, level=level, depth=depth, conditioner=conditioner))
    upper_codes = torch.randint(TOP.codebook_size, (2, TOP.context_len // 4))
    assert_same_logits(randomize(prior, scale=0.5), upper_codes)


def test_upsampler_logits_with_another_stride(randomize):
    conditioner = ConditionerConfig(width=24, depth=3, stages=1, stride=4, dilation_cycle=None)
    prior = randomize(Prior(dataclasses.replace(UPSAMPLER, conditioner=conditioner)), scale=0.5)
    assert_same_logits(prior, torch.randint(TOP.codebook_size, (2, TOP.context_len // 4)))


@pytest.mark.parametrize("config", VQVAES.values(), ids=VQVAES)
def test_codes_are_equal_at_every_level(randomize_vqvae, config):
    vqvae = randomize_vqvae(VQVAE(config))
    audio = torch.randn(2, config.samples_per_code(config.levels - 1) * 40)
    theirs = peer.build_vqvae(vqvae).encode(audio[..., None])
    for level in range(config.levels):
        ours = vqvae.encode(audio, level)
        assert len(ours.unique()) > config.codebook_size // 3
        assert torch.equal(ours, theirs[level])


@pytest.mark.parametrize("config", VQVAES.values(), ids=VQVAES)
def test_audio_is_equal_at_every_level(randomize_vqvae, config):
    vqvae = randomize_vqvae(VQVAE(config))
    their_vqvae = peer.build_vqvae(vqvae)
    for level in range(config.levels):
        codes = torch.randint(config.codebook_size, (2, 40))
        with torch.no_grad():
            theirs = their_vqvae.decode([codes], start_level=level, end_level=level + 1)[..., 0]
        ours = vqvae.decode(codes, level)
        assert theirs.std() > 0.1
        # Relative to the signal, whose size random weights leave open.
        assert (ours - theirs).abs().max() < 1e-4 * max(1.0, theirs.std().item())


def test_what_it_cannot_express_is_refused():
    with pytest.raises(ValueError, match="patterns"):
        peer.build_prior(Prior(dataclasses.replace(TOP, pattern_cycle=(Pattern.DENSE,))))
    with pytest.raises(ValueError, match="widest dilation first"):
        peer.build_vqvae(VQVAE(dataclasses.replace(VQVAES["one_level"], reverse_decoder_dilation=False)))
