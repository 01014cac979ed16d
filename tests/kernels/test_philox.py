"""Philox4x32-10 against published vectors, and the Gumbel noise made from it."""

import math

import pytest
import torch
from fastjukebox.kernels.philox import gumbel_noise, philox4x32, random_bits

# Counter, key and result of the known-answer tests that come with Random123.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter, key, expected):
    out = philox4x32(tuple(torch.tensor(word) for word in words(counter)), tuple(words(key)))
    assert [word.item() for word in out] == words(expected)


def test_words_are_in_the_documented_place():
    # Counter (item, level, position, block), key (low, high half of the seed), code v from word v % 4 of block v // 4.
    seed = 0x299F31D0_A4093822
    bits = random_bits(seed, torch.tensor([9, 5]), 2, torch.tensor([3, 70_000]), 11)
    assert bits.shape == (2, 2, 11)
    for code in range(11):
        counter = tuple(torch.tensor(word) for word in (5, 2, 70_000, code // 4))
        assert bits[1, 1, code] == philox4x32(counter, (0xA4093822, 0x299F31D0))[code % 4]


def test_noise_does_not_depend_on_its_company():
    items, positions = torch.tensor([4, 0, 7]), torch.tensor([100, 3, 8191, 0])
    whole = gumbel_noise(17, items, 1, positions, 50)
    for i, item in enumerate(items):
        for p, pos in enumerate(positions):
            assert torch.equal(gumbel_noise(17, item[None], 1, pos[None], 50)[0, 0], whole[i, p])
    reverse = gumbel_noise(17, items.flip(0), 1, positions.flip(0), 50)
    assert torch.equal(reverse.flip(0, 1), whole)
    # A smaller codebook takes the first of the same numbers.
    assert torch.equal(gumbel_noise(17, items, 1, positions, 13), whole[..., :13])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_item_and_position_types_do_not_matter(dtype):
    items, positions = torch.arange(3), torch.arange(5)
    expected = random_bits(1, items, 0, positions, 8)
    assert torch.equal(random_bits(1, items.to(dtype), 0, positions.to(dtype), 8), expected)


def test_every_part_of_the_counter_and_every_seed_bit_matters():
    def draw(seed=0, item=0, level=0, pos=0):
        return tuple(random_bits(seed, torch.tensor([item]), level, torch.tensor([pos]), 4).flatten().tolist())

    draws = [draw(), draw(item=1), draw(level=1), draw(pos=1), draw(item=1, pos=1), draw(item=2**32 - 1)]
    draws += [draw(seed=1 << bit) for bit in range(64)]
    assert len(set(draws)) == len(draws)


def test_bits_are_uniform():
    bits = random_bits(2024, torch.arange(8), 0, torch.arange(64), 512)
    assert bits.min() >= 0
    assert bits.max() < 2**32
    count = bits.numel()
    for shift in range(0, 32, 8):
        histogram = (bits >> shift & 255).flatten().bincount(minlength=256).double()
        chi_square = (histogram - count / 256).square().sum() / (count / 256)
        assert abs(chi_square - 255) < 4 * math.sqrt(2 * 255)
    # Neighbours in every direction are uncorrelated: 4 standard errors.
    uniform = bits.double() / 2**32 - 0.5
    for dim in range(3):
        steps = uniform.shape[dim] - 1
        product = uniform.narrow(dim, 0, steps) * uniform.narrow(dim, 1, steps)
        assert abs(product.mean() * 12) < 4 / math.sqrt(product.numel())


def test_gumbel_mean_and_variance():
    noise = gumbel_noise(5, torch.arange(8), 2, torch.arange(64), 512)
    assert noise.dtype == torch.float32
    error = math.sqrt(math.pi**2 / 6 / noise.numel())
    assert abs(noise.double().mean() - 0.5772156649) < 4 * error
    # The fourth moment of a Gumbel variable about its mean is 5.4 times its squared variance.
    assert abs(noise.double().var() / (math.pi**2 / 6) - 1) < 4 * math.sqrt(4.4 / noise.numel())


@pytest.mark.parametrize("word", [0, 1, 0x1FF, 0x200, 0x7FFFFFFF, 0x80000000, 0xFFFFFE00, 0xFFFFFFFF])
def test_gumbel_noise_is_finite_at_the_extreme_bits(monkeypatch, word):
    from fastjukebox.kernels import philox

    monkeypatch.setattr(philox, "random_bits", lambda *_: torch.tensor([[[word]]]))
    noise = philox.gumbel_noise(0, torch.tensor([0]), 0, torch.tensor([0]), 1)
    assert noise.isfinite().all()
    expected = -math.log(-math.log(((word >> 9) + 0.5) / 2**23))
    # Next to 1, the logarithm is as small as 2 ** -24 and its own logarithm still exact to FP32.
    assert abs(noise.item() - expected) < 2e-6 * max(1.0, abs(expected))
