"""The testbed: recipes that fit the images, what claims share, judges that tell good samples from bad ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditkit.config import diff
from ditkit.data import DataError
from ditkit.evaluation import read_images
from ditkit.recipes.claims import ask
from ditkit.recipes.reproduce import testbed
from ditkit.recipes.reproduce.claim import Arm, Claim, Question
from ditkit.recipes.reproduce.judges import kept_classifier
from ditkit.recipes.reproduce.testbed import BUDGETS, SPACES, validation_loss

CLAIM = Claim("made-up", "A Paper", "Table 0", "-", "-", "digits", BUDGETS, {"small": 1}, lambda q: None)


def bed(tmp_path, size="smoke", data="digits", **changes) -> testbed.Testbed:
    """A testbed of a made-up claim."""
    budget = BUDGETS[size].model_copy(update=changes)
    return testbed.Testbed(Question(CLAIM, size, budget, data, (0,), tmp_path / "out"))


def pictures(folder: Path, classes=("cat", "dog")) -> str:
    """A folder of 16 x 16 pictures in colour; classes ("",) makes a flat one."""
    drawn = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(6):
            Image.fromarray(drawn.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / name / f"{i}.png")
    return str(folder)


def changed(one, two) -> set[str]:
    """The keys in which two recipes differ."""
    return {change.key for change in diff(one, two)}


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A testbed whose classifier has learned something."""
    made = bed(tmp_path_factory.mktemp("bed"), classifier_steps=150)
    made.begin(lambda *_, **__: None)
    return made


def test_recipes_fit_the_images_and_the_budget(tmp_path):
    b = bed(tmp_path, "small")
    sit = b.sit()
    assert (sit.model.channels, sit.model.num_classes, tuple(sit.model.size)) == (1, 10, (8, 8))
    assert (sit.model.width, sit.model.depth, sit.model.heads) == b.budget.medium
    assert (sit.training.steps, sit.training.lr, sit.sampling.steps) == (400, 4e-3, 16)
    assert changed(sit, b.sit("large")) == {"model.width", "model.depth"}
    assert changed(sit, b.sit(changes={"model.qk_norm": "rms"})) == {"model.qk_norm"}


def test_alignment_changes_nothing_else_and_names_its_teacher(tmp_path):
    b = bed(tmp_path)
    sit, repa, late = b.sit(), b.aligned(b.sit()), b.aligned(b.sit(), teacher_steps=2, depth=3)
    assert {key.split(".")[0] for key in changed(sit, repa)} == {"align", "teachers"}
    assert (repa.align.depth, repa.align.weight, late.align.depth) == (1, 0.5, 3)
    assert set(b.wanted) == {"teacher-4", "teacher-2"} and repa.teachers[0].source == str(b.pool.made("teacher-4"))
    assert Arm("", sit, {}).file != Arm("", repa, {}).file != Arm("", late, {}).file


def test_latents_have_their_codec_and_its_size(tmp_path):
    b = bed(tmp_path, "smoke", pictures(tmp_path / "pets"), latents=True, codec_channels=2)
    model, codec = b.sit().model, b.sit().codec
    assert codec.kind == "kl" and codec.source == str(b.pool.made("codec-2-4")) and "codec-2-4" in b.wanted
    assert model.channels == 2 and model.patch == 1 and 16 % model.size[0] == 0 and model.size[0] < 16
    assert (b.data["source"], b.data["size"], b.data["classes"]) == ("a folder", "16x16", 2)
    assert str(tmp_path) not in json.dumps(b.data)


def test_who_shares_and_who_does_not(tmp_path):
    one, two = bed(tmp_path), bed(tmp_path)
    assert one.shelf == two.shelf and one.pool == two.pool
    assert bed(tmp_path, images=13).shelf != one.shelf and bed(tmp_path, "small").shelf != one.shelf
    elsewhere = Question(CLAIM, "smoke", BUDGETS["smoke"], "digits", (0,), tmp_path / "out", shared=tmp_path / "pool2")
    assert testbed.Testbed(elsewhere).pool.folder == tmp_path / "pool2" / one.shelf


def test_images_without_classes_are_refused(tmp_path):
    with pytest.raises(DataError, match="judges by classes") as caught:
        bed(tmp_path, data=pictures(tmp_path / "flat", classes=("",)))
    assert "\n" not in str(caught.value)


def test_judges_order_real_images_shuffled_labels_and_noise(ready):
    images, labels = read_images(ready.held_out)
    real = ready.judge(images, labels)
    noise = ready.judge(torch.randint(0, 256, images.shape, dtype=torch.uint8), labels)
    shuffled = ready.judge(images, labels.roll(1))
    assert set(real) == {*SPACES, "agreement"}
    assert real["agreement"] > 0.8 > 0.3 > shuffled["agreement"]
    for space in SPACES:
        assert real[space] < noise[space] and real[space] == pytest.approx(shuffled[space], rel=1e-4)


def test_what_was_made_is_not_made_again(ready):
    recipe = ready.aligned(ready.sit())
    ready.begin(lambda *_, **__: None)
    folder = ready.pool.made("teacher-4")
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
    ready.begin(lambda *_, **__: None)
    assert before and before == {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
    judge = ready.pool.made("classifier.safetensors")
    assert judge.stat().st_mtime_ns < min(before.values())  # of the first time, before the recipe asked for a teacher
    assert recipe.teachers[0].source == str(folder)


def test_a_classifier_that_is_kept_is_of_these_images_and_settings(tmp_path):
    data = pictures(tmp_path / "pets")
    b = bed(tmp_path, data=data, classifier_steps=2)
    b.begin(lambda *_, **__: None)
    images, labels = read_images(b.source)
    asked = b.source.classes, b.held_out
    again = kept_classifier(b.pool, (images, labels), *asked, 2, b.device, lambda *_, **__: None)
    assert again.id == b.classifier.id
    assert torch.equal(again.probabilities(images), b.classifier.probabilities(images))
    for other, steps in ((255 - images, 2), (images, 3)):
        with pytest.raises(ValueError, match="learned from other images or settings"):
            kept_classifier(b.pool, (other, labels), *asked, steps, b.device, lambda *_, **__: None)


def test_a_validation_loss_is_found_by_its_step(tmp_path):
    rows = [{"step": 2, "loss": 1.0}, {"step": 2, "validation_loss": 0.5}, {"step": 4, "validation_loss": 0.25}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [validation_loss(tmp_path, step) for step in (2, 3, 4)] == [0.5, None, 0.25]


def test_a_question_says_where_its_pool_is(tmp_path):
    assert ask("repa-gain", out=tmp_path / "a").pool == tmp_path / "pool"
    assert ask("repa-gain", out=tmp_path / "a", pool=tmp_path / "mine").pool == tmp_path / "mine"
