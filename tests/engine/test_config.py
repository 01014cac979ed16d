"""Sizes that no network can have are refused, by name, when a config is made or read."""

import json

import pytest
from fastjukebox.engine.config import (
    PRESETS,
    ConditionerConfig,
    JukeboxConfig,
    LabelConfig,
    LyricConfig,
    PriorConfig,
    VQVAEConfig,
)
from fastjukebox.engine.config_json import from_json, to_json

GOOD = {
    VQVAEConfig: to_json(VQVAEConfig()),
    ConditionerConfig: to_json(ConditionerConfig()),
    PriorConfig: to_json(PriorConfig(0, 32, 3, 2, 24, 4)),
    LabelConfig: to_json(LabelConfig(5, 4, 2, 8)),
    LyricConfig: to_json(LyricConfig(79, 12, PriorConfig(0, 32, 3, 2, 12, 4, codebook_size=79))),
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_read_as_it_was_written(name):
    preset = PRESETS[name]
    assert from_json(type(preset), json.loads(json.dumps(to_json(preset)))) == preset


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (VQVAEConfig, "codebook_size", 0),
        (VQVAEConfig, "sample_rate", -44100),
        (VQVAEConfig, "downs", [3, 0, 2]),
        (VQVAEConfig, "multipliers", [2, -1, 1]),
        (VQVAEConfig, "conv_ratio", 0.0),
        (VQVAEConfig, "conv_ratio", float("nan")),
        (VQVAEConfig, "dilation_cycle", 0),
        (VQVAEConfig, "width", 1.5),
        (VQVAEConfig, "strides", 2),
        (VQVAEConfig, "reverse_decoder_dilation", 1),
        (ConditionerConfig, "depth", 0),
        (ConditionerConfig, "stages", 0),
        (ConditionerConfig, "dilation_growth", 0),
        (ConditionerConfig, "conv_ratio", float("inf")),
        (PriorConfig, "level", -1),
        (PriorConfig, "heads", 0),
        (PriorConfig, "width", "wide"),
        (PriorConfig, "width", True),
        (PriorConfig, "depth", None),
        (PriorConfig, "attn_ratio", 0.01),
        (PriorConfig, "attn_ratio", -0.25),
        (PriorConfig, "attn_ratio", float("inf")),
        (PriorConfig, "mlp_ratio", 0.0),
        (PriorConfig, "pattern_cycle", []),
        (PriorConfig, "pattern_cycle", ["diagonal"]),
        (PriorConfig, "conditioner", 3),
        (PriorConfig, "labels", {"artists": 3}),
        (PriorConfig, "lyrics", {"vocabulary": 79, "length": 12}),
        (PriorConfig, "pattern_cycle", ["row", "cross"]),
        (LabelConfig, "artists", 0),
        (LabelConfig, "time_bins", -1),
        (LabelConfig, "max_seconds", 60.0),
        (LyricConfig, "length", 13),
        (LyricConfig, "vocabulary", 80),
    ],
)
def test_what_cannot_be_is_refused_by_name(kind, name, value):
    # A pattern, or an encoder, is named as such.
    named = {"pattern_cycle": "pattern", "length": "encoder", "vocabulary": "encoder", "max_seconds": "60.0 to 60.0"}
    named = named.get(name, name)
    with pytest.raises(ValueError, match=named.replace("_ratio", "_(ratio|width)")):
        from_json(kind, GOOD[kind] | {name: value})


def test_what_upsamplers_cannot_be_told_is_refused():
    conditioner, labels = ConditionerConfig(width=8, depth=1), LabelConfig(5, 4, 2)
    sizes = (0, 32, 3, 2, 24, 4)
    PriorConfig(*sizes, conditioner=conditioner, labels=labels)
    for told in ({"labels": LabelConfig(5, 4, 2, time_bins=8)}, {"labels": labels, "lyrics": LyricConfig(79, 4)}):
        with pytest.raises(ValueError, match="a prior with a conditioner is told no time, and has no lyrics"):
            PriorConfig(*sizes, conditioner=conditioner, **told)


def test_lyrics_in_the_window_leave_room_for_codes():
    labels, lyrics = LabelConfig(5, 4, 2), LyricConfig(79, 24)
    with pytest.raises(ValueError, match="context_len 24 leaves no codes beside 24 lyrics"):
        PriorConfig(2, 32, 3, 2, 24, 4, labels=labels, lyrics=lyrics)
    assert PriorConfig(2, 32, 3, 2, 36, 4, labels=labels, lyrics=lyrics).window_len == 12


@pytest.mark.parametrize(
    "told",
    [
        {"conditioner": ConditionerConfig(width=8, depth=1)},
        {"labels": LabelConfig(5, 4, 2)},
        {"separate_head": True},
    ],
)
def test_an_encoder_of_lyrics_reads_nothing_else(told):
    with pytest.raises(ValueError, match="the encoder of lyrics reads nothing but lyrics"):
        LyricConfig(79, 12, PriorConfig(0, 32, 3, 2, 12, 4, codebook_size=79, **told))


def test_infinitely_many_channels_are_refused():
    with pytest.raises(ValueError, match="conv_ratio inf leaves no channels"):
        VQVAEConfig(conv_ratio=float("inf"))


def test_no_levels_are_no_vqvae():
    with pytest.raises(ValueError, match="levels must be at least 1"):
        VQVAEConfig(downs=(), strides=(), multipliers=())


def test_a_wrong_value_deep_inside_is_named_with_its_way():
    stack = to_json(
        JukeboxConfig(VQVAEConfig(downs=(3,), strides=(2,), multipliers=(1,)), (PriorConfig(0, 32, 3, 2, 24, 4),))
    )
    stack["priors"][0]["depth"] = "deep"
    with pytest.raises(ValueError, match="JukeboxConfig, priors: PriorConfig, depth: 'deep' is no int"):
        from_json(JukeboxConfig, stack)
