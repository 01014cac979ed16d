"""Jukebox of `transformers` 4.57.6 (the last release that has it) with our sizes and our weights.

Its numbers are right for the logits of one window that starts at 0 and for each VQ-VAE level used alone, which is all
that is built here. Its priors count levels from the top, and its VQ-VAE has no unreversed decoder dilations.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor
from transformers.models.deprecated.jukebox.configuration_jukebox import JukeboxPriorConfig, JukeboxVQVAEConfig
from transformers.models.deprecated.jukebox.modeling_jukebox import JukeboxPrior, JukeboxVQVAE

from ..engine.config import PriorConfig, VQVAEConfig
from ..engine.patterns import Pattern
from ..engine.prior import Prior
from ..engine.vqvae import VQVAE

# Our parameter names as regular expressions, and what stands for them there.
_BLOCKS = (
    (r"\.dilated\.", r".conv1d_1."),
    (r"\.mix\.", r".conv1d_2."),
)
_PRIOR_NAMES = (
    (r"^token_embedding$", r"prior.embed_tokens.weight"),
    (r"^pos_embedding$", r"prior.pos_emb.pos_emb"),
    (r"^start_token$", r"prior.start_token"),
    (r"^layers\.", r"prior.transformer._attn_mods."),
    (r"\.ln_([01])\.", r".layer_norm_\1."),
    (r"\.qkv\.", r".attn.c_attn."),
    (r"\.proj\.", r".attn.c_proj."),
    (r"^(prior.*)\.up\.", r"\1.mlp.c_fc."),
    (r"^(prior.*)\.down\.", r"\1.mlp.c_proj."),
    (r"^conditioner\.embedding$", r"conditioner_blocks.embed_tokens.weight"),
    (r"^conditioner\.ln\.", r"conditioner_blocks.layer_norm."),
    (r"^conditioner\.upsampler\.", r"conditioner_blocks.upsampler."),
    (r"\.into\.", r".proj_in."),
    *_BLOCKS,
)
_VQVAE_NAMES = (
    (r"\.levels\.", r".level_blocks."),
    (r"(level_blocks\.\d+)\.out\.", r"\1.proj_out."),
    (r"(level_blocks\.\d+)\.into\.", r"\1.proj_in."),
    (r"^codebook_(\d+)$", r"bottleneck.level_blocks.\1.codebook"),
    *_BLOCKS,
)


def build_prior(ours: Prior) -> JukeboxPrior:
    """Their prior with the weights of `ours`, in evaluation mode.

    Raises:
        ValueError: a layer pattern other than row, column, previous row, or sizes that their configuration cannot say.
    """
    config = ours.config
    if config.pattern_cycle != (Pattern.ROW, Pattern.COLUMN, Pattern.PREVIOUS_ROW):
        raise ValueError(f"transformers has no unlabelled prior with the patterns {config.pattern_cycle}")
    # Theirs are counted from the top, and only level 0 goes without a conditioner.
    level = 0 if config.conditioner is None else max(1, 2 - config.level)
    peer = JukeboxPrior(_prior_config(config, level), level=level, nb_priors=3).eval()
    theirs = {_rename(name, _PRIOR_NAMES): tensor for name, tensor in ours.state_dict().items()}
    theirs["prior.fc_proj_out.weight"] = theirs["prior.embed_tokens.weight"]
    peer.load_state_dict(theirs, strict=True)
    return peer


@torch.no_grad()
def prior_logits(peer: JukeboxPrior, codes: Tensor, upper_codes: Tensor | None = None) -> Tensor:
    """Their logits [B, context_len, V] of a whole window; `JukeboxPrior.forward_tokens` raises without lyrics."""
    frame_cond, _, _ = peer.get_cond(None if upper_codes is None else [upper_codes], None)
    _, logits = peer.prior(codes, frame_cond, get_preds=True)
    return logits


def build_vqvae(ours: VQVAE) -> JukeboxVQVAE:
    """Their VQ-VAE with the weights of `ours`, in evaluation mode.

    Level k alone is `encode(audio[..., None])[k]` and `decode([codes], start_level=k, end_level=k + 1)`.

    Raises:
        ValueError: decoder dilations that grow, which theirs cannot say.
    """
    config = ours.config
    if not config.reverse_decoder_dilation:
        raise ValueError("transformers' VQ-VAE decoder always has its widest dilation first")
    peer = JukeboxVQVAE(_vqvae_config(config)).eval()
    theirs = {_rename(name, _VQVAE_NAMES): tensor for name, tensor in ours.state_dict().items()}
    peer.load_state_dict(theirs, strict=True)
    return peer


def _prior_config(config: PriorConfig, level: int) -> JukeboxPriorConfig:
    conditioner = {}
    if config.conditioner:
        c = config.conditioner
        conditioner = {
            "res_conv_width": c.width,
            "res_conv_depth": c.depth,
            "res_convolution_multiplier": _whole(c.conv_ratio),
            "res_dilation_growth_rate": c.dilation_growth,
            "res_dilation_cycle": c.dilation_cycle,
            "conv_res_scale": c.scale_residual,
            # Read at their level only.
            "res_downs_t": [c.stages] * 3,
            "res_strides_t": [c.stride] * 3,
        }
    return JukeboxPriorConfig(
        level=level,
        hidden_size=config.width,
        num_layers=config.depth,
        n_heads=config.heads,
        n_ctx=config.context_len,
        blocks=config.num_rows,
        music_vocab_size=config.codebook_size,
        attention_multiplier=config.attn_ratio,
        mlp_multiplier=config.mlp_ratio,
        attn_res_scale=config.scale_residual,
        attention_pattern="raw_column_previous_row_attention",
        mask=True,
        # Adds the condition after the transformer and ties the head to the embedding.
        merged_decoder=False,
        is_encoder_decoder=False,
        metadata_conditioning=False,
        nb_relevant_lyric_tokens=0,
        **conditioner,
    )


def _vqvae_config(config: VQVAEConfig) -> JukeboxVQVAEConfig:
    return JukeboxVQVAEConfig(
        nb_discrete_codes=config.codebook_size,
        embed_dim=config.code_dim,
        levels=config.levels,
        multipliers=list(config.multipliers),
        res_conv_width=config.width,
        res_conv_depth=config.depth,
        res_convolution_multiplier=_whole(config.conv_ratio),
        res_dilation_growth_rate=config.dilation_growth,
        res_dilation_cycle=config.dilation_cycle,
        res_downs_t=list(config.downs),
        res_strides_t=list(config.strides),
        sampling_rate=config.sample_rate,
    )


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    # Their blocks alternate: strided convolution then stack in an encoder, stack then transposed one in a decoder.
    name = re.sub(r"\.stacks\.(\d+)\.(\d+)\.", lambda m: f"{_slot(name, int(m[1]), True)}.resnet_block.{m[2]}.", name)
    return re.sub(r"\.(?:up|down)\.(\d+)\.", lambda m: f"{_slot(name, int(m[1]), False)}.", name)


def _slot(name: str, stage: int, stack: bool) -> str:
    encoder = name.startswith("encoders")
    return f".{'downsample' if encoder else 'upsample'}_block.{2 * stage + (stack == encoder)}"


def _whole(ratio: float) -> int:
    if ratio != int(ratio):
        raise ValueError(f"transformers takes whole convolution ratios, not {ratio}")
    return int(ratio)
