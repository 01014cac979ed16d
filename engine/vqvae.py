"""The hierarchical VQ-VAE: one encoder, codebook and decoder per level, each level used alone
(Dhariwal et al. 2020, section 3; level 0 is the finest).

Long audio goes through `encode` and `decode` in blocks with margins as wide as the network looks, so memory stays flat,
every item and block is computed in the same way whatever the batch and the number of threads, and a stream that decodes
block by block gives the same samples as one call.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import VQVAEConfig
from .config_json import to_json
from .convolution import Conv, Downsampler, ResidualStack, Upsampler, repeatable
from .threads import side_by_side


class Encoder(nn.Module):
    """Audio [B, 1, samples] -> latents [B, code_dim, codes] of one level."""

    def __init__(self, config: VQVAEConfig, level: int) -> None:
        super().__init__()
        factor = config.multipliers[level]
        self.levels = nn.ModuleList(
            Downsampler(
                config.code_dim if lower else 1,
                config.width * factor,
                config.code_dim,
                config.downs[lower],
                config.strides[lower],
                depth=config.depth * factor,
                conv_ratio=config.conv_ratio,
                growth=config.dilation_growth,
                cycle=config.dilation_cycle,
            )
            for lower in range(level + 1)
        )

    def forward(self, audio: Tensor) -> Tensor:
        x = audio
        for level in self.levels:
            x = level(x)
        return x


class Decoder(nn.Module):
    """Latents [B, code_dim, codes] of one level -> audio [B, 1, samples]."""

    def __init__(self, config: VQVAEConfig, level: int) -> None:
        super().__init__()
        factor = config.multipliers[level]
        self.levels = nn.ModuleList(
            Upsampler(
                config.code_dim,
                config.width * factor,
                config.code_dim,
                config.downs[lower],
                config.strides[lower],
                depth=config.depth * factor,
                conv_ratio=config.conv_ratio,
                growth=config.dilation_growth,
                cycle=config.dilation_cycle,
                widest_first=config.reverse_decoder_dilation,
            )
            for lower in range(level + 1)
        )
        self.out = Conv(config.code_dim, 1, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = latents
        for level in reversed(self.levels):
            x = level(x)
        return self.out(x)


class VQVAE(nn.Module):
    """Call `encode` and `decode`; the parts are there for training."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoders = nn.ModuleList(Encoder(config, level) for level in range(config.levels))
        self.decoders = nn.ModuleList(Decoder(config, level) for level in range(config.levels))
        for level in range(config.levels):
            self.register_buffer(f"codebook_{level}", torch.zeros(config.codebook_size, config.code_dim))

    def codebook(self, level: int) -> Tensor:
        """[codebook_size, code_dim]"""
        return self.get_buffer(f"codebook_{level}")

    def quantize(self, latents: Tensor, level: int) -> Tensor:
        """The nearest code of each latent: [B, code_dim, T] -> [B, T] int64."""
        codebook = self.codebook(level)
        flat = latents.transpose(1, 2)
        # |x - k|^2 up to the query's own |x|^2, which does not change the nearest one.
        distance = codebook.square().sum(dim=1) - 2 * (flat @ codebook.T)
        return distance.argmin(dim=-1)

    def dequantize(self, codes: Tensor, level: int) -> Tensor:
        """[B, T] -> [B, code_dim, T]"""
        return F.embedding(codes, self.codebook(level)).transpose(1, 2)

    @torch.no_grad()
    def encode(self, audio: Tensor, level: int) -> Tensor:
        """Codes [B, samples // samples_per_code] of `level` for audio [B, samples]; a rest shorter than a code is left
        out."""
        ratio = self.config.samples_per_code(level)
        count = audio.shape[1] // ratio
        if not count:
            return torch.zeros(len(audio), 0, dtype=torch.long, device=audio.device)
        step, margin = self.block_codes(level)

        def encode_block(item: int, start: int, stop: int) -> Tensor:
            block = audio[item : item + 1, None, start * ratio : stop * ratio].to(self.codebook(level))
            return self.quantize(self.encoders[level](block), level)

        device = self.codebook(level).device
        with repeatable(device):
            return _in_blocks(encode_block, device, audio.shape[0], count, step, margin, 1)

    @torch.no_grad()
    def decode(self, codes: Tensor, level: int = 0, start: int = 0, stop: int | None = None) -> Tensor:
        """Audio [B, samples] of codes [B, T] of `level`. With `start` and `stop`, in codes and on multiples of
        `block_codes` (or the end), only that part of it, with the same samples as in the whole."""
        ratio = self.config.samples_per_code(level)
        if not codes.shape[1]:
            return self.codebook(level).new_zeros(len(codes), 0)
        step, margin = self.block_codes(level)

        def decode_block(item: int, start: int, stop: int) -> Tensor:
            return self.decoders[level](self.dequantize(codes[item : item + 1, start:stop], level))[:, 0]

        device = self.codebook(level).device
        with repeatable(device):
            return _in_blocks(decode_block, device, codes.shape[0], codes.shape[1], step, margin, ratio, start, stop)

    def block_codes(self, level: int) -> tuple[int, int]:
        """The length of a block and its margin on either side, in codes of `level`."""
        margin = max(
            _radius(self.encoders[level], self.config, level), _radius(self.decoders[level], self.config, level)
        )
        return max(2048, 2 * margin), margin


def _radius(coder: nn.Module, config: VQVAEConfig, level: int) -> int:
    """How many codes an output of this encoder or decoder looks to either side, rounded up."""
    ratio = config.samples_per_code(level)
    samples = 1.0
    for lower in range(level + 1):
        block = coder.get_submodule(f"levels.{lower}")
        # Samples between neighbouring positions at the fine end of this level's block.
        spacing = config.samples_per_code(lower - 1) if lower else 1
        stride = config.strides[lower]
        stacks = [stack for stack in block.modules() if isinstance(stack, ResidualStack)]
        for stage in range(config.downs[lower]):
            # The decoder's stacks run from coarse to fine, each before its transposed convolution.
            index = stage if isinstance(block, Downsampler) else -1 - stage
            spacing *= stride
            # A strided convolution of 2 * stride taps, plain or transposed, reaches at most one coarse position.
            samples += spacing * (1 + stacks[index].radius)
        # The convolution of width 3 at the block's coarse end.
        samples += spacing
    return math.ceil(samples / ratio) + 1


def _in_blocks(
    compute: Callable[[int, int, int], Tensor],
    device: torch.device,
    items: int,
    count: int,
    step: int,
    margin: int,
    ratio: int,
    start: int = 0,
    stop: int | None = None,
) -> Tensor:
    """`compute(item, lo, hi)` -> [1, (hi - lo) * ratio] over blocks of `step` codes with margins, cropped and joined.

    Raises:
        ValueError: `start` or `stop` is not on a block boundary.
    """
    stop = count if stop is None else stop
    if start % step or (stop % step and stop != count):
        raise ValueError(f"start {start} and stop {stop} must be multiples of {step}, or the end ({count})")

    def block(item: int, lo: int) -> Tensor:
        hi = min(lo + step, count)
        outer_lo, outer_hi = max(0, lo - margin), min(count, hi + margin)
        return compute(item, outer_lo, outer_hi)[:, (lo - outer_lo) * ratio : (hi - outer_lo) * ratio]

    pieces = [partial(block, item, lo) for item in range(items) for lo in range(start, stop, step)]
    parts = side_by_side(pieces, device)
    return torch.cat(parts, dim=1).unflatten(1, (items, -1))[0]


def fingerprint(vqvae: VQVAE) -> str:
    """A short identity of a VQ-VAE, which gives codes their meaning: its config and all its weights, as FP32."""
    digest = hashlib.sha256(json.dumps(to_json(vqvae.config), sort_keys=True).encode())
    for name, tensor in sorted(vqvae.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
