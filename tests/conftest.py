"""Shared fixtures: recorded inputs and outputs of the published implementations."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parent / "reference"

_spec = importlib.util.spec_from_file_location("load_fixture", FOLDER / "load_fixture.py")
_reader = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_reader)


@dataclass
class Reference:
    """One recording: JSON, official weights, inputs and outputs as torch tensors."""

    meta: dict
    state: dict
    inputs: dict
    outputs: dict

    def close(self, name: str, value) -> None:
        """Assert that `value` equals the recorded output `name` at the tolerance that the recording states."""
        want = self.outputs[name]
        got = torch.as_tensor(value).detach().cpu()
        assert got.shape == want.shape, f"{name}: shape {tuple(got.shape)}, recorded {tuple(want.shape)}"
        if not want.is_floating_point():
            assert torch.equal(got.to(want.dtype), want), f"{name}: integers differ"
            return
        tolerance = _reader.tolerance(self.meta, name)
        error = (got.double() - want.double()).abs().max().item()
        ok = torch.allclose(got.double(), want.double(), **tolerance)
        assert ok, f"{name}: largest error {error:.3g}, allowed {tolerance}"


def _tensor(array):
    return torch.from_numpy(np.array(array)) if isinstance(array, np.ndarray) else torch.as_tensor(array)


def pytest_collection_modifyitems(items):
    """Tests marked gpu are skipped where there is no CUDA device."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def reference():
    """reference("dit_forward_learnsigma") -> Reference (fresh copies on every call)."""

    def load(name: str) -> Reference:
        meta, state, inputs, outputs = _reader.load_fixture(str(FOLDER), name)
        return Reference(meta, *({k: _tensor(v) for k, v in part.items()} for part in (state, inputs, outputs)))

    return load


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    """A run of three steps of SiT + REPA (a toy teacher) on digits, as `ditkit train` leaves it; not to be changed."""
    from ditkit.pretrained import TeacherSettings
    from ditkit.recipes.digits import repa
    from ditkit.recipes.run import train

    changes = {
        "name": "tiny", "model.depth": 2, "model.width": 32, "model.heads": 2, "align.depth": 1,
        "align.projector_width": 16, "teachers": (TeacherSettings(kind="toy"),), "sampling.steps": 4,
        "training.steps": 3, "training.batch": 16, "training.save_every": 2, "training.keep_last": 5,
        "training.ema": 0.5, "training.validate_every": 3,
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(repa().with_(changes), folder, torch.device("cpu"))
    return folder


@pytest.fixture(scope="session")
def tiny_ddt(tmp_path_factory) -> Path:
    """A run of six steps of a tiny DDT (2 + 1 blocks, no teacher) on digits, sampled in 6; not to be changed."""
    from ditkit.recipes.digits import ddt
    from ditkit.recipes.run import train

    changes = {
        "name": "tiny-ddt", "model.encoder_blocks": 2, "model.width": 16, "model.heads": 2, "align": None,
        "teachers": (), "sampling.steps": 6, "training.steps": 6, "training.batch": 16, "training.save_every": 3,
        "training.keep_last": 5, "training.ema": 0.5, "training.validate_every": 6, "training.lr": 1e-2,
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("runs") / "tiny-ddt"
    train(ddt().with_(changes), folder, torch.device("cpu"))
    return folder


@pytest.fixture(scope="session")
def tiny_text_recipe():
    """tiny_text_recipe({"text.seed": 1}) -> the recipe of `tiny_text`, changed."""
    from ditkit.recipes.t2i import digits

    tiny = {
        "name": "tiny-text", "model.depth": 2, "model.width": 32, "model.heads": 2, "training.steps": 4,
        "training.batch": 16, "training.save_every": 2, "training.keep_last": 9, "training.ema": 0.5,
        "training.validate_every": 4, "training.log_every": 1, "sampling.steps": 3,
    }  # fmt: skip
    return lambda changes=(): digits().with_({**tiny, **dict(changes)})


@pytest.fixture(scope="session")
def tiny_text(tiny_text_recipe, tmp_path_factory) -> Path:
    """A run of four steps of a tiny MMDiT on digits whose captions say their class; not to be changed."""
    from ditkit.recipes.run import train

    folder = tmp_path_factory.mktemp("runs") / "tiny-text"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ditkit.recipes.build.VALIDATION_IMAGES", 24)
        train(tiny_text_recipe(), folder, torch.device("cpu"))
    return folder
