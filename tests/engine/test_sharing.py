"""Pieces shared among processes of torchrun are those of one process."""

from pathlib import Path

import pytest

ASK = ("sample", "song.wav", "--seconds", 0.02, "--seed", 3, "--samples")


@pytest.mark.parametrize(
    "count, pieces, more, run",
    [(2, 3, (), "song-part{}.run"), (3, 3, ("--first-item", 4, "--run", "own"), "own-part{}")],
)
def test_shares_together_are_what_one_process_samples(ok, monkeypatch, count, pieces, more, run):
    ok(*ASK, pieces, *more)
    whole = [Path(f"song-{item}.wav").read_bytes() for item in range(pieces)]
    assert len(set(whole)) == pieces
    shared = []
    monkeypatch.setenv("WORLD_SIZE", str(count))
    for rank in range(count):
        monkeypatch.setenv("RANK", str(rank))
        ok(*ASK, pieces, *more)
        files = sorted(Path().glob(f"song-part{rank}*.wav"))
        assert Path(run.format(rank)).is_dir() and files
        shared += [path.read_bytes() for path in files]
    assert shared == whole


def test_given_pieces_are_shared(ok, fails, monkeypatch):
    ok(*ASK, 3, "--level", 2)
    ok("upsample", "song.run", "whole.wav", "--level", 1, "--seed", 3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        ok("upsample", "song.run", "part.wav", "--level", 1, "--seed", 3, "--samples", 3)
    whole, shared = (sorted(Path().glob(names)) for names in ("whole-?.wav", "part-part*.wav"))
    assert [path.read_bytes() for path in shared] == [path.read_bytes() for path in whole] and len(whole) == 3
    # One prompt opens all pieces.
    ok("continue", "song.run", "more.wav", "--item", 1, "--seconds", 0.05, "--level", 2, "--samples", 2)
    assert "codes of 3 pieces" in fails("upsample", "song.run", "no.wav", "--level", 1, "--samples", 2)


@pytest.mark.parametrize(
    "words, message", [((*ASK, 1), "2 processes for 1 pieces"), ((*ASK, 2, "--stream"), "--stream")]
)
def test_what_cannot_be_shared_is_refused(fails, monkeypatch, words, message):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert message in fails(*words)
