"""Agreement of two code distributions against sums written out."""

import math

import pytest
import torch
import torch.nn.functional as F
from array_store import melody_windows
from fastjukebox.distill.evaluation import agreement, code_usage, compare, evaluate
from fastjukebox.distill.forward import forward
from fastjukebox.distill.work import Work
from fastjukebox.engine.config import ConditionerConfig, PriorConfig
from fastjukebox.engine.prior import Prior


def test_agreement_against_sums():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(2, 3, 5, generator=generator) * 2 + 1 for _ in range(2))
    found = agreement(ours, theirs)
    for item in range(2):
        for pos in range(3):
            q, p = ([math.exp(x) for x in logits[item, pos].tolist()] for logits in (ours, theirs))
            q, p = ([x / sum(values) for x in values] for values in (q, p))
            assert math.isclose(found["kl"][item, pos], sum(a * math.log2(a / b) for a, b in zip(p, q)), rel_tol=1e-5)
            assert math.isclose(
                found["acceptance"][item, pos], 1 - sum(abs(a - b) for a, b in zip(p, q)) / 2, rel_tol=1e-5
            )
            assert bool(found["top_1"][item, pos]) is (q.index(max(q)) == p.index(max(p)))


def test_equal_networks_agree():
    logits = torch.randn(4, 7)
    found = agreement(logits, logits)
    assert float(found["kl"].abs().max()) < 1e-12 and bool((found["top_1"] == 1).all())
    torch.testing.assert_close(found["acceptance"], torch.ones(4, dtype=torch.float64))


def test_figures_are_means_over_all_windows():
    config = PriorConfig(0, 32, 3, 2, 32, 4, codebook_size=8, conditioner=ConditionerConfig(16, 2))
    torch.manual_seed(0)
    student, teacher = (Prior(config).requires_grad_(False) for _ in range(2))
    for parameter in (*student.parameters(), *teacher.parameters()):
        parameter.normal_(std=0.2)
    windows = list(melody_windows().measured(3))
    ours, theirs = (torch.cat([forward(prior, window).logits for window in windows]) for prior in (student, teacher))
    codes, found = torch.cat([window.codes for window in windows]), compare(student, teacher, windows)
    expected = {name: float(value.mean()) for name, value in agreement(ours, theirs).items()}
    assert found["kl"] != pytest.approx(float(agreement(theirs, ours)["kl"].mean()), rel=1e-3)
    expected["bits"] = float(F.cross_entropy(ours.flatten(0, 1), codes.flatten())) / math.log(2)
    assert found == pytest.approx(expected, rel=1e-5)
    assert compare(student, None, windows) == {"bits": found["bits"]}


def test_a_system_is_measured_on_so_many_windows_of_each_held_out_song(stack):
    work = Work(stack, "tiny")
    student, teacher = (work.prior(name, 2) for name in ("student-18", "teacher-72"))
    found = evaluate(work, "student-18", 2, 3)
    expected = compare(student, teacher, work.windows(2).measured(3))
    assert {name: found[name] for name in expected} == expected and "kl" not in evaluate(work, "teacher-72", 2)


def test_usage_counts_codes():
    assert code_usage(torch.tensor([[3, 3], [5, 5]]), 8) == {"perplexity": 2.0, "codes_used": 2.0}
