"""Sweeps: points are `ditkit sample`'s, scores `ditkit evaluate`'s, nothing is done twice; what is said of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ditkit.evaluation import Protocol, Score, open_generated
from ditkit.evaluation.report import render
from ditkit.evaluation.uncertainty import seed_spread
from ditkit.recipes import scoring, sweep
from ditkit.recipes.scoring import judge, of_generated
from ditkit.recipes.sweep import Sweep, SweepPoint, Value, make_plan, numbers, run_sweep
from ditkit.recipes.sweep_page import best_lines, find_best, page, panels, rows, summary

CPU = torch.device("cpu")
SMALL = ("n=24", "real=60", "classifier.steps=5", "data=digits", "chunk=16")


def quiet(*_: object) -> None:
    """For bars and notes."""


@pytest.fixture
def run(tiny_run, tmp_path) -> Path:
    """A copy of the tiny run, to sample into."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("samples")))


def done(run: Path, *words: str) -> tuple[sweep.Plan, Sweep]:
    plan = make_plan(run, [*SMALL, *words], CPU)
    return plan, run_sweep(plan, quiet, quiet)


def test_points_are_sampled_and_scored_as_the_other_verbs_do(run, monkeypatch):
    trained = []
    train = scoring.classify
    monkeypatch.setattr(scoring, "classify", lambda *a, **k: trained.append(1) or train(*a, **k))
    plan, found = done(run, "guidance=1,3", "steps=2,4")
    assert [(p.guidance, p.steps, p.evaluations) for p in found.points] == [(1, 2, 2), (3, 2, 4), (1, 4, 4), (3, 4, 8)]
    assert len(trained) == 1, "the real side is the same for all points"
    assert json.loads((plan.folder / "sweep.json").read_text()) == found.model_dump(mode="json")
    asked, point = plan.asked[1], found.points[1]
    assert asked.folders[0].parent == run / "samples" and len(list(asked.folders[0].glob("*.png"))) == 24
    monkeypatch.undo()
    samples = of_generated(open_generated(asked.folders[0]))
    alone = judge(samples, plan.real, plan.judging, {}, CPU, what="", weights=None, bar=quiet, say=quiet)
    assert set(point.spaces) == set(alone.spaces) == {"pixels", "classifier"}
    for name, space in alone.spaces.items():
        assert {s.metric: (s.value, s.interval) for s in space.scores} == {
            m: (v.value, v.interval) for m, v in point.spaces[name].values.items()
        }
        assert point.spaces[name].protocol == space.scores[0].protocol and found.floors[name] == space.floor


def test_a_sweep_goes_on_and_grows_without_doing_anything_twice(run, monkeypatch):
    drawn, judged = [], []
    draw, score = sweep.draw, sweep.judge
    monkeypatch.setattr(sweep, "draw", lambda *a: drawn.append(a[3].name) or draw(*a))
    monkeypatch.setattr(sweep, "judge", lambda *a, **k: judged.append(k["what"]) or score(*a, **k))
    plan, first = done(run, "guidance=1,2")
    assert len(drawn) == len(judged) == 2
    assert done(run, "guidance=1,2")[1] == first and len(drawn) == 2
    plan.cached(plan.asked[1].folders[0]).unlink()  # as if killed before it was scored
    (plan.asked[1].folders[0] / "000003.png").unlink()
    assert done(run, "guidance=1,2")[1] == first and len(drawn) == len(judged) == 3
    grown = done(run, "guidance=1,2,3")[1]
    assert grown.points[:2] == first.points and len(grown.points) == 3 and len(judged) == 4
    other, _ = done(run, "guidance=1", "classifier.steps=6")
    assert (
        other.folder != plan.folder and len(judged) == 5 and len(list(other.asked[0].folders[0].parent.iterdir())) == 6
    )


def test_a_shared_folder_never_answers_with_scores_of_something_else(run, tmp_path):
    """Other real images, extractors, weights or a damaged file: scored anew, into files of their own."""
    words = ("guidance=1", f"out={tmp_path / 'out'}")
    first = done(run, *words)[1]
    plan, more = done(run, *words, "real=80")
    assert more.points[0].spaces["pixels"].protocol.reference_n == 80
    assert more.points[0].spaces["pixels"].values != first.points[0].spaces["pixels"].values
    again = make_plan(run, [*SMALL, *words], CPU)
    assert again.open == [] and again.cached(again.asked[0].folders[0]) != plan.cached(plan.asked[0].folders[0])
    assert set(make_plan(run, [*SMALL, *words], CPU, names=["toy"]).open[0][1:]) == set(
        (again.asked[0].requests[0], again.asked[0].folders[0])
    )
    other = shutil.copytree(run, tmp_path / "other", ignore=shutil.ignore_patterns("samples"))
    weights = other / "checkpoints" / "0000003" / "ema.safetensors"
    state = {key: value + 0.01 for key, value in load_file(weights).items()}
    save_file(state, weights)
    assert make_plan(other, [*SMALL, *words], CPU).open, "the folder of its samples has the same name"
    file = again.cached(again.asked[0].folders[0])
    file.write_text(file.read_text().replace(again.every[again.asked[0].folders[0]][2], "0" * 16))
    assert len(again.open) == 1, "what does not tell that it was asked for so is not believed"


def test_a_reference_file_is_known_by_what_is_in_it(run, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", arr_0=rng.integers(0, 255, (20, 8, 8, 3), dtype=np.uint8))
    shutil.copy(tmp_path / "a.npz", tmp_path / "same.npz")

    def place(name: str) -> Path:
        words = ["guidance=1", "n=4", f"reference={tmp_path / name}.npz"]
        return make_plan(run, words, CPU, names=["toy"]).folder

    first = place("a")
    assert place("same") == first != place("b")
    shutil.copy(tmp_path / "b.npz", tmp_path / "a.npz")
    assert place("a") == place("b")


def test_scale_one_is_one_point_in_any_interval(run):
    plan, found = done(run, "guidance=1,2", "interval=0,0.5", "interval=0.5,1")
    assert len(found.points) == 4 and len({p.folders for p in found.points}) == 3 == len(rows(found))
    assert [s.name for s in panels(found, "pixels")[0].series] == ["4 steps, 0 <= t <= 0.5", "4 steps, 0.5 <= t <= 1"]
    assert plan.asked[1].sampling.guidance.high == 0.5


def test_seeds_give_the_mean_and_students_limits(run):
    plan, found = done(run, "guidance=2", "seeds=3", "seed=5")
    assert found.seeds == (5, 6, 7) and [r.seed for r in plan.asked[0].requests] == [5, 6, 7]
    value = found.points[0].spaces["classifier"].values["frechet"]
    assert len(set(value.seeds)) == 3 and value.value == pytest.approx(sum(value.seeds) / 3)
    spread = seed_spread(value.seeds)
    assert value.error == spread.error and value.interval == (max(0.0, spread.interval[0]), spread.interval[1])
    share = found.points[0].spaces["classifier"].values["agreement"]
    assert share.interval is None or 0 <= share.interval[0] <= share.interval[1] <= 1
    assert "over 3 seeds" in render(page(found))


# ---- what is said ---------------------------------------------------------------------------------------------------


def made(values: dict[float, Value], steps: int = 4, floor: float = 0.5, better: str = "lower") -> Sweep:
    protocol = Protocol(n=100, evaluations=4, extractor="x", reference="y")
    points = tuple(
        SweepPoint(
            guidance=g, steps=steps, evaluations=4, folders=(f"{g}",),
            spaces={"pixels": {"protocol": protocol, "values": {"frechet": v}}},
        )
        for g, v in values.items()
    )  # fmt: skip
    seeds = tuple(range(len(next(iter(values.values())).seeds)))
    floors = {"pixels": {"frechet": floor}}
    return Sweep(what="m", weights="w", data="d", n=100, seeds=seeds, floors=floors, points=points)


def one(value: float, half: float | None = None, better: str = "lower") -> Value:
    interval = None if half is None else (value - half, value + half)
    return Value(better=better, value=value, interval=interval, seeds=(value,))


def several(*seeds: float) -> Value:
    return sweep.value_of([score(v) for v in seeds])


def score(value: float):
    protocol = Protocol(n=100, evaluations=4, extractor="x", reference="y")
    return Score(metric="frechet", value=value, better="lower", protocol=protocol)


def test_neighbours_within_noise_are_named():
    found = made({1.0: one(20, 1), 2.0: one(10, 1), 3.0: one(10.5, 1)})
    best = find_best(found)[0]
    assert best.point.guidance == 2 and [p.guidance for p in best.tied] == [3]
    assert "best with guidance 2, 10 (9 to 11). Within noise of it: guidance 3." in summary(found)[0]
    assert best_lines(found) == [("pixels", "frechet", "guidance 2", "10", "9 to 11", "0.5", "guidance 3")]
    same = made({1.0: one(10, 3), 2.0: one(10.1, 3), 3.0: one(11, 3)})
    assert "Within noise of it: all others." in summary(same)[0]


def test_a_clear_best_at_the_end_says_to_go_on():
    said = summary(made({1.0: one(20, 1), 2.0: one(10, 1)}))[0]
    assert "better than every other point by more than noise" in said and "at the upper end of the scales" in said
    assert "end of the scales" not in summary(made({1.0: one(5, 1), 2.0: one(10, 1)}))[0], "nothing is below none"
    assert "guidance 2, 20" in summary(made({1.0: one(5, 1, "higher"), 2.0: one(20, 1, "higher")}))[0]


def test_without_limits_nothing_is_claimed():
    found = made({1.0: one(20), 2.0: one(10)})
    assert "no limits to say how sure" in summary(found)[0] and best_lines(found)[0][-1] == "not known"


def test_seeds_are_compared_pairwise():
    """Every seed says 1 lower, though seeds differ by 10: the limits of each hold the other, the gap's hold no 0."""
    a, b = several(10.0, 20.0, 30.0), several(11.0, 21.1, 30.9)
    assert a.interval[0] < b.value < a.interval[1]
    assert find_best(made({1.0: a, 2.0: b}))[0].tied == ()
    assert len(find_best(made({1.0: a, 2.0: several(11.0, 19.0, 31.0)}))[0].tied) == 1
    assert several(3.0, 3.0).interval is None, "no spread that was seen is no certainty"


def test_two_seeds_give_no_verdict():
    """With one degree of freedom limits are as good as none, and the best of several lines is easily lucky."""
    found = made({1.0: several(10.0, 10.1), 2.0: several(12.0, 12.1001), 3.0: several(14.0, 14.1)})
    assert "Two seeds do not say how sure that is: take --seeds 3." in summary(found)[0]
    assert best_lines(found)[0][-1] == "not known"


def test_more_points_need_a_wider_gap_and_the_gap_is_told():
    """Student's 97.5 % point of 2 degrees is 4.30, and 7.65 for three comparisons together."""
    a, b = several(10.0, 20.0, 30.0), several(11.0, 21.2, 30.6)  # the gap 0.933 +- 0.176
    alone = made({1.0: a, 2.0: b})
    assert find_best(alone)[0].tied == ()
    assert "is 0.9333 worse (95 % limits of the difference 0.1744 to 1.692)." in summary(alone)[0]
    found = made({1.0: a, 2.0: b, 3.0: several(90.0, 99.9, 110.1), 4.0: several(190.0, 200.0, 209.9)})
    assert [p.guidance for p in find_best(found)[0].tied] == [2.0]
    many = made({float(k): one(10 if k == 1 else 11.5, 1) for k in range(1, 9)})
    assert len(find_best(many)[0].tied) == 7, "1.5 is beyond 1.41, the limits of one comparison, not beyond those of 7"
    assert find_best(made({1.0: one(10, 1), 2.0: one(11.5, 1)}))[0].tied == ()


def test_where_all_points_are_equal_none_is_the_best():
    found = made({1.0: one(0), 2.0: one(0), 3.0: one(0)})
    assert best_lines(found) == [("pixels", "frechet", "all equal", "0", "", "0.5", "all others")]
    assert summary(found)[0] == "Fréchet distance in pixels: all points are equal, 0."
    assert "all equal" not in best_lines(made({1.0: one(0)}))[0], "a single point"


def test_one_scale_and_several_steps_are_drawn_over_the_steps():
    points = [made({1.5: one(9 - n / 10, 1)}, steps=n).points[0] for n in (10, 25)]
    found = made({1.5: one(8)}).model_copy(update={"points": tuple(points)})
    panel = panels(found, "pixels")[0]
    assert panel.x_label == "steps" and panel.series[0].x == [10.0, 25.0]


def test_lists_of_numbers():
    assert numbers("guidance", "4,1,1.5,1") == [1.0, 1.5, 4.0]
    for text in ("", "1,x", "-1,2", "nan", "inf"):
        with pytest.raises(ValueError, match=r"guidance .*: give numbers with commas"):
            numbers("guidance", text)
