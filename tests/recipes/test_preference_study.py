"""The preference study at toy size, and the parts of it that can be checked exactly."""

from __future__ import annotations

import json

import pytest
import torch

from ditkit.data import Pairs, Scenes
from ditkit.evaluation.geneval import judge_scenes, scene_prompts
from ditkit.pretrained import TextSettings, load_text
from ditkit.protocols import Condition, Part
from ditkit.recipes import preference_study as study
from ditkit.recipes.registry import recipe
from ditkit.recipes.run import train

CPU = torch.device("cpu")
TINY = {
    "model.depth": 1, "model.width": 32, "model.heads": 2, "training.batch": 4, "training.steps": 2,
    "training.ema": 0.5, "training.log_every": 1, "training.validate_every": None, "sampling.steps": 1,
}  # fmt: skip


def test_right_images_beat_wrong_ones_of_the_same_prompt():
    prompts = scene_prompts(2, seed=1, split="train")
    verdicts = [i % 3 == 0 for i in range(len(prompts) * 4)]
    found = study.ranked(prompts, verdicts, 4, ["counting", "colors"])
    assert found and all(verdicts[w] and not verdicts[l] and w // 4 == l // 4 for w, l in found)
    assert {prompts[w // 4].tag for w, _ in found} == {"counting", "colors"}
    assert len({i for pair in found for i in pair}) == 2 * len(found), "no image twice"


def test_pairs_are_written_as_the_source_reads_them(tmp_path):
    images = torch.stack([Scenes("test")[i].image for i in range(4)])
    file = study.write_pairs(tmp_path / "pairs.parquet", images, [(2, 0, "a"), (1, 3, "b")])
    source = Pairs(file)
    assert torch.equal(source[0].image, torch.cat([images[2], images[0]]))
    assert torch.equal(source[1].image, torch.cat([images[1], images[3]])) and source[1].caption == "b"


def test_a_text_encoder_is_left_out_alone():
    class Two:
        id, width, pooled_width, length = "two", 3, 4, 2

        def __call__(self, prompts):
            parts = (Part("clip_l", (0, 1), (0, 3), (0, 4)), Part("t5", (1, 2), (0, 3), (0, 0)))
            n = len(prompts)
            return Condition(text=torch.ones(n, 2, 3), pooled=torch.ones(n, 4), parts=parts)

    cond = study.Without(Two(), 0)(["a", "b"])
    assert not cond.text[:, 0].any() and cond.text[:, 1].all() and not cond.pooled.any()
    assert [part.name for part in load_text(TextSettings(kind="toy"), CPU)([""]).parts] == ["words", "bag"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ditkit.recipes.build.VALIDATION_IMAGES", 8)
        patch.setattr("ditkit.recipes.run.PREVIEW", 2)
        folder = tmp_path_factory.mktemp("study") / "base"
        train(recipe("t2i.scenes").with_(TINY), folder, CPU)
        yield folder


def test_the_study_end_to_end_with_a_lenient_judge(base, tmp_path, monkeypatch):
    """Two steps teach nothing, so every second image is called right; what is measured is what was drawn."""

    def lenient(images, prompts):
        told = judge_scenes(images, prompts)
        return [record.model_copy(update={"correct": record.index % 2 == 0}) for record in told]

    budget = study.Budget(steps=2, rank=2, tuning_prompts=1, images=2, test_prompts=1, test_images=1, pairs=4)
    with pytest.raises(ValueError, match=r"no prompt of a task that the base controls .*train the base for longer"):
        study.preference_study(base, tmp_path / "weak", 1, budget, say=lambda line: None)
    monkeypatch.setattr(study, "judge_scenes", lenient)
    said: list[str] = []
    result = study.preference_study(base, tmp_path / "out", 2, budget, say=said.append)
    assert result == json.loads((tmp_path / "out" / "preference.json").read_text())
    assert set(result["base"]["tasks"]) == set(result["pairs"]["right"]) and result["pairs"]["pairs"] == 4
    assert result["pairs"]["found"] == 6 and len(Pairs(tmp_path / "out" / "pairs.parquet")) == 4
    assert [len(runs) for runs in result["arms"].values()] == [2, 2] and set(result["encoders"]) == {"words", "bag"}
    assert sorted(p.name for p in (tmp_path / "out" / "runs").iterdir()) == ["dpo-0", "dpo-1", "winners-0", "winners-1"]
    assert result["published"]["SD3 depth 38, 512 px, DPO"][0] == 0.71
    assert "4 pairs, a right image before a wrong one" in result["paragraph"]
    assert "DPO is ahead in" in result["paragraph"] and "left out: words" in result["paragraph"]
    assert study.preference_study(base, tmp_path / "out", 2, budget, say=said.append) == result, "nothing is made again"


def test_recipes_of_the_two_arms_share_all_but_the_objective():
    dpo, winners = recipe("t2i.scenes_dpo"), recipe("t2i.scenes_winners")
    assert (dpo.objective.kind, dpo.data.pairs) == ("dpo", "both")
    assert (winners.objective.kind, winners.data.pairs) == ("flow", "winners")
    assert dpo.training == winners.training and dpo.adapter == winners.adapter and dpo.model == winners.model
    assert (dpo.objective.prediction, dpo.objective.form) == ("data", "velocity")
    assert dpo.objective.density == winners.objective.density
