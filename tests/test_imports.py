"""Imports point one way, kernels <- engine <- distill <- bench, and no file is too long to read."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "kernels": {"engine", "distill", "bench", "tests"},
    "engine": {"distill", "bench", "tests"},
    "distill": {"bench", "tests"},
    "bench": {"tests"},
}
SOURCES = sorted(path for folder in (*FORBIDDEN, "tests") for path in (ROOT / folder).rglob("*.py"))


def imported_folders(source: str, folder: str, depth: int) -> set[str]:
    """Top-level folders that a file imports; the file lies `depth` folders below the root, in `folder`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level > depth:
                # From above the folder: the folder is the module's first word, or what is imported.
                prefix = f"{node.module}." if node.module else ""
                modules = [f"fastjukebox.{prefix}{alias.name}" for alias in node.names]
            elif node.level:
                modules = [f"fastjukebox.{folder}"]
            else:
                modules = [f"{node.module}.{alias.name}" for alias in node.names]
        for module in modules:
            words = module.split(".")
            found.add(words[1] if words[0] == "fastjukebox" and len(words) > 1 else words[0])
    return found & {*FORBIDDEN, "tests"}


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_point_one_way(folder):
    wrong = {}
    for path in (ROOT / folder).rglob("*.py"):
        depth = len(path.relative_to(ROOT).parts) - 1
        if bad := imported_folders(path.read_text(), folder, depth) & FORBIDDEN[folder]:
            wrong[str(path.relative_to(ROOT))] = bad
    assert not wrong


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("from ..engine import prior", {"engine"}),
        ("from ..engine.prior import Prior", {"engine"}),
        ("from .. import engine", {"engine"}),
        ("from . import engine", {"kernels"}),
        ("from .philox import random_bits", {"kernels"}),
        ("import fastjukebox.distill.corpus as corpus", {"distill"}),
        ("from fastjukebox import bench", {"bench"}),
        ("from fastjukebox.bench.peers import main", {"bench"}),
        ("import torch.distributed", set()),
        ("def late():\n    from ..distill import corpus", {"distill"}),
    ],
)
def test_every_way_to_import_is_recognized(line, expected):
    assert imported_folders(line, "kernels", 1) == expected


def test_inside_the_package_imports_are_relative():
    for folder in FORBIDDEN:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                absolute = isinstance(node, ast.Import) and any(a.name.startswith("fastjukebox") for a in node.names)
                if isinstance(node, ast.ImportFrom) and not node.level:
                    absolute = (node.module or "").startswith("fastjukebox")
                assert not absolute, f"{path.relative_to(ROOT)}:{node.lineno}"


def test_no_file_is_over_400_lines():
    assert not {str(p.relative_to(ROOT)): n for p in SOURCES if (n := len(p.read_text().splitlines())) > 400}
