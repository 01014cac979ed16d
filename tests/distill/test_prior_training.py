"""Priors trained for each objective on one song."""

import dataclasses
import os
import signal

import pytest
import torch
from array_store import melody_windows
from fastjukebox.distill import prior as prior_module
from fastjukebox.distill.evaluation import compare
from fastjukebox.distill.objectives import Computing, Distillation, LayerMatching, NextCode, SoftTargets
from fastjukebox.distill.prior import (
    PriorTraining,
    WeightAverage,
    accumulated,
    bits_per_code,
    load_averaged,
    prior_optimizer,
    train_prior,
)
from fastjukebox.distill.student import new_student
from fastjukebox.distill.trainer import Progress, TrainingStopped
from fastjukebox.engine.config import ConditionerConfig, PriorConfig
from fastjukebox.engine.prior import Prior
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CONFIG = PriorConfig(0, 32, 12, 2, 32, 4, codebook_size=8, conditioner=ConditionerConfig(16, 2))
SETTINGS = PriorTraining(
    batch=4, learning_rate=1e-2, warm_up=10, average_decay=0.9, logged_windows=1, measured_windows=2
)


def new_prior(depth=12, seed=0) -> Prior:
    torch.manual_seed(seed)
    return Prior(PriorConfig(**{**vars(CONFIG), "depth": depth}))


def test_average_follows_the_weights():
    prior = new_prior(3)
    average = WeightAverage(prior, 0.5)
    start = prior.token_embedding.detach().clone()
    with torch.no_grad():
        prior.token_embedding.add_(1.0)
    average.update(10**6)
    torch.testing.assert_close(average.tensors["token_embedding"], start + 0.5)
    average.swap()
    torch.testing.assert_close(prior.token_embedding.detach(), start + 0.5)
    average.swap()
    torch.testing.assert_close(prior.token_embedding.detach(), start + 1.0)
    # Short at first, whatever the decay: a tenth stays at step 0.
    first = WeightAverage(prior, 0.999)
    with torch.no_grad():
        prior.token_embedding.add_(1.0)
    first.update(0)
    torch.testing.assert_close(first.tensors["token_embedding"], start + 1.9)


def test_a_prior_overfits_one_song_and_its_state_holds_the_average(tmp_path):
    windows = melody_windows()
    prior = new_prior(6)
    before = bits_per_code(NextCode(prior, Computing()), windows.measured(2))
    _, figures = train_prior(tmp_path, NextCode(prior, Computing()), windows, 60, SETTINGS)
    assert before > 2.5 and figures["held_out_bits"] < 0.5
    assert figures["steps"] == 60 and figures["codes"] == 60 * 4 * 32
    loaded = new_prior(6, seed=9)
    load_averaged(tmp_path, loaded)
    assert all(torch.equal(a, b) for a, b in zip(prior.parameters(), loaded.parameters()))
    assert figures["held_out_bits"] == bits_per_code(NextCode(loaded, Computing()), windows.measured(2))


def test_what_is_logged_is_of_the_average_and_leaves_the_weights_as_they_are(tmp_path):
    settings = dataclasses.replace(SETTINGS, measured_windows=1)
    _, figures = train_prior(tmp_path, NextCode(new_prior(3), Computing()), melody_windows(), 8, settings)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("held_out_bits")] == [pytest.approx(figures["held_out_bits"])]


@pytest.mark.parametrize(("steps", "warm_up"), [(8, 2), (400, 10)])
def test_the_warm_up_is_no_more_than_a_quarter_and_time_is_told_in_minutes(tmp_path, monkeypatch, steps, warm_up):
    budgets = []
    monkeypatch.setattr(
        prior_module, "train", lambda folder, budget, *_, **rest: budgets.append(budget) or Progress(5, 90)
    )
    _, figures = train_prior(tmp_path, NextCode(new_prior(3), Computing()), melody_windows(), steps, SETTINGS)
    assert (figures["steps"], figures["codes"], figures["minutes"]) == (5, 5 * 4 * 32, 1.5)
    assert [(budget.steps, budget.learning_rate, budget.warm_up) for budget in budgets] == [(steps, 1e-2, warm_up)]


def test_decay_and_rates_by_group():
    settings = PriorTraining(learning_rate=1e-3, matrix_learning_rate=2e-2, weight_decay=0.3)
    for chosen in (settings, dataclasses.replace(settings, matrix_learning_rate=None)):
        for group in prior_optimizer(new_prior(3), chosen).param_groups:
            is_matrix = {parameter.dim() >= 2 for parameter in group["params"]}
            assert is_matrix == {group["weight_decay"] == 0.3} and group["weight_decay"] in (0.0, 0.3)
            assert group.get("rate", 1.0) == (pytest.approx(20) if group.get("momentum") else 1.0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Prior:
    prior = new_prior()
    train_prior(tmp_path_factory.mktemp("teacher"), NextCode(prior, Computing()), melody_windows(), 60, SETTINGS)
    return prior.eval().requires_grad_(False)


def test_a_distilled_student_ends_nearer_its_teacher_than_a_plain_one(teacher, tmp_path):
    windows = melody_windows()
    student = new_student(teacher, 3)
    train_prior(tmp_path / "one", LayerMatching(student, teacher, Distillation(), Computing()), windows, 20, SETTINGS)
    _, figures = train_prior(
        tmp_path / "two", SoftTargets(student, teacher, Distillation(), Computing()), windows, 40, SETTINGS
    )
    plain = new_prior(3, seed=1)
    train_prior(tmp_path / "plain", NextCode(plain, Computing()), windows, 60, SETTINGS)
    ours, theirs = (compare(prior, teacher, windows.measured(4)) for prior in (student, plain))
    assert ours["kl"] < theirs["kl"] and ours["acceptance"] > theirs["acceptance"]
    assert figures["held_out_bits"] < 1.5, "it overfits the song as well"


def test_layer_matching_alone_brings_hidden_states_and_maps_nearer(teacher, tmp_path):
    student = new_student(teacher, 6)
    objective = LayerMatching(student, teacher, Distillation(), Computing())
    batch = next(melody_windows().measured(1))
    with torch.no_grad():
        before = float(objective(batch))
    train_prior(tmp_path, objective, melody_windows(), 30, SETTINGS)
    with torch.no_grad():
        after = float(objective(batch))
    assert after < 0.5 * before
    assert {"hidden", "attention"} == set(objective.terms)


def test_a_stopped_distillation_goes_on_to_the_same_bits(teacher, tmp_path):
    def distilled(folder, interrupted):
        torch.manual_seed(3)
        objective = SoftTargets(new_student(teacher, 3), teacher, Distillation(), Computing())
        windows = melody_windows()
        batch = windows.batch

        def stopping(step, *rest):
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return batch(step, *rest)

        if interrupted:
            windows.batch = stopping
        train_prior(folder, objective, windows, 6, SETTINGS)
        return objective.prior

    whole = distilled(tmp_path / "a", False)
    with pytest.raises(TrainingStopped, match="after step 3 of 6"):
        distilled(tmp_path / "b", True)
    resumed = distilled(tmp_path / "b", False)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters()))


def test_a_run_goes_on_with_what_it_was_begun_with_only(teacher, tmp_path):
    def distill(steps=3, temperature=1.0, depth=3, **changes):
        objective = SoftTargets(
            new_student(teacher, depth), teacher, Distillation(temperature=temperature), Computing()
        )
        settings = dataclasses.replace(SETTINGS, **changes)
        return train_prior(tmp_path, objective, melody_windows(), steps, settings)[1]

    distill()
    for changes, told in (
        ({"steps": 4}, "steps 3, not 4"),
        ({"temperature": 2.0}, "distillation.temperature 1.0, not 2.0"),
        ({"depth": 6}, "config.depth 3, not 6"),
        ({"batch": 2}, "prior.batch 4, not 2"),
        ({"matrix_learning_rate": 0.1}, 'optimizer "AdamW", not "Muon"'),
    ):
        with pytest.raises(ValueError, match=f"was begun with {told}"):
            distill(**changes)
    assert distill()["steps"] == 3
    # A run of before this was noted.
    (tmp_path / "run.json").unlink()
    assert distill(steps=4)["steps"] == 4
    # Without a state nothing was begun.
    (tmp_path / "state.pt").unlink()
    assert distill(steps=2)["steps"] == 2


@pytest.mark.parametrize("kind", [NextCode, LayerMatching, SoftTargets])
@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_have_the_gradient_of_the_whole_batch(kind, size):
    teacher, windows, found = new_prior(6).double(), melody_windows(), []
    batch = windows.batch(0, 4)
    for micro_batch in (4, size):
        torch.manual_seed(1)
        student = new_student(teacher, 3).double()
        with torch.no_grad():
            # Zero where layers add nothing at first: no gradient would reach what is before.
            for parameter in student.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        computing, settings = Computing(recompute=True), Distillation(temperature=2.0)
        objective = NextCode(student, computing) if kind is NextCode else kind(student, teacher, settings, computing)
        loss = accumulated(objective, objective, torch.amp.GradScaler(enabled=False), batch, micro_batch)
        loss.backward()
        found.append((loss.detach(), objective.terms, {n: p.grad for n, p in student.named_parameters()}))
    assert any(gradient.abs().max() > 1e-3 for gradient in found[0][2].values() if gradient is not None)
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)


def test_a_run_of_micro_batches_ends_where_one_of_batches_does(tmp_path):
    found = []
    for micro_batch in (None, 4, 3):
        prior = new_prior(3)
        settings = dataclasses.replace(SETTINGS, micro_batch=micro_batch)
        train_prior(tmp_path / str(micro_batch), NextCode(prior, Computing()), melody_windows(), 6, settings)
        found.append(torch.cat([parameter.detach().flatten() for parameter in prior.parameters()]))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    torch.testing.assert_close(found[2], found[0], rtol=1e-3, atol=2e-5)
