"""The fused decoder draws the codes that the eager one draws; in Triton's interpreter where there is no GPU."""

import dataclasses

import pytest
import torch
from fastjukebox.engine import Prior, PriorConfig
from fastjukebox.engine.decoder import EagerDecoder, LevelSampling, WindowTask
from fastjukebox.engine.graph_decoder import GraphDecoder, missing
from fastjukebox.engine.patterns import Pattern
from fastjukebox.kernels import philox, reference

SEED = 2**40 + 3
CONFIG = PriorConfig(level=1, width=16, depth=3, heads=2, context_len=12, num_rows=4, codebook_size=19)


@pytest.fixture(scope="module", autouse=True)
def _triton():
    pytest.importorskip("triton")


@pytest.fixture
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def prior(randomize, device):
    return randomize(Prior(CONFIG)).to(device)


def make_task(prior, batch=1, prompt_len=0, conditioned=True, first_item=0, sampling=None, offset=40):
    config = prior.config
    generator = torch.Generator().manual_seed(7)
    codes = torch.randint(config.codebook_size, (8, config.context_len), generator=generator)
    codes[:, prompt_len:] = 0
    frame_cond = torch.randn(8, config.context_len, config.width, generator=generator) / 2
    start_cond = torch.randn(8, 1, config.width, generator=generator) / 2
    rows = slice(first_item, first_item + batch)
    place = {"device": prior.device, "dtype": prior.dtype}
    return WindowTask(
        codes[rows].to(prior.device),
        prompt_len,
        torch.arange(8, device=prior.device)[rows],
        SEED,
        config.level,
        offset,
        sampling or LevelSampling(),
        frame_cond[rows].to(**place) if conditioned else None,
        start_cond[rows].to(**place) if conditioned else None,
    )


def decode(decoder, task, *cuts):
    """The window's codes on the host, decoded in pieces that end at `cuts`."""
    decoder.prefill(task)
    ends = [*cuts, task.codes.shape[1]]
    for start, stop in zip([task.prompt_len, *ends], ends, strict=False):
        decoder.run(start, stop)
    return task.codes.cpu()


def noisy_logits(prior, task, codes):
    """FP64 logits / temperature plus noise [B, T, V] of every position given the codes before it."""
    double = Prior(prior.config).double()
    double.load_state_dict({key: value.cpu().double() for key, value in prior.state_dict().items()})
    conditions = (None if cond is None else cond.cpu().double() for cond in (task.frame_cond, task.start_cond))
    with torch.no_grad():
        logits = double(codes, *conditions)
    positions = torch.arange(codes.shape[1]) + task.offset
    noise = philox.gumbel_noise(task.seed, task.items.cpu(), task.level, positions, logits.shape[-1])
    return logits / task.sampling.temperature + noise


def assert_same_but_for_ties(prior, task, codes, tolerance):
    """Every code is the best given those before it, or within `tolerance` of it; returns how many are not the best."""
    noisy = noisy_logits(prior, task, codes)[:, task.prompt_len :]
    drawn = noisy.gather(-1, codes[:, task.prompt_len :, None])[..., 0]
    short = noisy.amax(dim=-1) - drawn
    assert short.max() <= tolerance
    return int((short > 0).sum())


@pytest.mark.parametrize("prompt_len", [0, 5])
def test_codes_equal_those_of_the_eager_decoder(prior, prompt_len):
    task = make_task(prior, prompt_len=prompt_len)
    codes = decode(GraphDecoder(prior, 1), task)
    assert_same_but_for_ties(prior, task, codes, 1e-4)
    eager = decode(EagerDecoder(prior, 1), make_task(prior, prompt_len=prompt_len))
    assert torch.equal(codes, eager)
    assert len(set(codes[0].tolist())) > 3


def test_a_batch_of_three_equals_three_of_one(prior):
    config = dataclasses.replace(CONFIG, depth=3, context_len=8)
    short = Prior(config).to(prior.device)
    short.load_state_dict(prior.state_dict() | {"pos_embedding": prior.pos_embedding[:8]})
    together = decode(GraphDecoder(short, 3), make_task(short, 3, 2))
    for item in range(3):
        alone = decode(GraphDecoder(short, 1), make_task(short, 1, 2, first_item=item))
        assert torch.equal(together[item], alone[0])


def assert_serves_windows_of_every_kind(decoder):
    """A decoder of two items, window after window: no condition, fewer items than lanes, another place; in pieces."""
    prior = decoder.prior
    for batch, prompt_len, conditioned, cuts in (
        (2, 0, True, ()),
        (1, 7, False, (8,)),
        (2, 11, True, ()),
        (2, 3, True, (4, 9)),
    ):
        task = make_task(prior, batch, prompt_len, conditioned, offset=prompt_len)
        codes = decode(decoder, task, *cuts)
        expected = decode(EagerDecoder(prior, 2), make_task(prior, batch, prompt_len, conditioned, offset=prompt_len))
        assert torch.equal(codes, expected)


def test_a_decoder_serves_windows_of_every_kind(prior):
    assert_serves_windows_of_every_kind(GraphDecoder(prior.cpu(), 2, ops=reference))


@pytest.mark.parametrize("cycle", [(Pattern.DENSE, Pattern.COLUMN), (Pattern.PREVIOUS_ROW, Pattern.ROW, Pattern.ROW)])
def test_any_patterns_and_residual_scales(randomize, cycle):
    config = dataclasses.replace(CONFIG, pattern_cycle=cycle, scale_residual=True)
    prior = randomize(Prior(config))
    sampling = LevelSampling(0.8, 7, 0.9)
    codes = decode(GraphDecoder(prior, 2, ops=reference), make_task(prior, 2, sampling=sampling))
    assert torch.equal(codes, decode(EagerDecoder(prior, 2), make_task(prior, 2, sampling=sampling)))


def test_int8_logits_stay_close(prior):
    """The codes may differ from FP32's, the logits by the rounding of the weights alone."""
    prior, logits = prior.cpu(), []
    for int8 in (False, True):
        decoder = GraphDecoder(prior, 1, int8=int8, ops=reference)
        decoder.prefill(make_task(prior, prompt_len=11))
        decoder.run(11, 12)
        logits.append(decoder.logits)
    off = (logits[0] - logits[1]).norm() / logits[0].norm()
    assert 0 < off < 0.03


def test_positions_out_of_turn_are_refused(prior):
    prior = prior.cpu()
    decoder = GraphDecoder(prior, 1, ops=reference)
    decoder.prefill(make_task(prior, prompt_len=3))
    with pytest.raises(ValueError, match="3 is next"):
        decoder.run(4, 5)
    with pytest.raises(ValueError, match="2 items for a decoder of 1"):
        decoder.prefill(make_task(prior, 2))


def test_it_says_why_it_cannot_run():
    assert missing(torch.device("cpu"), torch.float32) == "it needs an NVIDIA GPU"


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("3.4.1", "it needs triton 3.5 or newer, not 3.4.1"),
        ("3.5.0+git12", None),
        ("3.10.0", None),
    ],
)
def test_it_needs_a_triton_that_compiles_its_kernels(version, reason, monkeypatch):
    monkeypatch.setattr("triton.__version__", version)
    assert missing(torch.device("cuda"), torch.float16) == reason


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-2), (torch.float16, 0.25), (torch.bfloat16, 2.0)])
def test_a_window_of_the_models_width(randomize, device, dtype, tolerance):
    """All patterns, all rows: every code within rounding of the FP64 choice, the same bits in every batch and run."""
    config = PriorConfig(level=0, width=1920, depth=3, heads=1, context_len=512, num_rows=8)
    prior = randomize(Prior(config)).to(device, dtype)
    task = make_task(prior, 3, 70)
    decoder = GraphDecoder(prior, 3)
    codes = decode(decoder, task, 100, 301)
    ties = assert_same_but_for_ties(prior, task, codes, tolerance)
    assert ties <= 0.05 * codes.numel()
    assert torch.equal(decode(decoder, make_task(prior, 3, 70)), codes)
    for item in range(3):
        alone = decode(GraphDecoder(prior, 1, steps_per_graph=3), make_task(prior, 1, 70, first_item=item))
        assert torch.equal(alone[0], codes[item])
