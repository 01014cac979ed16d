"""Blocks with margins give what one pass over everything gives, whatever the batch, the length or the part."""

import dataclasses

import pytest
import torch
from fastjukebox.engine import Jukebox
from fastjukebox.engine.config import VQVAEConfig
from fastjukebox.engine.vqvae import VQVAE, fingerprint

CONFIGS = {
    "three_levels": VQVAEConfig(codebook_size=40, code_dim=6, width=6, depth=2),
    "multipliers": VQVAEConfig(
        codebook_size=40, code_dim=6, downs=(2, 1), strides=(2, 4), width=6, depth=2, multipliers=(1, 2), conv_ratio=1.5
    ),
    "cycle": VQVAEConfig(
        codebook_size=40,
        code_dim=6,
        downs=(1, 1),
        strides=(2, 2),
        width=6,
        depth=5,
        multipliers=(1, 1),
        dilation_cycle=2,
    ),
    "growing_dilation": VQVAEConfig(
        codebook_size=40,
        code_dim=6,
        downs=(2, 2),
        strides=(2, 2),
        width=6,
        depth=3,
        multipliers=(1, 1),
        reverse_decoder_dilation=False,
    ),
    "one_level": VQVAEConfig(
        codebook_size=40, code_dim=6, downs=(3,), strides=(2,), width=6, depth=3, multipliers=(1,)
    ),
}
LEVELS = [(name, level) for name, config in CONFIGS.items() for level in range(config.levels)]
each_level = pytest.mark.parametrize(("name", "level"), LEVELS, ids=[f"{name}-{level}" for name, level in LEVELS])


@pytest.fixture
def vqvae(name, randomize_vqvae):
    return randomize_vqvae(VQVAE(CONFIGS[name]))


@pytest.fixture
def short_blocks(monkeypatch):
    """Blocks of 48 codes with the margins as they are, so that little audio has many blocks."""
    block_codes = VQVAE.block_codes
    monkeypatch.setattr(VQVAE, "block_codes", lambda self, level: (48, block_codes(self, level)[1]))


def audio_of(config, level, count, batch=1, extra=0):
    return torch.randn(batch, count * config.samples_per_code(level) + extra)


@torch.no_grad()
def assert_nearest(vqvae, level, codes, audio):
    """`codes` are the nearest of a pass over the whole of `audio`, but for ties within rounding."""
    count = audio.shape[1] // vqvae.config.samples_per_code(level)
    latents = vqvae.encoders[level](audio[:, None, : count * vqvae.config.samples_per_code(level)]).transpose(1, 2)
    assert codes.shape == latents.shape[:2]
    distance = torch.cdist(latents.double(), vqvae.codebook(level).double())
    chosen = distance.gather(-1, codes[..., None])[..., 0]
    assert (chosen - distance.min(dim=-1).values).max() < 1e-4 * latents.std()
    # Ties are rare, and many codes are in use.
    assert (codes != distance.argmin(dim=-1)).float().mean() < 0.01
    assert len(codes.unique()) > 10


@each_level
@pytest.mark.parametrize("count", [47, 48, 49, 203])
def test_encoding_in_blocks_equals_the_whole(vqvae, level, count, short_blocks):
    audio = audio_of(vqvae.config, level, count)
    assert_nearest(vqvae, level, vqvae.encode(audio, level), audio)


@each_level
@pytest.mark.parametrize("count", [1, 47, 48, 49, 203])
def test_decoding_in_blocks_equals_the_whole(vqvae, level, count, short_blocks):
    codes = torch.randint(40, (1, count))
    with torch.no_grad():
        whole = vqvae.decoders[level](vqvae.dequantize(codes, level))[:, 0]
    assert whole.std() > 0.1 or count == 1
    out = vqvae.decode(codes, level)
    assert out.shape == (1, count * vqvae.config.samples_per_code(level))
    assert (out - whole).abs().max() < 1e-5 * max(1.0, whole.abs().max().item())


@pytest.mark.parametrize("name", ["growing_dilation"])
def test_blocks_of_the_real_length_equal_the_whole(vqvae):
    codes = torch.randint(40, (1, 2048 + 1500))
    with torch.no_grad():
        whole = vqvae.decoders[0](vqvae.dequantize(codes, 0))[:, 0]
    assert vqvae.block_codes(0)[0] == 2048
    assert (vqvae.decode(codes) - whole).abs().max() < 1e-5 * whole.abs().max()
    audio = audio_of(vqvae.config, 0, 2048 + 1500)
    assert_nearest(vqvae, 0, vqvae.encode(audio, 0), audio)


@each_level
def test_parts_equal_the_whole_bit_for_bit(vqvae, level, short_blocks):
    codes = torch.randint(40, (2, 203))
    ratio = vqvae.config.samples_per_code(level)
    whole = vqvae.decode(codes, level)
    for start, stop in [(0, 48), (48, 144), (144, 203), (192, None), (0, None)]:
        part = vqvae.decode(codes, level, start, stop)
        assert torch.equal(part, whole[:, start * ratio : (203 if stop is None else stop) * ratio])


@pytest.mark.parametrize("name", ["one_level"])
@pytest.mark.parametrize(("start", "stop"), [(1, None), (0, 50), (48, 97)])
def test_parts_off_the_blocks_are_refused(vqvae, start, stop, short_blocks):
    with pytest.raises(ValueError, match="must be multiples of 48, or the end"):
        vqvae.decode(torch.zeros(1, 203, dtype=torch.long), 0, start, stop)


@each_level
def test_items_do_not_depend_on_their_batch(vqvae, level, short_blocks):
    audio = audio_of(vqvae.config, level, 70, batch=3)
    codes = vqvae.encode(audio, level)
    decoded = vqvae.decode(codes, level)
    for item in range(3):
        assert torch.equal(vqvae.encode(audio[item : item + 1], level)[0], codes[item])
        assert torch.equal(vqvae.decode(codes[item : item + 1], level)[0], decoded[item])


@each_level
def test_a_rest_shorter_than_a_code_is_left_out(vqvae, level, short_blocks):
    ratio = vqvae.config.samples_per_code(level)
    audio = audio_of(vqvae.config, level, 53, extra=ratio)
    expected = vqvae.encode(audio[:, : 53 * ratio], level)
    for extra in {1, ratio // 2, ratio - 1}:
        assert torch.equal(vqvae.encode(audio[:, : 53 * ratio + extra], level), expected)


@pytest.mark.parametrize("name", ["three_levels"])
@pytest.mark.parametrize("level", [0, 2])
def test_nothing_in_gives_nothing_out(vqvae, level):
    assert vqvae.encode(torch.zeros(2, 5), level).shape == (2, 0)
    assert vqvae.decode(torch.zeros(2, 0, dtype=torch.long), level).shape == (2, 0)


def all_positive(vqvae):
    """No ReLU hides a path, so a gradient shows all that an output looks at."""
    with torch.no_grad():
        for parameter in vqvae.parameters():
            parameter.uniform_(0.1, 1.0).div_(parameter[0].numel())
    return vqvae.double()


@each_level
def test_margins_cover_what_the_network_looks_at_and_little_more(name, level):
    vqvae = all_positive(VQVAE(CONFIGS[name]))
    ratio, (_, margin) = vqvae.config.samples_per_code(level), vqvae.block_codes(level)
    count = 2 * margin + 9
    middle = count // 2
    reach = []
    latents = torch.rand(1, vqvae.config.code_dim, count, dtype=torch.float64).requires_grad_()
    decoded = vqvae.decoders[level](latents)[0, 0]
    for sample in (middle * ratio, middle * ratio + ratio - 1):
        seen = torch.autograd.grad(decoded[sample], latents, retain_graph=True)[0][0].any(dim=0).nonzero().flatten()
        reach += [middle - seen.min().item(), seen.max().item() - middle]
    audio = torch.rand(1, 1, count * ratio, dtype=torch.float64).requires_grad_()
    encoded = vqvae.encoders[level](audio)[0, :, middle].sum()
    seen = torch.autograd.grad(encoded, audio)[0][0, 0].nonzero().flatten() // ratio
    reach += [middle - seen.min().item(), seen.max().item() - middle]
    assert max(reach) <= margin <= max(reach) + 4


def test_codes_of_earlier_versions_are_known_by_the_same_fingerprint():
    vqvae = VQVAE(CONFIGS["three_levels"])
    for number, tensor in enumerate(vqvae.state_dict().values()):
        tensor.fill_(number)
    assert fingerprint(vqvae) == "99bd3c8b8f9c76ea"


def test_samples_per_code():
    assert [VQVAEConfig().samples_per_code(level) for level in range(3)] == [8, 32, 128]
    assert [CONFIGS["multipliers"].samples_per_code(level) for level in range(2)] == [4, 16]
    with pytest.raises(ValueError, match="one entry per level"):
        dataclasses.replace(CONFIGS["one_level"], multipliers=(1, 1))


@pytest.mark.parametrize("name", ["three_levels"])
def test_quantizing_a_codebook_gives_its_own_codes(vqvae):
    for level in range(3):
        codes = torch.arange(40)[None]
        assert torch.equal(vqvae.quantize(vqvae.dequantize(codes, level), level), codes)


def test_neither_codes_nor_samples_depend_on_the_threads():
    jukebox = Jukebox.from_pretrained("demo")
    torch.manual_seed(0)
    codes, audio = torch.randint(512, (2, 6000)), torch.randn(2, 44100)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append((jukebox.decode(codes), *jukebox.encode(audio), jukebox.decode(codes[:, :300], 1)))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(one, same) for one, same in zip(found[0], other, strict=True))
