"""Makes the checkout importable as `fastjukebox`, installed or not."""

import sys
import types
from pathlib import Path

if "fastjukebox" not in sys.modules:
    package = types.ModuleType("fastjukebox")
    package.__path__ = [str(Path(__file__).resolve().parent.parent)]
    sys.modules["fastjukebox"] = package
