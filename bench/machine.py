"""The machine that a figure belongs to: its processor or GPU as it is now, and the software on it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from ..engine.threads import usable_threads

CPUINFO = Path("/proc/cpuinfo")
_GPU_FIELDS = ("driver_version", "memory.total", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit")


def _cpuinfo(field: str) -> list[str]:
    """A field of every core, where Linux tells it."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    return [line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == field]


def processor() -> str:
    """The CPU's name where Linux tells it, with family and model: in a virtual machine the name may say little."""
    names, family, model = (_cpuinfo(field)[:1] for field in ("model name", "cpu family", "model"))
    kind = f" (family {family[0]}, model {model[0]})" if family and model else ""
    return names[0] + kind if names else platform.machine()


def clock() -> dict[str, float]:
    """The mean clock of the cores right now in MHz, where Linux tells it."""
    found = [float(value) for value in _cpuinfo("cpu MHz")]
    return {"cpu_mhz": round(statistics.mean(found))} if found else {}


def preload() -> dict[str, str]:
    """The libraries that LD_PRELOAD names, if it names any, without their folders."""
    paths = os.environ.get("LD_PRELOAD", "").replace(":", " ").split()
    return {"LD_PRELOAD": " ".join(Path(path).name for path in paths)} if paths else {}


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version(), "torch": torch.__version__, "triton": None}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found["triton"] = importlib.metadata.version("triton")
    # Only peers use it.
    if "transformers" in sys.modules:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found["transformers"] = importlib.metadata.version("transformers")
    return found | {"cuda": torch.version.cuda}


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def device_state(device: torch.device) -> dict[str, Any]:
    """The device as it is now: clocks of a GPU, load of a CPU."""
    if device.type != "cuda":
        load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
        return {
            "device": processor(),
            "cores": os.cpu_count(),
            "threads": usable_threads(),
            "load": load,
        } | clock()
    found = torch.cuda.get_device_properties(device)
    state = {"device": found.name, "capability": f"{found.major}.{found.minor}", "cpu": processor()}
    state |= {"multiprocessors": found.multi_processor_count, "memory": found.total_memory}
    place = ["-i", f"GPU-{found.uuid}"] if hasattr(found, "uuid") else []
    command = ["nvidia-smi", *place, f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader"]
    try:
        line = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return state
    return state | dict(zip(_GPU_FIELDS, (value.strip() for value in line.split(",")), strict=False))
