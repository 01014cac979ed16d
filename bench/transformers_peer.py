"""Jukebox of `transformers` 4.57.6 (the last release that has it) with our sizes and our weights.

Its numbers are right for the logits of one window that starts at 0 and for each VQ-VAE level used alone, which is all
that is built here. Its priors count levels from the top, and its VQ-VAE has no unreversed decoder dilations.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from transformers.models.deprecated.jukebox.configuration_jukebox import JukeboxPriorConfig, JukeboxVQVAEConfig
from transformers.models.deprecated.jukebox.modeling_jukebox import JukeboxPrior, JukeboxVQVAE

from ..engine.config import PRESETS, PriorConfig, VQVAEConfig
from ..engine.labels import LevelLabels, window_lyrics
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
    (r"^own_head$", r"prior.fc_proj_out.weight"),
    (r"^layers\.", r"prior.transformer._attn_mods."),
    (r"^lyric_encoder\.token_embedding$", r"encoder.embed_tokens.weight"),
    (r"^lyric_encoder\.pos_embedding$", r"encoder.pos_emb.pos_emb"),
    (r"^lyric_encoder\.start_token$", r"encoder.start_token"),
    (r"^lyric_encoder\.proj\.", r"encoder.proj_in."),
    (r"^lyric_encoder\.ln\.", r"encoder.final_layer_norm."),
    (r"^lyric_encoder\.layers\.", r"encoder.transformer._attn_mods."),
    (r"^labels\.artist$", r"metadata_embedding.artist_emb.weight"),
    (r"^labels\.genre$", r"metadata_embedding.bow_genre_emb.weight"),
    (r"^labels\.song_length$", r"metadata_embedding.total_length_emb.emb.weight"),
    (r"^labels\.elapsed$", r"metadata_embedding.absolute_pos_emb.emb.weight"),
    (r"^labels\.progress$", r"metadata_embedding.relative_pos_emb.emb.weight"),
    (r"\.ln_([01])\.", r".layer_norm_\1."),
    (r"\.qkv\.", r".attn.c_attn."),
    (r"\.lyric_kv\.", r".attn.c_enc_kv."),
    (r"\.proj\.", r".attn.c_proj."),
    (r"^((?:prior|encoder).*)\.up\.", r"\1.mlp.c_fc."),
    (r"^((?:prior|encoder).*)\.down\.", r"\1.mlp.c_proj."),
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


# The patterns of the published models, and their names.
_ATTENTION = {
    (Pattern.ROW, Pattern.COLUMN, Pattern.PREVIOUS_ROW): "raw_column_previous_row_attention",
    **{
        preset.pattern_cycle: name
        for preset, name in (
            (PRESETS["top-5b-lyrics"], "large_separated_enc_dec_w_lyrics"),
            (PRESETS["top-1b-lyrics"], "enc_dec_with_lyrics"),
        )
        if isinstance(preset, PriorConfig)
    },
}


def build_prior(ours: Prior) -> JukeboxPrior:
    """Their prior with the weights of `ours`, in evaluation mode.

    Raises:
        ValueError: layer patterns other than the published models', or sizes that their configuration cannot say.
    """
    config = ours.config
    if config.pattern_cycle not in _ATTENTION:
        raise ValueError(f"transformers has no prior with the patterns {config.pattern_cycle}")
    # Theirs are counted from the top, and only level 0 goes without a conditioner.
    level = 0 if config.conditioner is None else max(1, 2 - config.level)
    peer = JukeboxPrior(_prior_config(config, level), level=level, nb_priors=3).eval()
    theirs = {_rename(name, _PRIOR_NAMES): tensor for name, tensor in ours.state_dict().items()}
    # Characters come first there.
    shifted = theirs["prior.embed_tokens.weight"].roll(config.vocabulary - config.codebook_size, 0)
    theirs["prior.embed_tokens.weight"] = shifted
    theirs.setdefault("prior.fc_proj_out.weight", shifted)
    if ours.lyric_encoder is not None:
        # Of their loss alone.
        theirs["encoder.lm_head.weight"] = peer.state_dict()["encoder.lm_head.weight"]
    peer.load_state_dict(theirs, strict=True)
    return peer


@torch.no_grad()
def prior_logits(peer: JukeboxPrior, codes: Tensor, upper_codes: Tensor | None = None) -> Tensor:
    """Their logits [B, context_len, V] of a whole window; `JukeboxPrior.forward_tokens` raises without lyrics."""
    frame_cond, _, _ = peer.get_cond(None if upper_codes is None else [upper_codes], None)
    _, logits = peer.prior(codes, frame_cond, get_preds=True)
    return logits


@torch.no_grad()
def labelled_logits(
    peer: JukeboxPrior,
    config: PriorConfig,
    labels: LevelLabels,
    codes: Tensor,
    start: int,
    unit: int,
    upper_codes: Tensor | None = None,
) -> Tensor:
    """Their logits [B, window_len, V] of a whole window of codes [B, window_len] that begins with code `start` of the
    song, `unit` audio samples a code."""
    assert config.labels is not None
    offset, samples = start * unit, config.window_len * unit
    genres = labels.genres + (-1,) * (config.labels.genre_slots - len(labels.genres))
    lyrics = window_lyrics(labels, config, offset, samples) if config.lyrics else ()
    metadata = torch.tensor([[labels.song_samples, offset, samples, labels.artist, *genres, *lyrics]] * len(codes))
    frame_cond, start_cond, characters = peer.get_cond(None if upper_codes is None else [upper_codes], metadata)
    if config.lyric_len:
        tokens, frame_cond = peer.prior_preprocess([characters, codes], [None, frame_cond])
        logits = peer.prior(tokens, frame_cond, start_cond, get_preds=True)[1]
        return logits[:, config.lyric_len :, config.vocabulary - config.codebook_size :]
    encoded = peer.get_encoder_states(characters) if config.lyrics else None
    return peer.prior(codes, frame_cond, start_cond, encoded, get_preds=True)[1]


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
    conditioner: dict[str, Any] = {}
    labels: dict[str, Any] = {}
    lyrics: dict[str, Any] = {}
    if config.labels:
        labels = {
            "metadata_dims": (config.labels.genres, config.labels.artists),
            "max_nb_genres": config.labels.genre_slots,
            "timing_dims": config.labels.time_bins or 1,
            "min_duration": config.labels.min_seconds,
            "max_duration": config.labels.max_seconds,
        }
    if config.lyrics:
        lyrics = {"lyric_vocab_size": config.lyrics.vocabulary}
        if config.lyrics.encoder:
            lyrics["encoder_config"] = _encoder_config(config.lyrics.encoder)
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
        n_ctx=config.window_len,
        blocks=config.num_rows,
        music_vocab_size=config.codebook_size,
        attention_multiplier=config.attn_ratio,
        mlp_multiplier=config.mlp_ratio,
        attn_res_scale=config.scale_residual,
        attention_pattern=_ATTENTION[config.pattern_cycle],
        mask=True,
        # False: adds the condition after the transformer and ties the head to the embedding.
        merged_decoder=config.separate_head,
        is_encoder_decoder=config.lyric_len > 0,
        metadata_conditioning=config.labels is not None,
        nb_relevant_lyric_tokens=config.lyrics.length if config.lyrics else 0,
        **conditioner,
        **labels,
        **lyrics,
    )


def _encoder_config(config: PriorConfig) -> dict[str, object]:
    return {
        "hidden_size": config.width,
        "num_layers": config.depth,
        "n_heads": config.heads,
        "n_ctx": config.context_len,
        "nb_relevant_lyric_tokens": config.context_len,
        "blocks": config.num_rows,
        "lyric_vocab_size": config.codebook_size,
        "attention_multiplier": config.attn_ratio,
        "mlp_multiplier": config.mlp_ratio,
        "attn_res_scale": config.scale_residual,
        "attention_pattern": _ATTENTION[config.pattern_cycle],
        "mask": True,
        "merged_decoder": False,
    }


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
