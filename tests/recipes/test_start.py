"""Runs that begin from given weights: other runs, exported models, published files, other resolutions, refusals."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from ditkit.align import Aligner
from ditkit.checkpoints import CheckpointError, export_published
from ditkit.diffusion import BatchNoise
from ditkit.models import build_model
from ditkit.protocols import Condition
from ditkit.recipes import recipe
from ditkit.recipes.build import build_job, prepare
from ditkit.recipes.choose import choose
from ditkit.recipes.load import load, save_exported
from ditkit.recipes.run import train
from ditkit.recipes.start import begin, open_start
from ditkit.training.checkpoint import read_tensors
from ditkit.training.weights import read

CPU = torch.device("cpu")
SMALL = {
    "model.width": 32, "model.heads": 2, "align.depth": 1, "align.projector_width": 16, "teachers": ({"kind": "toy"},),
    "sampling.steps": 2, "training.steps": 2, "training.batch": 8, "training.log_every": 1, "training.ema": 0.5,
    "training.validate_every": None, "training.save_every": 1, "training.keep_last": 9, "training.lr": 0.05,
}  # fmt: skip
BLOCKS = {"ddt": {"model.encoder_blocks": 1, "model.decoder_blocks": 1}, "repa": {"model.depth": 2}}


def tiny(kind: str, **changes):
    return recipe(f"digits.{kind}").with_({**SMALL, **BLOCKS[kind], **changes})


def larger(kind: str, path, **changes):
    """The same network on images of another size, beginning from `path`."""
    return tiny(kind, **{"data.size": 12, "start": str(path), "training.seed": 5, **changes})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run of each kind at 8 x 8."""
    home = tmp_path_factory.mktemp("start")
    for kind in BLOCKS:
        train(tiny(kind), home / kind, CPU)
    return home


def job_of(made, folder):
    """The job of a run that begins as its recipe says, and what was said."""
    parts = prepare(made, CPU)
    begun = open_start(parts.recipe, folder)
    job = build_job(parts, folder)
    return job, begin(job, parts.recipe, begun)


def same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("kind", BLOCKS)
def test_the_first_loss_is_the_loaded_models_at_the_new_size(runs, tmp_path, kind):
    """Fine-tuning at another resolution begins where the model at that resolution stands, to the bit."""
    rows = []
    state = train(
        larger(kind, runs / kind), tmp_path / "run", CPU, on_step=lambda step, values: rows.append(dict(values))
    )
    assert state.job.model.settings.size == (12, 12)
    loaded = load(runs / kind)
    parts = prepare(larger(kind, runs / kind), CPU)
    batch = next(build_job(parts, tmp_path / "other").batches(0))
    noise = BatchNoise(5, 0, 8, 0, 8)
    aligner = Aligner(parts.recipe.align, 32, [t.width for t in parts.teachers], parts.recipe.model.grid)
    aligner.projectors.load_state_dict(loaded.projectors.state_dict())
    targets = [teacher(batch.images, grid=(6, 6)) for teacher in parts.teachers]
    x = batch.images.float() / 127.5 - 1
    loss = parts.recipe.objective(
        loaded.model, x, Condition(label=batch.labels), noise, aligner.terms(targets, 0)
    )  # fmt: skip
    assert rows[0]["loss"] == pytest.approx(loss.total.item(), rel=1e-6)
    scratch = []
    train(
        larger(kind, runs / kind, start=None), tmp_path / "scratch", CPU,
        on_step=lambda step, values: scratch.append(values["loss"]),
    )  # fmt: skip
    assert abs(scratch[0] - rows[0]["loss"]) > 0.01, "random weights lose otherwise"


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_raw_and_averaged_weights_both_begin_there(runs, tmp_path, weights):
    start = {"path": str(runs / "ddt"), "weights": weights, "step": 1}
    job, said = job_of(tiny("ddt", start=start), tmp_path / "run")
    wanted = read(runs / "ddt", 1, weights)
    same(job.model.state_dict(), wanted)
    same(job.aligner.state_dict(), read(runs / "ddt", 1, weights, "align"))
    name = {"ema": "averaged", "raw": "raw"}[weights]
    assert said == [f"begins from {runs / 'ddt'}, step 1, {name} weights and projectors"]
    other = "raw" if weights == "ema" else "ema"
    assert not torch.equal(wanted["final.linear.weight"], read(runs / "ddt", 1, other)["final.linear.weight"])
    train(tiny("ddt", start=start, **{"training.steps": 1, "training.lr": 1e-30}), tmp_path / "run", CPU)
    for file in ("model", "ema"):
        got = read_tensors(tmp_path / "run", 1, file)
        assert all(torch.allclose(got[k], wanted[k], atol=1e-6) for k in wanted)


def test_a_dit_of_another_grid_makes_its_own_position_table(runs, tmp_path):
    job, said = job_of(larger("repa", runs / "repa"), tmp_path)
    there, here = read(runs / "repa", 2, "ema"), job.model.state_dict()
    assert (there["position"].shape, here["position"].shape) == ((16, 32), (36, 32))
    assert torch.equal(here["position"], build_model(job.model.settings).state_dict()["position"])
    same({k: v for k, v in here.items() if k != "position"}, {k: v for k, v in there.items() if k != "position"})
    assert said[1] == "they were trained on 8x8, here it is 12x12; positions follow"


@pytest.mark.long
def test_a_resumed_run_does_not_load_again(runs, tmp_path):
    source = tmp_path / "source"
    train(tiny("ddt"), source, CPU)
    made = tiny("ddt", start=str(source), **{"training.steps": 4})
    unbroken = train(made, tmp_path / "unbroken", CPU)
    train(made.with_({"training.steps": 2}), tmp_path / "broken", CPU)
    source.rename(tmp_path / "gone")
    state = train(made, tmp_path / "broken", CPU)
    assert state.step == 4
    same(state.model.state_dict(), unbroken.model.state_dict())
    same(state.ema.state_dict(), unbroken.ema.state_dict())
    assert (tmp_path / "broken" / "log.txt").read_text().count("begins from") == 1
    with pytest.raises(CheckpointError, match="no such run, model folder or checkpoint file; name other weights"):
        train(made, tmp_path / "anew", CPU)
    assert not (tmp_path / "anew").exists(), "nothing is written for a run that cannot begin"


def test_the_start_is_recorded_and_part_of_the_runs_identity(runs, tmp_path):
    made = tiny("ddt", start=str(runs / "ddt"))
    train(made, tmp_path / "run", CPU)
    stored = json.loads((tmp_path / "run" / "recipe.json").read_text())["start"]
    assert stored == {"path": str(runs / "ddt"), "source": None, "weights": "ema", "step": None}
    state = json.loads((tmp_path / "run" / "checkpoints" / "0000002" / "state.json").read_text())
    assert state["identity"]["start"] == stored
    with pytest.raises(ValueError, match=r"holds another run: start.* was .*is None"):
        train(made.with_({"start": None, "training.steps": 3}), tmp_path / "run", CPU)
    with pytest.raises(ValueError, match=r"start\.weights was 'ema', is 'raw'"):
        train(made.with_({"start.weights": "raw", "training.steps": 3}), tmp_path / "run", CPU)


# ------------------------------------------------------------------------------------- exported and published


def test_an_exported_model_begins_the_same(runs, tmp_path):
    save_exported(load(runs / "ddt"), tmp_path / "exported")
    job, said = job_of(tiny("ddt", start=str(tmp_path / "exported")), tmp_path / "run")
    same(job.model.state_dict(), read(runs / "ddt", 2, "ema"))
    assert "averaged weights and projectors" in said[0]


@pytest.mark.parametrize("blocks, source", [(2, "ddt"), (0, "improved-dit")])
def test_a_published_file_brings_what_its_tensors_tell_and_the_recipe_the_rest(tmp_path, blocks, source):
    """Three blocks of width 32 are no published size: split and heads come from the recipe."""
    made = tiny("ddt", **{"model.encoder_blocks": blocks, "model.decoder_blocks": 3 - blocks})
    model = build_model(made.model, generator=torch.Generator().manual_seed(3))
    save_file(export_published(model, source), tmp_path / "official.safetensors")
    start = {"path": str(tmp_path / "official.safetensors"), "source": source}
    job, said = job_of(made.with_({"start": start}), tmp_path / "run")
    same(job.model.state_dict(), model.state_dict())
    assert said == [f"begins from {start['path']}, the file's weights; it has no projectors, they begin at random"]


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"align.projector_width": 24}, "its projectors are of other sizes, they begin at random"),
        ({"align.depth": 2}, "its projectors read block 1, here 2: they begin at random"),
    ],
)
def test_projectors_that_do_not_fit_begin_at_random(runs, tmp_path, changes, told):
    made = tiny("ddt", start=str(runs / "ddt"), **changes)
    job, said = job_of(made, tmp_path)
    assert said[0].endswith(told)
    fresh = build_job(prepare(made, CPU), tmp_path)
    same(job.aligner.state_dict(), fresh.aligner.state_dict())
    same(job.model.state_dict(), read(runs / "ddt", 2, "ema"))


def test_another_prediction_is_told(runs, tmp_path):
    made = tiny("ddt", start=str(runs / "ddt"), **{"objective.prediction": "data"})
    said = job_of(made, tmp_path)[1]
    assert "they predict velocity on the linear path, this run trains data on the linear path" in said[1]


# ------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"model.width": 64}, "model.width is 32 there, 64 here"),
        (
            {"model.encoder_blocks": 2},
            "holds another network: model.encoder_blocks is 1 there, 2 here",
        ),
        ({"model.patch": 4}, "model.patch is 2 there, 4 here"),
        ({"model.mlp_ratio": 2.0}, r"blocks\.0\.mlp\.down\.weight \(32, 85\) instead of \(32, 42\)"),
        ({"model.time_scale": 1.0, "model.time_offset": 0.0}, "model.time_scale is -1.0 there, 1.0 here"),
    ],
)
def test_another_network_is_refused_by_what_differs(runs, tmp_path, changes, told):
    with pytest.raises(ValueError, match=told) as caught:
        train(tiny("ddt", start=str(runs / "ddt"), **changes), tmp_path / "run", CPU, keep=changes)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_other_kinds_and_classes_are_refused(runs, tmp_path):
    with pytest.raises(ValueError, match=r"model\.kind is dit there, ddt here"):
        job_of(tiny("ddt", start=str(runs / "repa")), tmp_path)
    made = tiny("ddt", start=str(runs / "ddt"), **{"model.num_classes": 12})
    with pytest.raises(ValueError, match=r"model\.num_classes is 10 there, 12 here"):
        open_start(made, tmp_path)


def test_bad_places_are_refused_in_one_line(runs, tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(1)}, file)
    cases = [
        ({"path": str(file)}, "of a published file say the family: start.source=dit|sit|repa|ddt"),
        ({"path": str(file), "source": "ddt"}, "looks like no family that ditkit knows"),
        ({"path": str(file), "source": "dtt"}, "no source 'dtt'"),
        ({"path": str(tmp_path)}, "is no run and no exported model"),
        ({"path": str(runs / "ddt"), "source": "ddt"}, "leave out start.source=ddt"),
        ({"path": str(runs / "ddt"), "step": 7}, "7"),
        ({"path": str(file), "source": "ddt", "step": 7}, "leave out start.step=7"),
        ({"path": "no/such"}, "no/such: no such run"),
    ]
    for start, told in cases:
        with pytest.raises(ValueError) as caught:
            open_start(tiny("ddt", start=start), tmp_path / "run")
        assert told in str(caught.value) and str(caught.value).startswith("start: ")
        assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------- choosing it


def test_the_command_line_replaces_a_recipes_start_and_adds_to_it():
    chosen = choose("ddt.xl_2_512", ["start.weights=raw", "start=runs/mine"])
    assert chosen.start.model_dump() == {"path": "runs/mine", "source": None, "weights": "raw", "step": None}
    assert choose("ddt.xl_2_512", ["start=none"]).start is None
    assert choose("ddt.xl_2_512").start.step == 1_280_000
    assert recipe("sit.s_2", ["start=a/b.pt"]).start.path == "a/b.pt"
    with pytest.raises(ValueError, match="start: name a run"):
        choose("ddt.xl_2_512", ["start="])
    with pytest.raises(ValueError, match=r"--start runs/a and start\.path=runs/b contradict each other"):
        choose("ddt.xl_2_512", ["start=runs/a", "start.path=runs/b"])


def test_settings_files_name_a_path_or_more(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("base: ddt.b_2_256\nstart: runs/one\n")
    assert recipe(file).start.path == "runs/one"
    file.write_text("base: ddt.b_2_256\nstart: {path: one.ckpt, source: ddt}\n")
    assert (recipe(file).start.source, recipe(file).start.weights) == ("ddt", "ema")
