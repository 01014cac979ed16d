"""Agreement of two code distributions against sums written out."""

import math

import torch
from fastjukebox.distill.evaluation import agreement, code_usage


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


def test_usage_counts_codes():
    assert code_usage(torch.tensor([[3, 3], [5, 5]]), 8) == {"perplexity": 2.0, "codes_used": 2.0}
