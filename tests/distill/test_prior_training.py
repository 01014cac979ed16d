"""Windows of codes, budgets, and a prior trained on one clip."""

import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fastjukebox.distill import demo
from fastjukebox.distill.dataset import CodeWindows
from fastjukebox.distill.prior import PriorTraining, WeightAverage, bits_per_code, load_averaged, train_prior
from fastjukebox.distill.sizes import PRESETS, with_budget
from fastjukebox.distill.stage import Budget
from fastjukebox.engine.checkpoint import load_config, load_prior, load_vqvae
from fastjukebox.engine.config import ConditionerConfig, PriorConfig
from fastjukebox.engine.prior import Prior

CONFIG = PriorConfig(0, 32, 3, 2, 32, 4, codebook_size=64, conditioner=ConditionerConfig(16, 2))


def _codes(songs=3, upper_count=25, ratio=4):
    """Codes that tell where they are: song s, upper code i, and i at each of the `ratio` codes below it."""
    upper = np.arange(upper_count)[None] + 1000 * np.arange(songs)[:, None]
    return upper.repeat(ratio, axis=1), upper


def test_windows_lie_under_their_upper_codes():
    codes, upper = _codes()
    # Encoders leave out what does not fill a code: the upper level may end first.
    windows = CodeWindows(codes, upper[:, :-1], 32, 4, held_out=1, seed=0)
    for step in range(20):
        lower, above = windows.batch(step, 3)
        assert lower.shape == (3, 32) and above is not None and above.shape == (3, 8)
        assert torch.equal(lower, above.repeat_interleave(4, dim=1))
        assert bool((lower >= 1000).all()), "a held-out song in a training batch"
        assert int((lower % 1000).max()) < 24


def test_windows_of_a_top_level_start_anywhere():
    codes, _ = _codes()
    windows = CodeWindows(codes, None, 32, 1, held_out=1, seed=0)
    assert windows.starts == 100 - 32 + 1
    lower, above = windows.batch(0, 4)
    assert above is None and lower.shape == (4, 32)


def test_measured_windows_span_the_held_out_songs():
    codes, upper = _codes()
    lower, above = CodeWindows(codes, upper, 32, 4, held_out=2, seed=0).measured(3)
    assert lower.shape == (6, 32) and above is not None
    assert [int(v) for v in above[:, 0]] == [3, 9, 15, 1003, 1009, 1015]


def test_batches_depend_on_the_step_alone():
    codes, upper = _codes()
    one, other = (CodeWindows(codes, upper, 32, 4, held_out=1, seed=5) for _ in range(2))
    one.batch(0, 2)
    assert torch.equal(one.batch(7, 2)[0], other.batch(7, 2)[0])
    assert not torch.equal(one.batch(7, 2)[0], one.batch(8, 2)[0])


@pytest.mark.parametrize(("songs", "context_len"), [(1, 32), (3, 128)])
def test_windows_refuse_too_little_data(songs, context_len):
    codes, upper = _codes(songs)
    with pytest.raises(ValueError, match="too few"):
        CodeWindows(codes, upper, context_len, 4, held_out=1, seed=0)


def test_learning_rate_follows_whichever_limit_is_nearer():
    budget = Budget(100, 1.0, 1.0, warm_up=10, final=0.1)
    assert math.isclose(budget.rate(0, 0.0), 0.1, rel_tol=1e-2)
    assert math.isclose(budget.rate(50, 0.0), 0.55) and math.isclose(budget.rate(20, 30.0), 0.55)
    assert math.isclose(budget.rate(100, 0.0), 0.1) and math.isclose(budget.rate(20, 60.0), 0.1)


def test_stage_ends_when_its_minutes_are_used(tmp_path):
    codes = np.random.default_rng(0).integers(0, 64, (2, 128))
    windows = CodeWindows(codes, codes[:, ::4], 32, 4, held_out=1, seed=0)
    budget = Budget(1_000_000, 0.005, 1e-3)
    _, progress, _ = train_prior(tmp_path / "p.pt", CONFIG, windows, budget, PriorTraining(batch=1), 0, str)
    assert 0 < progress.step < 1_000_000


def test_average_follows_the_weights_and_swaps():
    network = torch.nn.Linear(2, 2, bias=False)
    average = WeightAverage(network, 0.9)
    with torch.no_grad():
        network.weight.fill_(3.0)
    for step in range(200):
        average.update(step)
    torch.testing.assert_close(average.tensors["weight"], torch.full((2, 2), 3.0))
    with torch.no_grad():
        network.weight.fill_(5.0)
    average.swap()
    assert float(network.weight[0, 0].detach()) == pytest.approx(3.0)
    average.swap()
    assert float(network.weight[0, 0].detach()) == 5.0


def test_one_clip_is_overfitted_with_the_help_of_its_upper_codes(tmp_path):
    rng = np.random.default_rng(0)
    codes = np.tile(rng.integers(0, 64, (1, 64)), (2, 1))
    windows = CodeWindows(codes, codes[:, ::4], 32, 4, held_out=1, seed=0)
    budget = Budget(150, 10, 1e-2, warm_up=20, log_every=1000)
    settings = PriorTraining(batch=4, average_decay=0.9, weight_decay=0.0)
    prior, progress, figures = train_prior(tmp_path / "p.pt", CONFIG, windows, budget, settings, 0, str)
    assert progress.step == 150
    # 6 bits would be blind guessing; both rows hold the same clip.
    assert figures["held_out_bits"] < 1
    loaded = Prior(CONFIG)
    load_averaged(tmp_path / "p.pt", loaded)
    clip, upper = windows.measured(8)
    assert upper is not None
    assert bits_per_code(loaded, clip, upper) == pytest.approx(bits_per_code(prior, clip, upper))
    assert bits_per_code(loaded, clip, (upper + 1) % 64) > figures["held_out_bits"] + 1


def test_budgets_are_changed_by_stage_name():
    sizes = with_budget(PRESETS["tiny"], {"prior_1": {"minutes": 7}, "vqvae_2": {"steps": 9}})
    assert sizes.prior_budgets[1].minutes == 7 and sizes.prior_budgets[0] == PRESETS["tiny"].prior_budgets[0]
    assert sizes.vqvae_budgets[2].steps == 9
    for name in ("audio", "prior_3", "codes_0"):
        with pytest.raises(ValueError, match=name):
            with_budget(sizes, {name: {"steps": 1}})


def test_one_command_makes_a_checkpoint_and_goes_on_where_it_stopped(tmp_path):
    arguments = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"), "--preset", "tiny", "--jobs", "1"]
    parts = [value for name in ("audio", "vqvae_0", "codes_0") for value in ("--only", name)]
    first = CliRunner().invoke(demo.main, [*arguments, *parts])
    assert first.exit_code == 0, first.output
    assert not (tmp_path / "out").exists()
    before = (tmp_path / "work" / "vqvae_0.pt").stat().st_mtime_ns
    second = CliRunner().invoke(demo.main, arguments)
    assert second.exit_code == 0, second.output
    assert (tmp_path / "work" / "vqvae_0.pt").stat().st_mtime_ns == before
    assert load_config(tmp_path / "out") == PRESETS["tiny"].config
    vqvae = load_vqvae(tmp_path / "out")
    assert vqvae.decode(torch.zeros(1, 4, dtype=torch.long)).shape == (1, 32)
    for level in range(3):
        assert load_prior(tmp_path / "out", level).config.level == level
    assert "| 0 | 8 | 3 |" in (tmp_path / "out" / "CARD.md").read_text()


def test_a_stage_whose_needs_are_missing_is_named(tmp_path):
    arguments = ["--out", str(tmp_path / "o"), "--work", str(tmp_path / "w"), "--preset", "tiny", "--jobs", "1"]
    result = CliRunner().invoke(demo.main, [*arguments, "--only", "codes_1"])
    assert result.exit_code == 1 and "codes_1 needs vqvae_1" in result.output
    result = CliRunner().invoke(demo.main, [*arguments, "--only", "nothing"])
    assert result.exit_code == 2 and "nothing" in result.output
