"""SD3's comparison backbones through the spine: adapted to the data, trained with a teacher, sampled, in buckets."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ditkit.models import CrossDiTSettings, JointDiTSettings, UViTSettings, example_condition, token_side
from ditkit.pretrained import ToyTextEncoder
from ditkit.recipes import recipe
from ditkit.recipes.adapt import adapt, concerns
from ditkit.recipes.alive import training_pass
from ditkit.recipes.build import build_job, open_images, prepare
from ditkit.recipes.load import load
from ditkit.recipes.run import train
from ditkit.training import fit, read_metrics

CPU = torch.device("cpu")
BASE = {"depth": 2, "width": 32, "heads": 2, "channels": 1, "size": (8, 8), "text_length": 12}
BASE |= {"text_width": 48, "pooled_width": 48}
BACKBONES = {
    "joint_dit": JointDiTSettings(**BASE, patch=2),
    "cross_dit": CrossDiTSettings(**BASE, patch=2),
    "uvit": UViTSettings(**BASE, patch=1, levels=(16,), level_blocks=1),
}


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setattr("ditkit.recipes.build.VALIDATION_IMAGES", 24)


@pytest.mark.parametrize("name", BACKBONES)
def test_trains_beside_a_teacher_and_samples(name, tiny_text_recipe, tmp_path):
    ours = tiny_text_recipe(
        {"model": BACKBONES[name], "align": {"depth": 2, "projector_width": 16}, "teachers": ({"kind": "toy"},)}
    )
    train(ours, tmp_path, CPU)
    rows = [row for row in read_metrics(tmp_path) if "loss_align" in row]
    assert len(rows) == 4 and all(-1 <= row["loss_align"] <= 1 for row in rows)
    loaded = load(tmp_path)
    assert loaded.recipe.model == BACKBONES[name]
    cond = example_condition(BACKBONES[name], 2)
    out = loaded.model(torch.randn(2, 1, 8, 8), torch.tensor([0.2, 0.9]), cond).sample
    assert out.shape == (2, 1, 8, 8) and out.isfinite().all() and out.any()


def test_uvit_in_buckets_is_aligned_at_its_own_tokens(tiny_text_recipe, tmp_path):
    """Stride 2 by patch 1: a teacher's grid follows the transformer's tokens, not the patches."""
    folder = tmp_path / "data"
    folder.mkdir()
    for i, (height, width) in enumerate([(16, 8), (8, 16), (8, 8)] * 5):
        pixels = np.random.default_rng(i).integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(f"picture {i}", encoding="utf-8")
    data = {"data.source": str(folder), "data.size": None, "data.channels": 3, "data.caption": None}
    changes = {
        "model": BACKBONES["uvit"], "align": {"depth": 1, "projector_width": 16}, "teachers": ({"kind": "toy"},),
        "data.buckets": {"side": 8, "multiple": 2, "max_ratio": 4.0}, "training.batch": 4, "training.steps": 6,
        "training.validate_every": None,
    }  # fmt: skip
    fit(build_job(prepare(tiny_text_recipe({**data, **changes}), CPU), tmp_path / "run"))
    assert len([row for row in read_metrics(tmp_path / "run") if "loss_align" in row]) == 6


def test_a_u_nets_patch_stays_and_its_stride_divides_the_size():
    uvit = UViTSettings(**{**BASE, "channels": 3, "size": (32, 32)}, patch=2, levels=(16, 24))
    assert [token_side(model) for model in (uvit, BACKBONES["uvit"], BACKBONES["cross_dit"])] == [8, 2, 2]
    ours = recipe("t2i.scenes").with_({"model": uvit})
    data, text = SimpleNamespace(size=(40, 64), classes=(), channels=3), ToyTextEncoder()
    made = adapt(ours, data, channels=3, factor=1, text=text).model
    assert (made.size, made.patch, made.grid) == ((40, 64), 2, (5, 8))
    wide = SimpleNamespace(size=(256, 256), classes=(), channels=3)
    assert adapt(ours, wide, channels=3, factor=1, text=text).model.patch == 2, "1024 tokens, as its recipe wants it"
    with pytest.raises(ValueError, match="does not divide into patches of 8: choose --size as a multiple of 8"):
        adapt(ours, SimpleNamespace(size=(36, 40), classes=(), channels=3), channels=3, factor=1, text=text)


def test_a_free_size_is_one_that_the_stride_divides(tiny_text_recipe, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(np.full((21, 30, 3), i, dtype=np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a picture", encoding="utf-8")
    uvit = UViTSettings(**BASE, levels=(8, 8), patch=2)
    data = {"data.source": str(folder), "data.size": None, "data.channels": None, "data.caption": None}
    assert open_images(tiny_text_recipe({"model": uvit, **data}), CPU)[1].size == (16, 24)


def test_what_a_u_net_cannot_carry_is_told_of_its_first_level():
    narrow, wide = (
        recipe("t2i.scenes").with_(
            {
                "model": UViTSettings(**{**BASE, "channels": 3, "size": (32, 32)}, patch=4, levels=(level,)),
                "objective.prediction": "velocity",
            }
        )
        for level in (32, 64)
    )
    (line,) = (line for line in concerns(narrow) if "a patch holds" in line)
    assert "48 numbers and the model is 32 wide" in line and "model.levels" in line
    assert not any("a patch holds" in line for line in concerns(wide))


@pytest.mark.parametrize("name", BACKBONES)
def test_memory_grows_with_the_text(name):
    settings = BACKBONES[name]
    few, many = (
        training_pass(recipe("t2i.digits").with_({"model": settings.model_copy(update={"text_length": n})}), 1)
        for n in (12, 64)
    )
    assert many.forward > few.forward
