"""preset.json of a work folder: with what preset, seed and settings it was begun."""

from __future__ import annotations

from pathlib import Path

from ..engine.checkpoint import CheckpointError
from .given_teacher import GivenTeacher
from .presets import Preset
from .run_folder import read_json
from .settings import parsed

PRESET = "preset.json"
# Of a new folder, where none is asked for: one that trains its own teacher, and one that is given a teacher.
DEFAULT_PRESET, PRESET_OF_GIVEN = "demo", "paper"


def begun_with(folder: Path, default: str = DEFAULT_PRESET) -> tuple[str, int]:
    """The preset and seed of a work folder; of a new one, those that are taken where none is asked for.

    Raises:
        ValueError: its preset.json is damaged, or of another version.
    """
    found = read_json(folder / PRESET) or {"preset": default, "seed": 0}
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


def is_begun(folder: Path, given: bool) -> bool:
    """Whether networks were trained in a work folder; beside those that were `given`, which codes are of."""
    return bool({path.parent.name for path in folder.glob("*/level_*")} - ({"codes"} if given else set()))


def teacher_of(folder: Path, given: GivenTeacher | None) -> GivenTeacher | None:
    """The model that a work folder was begun with, or is to be: where it was, or where it is now. Its weights are read
    when they are used. As long as nothing was distilled, it may be another one.

    Raises:
        ValueError: there is none at its place, or `given` is another than students were distilled from.
    """
    begun = read_json(folder / PRESET)
    found = (begun or {}).get("teacher")
    if begun is None:
        return given
    if found is None:
        if given:
            raise ValueError(f"{folder} was begun without --teacher: choose another folder")
        return None
    try:
        place, fingerprint = Path(found["folder"]), str(found["fingerprint"])
    except (TypeError, KeyError):
        raise ValueError(f"{folder / PRESET}: teacher {found!r} is none; choose another folder") from None
    if given is None:
        try:
            return GivenTeacher(place, fingerprint)
        except CheckpointError as error:
            raise ValueError(
                f"the teacher of {folder} is gone ({error}): say where it is now, with --teacher"
            ) from None
    if given.fingerprint != fingerprint and is_begun(folder, given=True):
        raise ValueError(f"{folder} was begun with another --teacher, {place}: choose another folder")
    return given
