"""Makes `fastjukebox.engine` and its siblings importable from a bare checkout."""

import sys
import types
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
if "fastjukebox" not in sys.modules:
    package = types.ModuleType("fastjukebox")
    package.__path__ = [str(ROOT)]
    sys.modules["fastjukebox"] = package

# pytest-xdist gives each core a worker of its own.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
