"""Sizes that no network can have are refused, by name, when a config is made or read."""

import json

import pytest
from fastjukebox.engine.config import (
    PRESETS,
    ConditionerConfig,
    JukeboxConfig,
    PriorConfig,
    VQVAEConfig,
    from_json,
    to_json,
)

GOOD = {
    VQVAEConfig: to_json(VQVAEConfig()),
    ConditionerConfig: to_json(ConditionerConfig()),
    PriorConfig: to_json(PriorConfig(0, 32, 3, 2, 24, 4)),
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
        (PriorConfig, "mlp_ratio", 0.0),
        (PriorConfig, "pattern_cycle", []),
        (PriorConfig, "pattern_cycle", ["diagonal"]),
        (PriorConfig, "conditioner", 3),
    ],
)
def test_what_cannot_be_is_refused_by_name(kind, name, value):
    with pytest.raises(ValueError, match=name.replace("_ratio", "_(ratio|width)")):
        from_json(kind, GOOD[kind] | {name: value})


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
