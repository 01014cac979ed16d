"""The losses of distillation against restatements in FP64 and finite differences."""

import math

import pytest
import torch
import torch.nn.functional as F
from fastjukebox.distill.forward import Windows, forward
from fastjukebox.distill.objectives import (
    Computing,
    Distillation,
    LayerMatching,
    NextCode,
    SoftTargets,
    soft_cross_entropy,
)
from fastjukebox.distill.student import layer_groups, new_student
from fastjukebox.engine import patterns
from fastjukebox.engine.config import ConditionerConfig, PriorConfig
from fastjukebox.engine.prior import Prior

CONFIG = PriorConfig(0, 32, 12, 2, 32, 4, codebook_size=24, conditioner=ConditionerConfig(16, 2))


def make(seed=0, **changes) -> Prior:
    torch.manual_seed(seed)
    prior = Prior(PriorConfig(**{**vars(CONFIG), **changes})).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1 + 0.02)
    return prior


def batch(seed=1) -> Windows:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(24, (2, 32), generator=generator)
    return Windows(codes, torch.randint(24, (2, 8), generator=generator))


def teacher_and_student(depth=6):
    teacher = make()
    student = new_student(teacher, depth).double()
    with torch.no_grad():
        for parameter in student.layers.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return teacher, student


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_soft_cross_entropy_is_equation_3(temperature):
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(3, 5, 7, generator=generator, dtype=torch.float64) * 3 + 1 for _ in range(2))
    total = 0.0
    for item in range(3):
        for pos in range(5):
            q = [math.exp(x / temperature) for x in ours[item, pos].tolist()]
            p = [math.exp(x / temperature) for x in theirs[item, pos].tolist()]
            total -= sum(a / sum(p) * math.log(b / sum(q)) for a, b in zip(p, q))
    assert math.isclose(
        float(soft_cross_entropy(ours, theirs, temperature)), temperature**2 * total / 15, rel_tol=1e-12
    )


@pytest.mark.parametrize(("mapping", "place"), [("last", 3), ("middle", 1), ("first", 0)])
def test_hidden_loss_is_equation_4_over_the_mapped_layers(mapping, place):
    teacher, student = teacher_and_student(3)
    windows = batch()
    settings = Distillation(hidden=0.5, attention=0.0, mapping=mapping)
    objective = LayerMatching(student, teacher, settings, Computing())
    found = objective(windows)
    # Layer outputs by a loop of this test's own.
    outputs = {}
    for name, prior in (("teacher", teacher), ("student", student)):
        cond = prior.conditioner(windows.upper)
        x = prior.embed(windows.codes[:, :-1], 0, cond, None)
        outputs[name] = []
        for layer in prior.layers:
            x = layer(x)
            outputs[name].append(x)
    groups = layer_groups(teacher.config.layer_patterns, student.config.layer_patterns)
    errors = [
        (ours - outputs["teacher"][group[place]]).square().mean() for ours, group in zip(outputs["student"], groups)
    ]
    assert torch.allclose(found, 0.5 * sum(errors) / len(errors), rtol=1e-6)
    assert set(objective.terms) == {"hidden", "attention"} and float(objective.terms["attention"]) == 0
    # Kept for the log, and with them not the whole graph.
    assert found.requires_grad and not any(term.requires_grad for term in objective.terms.values())


def test_attention_loss_is_the_distance_of_whole_maps():
    teacher, student = teacher_and_student()
    windows = batch()
    objective = LayerMatching(student, teacher, Distillation(hidden=0.0, attention=1.0), Computing())
    found = float(objective(windows).detach())
    groups = layer_groups(teacher.config.layer_patterns, student.config.layer_patterns)
    ours = forward(student, windows, range(6)).queries_keys
    theirs = forward(teacher, windows, [group[-1] for group in groups]).queries_keys
    total = 0.0
    for pattern, mine, their in zip(student.config.layer_patterns, ours, theirs):
        mask = patterns.mask(pattern, 32, student.config.row_len)
        maps = []
        for q, k in (mine, their):
            scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
            maps.append(scores.masked_fill(~mask, float("-inf")).softmax(-1).nan_to_num(0.0))
        total += float((maps[0] - maps[1]).detach().square().sum(-1).mean())
    assert math.isclose(found, total / 6, rel_tol=1e-6)


@pytest.mark.parametrize("recompute", [False, True])
def test_what_is_trained_gives_the_logits_that_are_sampled_from(recompute):
    prior = make()
    windows = batch()
    found = forward(prior, windows, recompute=recompute).logits
    torch.testing.assert_close(found, prior(windows.codes, prior.condition(windows.upper)))
    assert not torch.allclose(found, prior(windows.codes))


def test_prediction_loss_is_equation_3_at_the_temperature_that_is_set():
    teacher, student = teacher_and_student(3)
    windows = batch()
    objective = SoftTargets(student, teacher, Distillation(temperature=2.0), Computing())
    logits = (forward(prior, windows).logits for prior in (student, teacher))
    torch.testing.assert_close(objective(windows), soft_cross_entropy(*logits, 2.0))


@pytest.mark.parametrize("kind", [NextCode, LayerMatching, SoftTargets])
def test_what_is_measured_is_the_cross_entropy_whatever_is_trained_for(kind):
    teacher, student = (prior.float() for prior in teacher_and_student(3))
    windows = batch()
    given = () if kind is NextCode else (teacher, Distillation())
    objective = kind(student, *given, Computing(precision="bf16"))
    logits = forward(student, windows).logits
    expected = F.cross_entropy(logits.flatten(0, 1), windows.codes.flatten())
    assert torch.equal(objective(windows, measured=True), expected)
    # The teacher is not saved with the student.
    assert all(name.startswith("prior.") for name in objective.state_dict())


@pytest.mark.parametrize("kind", ["next_code", "layers", "prediction"])
def test_gradients_against_finite_differences(kind):
    teacher, student = teacher_and_student(3)
    windows = batch()
    objective = {
        "next_code": lambda: NextCode(student, Computing()),
        "layers": lambda: LayerMatching(student, teacher, Distillation(), Computing()),
        "prediction": lambda: SoftTargets(student, teacher, Distillation(temperature=1.5), Computing()),
    }[kind]()
    objective(windows).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    generator = torch.Generator().manual_seed(2)
    for name in ("layers.1.qkv.weight", "layers.2.ln_0.bias", "layers.0.down.weight", "token_embedding"):
        parameter = student.get_parameter(name)
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * 1e-5)
                values.append(float(objective(windows).detach()))
                parameter.add_(direction, alpha=-sign * 1e-5)
        slope = (values[0] - values[1]) / 2e-5
        gradient = 0.0 if parameter.grad is None else float((parameter.grad * direction).sum())
        assert math.isclose(slope, gradient, rel_tol=1e-5, abs_tol=1e-9), name


def test_an_unknown_mapping_is_refused():
    with pytest.raises(ValueError, match="mapping must be last, middle, first; not 'best'"):
        Distillation(mapping="best")


@pytest.mark.parametrize("kind", ["next_code", "layers"])
def test_recomputing_layers_gives_the_same_gradients(kind):
    gradients = []
    for recompute in (False, True):
        teacher, student = teacher_and_student(3)
        computing = Computing(recompute=recompute)
        objective = NextCode(student, computing)
        if kind == "layers":
            objective = LayerMatching(student, teacher, Distillation(), computing)
        objective(batch()).backward()
        gradients.append([parameter.grad for parameter in student.parameters()])
    for plain, recomputed in zip(*gradients):
        assert (plain is None) == (recomputed is None)
        assert plain is None or torch.allclose(plain, recomputed, rtol=1e-12, atol=1e-14)


def test_mixed_precision_stays_near_and_keeps_fp32_weights():
    prior = make().float()
    windows = batch()
    exact = float(NextCode(prior, Computing())(windows).detach())
    objective = NextCode(prior, Computing(precision="bf16"))
    loss = objective(windows)
    loss.backward()
    assert 0 < abs(float(loss.detach()) - exact) < 0.05
    assert all(parameter.grad is None or parameter.grad.dtype == torch.float32 for parameter in prior.parameters())
    with pytest.raises(ValueError, match="precision must be"):
        Computing(precision="int4")
