"""Text models through training: captions, cached encodings, resume, previews, alignment, buckets and bad captions."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditkit.data import DataError, read_rejects
from ditkit.evaluation.images import read_png
from ditkit.pretrained import PretrainedMissing, TextSettings, ToyTextEncoder
from ditkit.protocols import Condition
from ditkit.recipes.adapt import explain
from ditkit.recipes.build import build_job, prepare, validation
from ditkit.recipes.choose import choose
from ditkit.recipes.load import load, save_exported
from ditkit.recipes.run import train
from ditkit.recipes.run_page import write_run_report
from ditkit.recipes.text import MOST_TOLD, ToldText, condition_of, heard, open_text
from ditkit.training import fit, read_metrics
from ditkit.training.checkpoint import read_tensors

CPU = torch.device("cpu")
FILES = ("model", "ema", "optimizer")
GOLDEN = [1.6614346504, 1.8027291298, 1.7179113626, 1.6924989223]
NOWHERE = Path("never-written")


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setattr("ditkit.recipes.build.VALIDATION_IMAGES", 24)


@pytest.fixture
def tiny(tiny_text_recipe):
    return tiny_text_recipe


def pictures(folder, captions, size=(8, 8)):
    """One image a caption in `folder`; None leaves it out. sizes: one for all, or one each."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = size if isinstance(size, list) else [size] * len(captions)
    for i, (caption, (height, width)) in enumerate(zip(captions, sizes, strict=True)):
        pixels = np.random.default_rng(i).integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
        if caption is not None:
            (folder / f"{i:03d}.txt").write_text(caption, encoding="utf-8")
    return str(folder)


@pytest.fixture
def own(tiny):
    """own(folder, {...}) -> the tiny recipe on one's own captioned images."""
    data = {"data.size": None, "data.channels": None, "data.caption": None}
    return lambda folder, changes=(): tiny({**data, "data.source": str(folder), **dict(changes)})


# ------------------------------------------------------------------------------------------------- the condition


def test_first_losses_are_golden(tiny_text):
    rows = [row for row in read_metrics(tiny_text) if "loss" in row]
    assert [row["loss"] for row in rows] == pytest.approx(GOLDEN, rel=1e-5)


def test_captions_reach_the_network_through_the_encoder(tiny):
    job = build_job(prepare(tiny(), CPU), NOWHERE)
    batch = next(job.batches(0))
    assert batch.captions == tuple(f"a photo of a {label}" for label in batch.labels.tolist())
    online, cached = ToyTextEncoder(48, 12)(batch.captions), job.condition(batch)
    again = job.condition(batch)
    for name, value in online.tensors.items():
        assert torch.equal(value, cached.tensors[name]) and torch.equal(value, again.tensors[name])
    assert cached.parts == online.parts and cached.label is None


def test_training_on_cached_encodings_equals_encoding_anew(tiny, tmp_path, tiny_text):
    job = build_job(prepare(tiny(), CPU), tmp_path)
    encoder = ToyTextEncoder(48, 12)
    job.condition = lambda batch: encoder(batch.captions)
    job.validate = None
    fit(job)
    for file in FILES:
        a, b = read_tensors(tmp_path, 4, file), read_tensors(tiny_text, 4, file)
        assert all(torch.equal(a[key], b[key]) for key in b) and a.keys() == b.keys()


def test_another_caption_is_another_loss(tiny):
    parts = prepare(tiny(), CPU)
    job = build_job(parts, NOWHERE)
    for p in job.model.parameters():
        p.data.normal_(std=0.05, generator=torch.Generator().manual_seed(p.numel()))
    losses = job.validate(job.model)
    assert {f"loss_t{(k + 0.5) / 8:g}" for k in range(8)} == losses.keys() - {"loss"}
    job.validate.cond.captions = job.validate.cond.captions[::-1]
    assert job.validate(job.model)["loss"] != losses["loss"]


def test_validation_drops_nothing(tiny):
    """Neither whole captions nor encoders are dropped: the loss is that of the captions as they are."""
    base, dropped = ({"objective.drop": 0.0}, {"objective.drop": 1.0, "objective.drop_each": 1.0})
    found = []
    for changes in (base, dropped):
        parts = prepare(tiny(changes), CPU)
        job = build_job(parts, NOWHERE)
        for p in job.model.parameters():
            p.data.normal_(std=0.05, generator=torch.Generator().manual_seed(p.numel()))
        found.append(validation(parts, job.encode)(job.model)["loss"])
    assert found[0] == found[1]


def test_empty_captions_are_encoded_and_counted_by_position(tiny):
    parts = prepare(tiny({"data.empty_share": 0.5, "training.batch": 64}), CPU)
    job = build_job(parts, NOWHERE)
    batch = next(job.batches(0))
    asked: list[str] = []

    def spy(prompts):
        asked.extend(prompts)
        return ToyTextEncoder(48, 12)(prompts)

    parts.text = spy
    condition_of(batch, parts.recipe, spy)
    empty = [i for i, text in enumerate(asked) if text == ""]
    assert 16 < len(empty) < 48
    assert all(asked[i] == batch.captions[i] for i in range(64) if i not in empty)
    assert job.identity["captions"] == [0.5, 0.5]


# ------------------------------------------------------------------------------------------------ the same numbers


def test_resume_is_bit_equal(tiny, tmp_path, tiny_text):
    short = tiny({"training.steps": 2})
    train(short, tmp_path / "run", CPU)
    train(tiny(), tmp_path / "run", CPU)
    for file in FILES:
        a, b = read_tensors(tmp_path / "run", 4, file), read_tensors(tiny_text, 4, file)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in b)


def test_accumulation_gives_the_same_weights(tiny, tmp_path, tiny_text):
    fit(build_job(prepare(tiny({"training.accumulate": 4}), CPU), tmp_path))
    a, b = read_tensors(tmp_path, 4, "model"), read_tensors(tiny_text, 4, "model")
    assert all(torch.allclose(a[key], b[key], atol=2e-5) for key in b)


def test_encodings_are_kept_from_run_to_run(tiny, tmp_path, monkeypatch):
    """In half precision, as SD3 stored them; a second run reads what the first one wrote."""
    kept = tiny({"data.text_cache": str(tmp_path / "kept"), "training.validate_every": None})
    job = build_job(prepare(kept, CPU), tmp_path / "a")
    batch = next(job.batches(0))
    online, cached = ToyTextEncoder(48, 12)(batch.captions), job.condition(batch)
    assert torch.equal(cached.text, online.text.half().float()) and torch.equal(cached.pooled, online.pooled)
    fit(job)
    assert job.identity["text"] == "toy-text-48-12-0 in half precision"
    monkeypatch.setattr(ToyTextEncoder, "_word", lambda self, word: pytest.fail("encoded again"))
    fit(build_job(prepare(kept, CPU), tmp_path / "b"))
    a, b = read_tensors(tmp_path / "a", 4, "model"), read_tensors(tmp_path / "b", 4, "model")
    assert all(torch.equal(a[key], b[key]) for key in b)


def test_another_encoder_cannot_go_on(tiny, tmp_path, tiny_text):
    with pytest.raises(ValueError, match=r"holds another run: .*text\.seed was 0, is 1"):
        train(tiny({"text.seed": 1, "training.steps": 6}), tiny_text, CPU)
    job = build_job(prepare(tiny({"training.steps": 6}), CPU), tmp_path)
    fit(build_job(prepare(tiny(), CPU), tmp_path))
    job.identity["text"] = "another-encoder"  # the same settings, other files behind them
    with pytest.raises(ValueError, match="cannot be resumed: text was toy-text-48-12-0, is another-encoder"):
        fit(job)


# ------------------------------------------------------------------------------------------------ what a run leaves


def test_the_run_remembers_encoder_and_captions(tiny_text):
    told = json.loads((tiny_text / "environment.json").read_text())
    assert told["text"] == "toy-text-48-12-0"
    assert sorted(told["data"]["captions"]) == sorted(f"a photo of a {i}" for i in range(10))
    loaded = load(tiny_text)
    assert loaded.captions == tuple(told["data"]["captions"]) and loaded.encoder == told["text"]
    assert loaded.text.id == told["text"] and loaded.text(["x"]).text.shape == (1, 12, 48)
    sheet = read_png(tiny_text / "samples" / "0000004.png")[0]
    assert sheet.shape[0] == 3 and sheet.shape[2] > 3 * 128, "captions stand under enlarged images"


def test_an_exported_text_model_samples_too(tiny_text, tmp_path):
    save_exported(load(tiny_text), tmp_path / "model")
    again = load(tmp_path / "model")
    assert (again.captions, again.encoder) == (load(tiny_text).captions, "toy-text-48-12-0")
    assert again.text is not None and load(tiny_text).recipe.text == again.recipe.text


def test_class_models_have_no_text(tiny_run):
    assert load(tiny_run).text is None and load(tiny_run).captions == ()


# ------------------------------------------------------------------------------------------------ fitted to the data


def test_widths_come_from_the_encoder(tiny):
    changed = tiny({"text.width": 12, "text.length": 5})
    parts = prepare(changed, CPU)
    model = parts.recipe.model
    assert (model.text_width, model.pooled_width, model.text_length) == (12, 12, 5)
    lines = explain(changed, parts.recipe)
    assert "model.text_width: 48 in the recipe, 12 here (from the text encoder)" in lines
    without = prepare(tiny({"model.pooled_width": 0}), CPU).recipe.model
    assert without.pooled_width == 0, "a model that takes no pooled vector stays without"


def test_an_encoder_by_name_is_the_command_lines():
    assert choose("t2i.digits", ["text=toy", "text.length=7"]).text == TextSettings(kind="toy", length=7)
    assert choose("t2i.digits", ["text=sd3:/some/pipeline"]).text.source == "/some/pipeline"
    with pytest.raises(ValueError, match=r"recipe 'sit\.s_2' reads no text, so --text has no use"):
        choose("sit.s_2", ["text=toy"])
    with pytest.raises(ValueError, match=r"--text toy and text\.kind=clip contradict each other"):
        choose("sd3.medium", ["text=toy", "text.kind=clip"])
    with pytest.raises(PretrainedMissing, match="text encoder"):
        choose("t2i.digits", ["text=./no/such/folder"])


def test_alignment_reads_image_tokens_of_a_text_model(tiny, tmp_path):
    aligned = {
        "align": {"depth": 1, "projector_width": 16}, "teachers": ({"kind": "toy"},), "training.validate_every": None,
    }  # fmt: skip
    fit(build_job(prepare(tiny(aligned), CPU), tmp_path))
    rows = [row for row in read_metrics(tmp_path) if "loss_align" in row]
    assert len(rows) == 4 and all(-1 <= row["loss_align"] <= 1 for row in rows)


def test_buckets_train_with_many_sizes_and_a_teacher(own, tmp_path):
    sizes = [(16, 8)] * 6 + [(8, 16)] * 6 + [(8, 8)] * 6
    folder = pictures(tmp_path / "data", [f"picture {i}" for i in range(18)], sizes)
    ours = own(
        folder,
        {
            "data.buckets": {"side": 8, "multiple": 2, "max_ratio": 4.0}, "training.batch": 4, "training.steps": 6,
            "align": {"depth": 1, "projector_width": 16}, "teachers": ({"kind": "toy"},), "data.channels": 3,
        },
    )  # fmt: skip
    parts = prepare(ours, CPU)
    seen = set()
    job = build_job(parts, tmp_path / "run")
    encode = job.encode
    job.encode = lambda images, noise: seen.add(tuple(images.shape[2:])) or encode(images, noise)
    fit(job)
    assert len(seen) >= 3 and all(h * w <= 64 for h, w in seen)
    assert len(job.validate.images) == 18 and job.validate.images.shape[2:] == (8, 8)
    train(ours, tmp_path / "whole", CPU)
    assert (tmp_path / "whole" / "report.html").is_file()


# -------------------------------------------------------------------------------------------------- bad captions


def test_images_without_captions_are_one_line(own, tmp_path):
    folder = pictures(tmp_path / "data", [None] * 4)
    with pytest.raises(DataError, match="none of the 4 images looked at has a caption") as caught:
        prepare(own(folder), CPU)
    assert "\n" not in str(caught.value) and "NAME.txt" in str(caught.value)


def test_an_image_without_a_caption_is_listed_not_dropped_silently(own, tmp_path):
    captions = ["two circles", None, "é 漢字 🙂", " \n", "a square"]
    folder = pictures(tmp_path / "data", captions)
    said: list[str] = []
    ours = own(folder, {"training.batch": 4, "training.steps": 5})
    train(ours, tmp_path / "run", CPU, say=said.append)
    rejects = dict(read_rejects(tmp_path / "run" / "rejects.jsonl"))
    assert {path.rpartition("/")[2] for path in rejects} == {"001.png", "003.png"}
    assert all("caption" in reason for reason in rejects.values())
    assert any("validation leaves out 2 images" in line for line in said)
    assert load(tmp_path / "run").captions == ("two circles", "é 漢字 🙂", "a square")


def test_what_is_cut_off_is_told_once_and_not_for_ever():
    text = open_text(TextSettings(kind="toy", length=2), CPU)
    with heard() as lines:
        text(["one two three four", "one two"])
        text(["one two three four"])
    assert lines == ["a prompt is longer than the 2 words of the toy encoder, which does not see: 'three four'"]
    with heard() as lines:
        text([f"a b {i}" for i in range(3 * MOST_TOLD)])
    assert len(lines) == MOST_TOLD and lines[-1].startswith("more prompts are cut")
    assert not logging.getLogger("ditkit.text").handlers


def test_other_warnings_pass_through():
    class Odd:
        id, width, pooled_width, length, notes = "odd", 2, 0, 1, ()

        def __call__(self, prompts):
            import warnings

            warnings.warn("old", DeprecationWarning, stacklevel=1)
            return Condition(text=torch.zeros(len(prompts), 1, 2))

    with pytest.warns(DeprecationWarning, match="old"), heard() as lines:
        ToldText(Odd())(["x"])
    assert lines == []


def test_the_report_counts_rejects(tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    sheet = next((folder / "samples").glob("*.png"))
    (folder / "rejects.jsonl").write_text('{"path": "a.png", "reason": "it has no caption"}\n')
    page = write_run_report(load(folder).recipe, folder, sheet).read_text(encoding="utf-8")
    assert "which others replaced: 1 (rejects.jsonl)" in page
