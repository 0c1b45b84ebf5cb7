"""`ditkit analyze sharing` and `sample --sharing`: schedules measured, stored and used; what cannot be is one line."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch

from ditkit.analysis.sharing import optimal_schedule, sharing_schedule
from ditkit.evaluation import open_generated
from ditkit.recipes.load import load, save_exported
from ditkit.recipes.sharing import Measured, read_schedule
from ditkit.recipes.trade_off import TradeOff

GUIDED = ["--guidance", 2]


def ok(result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def run(tiny_ddt, tmp_path_factory):
    """A copy of the tiny run, which may grow files."""
    return shutil.copytree(tiny_ddt, tmp_path_factory.mktemp("analyzed") / "ddt")


@pytest.fixture(scope="module")
def analyzed(ditkit, run):
    """(what was printed, the folder) of an analysis with its trade-off, guidance 2."""
    words = ["--budget", 2, "--budget", 3, "--templates", 3, *GUIDED]
    quick = ["--n", 120, "--classes", "balanced", "--real", 120, "classifier.steps=4"]
    out = ok(ditkit("analyze", "sharing", run, *words, "--trade-off", *quick))
    (folder,) = (run / "sharing").iterdir()
    return out, folder


def test_schedules_are_those_of_the_stored_measurement(analyzed):
    out, folder = analyzed
    measured = Measured.load(folder)
    assert measured.evaluations == 6 and measured.similarity.shape == measured.error.shape == (6, 6)
    assert np.allclose(np.diag(measured.similarity), 1) and np.allclose(np.diag(measured.error), 0)
    assert measured.times[0] == 1 and (np.diff(measured.times) < 0).all()
    assert len(measured.branches) == 5 and all(v.shape == (6,) for v in measured.branches.values())
    for budget in (2, 3):
        solved = {
            "dp": sharing_schedule(measured.similarity, budget),
            "velocity": optimal_schedule(measured.error, budget),
        }
        for kind, want in solved.items():
            made = read_schedule(folder / f"{kind}-{budget}.json")
            assert (made.rule, made.evaluations, list(made.encode)) == (f"{kind}:{budget}", 6, want)
            assert re.search(rf"^{kind}:{budget} +{', '.join(map(str, want))}$", out, re.MULTILINE)


def test_the_trade_off_compares_time_images_and_distances(analyzed):
    out, folder = analyzed
    found = TradeOff.model_validate_json((folder / "trade-off.json").read_text())
    assert {p.sharing.rule for p in found.points} == {f"{k}:{n}" for k in ("uniform", "dp", "velocity") for n in (2, 3)}
    assert (found.images, found.batch, found.seed, found.labels, found.evaluations) == (120, 64, 1, "balanced", 6)
    assert found.rounds >= 5 and set(found.spaces) == {"pixels", "classifier"} and found.real_images == 120
    assert found.unshared.speedup == found.unshared.predicted == 1 and found.unshared.change == 0
    assert all(d.interval is not None and d.more == 0 for d in found.unshared.distances.values())
    for p in found.points:
        low, high = p.speedup_range
        assert 0 < low <= p.speedup <= high and p.predicted > 1 and p.change > 0 and 0 < p.changed <= 1
        for space, d in p.distances.items():
            assert d.more == pytest.approx(d.value - found.unshared.distances[space].value)
            assert d.more_interval[0] <= d.more <= d.more_interval[1]
    twice, thrice = found.find("uniform:2"), found.find("uniform:3")
    assert twice.predicted > thrice.predicted and twice.change > thrice.change
    assert "speed-up  predicted  latents moved" in out and "multiply-accumulates predict" in out


def test_the_report_shows_everything(analyzed):
    page = (analyzed[1] / "report.html").read_text()
    for title in (
        "How alike the self-conditions are",
        "Schedules",
        "Trade-off",
        "Between branches",
        "How it was measured",
    ):
        assert f">{title}</h2>" in page
    assert page.count("<svg") > 6 and "data:image/png;base64" in page and "uniform:2 at 0, 3" in page
    assert "averaged (EMA), step 6; euler, 6 steps, guidance 2." in page and "can never save more than half" in page


def test_sample_uses_what_was_stored(ditkit, run, analyzed, tmp_path):
    folder, made = analyzed[1], {}
    for name, rule in {"dp": "dp:2", "file": folder / "dp-2.json", "all": "every:1", "none": "none"}.items():
        out = ok(ditkit("sample", run, "--n", 6, *GUIDED, "--sharing", rule, "--out", tmp_path / name))
        made[name] = open_generated(tmp_path / name)
        assert ("encoder at 2 of 6 evaluations (dp:2)" in out) == (name in ("dp", "file"))
    assert made["dp"].sampler.sharing == read_schedule(folder / "dp-2.json")
    assert torch.equal(made["dp"].images[:], made["file"].images[:])
    assert torch.equal(made["all"].images[:], made["none"].images[:]), "K = N is no sharing, byte for byte"
    assert not torch.equal(made["dp"].images[:], made["none"].images[:])
    assert made["dp"].evaluations == 12 and made["none"].sampler.sharing is None


def test_budgets_that_were_not_asked_for_are_solved_too(ditkit, run, analyzed, tmp_path):
    out = ok(ditkit("sample", run, "--n", 2, *GUIDED, "--sharing", "velocity:4", "--out", tmp_path / "out"))
    want = optimal_schedule(Measured.load(analyzed[1]).error, 4)
    assert "encoder at 4 of 6 evaluations (velocity:4)" in out
    assert list(open_generated(tmp_path / "out").sampler.sharing.encode) == want


def test_what_is_stored_is_measured_once(ditkit, run, analyzed):
    file = analyzed[1] / "statistics.npz"
    before = file.stat().st_mtime_ns
    again = ["analyze", "sharing", run, "--templates", 3, *GUIDED]
    assert "(measured before)" in ok(ditkit(*again, "--budget", 4)) and file.stat().st_mtime_ns == before
    assert (analyzed[1] / "dp-4.json").is_file()
    assert "Trade-off" in (analyzed[1] / "report.html").read_text()  # of the first call, kept
    for words in (["--templates", 2], ["--seed", 7, "--templates", 3]):
        out = ok(ditkit("analyze", "sharing", run, *words, *GUIDED))
        assert "(measured before)" not in out and file.stat().st_mtime_ns != before, words
        gone = [analyzed[1] / name for name in ("dp-4.json", "velocity-4.json", "trade-off.json")]
        assert not any(file.exists() for file in gone), "made from a measurement that is not there any more"
    assert "Trade-off" not in (analyzed[1] / "report.html").read_text()
    ok(ditkit(*again))


def test_other_weights_and_samplers_are_measured_apart(ditkit, refused, run, analyzed):
    for words in (["--weights", "raw"], ["step=3", "--steps", 5, "sampling.shift=2"], ["--guidance", 3]):
        asked = ["sample", run, "--n", 2, "--sharing", "dp:2", *(words if "--guidance" in words else [*GUIDED, *words])]
        line = refused(*asked)
        command = line.partition("measure it first: ")[2]
        assert command.startswith(f"ditkit analyze sharing {run} "), line
        out = ok(ditkit(*command.split()[1:], "--templates", 2))
        assert "(measured before)" not in out and "dp:2" in out
        assert "dp:2" in ok(ditkit(*asked)), "the command that the error names is the one that helps"
    assert len(list((run / "sharing").iterdir())) == 4


def test_weights_that_change_under_a_model_folder_are_noticed(ditkit, refused, tiny_ddt, tmp_path):
    loaded, folder = load(tiny_ddt), tmp_path / "model"
    save_exported(loaded, folder)
    words = ["analyze", "sharing", folder, "--templates", 2, "--budget", 2]
    ok(ditkit(*words))
    ok(ditkit("sample", folder, "--n", 1, "--sharing", "dp:2", "--out", tmp_path / "a"))
    with torch.no_grad():
        next(loaded.model.parameters()).add_(0.1)
    (folder / "sharing").rename(tmp_path / "sharing")
    shutil.rmtree(folder)
    save_exported(loaded, folder)
    (tmp_path / "sharing").rename(folder / "sharing")
    assert "was not measured here" in refused("sample", folder, "--n", 1, "--sharing", "dp:2", "--out", tmp_path / "b")
    assert "(measured before)" not in ok(ditkit(*words)) and len(list((folder / "sharing").iterdir())) == 2


def test_another_folder_is_used_by_file(ditkit, refused, tiny_ddt, tmp_path):
    out = ok(ditkit("analyze", "sharing", tiny_ddt, "--budget", 2, "--templates", 2, "--out", tmp_path / "found"))
    assert not (tiny_ddt / "sharing").exists() and "--trade-off" in out
    assert f"--sharing {tmp_path}/found/dp-2.json" in out
    words = ["sample", tiny_ddt, "--n", 2, "--out", tmp_path / "out", "--sharing"]
    assert "was not measured here" in refused(*words, "dp:2")
    assert "(dp:2)" in ok(ditkit(*words, tmp_path / "found" / "dp-2.json"))
    assert "between branches" not in (tmp_path / "found" / "report.html").read_text().lower(), "no guidance, one branch"


def test_a_schedule_by_hand_and_the_memory_switch(ditkit, tiny_ddt, tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"evaluations": 6, "encode": [0, 4]}))
    seen = {}
    for name, words in {"kept": [], "light": ["keep_modulations=false"]}.items():
        words = ["--sharing", tmp_path / "mine.json", "--out", tmp_path / name, *words]
        out = ok(ditkit("sample", tiny_ddt, "--n", 4, *words))
        assert "encoder at 2 of 6 evaluations (mine.json" in out
        assert ("modulations not kept" in out) == (name == "light")
        seen[name] = open_generated(tmp_path / name).images[:]
    assert torch.equal(seen["kept"], seen["light"])


def test_evaluate_scores_shared_samples_and_says_so(ditkit, run, tmp_path):
    words = ["--n", 12, "--sharing", "uniform:2", "--real", 40, "classifier.steps=2"]
    out = ok(ditkit("evaluate", run, *words))
    assert "euler 6 sharing uniform:2 (encoder at 0, 3), no guidance" in out
    stored = json.loads(next((run / "samples").glob("*/scores.json")).read_text())
    assert stored["spaces"]["pixels"]["scores"][0]["protocol"]["sampler"]["sharing"]["encode"] == [0, 3]


BAD = [
    ("uniform:7", "a budget of 7 is not between 1 and the 6 evaluations"),
    ("uniform:0", "a budget of 0 is not between 1 and the 6 evaluations"),
    ("dp:7", "a budget of 7 is not between 1 and the 6 evaluations"),
    ("dp:-1", "a budget of -1 is not between 1 and the 6 evaluations"),
    ("every:7", "every 7 evaluations is not between 1 and the 6 evaluations"),
    ("every:0", "every 0 evaluations is not between 1 and the 6 evaluations"),
    ("uniform:two", "'two' is no whole number; write dp:K, velocity:K"),
    ("dp:", "'' is no whole number; write dp:K, velocity:K"),
    ("unifrom:2", "no such rule or file; did you mean 'uniform'?"),
    ("dp", "no such rule or file; write dp:K, velocity:K"),
    ("nowhere.json", "no such rule or file; write dp:K, velocity:K"),
]


@pytest.mark.parametrize(("rule", "says"), BAD)
def test_bad_rules_are_one_line_and_write_nothing(refused, tiny_ddt, tmp_path, rule, says):
    assert says in refused("sample", tiny_ddt, "--sharing", rule, "--out", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


FILES = [
    ('{"evaluations": 5, "encode": [0, 2]}', "made for 5 evaluations, this sampler makes 6"),
    ('{"evaluations": 6, "encode": [1, 2]}', "begin the schedule with 0"),
    ('{"evaluations": 6, "encode": [0, 3, 3]}', "must ascend"),
    ('{"evaluations": 6, "encode": [0, 6]}', "ends at evaluation 6"),
    ('{"evaluations": 6, "encode": ["a"]}', "valid integer"),
    ('{"encode": [0]}', "evaluations: required"),
    ("{}", "evaluations: required, and not given; "),
    ('{"evaluations": 6, "encode": [0], "model": 1}', "model: unknown key"),
    ("[0, 2]", "expected a mapping"),
    ("{", "not readable as JSON"),
]


@pytest.mark.parametrize(("text", "says"), FILES)
def test_bad_schedule_files(refused, tiny_ddt, tmp_path, text, says):
    file = tmp_path / "mine.json"
    file.write_text(text)
    line = refused("sample", tiny_ddt, "--sharing", file, "--out", tmp_path / "out")
    assert says in line and str(file) in line and not (tmp_path / "out").exists()


def test_unreadable_schedules(refused, tiny_ddt, tmp_path):
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    assert "not readable as JSON" in refused("sample", tiny_ddt, "--sharing", tmp_path / "bytes.json")
    assert "no such settings file" in refused("sample", tiny_ddt, "--sharing", tmp_path)


def test_models_and_solvers_that_cannot_share(refused, ditkit, tiny_run, tiny_ddt, tmp_path):
    for verb in (["sample", tiny_run, "--sharing", "uniform:2"], ["analyze", "sharing", tiny_run]):
        assert "only a DDT's encoder is shared" in refused(*verb)
    for verb in (["sample", tiny_ddt, "--sharing", "every:2"], ["analyze", "sharing", tiny_ddt]):
        assert "adaptive solvers cannot share" in refused(*verb, "--solver", "dopri5")
    assert "keep_modulations has no use without sharing" in refused("sample", tiny_ddt, "keep_modulations=false")
    assert not (tiny_run / "sharing").exists() and not (tiny_ddt / "sharing").exists()


def test_bad_analyses(refused, tiny_ddt, tmp_path):
    for says, words in {
        "a budget of 7 is not between 1 and the 6 evaluations": ["--budget", 7],
        "a budget of 0 is not between": ["--budget", 3, "--budget", 0],
        "templates: input should be greater": ["--templates", 0],
        "--n says how the trade-off is measured: give --trade-off too": ["--n", 5],
        "classifier.steps=4 says how the trade-off is measured": ["classifier.steps=4"],
        "leave --sharing out": ["--sharing", "dp:3"],
        "did you mean 'templates'?": ["templatse=3"],
        "no checkpoint of step 7": ["step=7"],
        "data 'nowhere': no such file or folder": ["--trade-off", "--data", "nowhere"],
        "--n 1: distances are of 2 images at least": ["--trade-off", "--n", 1],
        "2 encoder runs for 6 evaluations need an s that serves 3: give reach=2": ["--budget", 2, "--reach", 1],
        "cannot write to /dev/null/x": ["--out", "/dev/null/x"],
    }.items():
        assert says in refused("analyze", "sharing", tiny_ddt, *words), words
    assert "no such run" in refused("analyze", "sharing", tmp_path / "gone")
    assert "(see ditkit analyze sharing --help)" in refused("analyze", "sharing")
    assert not (tiny_ddt / "sharing").exists()


def test_a_damaged_measurement_is_named(ditkit, refused, tiny_ddt, tmp_path):
    run = shutil.copytree(tiny_ddt, tmp_path / "ddt")
    ok(ditkit("analyze", "sharing", run, "--templates", 1, "--budget", 2))
    (file,) = run.glob("sharing/*/statistics.npz")
    file.write_bytes(file.read_bytes()[:200])
    assert f"{file}: not readable" in refused("sample", run, "--sharing", "dp:2")


def test_budgets_are_numbers_and_commas(ditkit, refused, run, analyzed, tmp_path):
    words = ["analyze", "sharing", run, "--templates", 3, *GUIDED]
    out = ok(ditkit(*words, "--budget", "2,3", "--budget", 5))
    assert all(f"dp:{k} " in out for k in (2, 3, 5))
    assert "--budget 'five': give whole numbers" in refused(*words, "--budget", "five")


def test_help_has_an_example(ditkit):
    out = " ".join(ditkit("analyze", "sharing", "--help").stdout.replace("│", " ").split())
    assert "Example: ditkit analyze sharing runs/ddt --budget 5" in out


def test_the_verb_alone_and_unknown_analyses(refused):
    assert "Missing command. (see ditkit analyze --help)" in refused("analyze")
    assert "No such command 'shairng'" in refused("analyze", "shairng")
