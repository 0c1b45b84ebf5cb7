"""The claim sd3-formulations: what its runs share, its rule, ranks of made-up scores, and a tiny study as a whole."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from ditkit.config import diff
from ditkit.data import DataError
from ditkit.diffusion.formulations import SAMPLERS, TABLE1
from ditkit.recipes.claims import ask
from ditkit.recipes.claims.formulation_ranks import FAVOURITE, compared, decide, judge
from ditkit.recipes.claims.sd3_formulations import (
    FEW,
    PARTS,
    SMOKE,
    FormulationStudy,
    best_step,
    evaluations,
    parts_of,
)
from ditkit.recipes.reproduce import carry_out, make_plan
from ditkit.recipes.reproduce.claim import FAILS, HOLDS, UNDECIDED, Arm
from ditkit.recipes.reproduce.pool import pool_of

ROWS = [row.name for row in TABLE1]
AS_PAPER = {row.name: row.every for row in TABLE1}


@pytest.fixture(scope="module")
def study() -> FormulationStudy:
    return FormulationStudy(ask("sd3-formulations", ["images=192"], size="gpu", seeds=2))


def test_runs_differ_in_their_objective_alone(study):
    arms = study.arms
    assert [arm.name for arm in arms] == [*ROWS, *ROWS] and [arm.seed for arm in arms] == [0] * 16 + [1] * 16
    assert len({arm.key for arm in arms}) == 32
    first = arms[0].recipe
    for arm in arms[1:16]:
        keys = {d.key.partition(".")[0] for d in diff(first, arm.recipe, {"name", "title"})}
        assert keys == {"objective"} and arm.recipe.objective.drop == 0.1
    assert {d.key for d in diff(first, arms[16].recipe, {"name", "title"})} == {"training.seed"}
    assert first.training.save_every == first.training.validate_every == first.training.steps // 2


def test_settings_are_the_papers_six_samplers_with_both_weights(study):
    assert len(PARTS) == 12 and {value[:2] for value in PARTS.values()} == set(SAMPLERS)
    assert sum(map(evaluations, PARTS)) == 2 * 330
    assert study.arms[0].parts == {part: study.budget.images * evaluations(part) for part in PARTS}
    assert len(study.prompts) == len(study.labels) == study.budget.images
    assert study.prompts[0].startswith("a photo of a ")
    assert study.data["source"] == "digits" and study.words == 6


def test_a_small_machine_scores_averaged_weights_and_a_smoke_takes_rows_from_all_over_the_papers_table():
    small = FormulationStudy(ask("sd3-formulations", seeds=3))
    assert [arm.name for arm in small.arms] == [*ROWS] * 3
    assert SMOKE.rows == FEW and set(FEW) < set(ROWS) and len(FEW) == 8
    order = sorted(FEW, key=lambda row: AS_PAPER[row])
    assert order[0] == ROWS[0] == FAVOURITE and order[-1] == ROWS[-1]
    each = parts_of(small.budget)
    assert {value[:2] for value in each.values()} == set(SAMPLERS) and {value[2] for value in each.values()} == {"ema"}
    few = {row: AS_PAPER[row] for row in FEW}
    assert decide(few, *compared(few))[0] == HOLDS
    third = {**few, FAVOURITE: 2.8}  # rank 3 of 8 is not in the best quarter
    assert decide(third, *compared(third))[0] == UNDECIDED


def test_the_papers_own_order_holds():
    rho, p = compared(AS_PAPER)
    assert rho == 1 and p < 0.001
    verdict, reason = decide(AS_PAPER, rho, p)
    assert verdict == HOLDS and "place 1 of 16, better than rf's 5.67" in reason


def test_the_rule():
    upside_down = {name: -rank for name, rank in AS_PAPER.items()}
    assert decide(upside_down, *compared(upside_down))[0] == FAILS
    swapped = {**AS_PAPER, FAVOURITE: 5.0, "rf": 6.0}  # better than rf, not in the best quarter
    assert decide(swapped, *compared(swapped))[0] == UNDECIDED
    worse_but_alike = {**AS_PAPER, FAVOURITE: 6.0}
    assert decide(worse_but_alike, *compared(worse_but_alike))[0] == UNDECIDED
    assert decide(AS_PAPER, 0.3, 0.2)[0] == UNDECIDED
    assert decide({"rf": 1.0, "v/cos": 2.0}, math.nan, 1.0)[0] == UNDECIDED


def arms_and_scores(value, seeds=(0, 1, 2)):
    """value(row, seed, part) -> (agreement, frechet) as the scores of a study."""
    recipe = FormulationStudy(ask("sd3-formulations", ["images=2"])).fitted
    arms = [Arm(row, recipe.with_({"training.seed": s}), {}) for s in seeds for row in ROWS]
    scores = {
        arm.key: {p: dict(zip(("agreement", "frechet"), value(arm.name, arm.seed, p), strict=True)) for p in PARTS}
        for arm in arms
    }  # fmt: skip
    return arms, scores


def test_ranks_beside_the_papers():
    def as_paper(row, seed, part):
        return 1 - AS_PAPER[row] / 100, AS_PAPER[row] + seed

    arms, scores = arms_and_scores(as_paper)
    found = judge(ROWS, arms, PARTS, scores)
    assert found.verdict == HOLDS and found.ours["rho"] == 1
    assert [found.ours["rows"][row]["every"] for row in ROWS] == list(range(1, 17))
    assert found.ours["rows"]["rf"]["spread"] == 0 and found.paper["rows"]["rf"]["every"] == 5.67
    assert found.effect == pytest.approx([1.54 / 5.67, 2.54 / 6.67, 3.54 / 7.67])  # of distances, seed by seed
    assert found.number == "average rank of logit-normal(0, 1) 1.00, uniform 10.00 of 16; rho 1.00"
    assert not found.remarks
    few = [arm for arm in arms if arm.seed < 2]
    assert judge(ROWS, few, PARTS, scores).verdict == UNDECIDED, "two seeds decide nothing"


def test_a_row_that_is_not_finite_ranks_last_where_it_is_not_and_is_named():
    def lost(row, seed, part):
        bad = row == FAVOURITE and part.startswith("5 steps")
        return (None, None) if bad else (1 - AS_PAPER[row] / 100, AS_PAPER[row])

    arms, scores = arms_and_scores(lost, seeds=(0,))
    scores[next(arm.key for arm in arms if arm.name == "v/cos")] = dict.fromkeys(PARTS)  # it diverged in training
    found = judge(ROWS, arms, PARTS, scores)
    rows = found.ours["rows"]
    assert rows[FAVOURITE]["five"] == 15 and rows[FAVOURITE]["fifty"] == 1 and rows[FAVOURITE]["not finite"] == 2
    assert np.isnan(found.effect).all()
    assert rows["v/cos"]["every"] == pytest.approx((10 * 16 + 2 * 15) / 12)
    assert any(line.startswith(f"{FAVOURITE}: images of 2 of 12") for line in found.remarks)
    assert any("v/cos: images of 12 of 12" in line for line in found.remarks)
    assert any("One seed" in line for line in found.remarks)


def test_the_step_of_lowest_validation_loss(tmp_path):
    for step in (2, 4):
        (tmp_path / "checkpoints" / f"{step:07d}").mkdir(parents=True)
    rows = [{"step": step, "validation_loss": loss} for step, loss in ((2, 0.5), (3, 0.1), (4, 0.7))]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert best_step(tmp_path) == 2
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "validation_loss": NaN}\n{"step": 4, "loss": 1}\n')
    assert best_step(tmp_path) == 4


def test_runs_are_of_their_images_wherever_they_lie(tmp_path):
    def shelf(folder, shade):
        for name in ("cat", "dog"):
            (tmp_path / folder / name).mkdir(parents=True, exist_ok=True)
            for i in range(6):
                Image.new("RGB", (8, 8), (i * 40, shade, 0)).save(tmp_path / folder / name / f"{i}.png")
        return FormulationStudy(ask("sd3-formulations", data=str(tmp_path / folder))).shelf

    first = shelf("here", 0)
    assert shelf("there", 0) == first, "the same images elsewhere"
    assert shelf("here", 90) != first, "other images in the same place"


def test_data_without_classes_are_refused(tmp_path):
    for i in range(6):
        Image.new("RGB", (8, 8), (i * 40, 0, 0)).save(tmp_path / f"{i}.png")
    with pytest.raises(DataError, match="class"):
        FormulationStudy(ask("sd3-formulations", data=str(tmp_path)))
    with pytest.raises(ValueError, match="rf/lognrm"):
        FormulationStudy(ask("sd3-formulations", ['rows=["rf/lognrm(0,1)", "rf", "v/cos"]']))


def test_a_tiny_study_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("ditkit.recipes.build.VALIDATION_IMAGES", 8)
    few = ("5 steps, guidance 5, ema", "25 steps, guidance 5, ema", "50 steps, guidance 1, ema")
    monkeypatch.setattr("ditkit.recipes.claims.sd3_formulations.PARTS", {part: PARTS[part] for part in few})
    keys = ['rows=["rf/lognorm(0.00,1.00)", "rf", "edm(0.00,0.60)"]', "images=4", "steps=2", "classifier_steps=5"]
    plan = make_plan(ask("sd3-formulations", keys, size="smoke", out=tmp_path / "out"))
    result, page = carry_out(plan, lambda *_: None)
    rows = result.ours["rows"]
    assert set(rows) == {"rf/lognorm(0.00,1.00)", "rf", "edm(0.00,0.60)"} and result.verdict == UNDECIDED
    assert all(0 <= row["agreement"] <= 1 and row["frechet"] > 0 and row["not finite"] == 0 for row in rows.values())
    text = page.read_text()
    for said in ("Spearman", "CLIP score", "4 images are no more than the 64 features", "Scores over sampler steps"):
        assert said in text, said
    assert str(tmp_path) not in text

    folder = pool_of(plan.question, plan.study.shelf).run(plan.study.arms[1])
    loaded = plan.study.load(folder, best_step(folder), "ema")
    with torch.no_grad():
        next(loaded.model.parameters()).fill_(math.nan)
    found = plan.study.score(plan.study.arms[1], folder, "5 steps, guidance 5, ema", lambda *_: None)
    assert found["agreement"] is None and found["frechet"] is None
