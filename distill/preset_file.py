"""preset.json of a work folder: with what preset, seed and settings it was begun."""

from __future__ import annotations

from pathlib import Path

from .presets import Preset
from .run_folder import read_json
from .settings import parsed

PRESET = "preset.json"
# Of a new folder, where none is asked for.
DEFAULT_PRESET = "demo"


def begun_with(folder: Path) -> tuple[str, int]:
    """The preset and seed of a work folder; of a new one, those that are taken where none is asked for.

    Raises:
        ValueError: its preset.json is damaged, or of another version.
    """
    found = read_json(folder / PRESET) or {"preset": DEFAULT_PRESET, "seed": 0}
    if not isinstance(found.get("preset"), str) or not isinstance(found.get("seed"), int):
        raise ValueError(f"{folder / PRESET} names no preset and seed; choose another folder")
    return found["preset"], found["seed"]


def settings_of(folder: Path) -> Preset | None:
    """The settings of a work folder, where others than those of its preset were set. Raises ValueError."""
    found = (read_json(folder / PRESET) or {}).get("settings")
    try:
        return None if found is None else parsed(Preset, found, "")
    except ValueError as error:
        raise ValueError(f"{folder / PRESET}: {error}; choose another folder") from None
