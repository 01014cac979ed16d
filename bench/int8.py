"""What weight-only int8 costs on a trained stack: held-out bits per code, and how far the logits move.

    python bench int8 [--model demo --songs 8 --json FILE]

Measured on held-out songs (held_out.py). The int8 network is the FP32 one with every projection and the head rounded as
the int8 decoders store them, and the inputs of their products, keys and values as the native one rounds them.
"""

from __future__ import annotations

if not __package__:
    from by_path import run as run_again

    run_again(__file__)

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distill.losses import bits
from ..engine.jukebox import Jukebox
from ..engine.prior import Prior
from ..engine.transformer import TransformerLayer
from ..kernels.packing import quantize_int8, round_inputs
from . import held_out


def rounded(weight: Tensor) -> Tensor:
    """weight [in, out] as the int8 decoders see it."""
    whole, scale = quantize_int8(weight)
    return whole * scale


@torch.no_grad()
def rounded_layers(prior: Prior) -> Prior:
    """A copy with every projection, its inputs, keys and values rounded; embeddings and biases stay."""

    def cached(qkv: Tensor) -> Tensor:
        query, keys_and_values = qkv.split((qkv.shape[-1] // 3, qkv.shape[-1] // 3 * 2), -1)
        return torch.cat((query, keys_and_values.half().float()), -1)

    prior = copy.deepcopy(prior)
    for layer in prior.layers:
        assert isinstance(layer, TransformerLayer)
        for projection in (layer.qkv, layer.proj, layer.up, layer.down):
            projection.weight.copy_(rounded(projection.weight))
            projection.register_forward_pre_hook(lambda module, given: (round_inputs(given[0]),))
        layer.qkv.register_forward_hook(lambda *call: cached(call[2]))
    return prior


def logits(prior: Prior, codes: Tensor, cond: Tensor | None, head: Tensor, int8: bool = False) -> Tensor:
    """[1, T, V] with another output head [W, V] than the token embedding."""
    x = prior.embed(codes[:, :-1], 0, cond, None)
    for layer in prior.layers:
        x = layer(x)
    x = x if cond is None else x + cond
    return (round_inputs(x) if int8 else x) @ head


@torch.inference_mode()
def measure(jukebox: Jukebox, songs: list[Tensor], level: int, per_song: int) -> dict[str, Any]:
    prior = jukebox.prior(level)
    config = prior.config
    int8, head = rounded_layers(prior), prior.token_embedding.T
    rounded_head = rounded(head)
    exact, lossy, errors, squares, spread, agree, count = 0.0, 0.0, [], [], [], 0.0, 0
    for audio in songs:
        codes = jukebox.vqvae.encode(audio, level)
        upper = jukebox.vqvae.encode(audio, level + 1) if config.conditioner else None
        ratio = config.conditioner.upper_ratio if config.conditioner else 1
        for window in range(per_song):
            room = max(0, codes.shape[1] - config.context_len)
            start = int((window + 0.5) / per_song * room) // ratio * ratio
            given = codes[:, start : start + config.context_len]
            cond = None
            if upper is not None:
                cond = prior.condition(upper[:, start // ratio :][:, : config.context_len // ratio])
            ours, theirs = logits(prior, given, cond, head), logits(int8, given, cond, rounded_head, int8=True)
            exact += float(F.cross_entropy(ours[0], given[0]))
            lossy += float(F.cross_entropy(theirs[0], given[0]))
            errors.append(float((ours - theirs).abs().max()))
            squares.append(float((ours - theirs).square().mean()))
            spread.append(float(ours.std()))
            agree += float((ours.argmax(-1) == theirs.argmax(-1)).float().mean())
            count += 1
    return {
        "level": level,
        "windows": count,
        "bits_fp32": bits(exact / count),
        "bits_int8": bits(lossy / count),
        "bits_lost": bits((lossy - exact) / count),
        "largest_logit_error": max(errors),
        "logit_error_rms": math.sqrt(sum(squares) / count),
        "logits_std": sum(spread) / count,
        "same_likeliest_code": agree / count,
    }


def say(f: dict[str, Any]) -> str:
    return (
        f"{f['bits_fp32']:.4f} bits in FP32, {f['bits_lost']:+.4f} lost to int8; logits (std {f['logits_std']:.2f}) "
        f"off by {f['largest_logit_error']:.3f} at most; likeliest code the same {100 * f['same_likeliest_code']:.2f} %"
    )


def main(arguments: list[str] | None = None) -> int:
    return held_out.judge("int8", __doc__, measure, say, windows=4, arguments=arguments)


if __name__ == "__main__":
    raise SystemExit(main())
