"""Audio as it grows: the same as when it is whole."""

import dataclasses
import weakref

import pytest
import soundfile
import torch
from fastjukebox.engine import VQVAE, Jukebox, SamplingParams

RATE = 44100


@pytest.fixture(scope="module")
def jukebox(tiny_model):
    return Jukebox.from_pretrained(tiny_model, backend="eager")


def test_streamed_chunks_join_to_the_whole_before_it_is_done(jukebox):
    # Little to sample: all of the top levels are given, and most of the bottom.
    length = 4240
    codes = [torch.randint(37, (1, n)) for n in (1990, length // 4, length // 16)]
    params = SamplingParams(seconds=(length * 8 - 77) / RATE, hop_fraction=1.0, top_k=3)
    params = dataclasses.replace(params, num_samples=2)
    seen, progress = [], []
    for chunk in jukebox.stream(params, codes, progress=progress.append):
        seen.append((chunk, progress[-1].done))
    expected = jukebox.sample(params, codes)
    assert torch.equal(torch.cat([chunk for chunk, _ in seen], dim=1), expected.audio)
    assert [chunk.shape[1] for chunk, _ in seen] == [2048 * 8, 2048 * 8, 144 * 8 - 77]
    total = progress[-1].total
    assert total == 2 * (length - 1990)
    # A chunk waits for the codes that the decoder looks at, and for the window that they are in.
    assert seen[0][1] <= 2 * (2048 + 16 + 48 - 1990)
    assert seen[1][1] < total


def test_a_stream_shorter_than_a_chunk_is_one_chunk(jukebox):
    params = SamplingParams(seconds=0.02, num_samples=2)
    (chunk,) = jukebox.stream(params)
    assert torch.equal(chunk, jukebox.sample(params).audio)


def test_a_streamed_file_is_written_and_not_kept(ok, monkeypatch):
    chunks, alive, stream = [], [], Jukebox.stream

    def watched(*args, **options):
        for chunk in stream(*args, **options):
            own = chunk.clone()
            chunks.append(weakref.ref(own))
            alive.append(sum(ref() is not None for ref in chunks))
            yield own
            del own

    monkeypatch.setattr(Jukebox, "stream", watched)
    margins = VQVAE.block_codes
    monkeypatch.setattr(VQVAE, "block_codes", lambda self, level: (48, margins(self, level)[1]))
    ok("sample", "a.WAV", "--stream", "--seconds", "0.1")
    # The first one, the one before, and this.
    assert len(chunks) > 6 and max(alive) <= 3
    assert soundfile.info("a.WAV").frames == 4410
