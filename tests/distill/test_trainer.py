"""The training loop: budgets, resuming to the bit, stopping, divergence."""

import json
import math
import os
import signal
import time

import pytest
import torch
from fastjukebox.distill import trainer
from fastjukebox.distill.run_folder import read_figures, write_figures
from fastjukebox.distill.trainer import Budget, TrainingDiverged, TrainingStopped, train
from torch import nn


def run(
    folder, steps, stop_after=None, loss_at=lambda step: 1.0, planned=None, spoil=None, number=signal.SIGTERM, **changes
):
    """Train a small network; a signal to this process comes after `stop_after` steps."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)

    def step_loss(step):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        return (network(x)[:, 0] - x.sum(dim=1)).square().mean() * loss_at(step)

    def after(step):
        if stop_after is not None and step + 1 == stop_after:
            os.kill(os.getpid(), number)
        if step == spoil:
            with torch.no_grad():
                network[0].bias[0] = torch.nan

    budget = Budget(planned or steps, 1e-2, warm_up=2, log_every=2, **changes)
    progress = train(folder, budget, network, optimizer, step_loss, after_step=after)
    return network, progress


def test_learning_rate_warms_up_and_falls():
    budget = Budget(100, 1.0, warm_up=10, final=0.1)
    assert math.isclose(budget.rate(0), 0.1, rel_tol=1e-2)
    assert math.isclose(budget.rate(50), 0.55) and math.isclose(budget.rate(100), 0.1)


def test_a_step_has_its_rate_those_of_groups_and_clipped_gradients(tmp_path):
    weights = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))]
    optimizer = torch.optim.SGD([{"params": weights[:1]}, {"params": weights[1:], "rate": 20.0}], lr=1.0)
    budget, rates, norms = Budget(4, 1e-3, warm_up=2, clip=0.5), [], []

    def after(step):
        rates.append([group["lr"] for group in optimizer.param_groups])
        norms.append(float(torch.cat([weight.grad for weight in weights]).norm()))

    train(
        tmp_path,
        budget,
        nn.ParameterList(weights),
        optimizer,
        lambda step: 9 * sum(map(torch.sum, weights)),
        after_step=after,
    )
    assert rates == [[budget.rate(step), 20 * budget.rate(step)] for step in range(4)]
    assert norms == pytest.approx([0.5] * 4, rel=1e-4)


@pytest.mark.parametrize("stop_after", [1, 3, 6])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, stop_after):
    whole, _ = run(tmp_path / "a", 7)
    with pytest.raises(TrainingStopped, match=f"after step {stop_after} of 7"):
        run(tmp_path / "b", 7, stop_after)
    resumed, progress = run(tmp_path / "b", 7)
    assert progress.step == 7
    for ours, theirs in zip(whole.parameters(), resumed.parameters()):
        assert torch.equal(ours, theirs)


def test_time_is_that_of_all_sittings(tmp_path):
    with pytest.raises(TrainingStopped):
        run(tmp_path, 3, stop_after=1)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    torch.save(state | {"seconds": 1000.0}, tmp_path / "state.pt")
    assert 0 < state["seconds"] < 1000 < run(tmp_path, 3)[1].seconds < 1100


def test_a_finished_run_takes_no_further_step(tmp_path):
    first, _ = run(tmp_path, 3)
    again, progress = run(tmp_path, 3, loss_at=lambda step: float("nan"))
    assert progress.step == 3
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_divergence_stops_with_the_step_and_keeps_the_last_good_state(tmp_path, value):
    with pytest.raises(TrainingStopped):
        run(tmp_path, 9, stop_after=4)
    before = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(TrainingDiverged, match=r"at step 6 .*state.pt, saved before that, is kept"):
        run(tmp_path, 9, loss_at=lambda step: value if step == 6 else 1.0)
    assert (tmp_path / "state.pt").read_bytes() == before
    assert run(tmp_path, 9)[1].step == 9


def test_an_infinite_gradient_of_a_finite_loss_stops_too(tmp_path):
    weight = nn.Parameter(torch.zeros(1))
    with pytest.raises(TrainingDiverged, match=r"at step 0 the loss is 0\.0 and the gradient's norm inf"):
        optimizer = torch.optim.SGD([weight], lr=1e-2)
        train(tmp_path, Budget(2, 1e-2), nn.ParameterList([weight]), optimizer, lambda step: weight.sqrt().sum())


def test_a_weight_that_is_not_finite_is_never_saved(tmp_path):
    with pytest.raises(TrainingStopped):
        run(tmp_path, 4, stop_after=2)
    before = (tmp_path / "state.pt").read_bytes()
    # The last step's: no loss comes after it.
    with pytest.raises(TrainingDiverged, match=r"after step 4 a weight .*state.pt, saved before that, is kept"):
        run(tmp_path, 4, spoil=3)
    assert (tmp_path / "state.pt").read_bytes() == before
    with pytest.raises(TrainingDiverged, match="nothing was saved"):
        run(tmp_path / "new", 4, spoil=3)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_has_the_signals_exit_code(tmp_path, number, code):
    # Where these tests run in a shell's background, Ctrl-C is ignored.
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(TrainingStopped) as stopped:
            run(tmp_path, 4, stop_after=2, number=number)
    finally:
        signal.signal(number, before)
    assert stopped.value.exit_code == code


def test_a_stop_during_the_last_save_is_not_lost(tmp_path, monkeypatch):
    write_state = trainer.write_state

    def interrupted(path, state):
        os.kill(os.getpid(), signal.SIGTERM)
        write_state(path, state)

    monkeypatch.setattr(trainer, "write_state", interrupted)
    with pytest.raises(TrainingStopped, match="after step 3 of 3"):
        run(tmp_path, 3)
    monkeypatch.undo()
    assert run(tmp_path, 3, loss_at=lambda step: float("nan"))[1].step == 3


def test_signals_that_are_ignored_stay_so(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert run(tmp_path, 4, stop_after=2, number=signal.SIGINT)[1].step == 4
    finally:
        signal.signal(signal.SIGINT, before)


def test_signal_handlers_are_given_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    run(tmp_path, 2)
    assert signal.getsignal(signal.SIGTERM) is before


def test_saves_that_take_long_are_far_apart(tmp_path, monkeypatch):
    saved = []

    def write_state(path, state):
        saved.append(state["step"])
        time.sleep(0.5)

    monkeypatch.setattr(trainer, "write_state", write_state)
    run(tmp_path, 30, save_seconds=0.0)
    assert saved == [1, 30]


def test_tensorboard_gets_the_figures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, 6)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 6]
    assert events.Scalars("learning_rate")[0].value > 0


def test_figures_are_whole_or_absent(tmp_path):
    assert read_figures(tmp_path) is None
    write_figures(tmp_path, {"bits": 1.5})
    assert read_figures(tmp_path) == json.loads((tmp_path / "figures.json").read_text()) == {"bits": 1.5}
