"""The eager decoder: one result whatever is beside an item, and whatever the threads."""

import pytest
import torch
from fastjukebox.engine.config import PriorConfig
from fastjukebox.engine.decoder import EagerDecoder, LevelSampling, WindowTask
from fastjukebox.engine.prior import Prior


def task(items, prompt_len, context_len):
    codes = torch.zeros(items, context_len, dtype=torch.long)
    return WindowTask(codes, prompt_len, torch.arange(items), 1, 2, 0, LevelSampling())


def test_it_refuses_more_items_than_it_has_lanes():
    prior = Prior(PriorConfig(2, 16, 2, 1, 24, 3, codebook_size=20))
    with pytest.raises(ValueError, match="7 items for a decoder of 5"):
        EagerDecoder(prior, 5).prefill(task(7, 0, 24))


def test_wide_layers_give_one_result_whatever_the_threads_and_the_batch():
    """Several threads round products of such widths otherwise, and in BF16 those of another batch too."""
    before, found = torch.get_num_threads(), []
    prior = Prior(PriorConfig(2, 2048, 2, 2, 64, 8, codebook_size=512))
    prior = prior.to(torch.bfloat16).eval().requires_grad_(False)
    for threads, batch in ((1, 4), (2, 4), (2, 2), (3, 2)):
        torch.set_num_threads(threads)
        decoder, window = EagerDecoder(prior, batch), task(2, 16, 64)
        decoder.prefill(window)
        decoder.run(16, 64)
        assert torch.get_num_threads() == threads
        found.append((window.codes, decoder.cache.layers[-1].kv[:, :2].clone()))
    torch.set_num_threads(before)
    for codes, cache in found[1:]:
        assert torch.equal(codes, found[0][0]) and torch.equal(cache, found[0][1])
