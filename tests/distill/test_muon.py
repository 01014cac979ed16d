"""Muon: orthogonal steps for matrices, AdamW for the rest, and a state that can be saved."""

from __future__ import annotations

import copy

import pytest
import torch
from fastjukebox.distill.muon import Muon, orthogonalized
from fastjukebox.distill.prior import PriorTraining, prior_optimizer
from fastjukebox.engine.config import PriorConfig
from fastjukebox.engine.prior import Prior
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_singular_values_come_near_one_and_vectors_stay(rows, columns, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    matrices = scale * torch.randn(3, rows, columns, generator=generator)
    u, s, vh = torch.linalg.svd(matrices.double(), full_matrices=False)
    found = orthogonalized(matrices)
    assert found.shape == matrices.shape
    # In the basis of the singular vectors the result is diagonal.
    inner = u.mT @ found.double() @ vh.mT
    diagonal = inner.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(inner, torch.diag_embed(diagonal), rtol=0, atol=2e-3)
    # Small singular values are on their way only.
    large = s / s.norm(dim=1, keepdim=True) > 1e-2
    assert diagonal[large].min() > 0.5 and diagonal[large].max() < 1.3


def test_matrices_of_one_shape_do_not_mix():
    matrices = torch.randn(4, 6, 9, generator=torch.Generator().manual_seed(0))
    together = orthogonalized(matrices)
    for index in range(4):
        torch.testing.assert_close(together[index], orthogonalized(matrices[index : index + 1])[0])


def test_a_step_is_that_of_the_paper():
    weight = nn.Parameter(torch.randn(4, 16, generator=torch.Generator().manual_seed(1)))
    start, gradients = weight.detach().clone(), torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(2))
    optimizer = Muon([{"params": [weight], "momentum": 0.9, "weight_decay": 0.1}], lr=0.5)
    momentum = torch.zeros_like(start)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        momentum = 0.9 * momentum + 0.1 * gradient
        direction = orthogonalized((0.1 * gradient + 0.9 * momentum)[None])[0]
        # Four times as many outputs as inputs: twice the length.
        start = start * (1 - 0.5 * 0.1) - 0.5 * 2 * direction
    torch.testing.assert_close(weight.detach(), start)


def test_the_rest_follows_adamw():
    vector, other = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))
    matrix = nn.Parameter(torch.eye(5))
    ours = Muon([{"params": [matrix], "momentum": 0.95}, {"params": [vector], "weight_decay": 0.1}], lr=0.1)
    theirs = torch.optim.AdamW([other], lr=0.1, weight_decay=0.1)
    for step in range(3):
        vector.grad = other.grad = torch.arange(5.0) + step
        matrix.grad = torch.eye(5)
        ours.step()
        theirs.step()
    torch.testing.assert_close(vector, other)
    assert "exp_avg" not in ours.state[matrix] and "momentum" in ours.state[matrix]


@pytest.mark.parametrize("rate", [None, 0.02])
def test_saved_state_goes_on_to_the_same_weights(rate):
    torch.manual_seed(0)
    prior = Prior(PriorConfig(0, 32, 3, 2, 32, 4, codebook_size=8))
    codes = torch.randint(8, (2, 32))
    chosen = PriorTraining(matrix_learning_rate=rate)
    optimizer = prior_optimizer(prior, chosen)
    assert isinstance(optimizer, Muon) == (rate is not None)
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(held) == len(set(map(id, held))) == len(list(prior.parameters()))

    def step(network, its_optimizer):
        its_optimizer.zero_grad()
        network(codes).logsumexp(-1).mean().backward()
        its_optimizer.step()

    step(prior, optimizer)
    other = copy.deepcopy(prior)
    resumed = prior_optimizer(other, chosen)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for network, its_optimizer in ((prior, optimizer), (other, resumed)):
        step(network, its_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(prior.parameters(), other.parameters()))


def test_rates_scale_together():
    slower = PriorTraining(learning_rate=1e-2, matrix_learning_rate=0.5).slower(0.5)
    assert (slower.learning_rate, slower.matrix_learning_rate) == (5e-3, 0.25)
    assert PriorTraining(matrix_learning_rate=None).slower(0.5).matrix_learning_rate is None
