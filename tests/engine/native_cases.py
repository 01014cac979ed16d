"""Small priors and windows for the tests of the native decoder."""

import torch
from fastjukebox.engine.config import PriorConfig
from fastjukebox.engine.decoder import LevelSampling, WindowTask
from fastjukebox.engine.kv_cache import KVCache
from fastjukebox.engine.native_decoder import NativeDecoder
from fastjukebox.engine.prior import Prior


def make_prior(seed=0, **changes) -> Prior:
    sizes = {
        "level": 0,
        "width": 48,
        "depth": 4,
        "heads": 2,
        "context_len": 96,
        "num_rows": 8,
        "codebook_size": 77,
        "attn_ratio": 0.5,
        **changes,
    }
    torch.manual_seed(seed)
    prior = Prior(PriorConfig(**sizes)).eval().requires_grad_(False)
    for parameter in prior.parameters():
        # Far from zero, with a mean: a forgotten bias or LayerNorm parameter shows.
        parameter.add_(torch.randn_like(parameter) * 0.1 + 0.02)
    return prior


def plain_prior(logits: torch.Tensor) -> Prior:
    """One whose layers add nothing: the first code's logits are these, and all others' if a code's embedding is 0."""
    prior = make_prior(width=64, depth=1, codebook_size=len(logits))
    for parameter in prior.parameters():
        parameter.zero_()
    prior.pos_embedding[:, 0] = 1.0
    prior.token_embedding[:, 0] = logits
    return prior


def make_task(prior, batch=1, prompt_len=0, cond=False, sampling=None, seed=7, offset=0, first_item=0) -> WindowTask:
    config = prior.config
    generator = torch.Generator().manual_seed(3)
    codes = torch.full((batch, config.context_len), -1)
    # Item by item the same, however many are asked for.
    items = slice(first_item, first_item + batch)
    codes[:, :prompt_len] = torch.randint(config.codebook_size, (9, prompt_len), generator=generator)[items]
    frame_cond = None
    if cond:
        frame_cond = torch.randn(9, config.context_len, config.width, generator=generator)[items].contiguous()
    return WindowTask(
        codes=codes,
        prompt_len=prompt_len,
        items=torch.arange(batch) + first_item,
        seed=seed,
        level=1,
        offset=offset,
        sampling=sampling or LevelSampling(),
        frame_cond=frame_cond,
    )


def with_team(decoder, threads):
    """The decoder, always with so many threads."""
    for team in (decoder.team, decoder.prompt_team):
        team.counts = [threads]
    return decoder


def decode(decoder, task, stop=None) -> torch.Tensor:
    decoder.prefill(task)
    decoder.run(task.prompt_len, stop or task.codes.shape[1])
    return task.codes


def kept(decoder) -> list[torch.Tensor]:
    """Keys and values of each layer [2, B, H, slots, D], of the items: the eager decoder has more lanes."""
    if not isinstance(decoder, NativeDecoder):
        return [layer.kv[:, : len(decoder.task.codes)] for layer in decoder.cache.layers]
    return [
        torch.stack([layer.keys.transpose(3, 4).flatten(2, 3)[:, :, : layer.slots], layer.values])
        for layer in decoder.cache
    ]


def seen(decoder, start) -> list[torch.Tensor]:
    """Those of the positions before `start` that positions from there on can see."""
    config = decoder.prior.config
    caches = KVCache(config, 1, torch.device("cpu"), torch.float32).layers
    slots = [[cache.slot(pos) for pos in range(cache.first_seen(start), start)] for cache in caches]
    return [kv[:, :, :, [slot for slot in own if slot is not None]] for kv, own in zip(kept(decoder), slots)]
