"""Growing a teacher: the deeper network is the same function, and can leave it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from fastjukebox.distill.growth import deepened
from fastjukebox.distill.presets import PRESETS
from fastjukebox.distill.student import layer_groups
from fastjukebox.engine.config import PriorConfig
from fastjukebox.engine.prior import Prior


def shallow(depth: int, level: int = 2) -> Prior:
    config: PriorConfig = PRESETS["tiny"].config.priors[level]
    torch.manual_seed(depth)
    prior = Prior(dataclasses.replace(config, depth=depth))
    for name, parameter in prior.named_parameters():
        # Biases and norms, which start at constants, would not show in the logits.
        torch.nn.init.normal_(parameter, std=0.2, mean=1.0 if name.endswith("ln_0.weight") else 0.0)
    return prior.double()


@pytest.mark.parametrize(("depth", "deep"), [(3, 9), (3, 12), (6, 24), (18, 72), (6, 6)])
def test_the_deeper_prior_gives_the_same_logits(depth, deep):
    prior = shallow(depth)
    codes = torch.randint(0, prior.config.codebook_size, (2, prior.config.context_len))
    grown = deepened(prior, deep)
    assert len(grown.layers) == deep
    torch.testing.assert_close(grown(codes), prior(codes), rtol=1e-10, atol=1e-10)


def test_layers_stand_last_in_their_groups():
    prior = shallow(6)
    grown = deepened(prior, 24)
    groups = layer_groups(grown.config.layer_patterns, prior.config.layer_patterns)
    for layer, group in zip(prior.layers, groups, strict=True):
        assert torch.equal(grown.layers[group[-1]].down.weight, layer.down.weight)
        for index in group[:-1]:
            assert not grown.layers[index].down.weight.any() and not grown.layers[index].proj.bias.any()
            assert torch.equal(grown.layers[index].up.weight, layer.up.weight)


def test_new_layers_get_gradients_and_share_no_weights():
    grown = deepened(shallow(3), 9)
    codes = torch.randint(0, grown.config.codebook_size, (2, grown.config.context_len))
    grown(codes).logsumexp(-1).mean().backward()
    for layer in grown.layers:
        assert layer.down.weight.grad.abs().max() > 0 and layer.proj.weight.grad.abs().max() > 0
    assert len({parameter.data_ptr() for parameter in grown.parameters()}) == len(list(grown.parameters()))


def test_other_depths_are_refused():
    with pytest.raises(ValueError, match="needs one at least"):
        deepened(shallow(6), 3)
    with pytest.raises(ValueError, match="a multiple does"):
        deepened(shallow(3), 10)
