"""Test modules import `budget`, `decode_case` and `shapes`, which lie beside them."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

# What is tested where there is no Triton, as on macOS.
WITHOUT_TRITON = ("native_condition", "native_library", "packing", "philox", "processors", "reference")


class NeedsTriton(pytest.Module):
    def collect(self):
        pytest.skip("needs Triton", allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    alone = module_path.stem.removeprefix("test_") in WITHOUT_TRITON or importlib.util.find_spec("triton")
    return None if alone else NeedsTriton.from_parent(parent, path=module_path)


@pytest.fixture(scope="session")
def device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
