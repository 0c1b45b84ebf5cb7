"""The tiny random text encoders of tiny_text.py as a fixture."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("tiny_text", Path(__file__).parent / "tiny_text.py")
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)


@pytest.fixture(scope="session")
def tiny():
    """The module: makers of tiny tokenizers, networks and pipeline folders."""
    pytest.importorskip("transformers")
    return _module


@pytest.fixture(scope="session")
def sd3_folder(tiny, tmp_path_factory) -> Path:
    """The text half of a tiny SD3 pipeline on disk; not to be changed."""
    folder = tmp_path_factory.mktemp("sd3") / "pipeline"
    tiny.tiny_sd3_text(folder)
    return folder
