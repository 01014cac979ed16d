"""The native conditioner against the prior's own, which is plain PyTorch."""

import pytest
import torch
from budget import assert_within_budget
from fastjukebox.engine.config import ConditionerConfig, PriorConfig
from fastjukebox.engine.native_decoder import NativeDecoder
from fastjukebox.engine.prior import Prior
from fastjukebox.kernels import native_library
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.skipif(native_library.missing() is not None, reason=f"native: {native_library.missing()}")


def make_prior(width: int = 48, conditioner: ConditionerConfig | None = None) -> Prior:
    torch.manual_seed(0)
    prior = Prior(PriorConfig(0, width, 1, 2, 96, 8, 77, conditioner=conditioner)).eval().requires_grad_(False)
    for parameter in prior.parameters():
        # Far from zero, with a mean: a forgotten bias or LayerNorm parameter shows.
        parameter.add_(torch.randn_like(parameter) * 0.1 + 0.02)
    return prior


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([8, 24, 40, 64]),
    st.integers(1, 40),
    st.integers(1, 4),
    st.sampled_from([(1, 2), (2, 2), (3, 2), (1, 4), (2, 4)]),
    st.sampled_from([0.4, 1.0, 2.0]),
    st.booleans(),
    st.sampled_from(native_library.INSTRUCTION_SETS),
    st.integers(1, 70),
)
def test_it_is_within_the_rounding_of_pytorch(width, inner, depth, upsampling, ratio, scaled, isa, count):
    stages, stride = upsampling
    sizes = ConditionerConfig(inner, depth, stages, stride, max(ratio, 1 / inner), 2, 3, scaled)
    prior = make_prior(width, sizes)
    decoder = NativeDecoder(prior, 1)
    codes = torch.randint(prior.config.codebook_size, (2, count), generator=torch.Generator().manual_seed(count))
    exact = make_prior(width, sizes).double()

    def plain(weights):
        return (exact if weights.dtype == torch.float64 else prior).condition(codes)

    with native_library.limited_to(isa):
        found = decoder.condition(codes)
        assert found.shape == (2, count * stride**stages, width)
        assert_within_budget(lambda weights: found, plain, prior.token_embedding)
        # One by one, and again, and by several threads.
        for item in range(2):
            assert torch.equal(decoder.condition(codes[item : item + 1])[0], found[item])
        assert torch.equal(decoder.twin(3).condition(codes), found)


def test_every_weight_counts():
    prior = make_prior(conditioner=ConditionerConfig(12, 2, 2, 2))
    codes = torch.arange(24)[None]
    before = NativeDecoder(prior, 1).condition(codes)
    for name, parameter in prior.conditioner.named_parameters():
        # A row of the embedding that is used.
        at = parameter.view(-1)[5:6]
        kept = at.clone()
        at += 1
        found = NativeDecoder(prior, 1).condition(codes)
        at.copy_(kept)
        assert not torch.equal(found, before), name


def test_a_top_prior_has_no_condition():
    with pytest.raises(ValueError, match="level 0 prior has no conditioner"):
        NativeDecoder(make_prior(), 1).condition(torch.zeros(1, 24, dtype=torch.long))
