"""A sampler by whole forward passes, without cache, schedule or decoder: what `Jukebox.sample` must draw."""

import torch
from fastjukebox.kernels import philox


def kept(logits, temperature, top_k, top_p):
    """Logits of one code / temperature, -inf for what may not be drawn."""
    logits = logits / temperature
    ranked = sorted(range(len(logits)), key=lambda code: -logits[code])
    if top_k:
        ranked = ranked[:top_k]
    mass, keep = 0.0, []
    weights = torch.tensor([logits[code] for code in ranked]).double().softmax(0)
    for code, weight in zip(ranked, weights.tolist(), strict=True):
        keep.append(code)
        mass += weight
        if mass > top_p:
            break
    filtered = torch.full_like(logits, float("-inf"))
    filtered[keep] = logits[keep]
    return filtered


def nothing_told(prior, start):
    """What is told of a window that begins with code `start`: characters before its codes, their frame condition, what
    stands in for the start token, and the encoder's output."""
    return [], None, None, None


@torch.no_grad()
def reference_codes(jukebox, params, known, found, told=nothing_told, items=None):
    """Codes of every level by whole forward passes; `found` are followed where two codes tie within rounding. `items`:
    their numbers, if not those of the request.

    Returns the codes, and the number of ties.
    """
    hops = params.per_level("hop_fraction", 3)
    settings = [params.per_level(name, 3) for name in ("temperature", "top_k", "top_p")]
    codes, ties = [tensor.clone() for tensor in known], 0
    items = torch.arange(params.num_samples) + params.first_item if items is None else items
    for level in (2, 1, 0):
        prior = jukebox.prior(level)
        size, length = prior.config.window_len, found[level].shape[1]
        hop, start = int(hops[level] * size), 0
        while codes[level].shape[1] < length:
            start = min(start, max(0, length - size))
            before, cond, first, lyrics = told(prior, start)
            before = torch.tensor([before] * len(items), dtype=torch.long)
            cond, first, lyrics = (
                None if tensor is None else tensor.expand(len(items), -1, -1) for tensor in (cond, first, lyrics)
            )
            if level < 2:
                upper = codes[level + 1][:, start // 4 : (start + size) // 4]
                cond = torch.cat([prior.conditioner(one[None]) for one in upper])
            for pos in range(codes[level].shape[1], min(start + size, length)):
                unknown = torch.zeros(len(items), 1, dtype=torch.long)
                given = torch.cat([before, codes[level][:, start:pos], unknown], dim=1)
                own = None if cond is None else cond[:, : given.shape[1]]
                logits = prior(given, own, first, lyrics=lyrics)[:, -1]
                noise = philox.gumbel_noise(params.seed, items, level, torch.tensor([pos]), logits.shape[1])[:, 0]
                chosen = []
                for row, theirs in enumerate(found[level][:, pos].tolist()):
                    scores = kept(logits[row], *(setting[level] for setting in settings)) + noise[row]
                    ours = int(scores.argmax())
                    if ours != theirs:
                        assert scores[ours] - scores[theirs] < 1e-4, (level, pos, row)
                        ties += 1
                    chosen.append(theirs)
                codes[level] = torch.cat([codes[level], torch.tensor(chosen)[:, None]], dim=1)
            start += hop
    return codes, ties
