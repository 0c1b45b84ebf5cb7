"""DDT's rows: published sizes, training and sampling protocol, sharing schedules, and where the fine-tuning begins."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from ditkit.analysis.cost import cost
from ditkit.models import build_model
from ditkit.recipes import RECIPES, recipe
from ditkit.recipes.ddt import DP_50

ALL = sorted(name for name in RECIPES if name.startswith("ddt."))
SPLIT = [name for name in ALL if "improved" not in name]
# counted on the official code: the same for every split of a size, fewer without one (no second patch embedding)
PARAMETERS = {
    (True, 768): 130_262_800, (True, 1024): 457_648_144, (True, 1152): 674_646_352,
    (False, 768): 130_249_744, (False, 1024): 457_630_736, (False, 1152): 674_626_768,
}  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_parameter_counts_are_published(name):
    settings = recipe(name).model
    with torch.device("meta"):
        count = sum(p.numel() for p in build_model(settings).parameters())
    assert count == PARAMETERS[settings.encoder_blocks > 0, settings.width]
    assert (settings.encoder_blocks > 0) == (name in SPLIT)


@pytest.mark.parametrize("size, gmacs", [("b", 26.91), ("l", 87.64), ("xl", 131.48)])
def test_costs_are_those_counted_on_the_official_code(size, gmacs):
    assert cost(recipe(f"ddt.{size}_2_256").model).gmacs == pytest.approx(gmacs, rel=0.01)


@pytest.mark.parametrize("name", ALL)
def test_names_say_the_split(name):
    model, title = recipe(name).model, recipe(name).title
    short = f"{model.encoder_blocks}En{model.decoder_blocks}De"
    assert (short in title) == (name in SPLIT)
    if "en" in name.rpartition("_")[2]:
        assert name.endswith(short.lower())


@pytest.mark.parametrize("name", ALL)
def test_training_is_ddts(name):
    r = recipe(name)
    assert (r.objective.density.kind, r.objective.density.mean, r.objective.density.std) == ("logit_normal", 0.0, 1.0)
    assert (r.training.precision, r.training.clip) == ("bf16", None)
    assert not r.model.adaln_zero, "the released code does not begin with zero gates"
    if r.align is None:
        assert not r.teachers
        return
    assert (r.align.weight, r.align.projector_init, r.align.similarity.kind) == (0.5, "torch", "cosine")
    assert r.align.projector_width == r.model.width, "not REPA's 2048"
    assert r.teachers[0].source == recipe("repa.xl_2_256").teachers[0].source
    early = name in ("ddt.b_2_256_4en8de", "ddt.b_2_256_6en6de")
    expected = r.model.encoder_blocks if early else 4 if name == "ddt.improved_repa_b_2_256" else 8
    assert r.align.depth == expected
    assert r.align.depth <= (r.model.encoder_blocks or r.model.depth), "aligned inside the encoder"
    assert name in ("ddt.xl_2_256", "ddt.xl_2_512") or "align.depth" in r.unpublished


def test_sharing_lines_are_table_4():
    lines = [p for p in recipe("ddt.xl_2_256").published if p.table == "DDT Table 4"]
    uniform = {p.sampling.sharing.rule: p for p in lines if p.sampling.sharing and "every" in p.sampling.sharing.rule}
    fids = {"every:2": 1.31, "every:3": 1.32, "every:4": 1.34, "every:5": 1.36, "every:6": 1.37, "every:8": 1.42}
    assert {rule: p.fid for rule, p in uniform.items()} == fids
    for rule, p in uniform.items():
        r = int(rule.partition(":")[2])
        assert p.sampling.sharing.encode == tuple(range(0, 250, r)) and p.sampling.sharing.evaluations == 250
        assert p.steps == 1_280_000 and p.sampling.guidance.scale == 2.0
    programme = [p for p in lines if p not in uniform.values() and p.fid in (1.33, 1.36, 1.40)]
    assert [(p.fid, p.exact, p.sampling.sharing is not None) for p in programme] == [
        (1.33, True, True), (1.36, False, False), (1.40, False, False)
    ]  # fmt: skip
    assert programme[0].sampling.sharing.encode == DP_50
    assert all("of 41 " in p.note or "of 31 " in p.note for p in programme[1:]), "int(250 / r) encoder runs"


def test_the_published_schedule_is_denser_near_the_noise():
    """Its matrix is not published, so this is what can be said of it: 50 of 250, short gaps first, long ones last."""
    gaps = [b - a for a, b in pairwise((*DP_50, 250))]
    assert len(DP_50) == 50 and DP_50[0] == 0 and min(gaps) == 3 and max(gaps) <= 8
    assert sum(gaps[:10]) < sum(gaps[-10:])


def test_sweep_is_of_ten_thousand_images():
    sweep = [p for p in recipe("ddt.xl_2_256").published if p.images == 10_000]
    found = {(1.0, 1.0) if (g := p.sampling.guidance) is None else (g.scale, g.high): p.fid for p in sweep}
    assert len(found) == len(sweep) == 9
    assert (found[1.0, 1.0], found[2.0, 0.7], found[1.6, 0.8], found[2.3, 0.65]) == (9.23, 3.87, 3.96, 3.88)


def test_fine_tuning_begins_at_256_epochs_of_the_256_pixel_run():
    start, run = recipe("ddt.xl_2_512").start, recipe("ddt.xl_2_256")
    assert (start.path, start.step, start.weights, start.source) == ("runs/ddt.xl_2_256", 1_280_000, "ema", None)
    assert start.step in {p.steps for p in run.published}
    kept = run.training.keep_every
    assert all(p.steps % kept == 0 for p in run.published), "every line's weights stay on the disk"
    assert kept % run.training.save_every == 0
    assert [name for name in RECIPES if recipe(name).start is not None] == ["ddt.xl_2_512"]
