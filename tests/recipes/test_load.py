"""`ditkit.load`: a run, a model folder and published files are one kind of object, ready to sample."""

from __future__ import annotations

import argparse
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import ditkit
from ditkit.checkpoints import CheckpointError
from ditkit.config import read_settings
from ditkit.protocols import Condition
from ditkit.recipes import Recipe
from ditkit.recipes.load import load, save_exported


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def refused(place, match: str, **arguments) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        load(place, **arguments)
    assert "\n" not in str(caught.value)


def test_a_run_is_everything_that_sampling_needs(tiny_run):
    loaded = ditkit.load(tiny_run)
    assert (loaded.path.kind, loaded.prediction, loaded.align_depth) == ("linear", "velocity", 1)
    assert (loaded.weights, loaded.step, loaded.source) == ("ema", 3, "ditkit")
    assert loaded.recipe.model == loaded.settings and loaded.codec.id == "pixels-1"
    assert len(loaded.projectors) == 1 and loaded.projectors[0](torch.zeros(1, 16, 32)).shape == (1, 16, 16)
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())
    y = Condition(label=torch.tensor([0, 9]))
    assert loaded.model(torch.zeros(2, 1, 8, 8), torch.ones(2), y).sample.shape == (2, 1, 8, 8)


def test_weights_and_step_are_those_asked_for(tiny_run):
    newest = tiny_run / "checkpoints" / "0000003"
    ema, raw = load(str(tiny_run)), load(tiny_run, weights="raw")
    for loaded, name in ((ema, "ema"), (raw, "model")):
        expected = load_file(newest / f"{name}.safetensors")
        assert all(torch.equal(v, expected[k]) for k, v in loaded.model.state_dict().items())
    assert not same(ema.model, raw.model) and not same(ema.projectors, raw.projectors)
    assert load(tiny_run, step=2).step == 2 and not same(load(tiny_run, step=2).model, ema.model)
    refused(tiny_run, r"no checkpoint of step 7; there are \[2, 3\]", step=7)
    refused(tiny_run, "choose 'ema' .* 'raw'", weights="best")


def test_a_model_folder_is_the_same_model(tiny_run, tmp_path):
    loaded = load(tiny_run)
    save_exported(loaded, tmp_path / "model")
    again = load(tmp_path / "model")
    assert same(again.model, loaded.model) and same(again.projectors, loaded.projectors)
    assert (again.recipe, again.align_depth, again.step) == (loaded.recipe, 1, 3)
    refused(tmp_path / "model", "averaged .* only", weights="raw")
    with pytest.raises(FileExistsError, match="exists already"):
        save_exported(loaded, tmp_path / "model")


PUBLISHED = [
    ("dit_forward_learnsigma", "dit", {}, "ancestral", "learned_range", None),
    ("dit_forward_fixedsigma", "dit", {}, "ancestral", "fixed_large", None),
    ("sit_forward", "sit", {}, "euler_maruyama", None, None),
    ("repa_forward_1enc", "repa", {"align_depth": 2}, "euler_maruyama", None, 2),
    ("ddt_forward", "ddt", {"encoder_blocks": 3, "size": (8, 8)}, "euler", None, None),
    ("ddt_improved_dit_forward", "improved-dit", {"patch": 2}, "euler", None, None),
]


@pytest.mark.parametrize(("name", "source", "shape", "solver", "variance", "depth"), PUBLISHED)
@pytest.mark.parametrize("kind", ["flat.safetensors", "ema.pt"])
def test_published_files(reference, tmp_path, name, source, shape, solver, variance, depth, kind):
    found = reference(name)
    state, file = found.state, tmp_path / kind
    if kind == "ema.pt":
        raw = {k: v + 1 for k, v in state.items()}
        torch.save({"model": raw, "ema": state, "opt": {}, "args": argparse.Namespace(lr=1e-4)}, file)
    else:
        save_file(state, file)
    maker = found.meta["constructor"]
    heads = {"heads": maker.get("num_heads") or maker["num_groups"]}
    loaded = ditkit.load(file, source=source, **heads, **shape)
    assert loaded.weights == ("ema" if kind == "ema.pt" else "flat")
    assert loaded.recipe.sampling.solver == solver and loaded.recipe.codec.kind == "kl"
    assert getattr(loaded.recipe.objective, "variance", None) == variance
    assert loaded.align_depth == depth and (loaded.projectors is None) == (depth is None)
    save_exported(loaded, tmp_path / "folder")
    again = load(tmp_path / "folder")  # which also reads the recipe back, validated
    assert same(again.model, loaded.model) and again.recipe == read_settings(Recipe, loaded.recipe.model_dump())
    assert (again.path, again.prediction, again.align_depth) == (loaded.path, loaded.prediction, depth)
    if kind == "ema.pt":
        assert not same(load(file, "raw", source=source, **heads, **shape).model, loaded.model)


def test_a_published_row_brings_its_scores():
    from ditkit.checkpoints import Published
    from ditkit.recipes import recipe
    from ditkit.recipes.load import recipe_of

    for name in ("dit.xl_2_256", "sit.xl_2_256"):
        row = recipe(name)
        objective = row.objective
        made = Published(None, objective.path, objective.prediction, None, None, row.model, name[:3])
        assert recipe_of(made).name == name and recipe_of(made).published


DDT_ROWS = [
    ("xl_2_256", "ddt", False), ("xl_2_512", "ddt", True), ("l_2_256_12en12de", "ddt", True),
    ("improved_sit_xl_2_256", "improved-dit", False), ("improved_repa_xl_2_256", "improved-dit", True),
]  # fmt: skip


@pytest.mark.parametrize(("name", "source", "aligned"), DDT_ROWS)
def test_published_ddt_files_find_their_row(name, source, aligned):
    """From the official keys: the split and the size are told, the projector tells the baselines apart."""
    from ditkit.align import Projector
    from ditkit.checkpoints import export_published, load_published
    from ditkit.models import build_model
    from ditkit.recipes import recipe
    from ditkit.recipes.load import recipe_of

    row = recipe(f"ddt.{name}")
    with torch.device("meta"):
        width = row.model.width
        projectors = torch.nn.ModuleList([Projector(width, 768, width)]) if aligned else None
        state = export_published(build_model(row.model), source, projectors)
    split = {"encoder_blocks": row.model.encoder_blocks} if source == "ddt" else {}
    published = load_published(state, source, size=row.model.size, **split)
    assert recipe_of(published) == row.model_copy(update={"name": f"ddt.{name}"})
    assert published.align_depth == (row.align.depth if aligned else None)


@pytest.mark.parametrize("aligned", [True, False])
def test_a_ddt_of_no_published_row_keeps_its_own_sizes(reference, aligned):
    from ditkit.align import Projector
    from ditkit.checkpoints import export_published, load_published
    from ditkit.recipes.load import recipe_of

    for name, source, split in (("ddt_forward", "ddt", {"encoder_blocks": 3}),
                                ("ddt_improved_dit_forward", "improved-dit", {})):  # fmt: skip
        published = load_published(reference(name).state, source, **split)
        if aligned:
            width = published.settings.width
            with_head = export_published(published.model, source, torch.nn.ModuleList([Projector(width, 16, 24)]))
            published = load_published(with_head, source, align_depth=2, **split)
        found = recipe_of(published)
        assert found.model == published.settings and not found.published and not found.name
        assert (found.align is not None) == aligned == bool(found.teachers)
        if aligned:
            assert (found.align.depth, found.align.projector_width) == (2, 24)
        assert found.title == f"{source} checkpoint" and "training" in found.unpublished


def test_what_is_no_model_is_said_in_one_line(tiny_run, tmp_path):
    refused(tmp_path / "gone", "no such run")
    refused(tmp_path, "no run and no exported model")
    (tmp_path / "adapter.json").touch()
    refused(tmp_path, "a LoRA alone")
    (tmp_path / "adapter.json").rename(tmp_path / "model_index.json")
    (tmp_path / "transformer").mkdir()
    refused(tmp_path, "transformer, with --source diffusers-sd3")
    (tmp_path / "model.pt").write_bytes(b"x")
    refused(tmp_path / "model.pt", "needs its family; say --source")
    shutil.copytree(tiny_run, tmp_path / "empty", ignore=shutil.ignore_patterns("0*"))
    refused(tmp_path / "empty", "no checkpoint in this run yet")


def test_damage_is_found(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    cut = run / "checkpoints" / "0000003" / "ema.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    assert load(run).step == 2  # the newest whole one
    refused(run, "0000003.*bytes, written were", step=3)
    (run / "checkpoints" / "0000002" / "state.json").write_text("{")
    refused(run, "none of the 2 checkpoints is whole")

    save_exported(load(tiny_run), tmp_path / "model")
    file, card = tmp_path / "model" / "model.safetensors", tmp_path / "model" / "model.json"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    refused(tmp_path / "model", r"model\.safetensors: not readable")
    file.write_bytes(whole)
    save_file({k: v for k, v in load_file(file).items() if "final" not in k}, file)
    refused(tmp_path / "model", r"keys do not match: missing final\.")
    card.write_text(json.dumps({"source": "ditkit"}))
    refused(tmp_path / "model", r"model\.json: not what `ditkit convert` writes")


def test_half_written_folders_never_appear(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr("ditkit.recipes.load.dump", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_exported(load(tiny_run), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
