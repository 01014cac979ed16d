"""Makes `fastjukebox.engine` and its siblings importable from a bare checkout; without a GPU, Triton kernels run in its
interpreter and tests marked `gpu` are skipped. With FASTJUKEBOX_PTX=90 in the environment kernels are compiled for
sm_90 instead, and what was compiled is executed on the CPU (kernels/compiled.py)."""

import contextlib
import os
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

# Triton reads this when a kernel is defined, that is, when a test module imports it.
if not torch.cuda.is_available() and "FASTJUKEBOX_PTX" not in os.environ:
    os.environ["TRITON_INTERPRET"] = "1"

try:
    from triton.runtime.interpreter import InterpretedFunction
except ImportError:
    pass
else:
    # The interpreter patches triton.language when a kernel starts, and again at each call of a device function inside
    # it. Once per module and kernel is enough, and the rest is most of a test's time.
    _patched = set()
    _run, _call = InterpretedFunction.run, InterpretedFunction.__call__

    def _run_kernel(self, *args, **kwargs):
        _patched.clear()
        return _run(self, *args, **kwargs)

    def _call_device_function(self, *args, **kwargs):
        module = self.fn.__module__
        if module in _patched:
            return self.rewrite()(*args, **kwargs)
        _patched.add(module)
        return _call(self, *args, **kwargs)

    InterpretedFunction.run, InterpretedFunction.__call__ = _run_kernel, _call_device_function

if "FASTJUKEBOX_PTX" in os.environ:
    sys.path.insert(0, str(ROOT / "tests/kernels"))
    from compiled import install

    install(int(os.environ["FASTJUKEBOX_PTX"]))

# On a fresh checkout hypothesis first makes a table of all letters, which takes seconds on a busy machine.
with contextlib.suppress(ImportError):
    import hypothesis

    hypothesis.settings.register_profile("here", suppress_health_check=[hypothesis.HealthCheck.too_slow])
    hypothesis.settings.load_profile("here")

# pytest-xdist gives each core a worker of its own.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _any_number_of_threads(monkeypatch) -> None:
    """Also in a container that may not keep so many cores busy."""
    monkeypatch.setattr("fastjukebox.engine.threads.granted_cores", lambda: 0)


def pytest_collection_modifyitems(items):
    there = {"gpu": torch.cuda.is_available(), "linux": Path("/proc/self").exists()}
    reasons = {"gpu": "needs an NVIDIA GPU", "linux": "needs Linux"}
    for item in items:
        for name in (name for name, has in there.items() if not has and item.get_closest_marker(name)):
            item.add_marker(pytest.mark.skip(reason=reasons[name]))
