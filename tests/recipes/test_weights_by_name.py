"""Averages by name through everything that takes weights: load, sampling's choices, exports, starts, analyses."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

import ditkit
from ditkit.checkpoints import CheckpointError
from ditkit.recipes.digits import sit
from ditkit.recipes.load import save_exported
from ditkit.recipes.published_scores import scored
from ditkit.recipes.recipe import Start
from ditkit.recipes.run import train
from ditkit.recipes.sampling import Choices, describe_doubts, describe_weights, open_model
from ditkit.training import read

TINY = {
    "name": "tiny", "model.depth": 1, "model.width": 16, "model.heads": 2, "sampling.steps": 2, "training.batch": 8,
    "training.save_every": 4, "training.keep_last": 2, "training.ema": 0.5, "training.lr": 1e-2,
    "training.validate_every": None, "training.ema_also": (0.9,), "training.ema_power": (0.05, 0.1),
    "training.ema_snapshots": 2, "evaluation": None,
}  # fmt: skip
NAMES = ("raw", "ema", "ema:0.9", "power:0.1", "power:0.08")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("named") / "tiny"
    train(sit().with_({**TINY, "training.steps": 20}), folder, torch.device("cpu"))
    return folder


def test_each_name_is_another_model(run):
    found = {name: ditkit.load(run, weights=name).model.state_dict() for name in NAMES}
    for name, state in found.items():
        assert all(torch.equal(state[key], value) for key, value in read(run, weights=name).items())
    weights = [state["blocks.0.mlp.fc1.weight"] for state in found.values()]
    assert all(not torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])


def test_it_says_which_and_how_it_was_made(run):
    made, kept = ditkit.load(run, weights="power:0.08"), ditkit.load(run, weights="power:0.1", step=6)
    assert describe_weights(made) == "averaged (power function of width 0.08), step 20" and scored(made).averaged
    (line,) = describe_doubts(made)
    assert "power:0.08 at step 20 is made afterwards of 20 stored averages (of width 0.05, 0.1)" in line
    assert not kept.notes and kept.step == 6  # its checkpoint is gone
    assert describe_weights(ditkit.load(run, weights="ema:0.9")) == "averaged (EMA of decay 0.9), step 20"


def test_choices_starts_and_exports_take_it(run, tmp_path):
    loaded = open_model(run, None, Choices(weights="power:0.08"), torch.device("cpu"))
    save_exported(loaded, tmp_path / "out")
    again = ditkit.load(tmp_path / "out")
    assert again.weights == "power:0.08" and torch.equal(
        again.model.state_dict()["final.linear.weight"], loaded.model.state_dict()["final.linear.weight"]
    )
    with pytest.raises(CheckpointError, match="holds averaged weights only"):
        ditkit.load(tmp_path / "out", weights="raw")
    with pytest.raises(CheckpointError, match=r"weights=power:0\.1 are of a run; here choose 'ema' or 'raw'"):
        ditkit.load(tmp_path / "out", weights="power:0.1")
    begun = sit().with_({**TINY, "training.steps": 1, "start": {"path": str(run), "weights": "power:0.08"}})
    train(begun, tmp_path / "next", torch.device("cpu"))
    said = (tmp_path / "next" / "log.txt").read_text()
    assert "step 20, averaged (power function of width 0.08) weights" in said
    for wrong in ("pwer:0.1", "power", "ema:2"):
        with pytest.raises(ValidationError):
            Choices(weights=wrong)
        with pytest.raises(ValidationError):
            Start(path="x", weights=wrong)
