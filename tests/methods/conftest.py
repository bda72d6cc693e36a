"""The small reading layers of ``readers.py`` as a fixture: tests import nothing from each other."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def readers() -> ModuleType:
    path = Path(__file__).parent / "readers.py"
    spec = importlib.util.spec_from_file_location("small_reading_layers", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
