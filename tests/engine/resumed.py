"""Requests that are stopped, and resumed."""

import pytest
import torch
from fastjukebox.engine import Jukebox


class Stopped(BaseException):
    pass


def stopped_and_resumed(jukebox, params, folder, stop_at, draft=None):
    """The result of a request that is stopped once so many codes are there, and the progress since it was resumed, with
    that draft."""

    def stop(progress):
        if progress.done >= stop_at:
            raise Stopped

    with pytest.raises(Stopped):
        jukebox.sample(params, run_dir=folder, progress=stop)
    progress = []
    return Jukebox.resume(folder, progress.append, draft=draft), progress


def assert_same(result, expected):
    for level, (codes, wanted) in enumerate(zip(result.codes, expected.codes, strict=True)):
        assert torch.equal(codes, wanted), f"level {level}"
    assert torch.equal(result.audio, expected.audio)
