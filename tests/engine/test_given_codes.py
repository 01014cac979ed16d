"""What `sample`, `upsample` and `decode` take for codes, and what they say to the rest."""

import numpy as np
import pytest
import torch
from fastjukebox.engine import Jukebox, SamplingParams
from fastjukebox.engine.sampler import as_codes

CODES = torch.arange(27)[None]
PARAMS = SamplingParams(level=1)


@pytest.fixture(scope="module")
def jukebox(tiny_model):
    return Jukebox.from_pretrained(tiny_model, backend="eager")


@pytest.mark.parametrize(
    "given",
    [CODES.int(), CODES[0], CODES.numpy(), CODES[0].numpy().astype(np.uint16), CODES.tolist()],
)
def test_whole_numbers_of_any_kind_are_codes(given):
    found = as_codes(given, 2)
    assert found.dtype == torch.int64
    assert torch.equal(found, CODES)


def test_reversed_arrays_are_codes():
    assert torch.equal(as_codes(CODES.numpy()[:, ::-1], 2), CODES.flip(1))


@pytest.mark.parametrize("given", [None, [], np.zeros((1, 0)), torch.zeros(1, 0)])
def test_nothing_is_no_codes(given):
    assert as_codes(given, 0).shape == (1, 0)


@pytest.mark.parametrize("given", [CODES.float(), CODES > 3, CODES[None], 3, "codes", [[1, 2], [3]], np.array([1.5])])
def test_other_things_are_one_error(jukebox, given):
    for call in (
        lambda: jukebox.decode(given, 2),
        lambda: jukebox.upsample([None, None, given], PARAMS),
        lambda: jukebox.sample(SamplingParams(0.01, level=1), [None, None, given]),
    ):
        with pytest.raises(ValueError, match="level 2 codes must be whole numbers"):
            call()


@pytest.mark.parametrize("level", ["1", 1.0, True, 3, -1, None])
def test_other_levels_are_one_error(jukebox, level):
    with pytest.raises(ValueError, match=r"level .* does not exist; the model has levels 0 to 2"):
        jukebox.decode(CODES, level)


def test_one_tensor_is_not_taken_for_a_list_of_levels(jukebox):
    with pytest.raises(ValueError, match="a list of 3 levels, the finest first"):
        jukebox.upsample(CODES.expand(3, -1), PARAMS)


def test_upsampling_composes_nothing_new(jukebox):
    # 27 codes of 128 samples: 0.078 s.
    with pytest.raises(ValueError, match=r"cover 0\.078 s, not 0\.09 s"):
        jukebox.upsample([None, None, CODES], SamplingParams(0.09, level=1))


def test_all_that_codes_cover_can_be_asked_for(jukebox):
    # 26 codes of 128 samples; as a float, times the rate, a trifle more.
    assert 26 * 128 / 44100 * 44100 > 26 * 128
    result = jukebox.upsample([None, None, CODES[:, :26]], SamplingParams(26 * 128 / 44100, level=1))
    assert result.audio.shape[1] == 26 * 128


def test_results_can_be_compared(jukebox):
    result = jukebox.upsample([None, None, CODES], PARAMS)
    assert result == result
    assert result != jukebox.upsample([None, None, CODES.numpy()], PARAMS)


def test_a_slow_decoder_is_told_of_at_once(tiny_model, caplog):
    Jukebox.from_pretrained(tiny_model, device="cpu", dtype="bfloat16")
    [message] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "eager decoder, which is slow" in message and "float32" in message
    caplog.clear()
    Jukebox.from_pretrained(tiny_model, device="cpu", dtype="float16", backend="eager")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
