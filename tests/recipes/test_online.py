"""A run's scores of itself are those of `ditkit evaluate`, change nothing that it trains, and stand in its report."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ditkit.cli import app
from ditkit.config import SettingsError, override
from ditkit.data import open_source
from ditkit.evaluation import Protocol, Score
from ditkit.recipes import online, recipe, scoring
from ditkit.recipes.online_page import DISTANCES, SHARES, history, score_curves, sentence
from ditkit.recipes.registry import from_file
from ditkit.recipes.run import train
from ditkit.recipes.run_page import write_run_report
from ditkit.recipes.score_files import Scores, read_scores
from ditkit.training import list_steps, read, read_metrics

CPU = torch.device("cpu")
TINY = {
    "model.depth": 1, "model.width": 32, "model.heads": 2, "training.batch": 4, "training.steps": 4,
    "training.ema": 0.5, "training.log_every": 1, "training.validate_every": 2, "training.save_every": 2,
    "training.keep_last": 9, "training.lr": 1e-2, "sampling.steps": 2,
}  # fmt: skip
SCORED = {
    "evaluation.every": 2, "evaluation.n": 24, "evaluation.real": 90, "evaluation.classifier.steps": 3,
    "evaluation.chunk": 16,
}  # fmt: skip
TIMED = {"seconds", "seconds_data", "seconds_model", "seconds_optimizer", "images_per_s", "memory_gib"}
OFFLINE = ["classifier.steps=3", "chunk=16"]


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Runs that validate and show a few images only, and draw no report: there are many here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ditkit.recipes.run.write_run_report", lambda *_: None)
        patch.setattr("ditkit.recipes.build.VALIDATION_IMAGES", 8)
        patch.setattr("ditkit.recipes.run.PREVIEW", 2)
        yield


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Four steps of a tiny SiT on digits, scored at 2 and 4."""
    folder = tmp_path_factory.mktemp("online") / "run"
    train(recipe("digits.sit").with_({**TINY, **SCORED}), folder, CPU)
    return folder


def evaluate(folder, step, *words, n=24, real=90):
    """The scores that the command line finds for a checkpoint."""
    words = ["evaluate", str(folder), f"step={step}", "--n", str(n), f"real={real}", *OFFLINE, *words]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    found = [p for p in folder.glob("samples/*/scores.json") if p.parent.name.startswith(f"{step:07d}")]
    return read_scores(max(found, key=lambda p: p.stat().st_mtime_ns))


def rows_of(folder):
    return [{k: v for k, v in row.items() if k not in TIMED} for row in read_metrics(folder)]


@pytest.mark.parametrize("step", [2, 4])
def test_online_is_offline_to_the_last_digit(scored, step):
    mine, theirs = read_scores(online.path_of(scored, step)), evaluate(scored, step)
    assert mine.model_copy(update={"asked": ""}) == theirs
    for name, space in mine.spaces.items():
        for a, b in zip(space.scores, theirs.spaces[name].scores, strict=True):
            assert (a.value, a.interval) == (b.value, b.interval)
            assert a.protocol.fingerprint == b.protocol.fingerprint
    row = next(row for row in read_metrics(scored) if row["step"] == step and "eval_pixels_frechet" in row)
    listed = {f"eval_{n}_{s.metric}": s.value for n, space in theirs.spaces.items() for s in space.scores}
    assert {k: v for k, v in row.items() if k != "step"} == listed
    assert {"eval_pixels_frechet", "eval_classifier_agreement"} <= listed.keys()


def test_another_sampler_labels_and_seed_are_those_of_the_command_line(tmp_path):
    changes = {"evaluation.sampling": {"steps": 3}, "evaluation.guidance": 1.5, "evaluation.seed": 3}
    changes |= {"evaluation.labels": "balanced", "evaluation.every": None, "evaluation.uint8": "repa"}
    run = tmp_path / "run"
    train(recipe("digits.sit").with_({**TINY, **SCORED, **changes}), run, CPU)
    theirs = evaluate(run, 4, "sampling.steps=3", "guidance=1.5", "seed=3", "classes=balanced", "uint8=repa")
    assert read_scores(online.path_of(run, 4)).spaces == theirs.spaces
    assert not online.path_of(run, 2).exists()


def test_an_adapter_is_scored_as_it_is_sampled(scored, tmp_path):
    pytest.importorskip("peft")
    run = tmp_path / "lora"
    changes = {**TINY, **SCORED, "start": {"path": str(scored)}, "adapter.rank": 2, "evaluation.every": None}
    train(recipe("digits.sit").with_(changes), run, CPU)
    assert read_scores(online.path_of(run, 4)).spaces == evaluate(run, 4).spaces


def test_a_text_model_is_scored_on_captions_of_the_data(tmp_path):
    run = tmp_path / "text"
    changes = {**TINY, **SCORED, "evaluation.n": 6, "evaluation.real": 20, "evaluation.every": None}
    train(recipe("t2i.scenes").with_(changes), run, CPU)
    theirs = evaluate(run, 4, n=6, real=20)
    assert read_scores(online.path_of(run, 4)).spaces == theirs.spaces
    assert theirs.spaces["pixels"].scores[0].protocol.labels == "prompts"


def test_spaces_whose_names_are_alike_keep_their_own_numbers():
    protocol = Protocol(n=2, evaluations=1, extractor="x", reference="y")
    spaces = {
        name: {
            "extractor": name, "floor": {},
            "scores": [Score(metric="frechet", value=value, better="lower", protocol=protocol)],
        }
        for name, value in {"a/b": 1.0, "a b": 2.0, "a-b-2": 3.0, "a:b": 4.0}.items()
    }  # fmt: skip
    found = online.numbers(Scores(what="x", data="y", spaces=spaces))
    assert found == {"a-b_frechet": 1.0, "a-b-2_frechet": 2.0, "a-b-2-2_frechet": 3.0, "a-b-3_frechet": 4.0}


def test_real_images_are_looked_at_once_a_run(tmp_path, monkeypatch):
    trained, real = [], scoring.classify
    monkeypatch.setattr(scoring, "classify", lambda *given: trained.append(1) or real(*given))
    train(recipe("digits.sit").with_({**TINY, **SCORED}), tmp_path / "run", CPU)
    assert len(trained) == 1 and len(list((tmp_path / "run" / "evaluations").iterdir())) == 2


def test_against_a_reference_file(scored, tmp_path):
    source = open_source("digits")
    images = torch.stack([source[i].image for i in range(60)])
    np.savez(tmp_path / "real.npz", arr_0=images.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy())
    keys = {"evaluation.reference": str(tmp_path / "real.npz"), "evaluation.extractors": ("toy",)}
    changes = {**TINY, **SCORED, **keys, "evaluation.every": None}
    run = tmp_path / "run"
    train(recipe("digits.sit").with_(changes), run, CPU)
    theirs = evaluate(run, 4, f"reference={tmp_path / 'real.npz'}", "--extractor", "toy", real=10_000)
    assert read_scores(online.path_of(run, 4)).spaces == theirs.spaces and list(theirs.spaces) == ["toy"]
    with pytest.raises(ValueError, match=r"evaluation\.reference and evaluation\.data: give one"):
        train(recipe("digits.sit").with_({**changes, "evaluation.data": {"split": "test"}}), tmp_path / "no", CPU)
    assert not (tmp_path / "no").exists()


def test_losses_and_weights_are_those_of_a_run_without(scored, tmp_path):
    train(recipe("digits.sit").with_(TINY), tmp_path / "run", CPU)
    with_scores = [row for row in rows_of(scored) if "loss" in row]
    assert with_scores == rows_of(tmp_path / "run")
    for weights in ("raw", "ema"):
        a, b = read(scored, weights=weights), read(tmp_path / "run", weights=weights)
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_what_is_there_is_kept_after_a_kill_unless_the_weights_are_others(scored, tmp_path, monkeypatch):
    run = tmp_path / "run"
    settings = recipe("digits.sit").with_({**TINY, **SCORED})
    train(settings.with_({"training.steps": 2}), run, CPU)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines if "eval_" not in line))  # killed before the row
    made, real = [], online.generate
    monkeypatch.setattr(online, "generate", lambda *given, **named: made.append(1) or real(*given, **named))
    train(settings, run, CPU)
    assert len(made) == 1, "of step 4; those of step 2 were there"
    assert rows_of(run) == rows_of(scored)
    file = online.path_of(run, 4)
    file.write_text(file.read_text().replace(read_scores(file).asked, "0" * 16))
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-1]))
    train(settings, run, CPU)
    assert len(made) == 2 and rows_of(run) == rows_of(scored), "scores of other weights are not taken for these"


def test_a_sampler_that_diverges_costs_a_line(tmp_path):
    lines = []
    changes = {**TINY, **SCORED, "evaluation.guidance": 1e38, "evaluation.sampling": {"steps": 20}}
    state = train(recipe("digits.sit").with_(changes), tmp_path / "run", CPU, say=lines.append)
    assert state.step == 4 and list_steps(tmp_path / "run") == [2, 4]
    told = [line for line in lines if "no scores" in line]
    assert len(told) == 2 and "NaN or infinite" in told[0] and told[0].startswith("step 2: no scores: images 0..15")
    assert not (tmp_path / "run" / "evaluations").exists()


def test_nothing_is_written_where_an_evaluation_cannot_be(tmp_path):
    ours = recipe("digits.sit").with_({**TINY, **SCORED, "evaluation.extractors": ("./no/such/folder",)})
    with pytest.raises(Exception, match="no/such/folder"):
        train(ours, tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()
    words = recipe("t2i.scenes").with_({**TINY, "evaluation.labels": "balanced"})
    with pytest.raises(ValueError, match=r"evaluation\.labels: the model reads text"):
        train(words, tmp_path / "run", CPU)


def test_settings_by_dotted_keys():
    plain = recipe("digits.sit")
    assert plain.evaluation is None
    found = override(plain, ["evaluation.every=200", "evaluation.n=500"])
    assert (found.evaluation.every, found.evaluation.n, found.evaluation.sampling) == (200, 500, None)
    assert override(found, ["evaluation=none"]).evaluation is None
    found = override(plain, ["sampling.steps=9", "evaluation.sampling.shift=2", "evaluation.extractors=a, b"])
    assert found.evaluation.sampling == found.sampling.with_({"shift": 2.0}) and found.sampling.steps == 9
    assert found.evaluation.extractors == ("a", "b")
    assert override(found, ["training.steps=5"]).evaluation == found.evaluation, "what stands there stays"
    split = override(plain, ["evaluation.data.split=test"]).evaluation.data
    assert split == plain.data.with_({"split": "test"})
    away = override(plain, ["evaluation.data.source=faces"]).evaluation.data
    assert (away.size, away.channels) == (None, None), "another source brings its own size"
    other = override(recipe("dit.xl_2_256"), ["evaluation.sampling.solver=ddim"]).evaluation.sampling
    assert other.options == {} and other.steps == recipe("dit.xl_2_256").sampling.steps
    with pytest.raises(SettingsError, match=r"evaluation\.uint8: unknown uint8 rule 'x'"):
        override(plain, ["evaluation.uint8=x"])


def score(value, interval=None):
    protocol = Protocol(n=200, evaluations=25, extractor="pixels-1x8x8", reference="real")
    return Score(metric="frechet", value=value, interval=interval, better="lower", protocol=protocol)


def test_a_difference_is_called_clear_only_beyond_its_limits():
    falling = {100: score(5.0, (4.8, 5.2)), 200: score(3.0, (2.9, 3.1))}
    told = sentence("pixels", falling)
    assert told.startswith(
        "Fréchet distance, pixels: 3 at step 200, the lowest so far; clearly lower than that of step 1"
    )
    noise = {**falling, 300: score(3.1, (2.9, 3.3))}
    assert "lowest at step 200, 3. The last is within noise of that of step 200 (3)" in sentence("pixels", noise)
    rising = {**falling, 300: score(9.0, (8.0, 10.0))}
    assert "clearly higher than" in sentence("pixels", rising)
    assert "limits are not known" in sentence("pixels", {1: score(2.0), 2: score(1.0)})
    assert sentence("pixels", {1: score(2.0)}) == "Fréchet distance, pixels: 2 at step 1."


def test_the_report_draws_what_metrics_has(scored, tmp_path):
    rows = read_metrics(scored)
    found = history(scored, rows)
    assert set(found["pixels", "frechet"]) == {2, 4}
    (section,) = score_curves(scored, rows)
    assert section.title == "Scores during training" and "Fréchet distance, pixels" in section.note
    page = write_run_report(from_file(scored / "recipe.json"), scored, scored / "samples" / "0000004.png").read_text()
    assert "Scores during training" in page and "Fréchet distance, classifier (lower is better)" in page
    assert section.note.startswith("Averaged weights, ") and {m for _, m in found} <= {*DISTANCES, *SHARES}, "all drawn"
    told = page.partition("training seconds")[2].partition("</table>")[0]
    assert "seconds" not in rows[-1] and "–" not in told, "the costs are those of training, not of the last scores' row"
    back = [row for row in rows if row["step"] < 4]
    assert set(history(scored, back)["pixels", "frechet"]) == {2}, "a step that the run went back behind is not drawn"
    assert score_curves(tmp_path, [{"step": 1, "loss": 2.0}]) == []
    changed = json.loads(online.path_of(scored, 2).read_text())
    (tmp_path / "evaluations").mkdir()
    for step in (2, 4):
        (tmp_path / "evaluations" / f"{step:07d}.json").write_text(online.path_of(scored, step).read_text())
    for one in changed["spaces"]["pixels"]["scores"]:
        one["protocol"]["seed"] = 7
    (tmp_path / "evaluations" / "0000002.json").write_text(json.dumps(changed))
    assert set(history(tmp_path, rows)["pixels", "frechet"]) == {4}, "another protocol is not comparable"
