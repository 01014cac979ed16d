"""OpenAI files made of our own random modules, under names that are written down here a second time."""

import numpy
import pytest
import torch
from fastjukebox.engine.checkpoint import CheckpointError
from fastjukebox.engine.config import (
    ConditionerConfig,
    JukeboxConfig,
    PriorConfig,
    VQVAEConfig,
)
from fastjukebox.engine.openai_format import convert

VQVAE_CONFIG = VQVAEConfig(codebook_size=16, code_dim=4, downs=(2, 2, 1), strides=(2, 2, 4), width=4, depth=1)
CONDITIONERS = (
    ConditionerConfig(width=8, depth=3, dilation_cycle=2),
    ConditionerConfig(width=8, depth=3, stages=1, stride=4, dilation_cycle=2, scale_residual=True),
    None,
)
PRIOR_CONFIGS = tuple(
    PriorConfig(level, 16, 3 + level, heads=2, context_len=32, num_rows=4, codebook_size=16, conditioner=conditioner)
    for level, conditioner in enumerate(CONDITIONERS)
)
STACK = JukeboxConfig(VQVAE_CONFIG, PRIOR_CONFIGS)
PRESETS_OF_STACK = {"vqvae": VQVAE_CONFIG, **dict(enumerate(PRIOR_CONFIGS))}

VQVAE_HPS = {
    "levels": 3,
    "downs_t": (2, 2, 1),
    "strides_t": [2, 2, 4],
    "emb_width": 4,
    "l_bins": numpy.int64(16),
    "hvqvae_multipliers": (2, 1, 1),
    "width": 4,
    "depth": 1,
    "m_conv": 1.0,
    "dilation_growth_rate": 3,
    "dilation_cycle": None,
    "vqvae_reverse_decoder_dilation": True,
    "sr": 44100,
    "restore_vqvae": "",
    "bandwidth": {"l2": numpy.float64(0.25), "spec": numpy.float32(2.0)},
    "mask": numpy.arange(3),
}


def prior_hps(level, **changes):
    return {
        **VQVAE_HPS,
        "level": level,
        "n_ctx": 32,
        "prior_width": 16,
        "prior_depth": numpy.int64(3 + level),
        "heads": 2,
        "attn_order": 2,
        "blocks": 4,
        "spread": None,
        "res_scale": False,
        "m_attn": 0.25,
        "m_mlp": 1.0,
        "cond_width": 8,
        "cond_depth": 3,
        "cond_m_conv": 1.0,
        "cond_dilation_growth_rate": 3,
        "cond_dilation_cycle": 2,
        "cond_res_scale": level == 1,
        "labels": False,
        "merged_decoder": False,
        "single_enc_dec": False,
        **changes,
    }


def put(state, name, module, weight="weight", bias="bias"):
    state[f"{name}.{weight}"] = module.weight.detach()
    state[f"{name}.{bias}"] = module.bias.detach()


def put_stack(state, name, stack):
    for index, block in enumerate(stack):
        put(state, f"{name}.{index}.model.1", block.dilated)
        put(state, f"{name}.{index}.model.3", block.mix)


def put_upsampler(state, name, upsampler, blocks):
    put(state, f"{name}.0", upsampler.into)
    for index, (stack, up) in enumerate(zip(upsampler.stacks, upsampler.up, strict=True), start=1):
        put_stack(state, f"{name}.{index}.0.{blocks}", stack)
        put(state, f"{name}.{index}.1", up)


def vqvae_state(vqvae):
    state = {}
    for level in range(3):
        for lower, block in enumerate(vqvae.encoders[level].levels):
            name = f"encoders.{level}.level_blocks.{lower}.model"
            for index, (down, stack) in enumerate(zip(block.down, block.stacks, strict=True)):
                put(state, f"{name}.{index}.0", down)
                put_stack(state, f"{name}.{index}.1.model", stack)
            put(state, f"{name}.{len(block.down)}", block.out)
        for lower, block in enumerate(vqvae.decoders[level].levels):
            put_upsampler(state, f"decoders.{level}.level_blocks.{lower}.model", block, "model")
        put(state, f"decoders.{level}.out", vqvae.decoders[level].out)
        state[f"bottleneck.level_blocks.{level}.k"] = vqvae.codebook(level)
    return state


def prior_state(prior, blocks="blocks", half=False):
    state = {}
    if prior.conditioner:
        state["conditioner_blocks.0.x_emb.weight"] = prior.conditioner.embedding.detach()
        put_upsampler(state, "conditioner_blocks.0.cond.model", prior.conditioner.upsampler, blocks)
        put(state, "conditioner_blocks.0.ln", prior.conditioner.ln)
    size, embedding = prior.config.codebook_size, prior.token_embedding.detach()
    # Characters of lyrics come first.
    state["prior.x_emb.weight"] = torch.cat([embedding[size:], embedding[:size]])
    put_transformer(state, "prior", prior)
    head = state["prior.x_emb.weight"] if prior.own_head is None else prior.own_head.detach()
    state["prior.x_out.weight"] = head
    if prior.labels:
        state["y_emb.bow_genre_emb.emb.weight"] = prior.labels.genre.detach()
        state["y_emb.artist_emb.emb.weight"] = prior.labels.artist.detach()
        if prior.labels.song_length is not None:
            state["y_emb.total_length_emb.emb.weight"] = prior.labels.song_length.detach()
            state["y_emb.absolute_pos_emb.emb.weight"] = prior.labels.elapsed.detach()
            state["y_emb.relative_pos_emb.emb.weight"] = prior.labels.progress.detach()
    if prior.lyric_encoder:
        encoder = prior.lyric_encoder
        state["prime_prior.x_emb.weight"] = encoder.token_embedding.detach()
        put_transformer(state, "prime_prior", encoder)
        put(state, "prime_state_proj", encoder.proj, "w", "b")
        put(state, "prime_state_ln", encoder.ln)
        state["prime_x_out.weight"] = torch.zeros(len(encoder.token_embedding), prior.config.width)
    if half:
        state = {name: tensor.half() if name.endswith(".w") else tensor for name, tensor in state.items()}
    return state


def put_transformer(state, name, network):
    """Positions, start token and layers of a prior or an encoder."""
    if network.start_token is not None:
        state[f"{name}.start_token"] = network.start_token.detach()
    state[f"{name}.pos_emb.pos_emb"] = network.pos_embedding.detach()
    top = name
    for index, layer in enumerate(network.layers):
        name = f"{top}.transformer._attn_mods.{index}"
        put(state, f"{name}.attn.c_attn", layer.qkv, "w", "b")
        if layer.lyric_kv:
            put(state, f"{name}.attn.c_enc_kv", layer.lyric_kv, "w", "b")
        put(state, f"{name}.attn.c_proj", layer.proj, "w", "b")
        put(state, f"{name}.ln_0", layer.ln_0)
        put(state, f"{name}.mlp.c_fc", layer.up, "w", "b")
        put(state, f"{name}.mlp.c_proj", layer.down, "w", "b")
        put(state, f"{name}.ln_1", layer.ln_1)


def label_hps(prior):
    """What the settings of a file say of the labels and lyrics of `prior`, a config of labelled_cases."""
    labels, lyrics = prior.labels, prior.lyrics
    found = {
        "labels": True,
        "y_bins": (labels.genres, numpy.int64(labels.artists)),
        "t_bins": labels.time_bins or 99,
        "max_bow_genre_size": labels.genre_slots,
        "min_duration": labels.min_seconds,
        "max_duration": labels.max_seconds,
        "merged_decoder": prior.separate_head,
        "use_tokens": lyrics is not None,
        # Of models that take no lyrics too.
        "n_tokens": lyrics.length if lyrics else 512,
        "n_vocab": lyrics.vocabulary if lyrics else 80,
        "single_enc_dec": prior.lyric_len > 0,
        "n_ctx": prior.window_len,
    }
    if lyrics and lyrics.encoder:
        sizes = {"width": "width", "depth": "depth", "heads": "heads", "blocks": "num_rows", "m_attn": "attn_ratio"}
        found |= {f"prime_{name}": getattr(lyrics.encoder, field) for name, field in sizes.items()}
        found |= {"prime_attn_order": 2, "prime_m_mlp": 1.0, "prime_res_scale": False}
    return found


def save(path, model, hps=None, legacy=False, module=False, **more):
    if module:
        model = {f"module.{name}": tensor for name, tensor in model.items()}
    content = {"model": model, "step": 7, "loss": numpy.float64(1.5), **more}
    if hps is not None:
        content["hps"] = hps
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def assert_same(loaded, original, half=False):
    """`loaded` holds the tensors of `original`, as they are or through FP16."""
    expected = original.state_dict()
    assert loaded.keys() == expected.keys()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, expected[name].half() if half else expected[name]), name


def refused(message, *arguments, **options):
    """One line, which matches `message`."""
    with pytest.raises(CheckpointError, match=message) as error:
        convert(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)
