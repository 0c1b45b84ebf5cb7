"""The toy job of the training tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

_spec = importlib.util.spec_from_file_location("training_toy", Path(__file__).parent / "toy.py")
_toy = importlib.util.module_from_spec(_spec)
sys.modules["training_toy"] = _toy
_spec.loader.exec_module(_toy)


@pytest.fixture(scope="session")
def toy():
    """The module tests/training/toy.py."""
    return _toy


@pytest.fixture
def make_job():
    """make_job(folder, **TrainSettings fields) -> a Job on a tiny network."""
    return _toy.make_job


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """Two processes that train together over gloo: pair("train", folder=..., **settings) (tests/training/team.py)."""
    sys.path.insert(0, str(Path(__file__).parent))
    import team

    crew = team.Crew(2, tmp_path_factory.mktemp("pair"))
    yield crew
    crew.close()


@pytest.fixture
def same():
    """same(a, b): two state dicts (or dicts of them) hold equal bits."""

    def compare(a, b) -> None:
        assert a.keys() == b.keys()
        for key in a:
            if isinstance(a[key], torch.Tensor):
                assert torch.equal(a[key], b[key]), key
            else:
                compare(a[key], b[key])

    return compare


@pytest.fixture(autouse=True)
def one_thread():
    """Bits may depend on the thread count; runs that are compared use one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
