"""Weight-only int8 on the trained demo stack: the bound that its logits stay within, and the bits that it costs."""

import pytest
import torch
from fastjukebox.bench import held_out, int8
from fastjukebox.distill.corpus import compose, render
from fastjukebox.engine.jukebox import Jukebox


@pytest.fixture(scope="module")
def song():
    # Longer than a window of any level.
    return torch.from_numpy(render(compose(held_out.FIRST_SEED), 12.0))[None]


@pytest.mark.parametrize("level", [2, 1, 0])
def test_int8_costs_next_to_nothing_on_a_trained_stack(song, level):
    found = int8.measure(Jukebox.from_pretrained("demo"), [song], level, 2)
    # Beside what logits differ among themselves, the typical error and the largest of some two million; a scale that is
    # off by one output breaks both by far.
    assert 0 < found["logit_error_rms"] < 0.015 * found["logits_std"]
    assert found["largest_logit_error"] < 0.15 * found["logits_std"]
    assert found["bits_lost"] == pytest.approx(found["bits_int8"] - found["bits_fp32"]) and found["windows"] == 2
    assert abs(found["bits_lost"]) < 0.005 and found["same_likeliest_code"] > 0.95


def test_rounding_loses_at_most_half_a_step_per_weight():
    weight = torch.randn(40, 7, generator=torch.Generator().manual_seed(0)) + 0.3
    step = weight.abs().amax(dim=0) / 127
    assert bool(((int8.rounded(weight) - weight).abs() <= 0.5001 * step).all())
