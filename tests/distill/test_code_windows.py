"""Windows of a code store."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastjukebox.distill.audio_folder import Song
from fastjukebox.distill.code_windows import CodeWindows
from hypothesis import given, settings
from hypothesis import strategies as st


def _array_store(lengths, held_out, ratio=4):
    """Songs of so many upper codes, whose codes tell where they are: 1000 s + i for upper code i of song s and for the
    `ratio` codes below it."""
    songs = tuple(Song(f"{s}", float(n), 1, 1, "held_out" if s in held_out else "train") for s, n in enumerate(lengths))

    def codes(song, level):
        upper = np.arange(lengths[song]) + 1000 * song
        # Encoders leave out what does not fill a code: the lower level may have some codes more.
        return upper.astype(np.int32) if level else np.append(upper, [-1] * (ratio - 1)).astype(np.int32).repeat(ratio)

    return SimpleNamespace(
        path="store",
        songs=songs,
        codes=codes,
        samples_per_code=(8, 8 * ratio),
        sample_rate=8,
        levels=(0, 1),
        indices=lambda split: [index for index, song in enumerate(songs) if song.split == split],
    )


LENGTHS = st.lists(st.integers(0, 40), min_size=2, max_size=6)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 4), st.integers(1, 12), st.integers(0, 50))
def test_windows_lie_under_their_upper_codes_within_a_training_song(lengths, ratio, upper_len, step):
    store = _array_store(lengths, {0}, ratio)
    if max(lengths[1:]) < upper_len:
        with pytest.raises(ValueError, match=f"none of the {len(lengths) - 1} train songs holds a window"):
            CodeWindows(store, 0, upper_len * ratio, ratio, 0, with_upper=True)
        return
    windows = CodeWindows(store, 0, upper_len * ratio, ratio, 0, with_upper=True)
    codes, upper = windows.batch(step, 5)[:2]
    assert codes.shape == (5, upper_len * ratio) and upper.shape == (5, upper_len)
    assert codes.dtype == upper.dtype == torch.int64
    assert torch.equal(codes, upper.repeat_interleave(ratio, dim=1))
    assert torch.equal(upper, upper[:, :1] + torch.arange(upper_len))
    songs = upper // 1000
    assert bool((songs == songs[:, :1]).all()) and bool((songs >= 1).all()) and bool((codes >= 0).all())
    assert windows.too_short == sum(length < upper_len for length in lengths)


def test_all_training_windows_are_equally_likely():
    windows = CodeWindows(_array_store([9, 6, 3, 5, 2], {0}), 0, 12, 4, 0, with_upper=True)
    counts = Counter(int(code) for step in range(40) for code in windows.batch(step, 200)[1][:, 0])
    assert set(counts) == {1000, 1001, 1002, 1003, 2000, 3000, 3001, 3002}
    # 1000 of each; five standard deviations.
    assert all(abs(count - 1000) < 150 for count in counts.values())
    assert windows.too_short == 1 and windows.seconds == 12.0
    assert "12.00 s of 3 songs to train on and 1 held out; 1 are shorter" in windows.report()


def test_windows_without_upper_codes_start_anywhere():
    windows = CodeWindows(_array_store([9, 9], {0}), 1, 6, 4, 0, with_upper=False)
    starts = {int(code) for step in range(20) for code in windows.batch(step, 5)[0][:, 0]}
    assert starts == {1000, 1001, 1002, 1003} and windows.batch(0, 1)[1] is None


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000), st.integers(0, 1000))
def test_ranks_see_the_batch_between_them(world, share, step, seed):
    windows = CodeWindows(_array_store([20, 30, 40], {0}), 0, 12, 4, seed, with_upper=True)
    parts = [windows.batch(step, world * share, rank, world) for rank in range(world)]
    whole = CodeWindows(_array_store([20, 30, 40], {0}), 0, 12, 4, seed, with_upper=True).batch(step, world * share)
    for index in range(2):
        assert torch.equal(torch.cat([part[index] for part in parts]), whole[index])
    if share * world > 3:
        assert not torch.equal(windows.batch(step + 1, share * world)[1], whole[1])


def test_another_seed_gives_other_windows():
    store = _array_store([20, 30, 40], {0})
    found = [CodeWindows(store, 0, 12, 4, seed, with_upper=True).batch(3, 16)[1] for seed in (1, 1, 2)]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_measured_windows_span_the_held_out_songs():
    windows = CodeWindows(_array_store([25, 25, 40, 1], {0, 1, 3}), 0, 32, 4, 0, with_upper=True)
    codes, upper = (torch.cat(tensors) for tensors in zip(*(window[:2] for window in windows.measured(3))))
    assert codes.shape == (6, 32) and windows.too_short == 1
    assert upper[:, 0].tolist() == [3, 9, 15, 1003, 1009, 1015]


def test_what_does_not_fit_is_refused():
    store = _array_store([40, 40, 2], {2})
    with pytest.raises(ValueError, match="none of the 1 held_out songs holds a window of 32 codes of level 0"):
        CodeWindows(store, 0, 32, 4, 0, with_upper=True).measured(1)
    with pytest.raises(ValueError, match="no held_out song; it takes two songs"):
        CodeWindows(_array_store([40], set()), 0, 32, 4, 0, with_upper=True).measured(1)
    with pytest.raises(ValueError, match="whole upper codes"):
        CodeWindows(store, 0, 30, 4, 0, with_upper=True)
    with pytest.raises(ValueError, match="does not stand for 2"):
        CodeWindows(store, 0, 32, 2, 0, with_upper=True)
    with pytest.raises(ValueError, match="level 1 "):
        CodeWindows(store, 1, 32, 4, 0, with_upper=True)
    with pytest.raises(ValueError, match="rank 1 of 3"):
        CodeWindows(store, 0, 32, 4, 0, with_upper=True).batch(0, 4, 1, 3)


def test_an_epoch_sees_as_many_codes_as_there_are():
    # 100 and 50 codes of the upper level to train on.
    windows = CodeWindows(_array_store([30, 100, 50, 3], {0}), 1, 10, 1, 0, with_upper=False)
    assert [windows.epoch_steps(batch) for batch in (1, 4, 15, 100)] == [15, 4, 1, 1]
