"""Rows of text models: SD3, SD3.5, REPA on COCO and our own; sizes, shifts, samplers and published lines."""

from __future__ import annotations

import pytest
import torch

from ditkit.align import Aligner
from ditkit.config import diff
from ditkit.diffusion import SampleNoise, Shifted, SkipLayer, resolution_shift
from ditkit.evaluation.geneval.published import TABLE_4, TABLE_5
from ditkit.models import build_model, example_condition
from ditkit.recipes import RECIPES, recipe
from ditkit.recipes.adapt import concerns

TEXT = [name for name in sorted(RECIPES) if recipe(name).text is not None]
PUBLISHED = [name for name in TEXT if recipe(name).published]
SD3 = [name for name in TEXT if name.startswith("sd3.")]
PARAMETERS = {  # counted on the published code, without the frozen position table
    "medium": 2_028_328_000, "medium_3_5": 2_243_171_520, "large_3_5": 8_056_627_520, "large_turbo_3_5": 8_056_627_520,
    "d15_256": 496_066_624, "d18_256": 856_159_552, "d22_256": 1_562_387_264, "d24_256": 2_028_328_000,
    "d30_256": 3_962_392_384,
}  # fmt: skip


def parameters(settings) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(settings).parameters())


def test_every_row_is_there():
    ladder = {f"sd3.d{depth}_256" for depth in (15, 18, 22, 24, 30, 38)} | {f"sd3.d{d}_512" for d in (18, 24, 30, 38)}
    released = {f"sd3.{name}" for name in ("medium", "medium_3_5", "large_3_5", "large_turbo_3_5")}
    studies = {"sd3.d15_original", "sd3.d15_synthetic", "sd3.study_imagenet", "sd3.study_cc12m"}
    papers = ladder | released | studies | {"sd3.d38_1024", "repa_t2i.coco", "repa_t2i.coco_plain"}
    ours = {name for name in TEXT if name.startswith("t2i.")}
    assert set(TEXT) == papers | ours and ours >= {"t2i.scenes", "t2i.digits"}
    for name in TEXT:
        assert RECIPES[name].__doc__ and recipe(name).title and recipe(name).source


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    assert parameters(recipe(f"sd3.{name}").model) == PARAMETERS[name]


def test_repas_parameters_with_its_projector():
    r = recipe("repa_t2i.coco")
    with torch.device("meta"):
        projector = sum(p.numel() for p in Aligner(r.align, r.model.width, [768]).parameters())
    assert parameters(r.model) + projector == 512_415_504
    changed = {d.key.partition(".")[0] for d in diff(r, recipe("repa_t2i.coco_plain"))}
    assert changed == {"name", "title", "align", "teachers", "published"}


@pytest.mark.parametrize("name", SD3)
def test_conventions_of_sd3(name):
    r = recipe(name)
    assert (r.model.time_scale, r.model.time_offset, r.model.init) == (1000.0, 0.0, "zero")
    assert r.model.width == 64 * r.model.depth == 64 * r.model.heads
    assert (r.model.channels, r.model.text_width, r.model.pooled_width, r.model.text_length) == (16, 4096, 2048, 154)
    assert (r.codec.kind, r.text.kind, r.text.t5_length) == ("kl", "sd3", 77)
    assert r.objective.drop == 0 and r.objective.drop_each == (0.464 if "study" in name else 0.463)
    assert r.model.size == (r.data.size // 8, r.data.size // 8)
    assert r.model.step * r.data.size == 256, "one unit is a token of 256 pixels"
    assert (r.training.ema, r.training.ema_every, r.training.warmup, r.training.lr) == (0.99, 100, 1000, 1e-4)
    assert r.training.batch == (1024 if "study" in name else 4096)
    assert (r.training.eps == 1e-15) == (r.model.qk_norm == "rms")


@pytest.mark.parametrize("name", TEXT)
def test_times_are_shifted_alike_in_training_and_sampling(name):
    r = recipe(name)
    factor = r.objective.density.factor if isinstance(r.objective.density, Shifted) else 1.0
    size = r.data.size if isinstance(r.data.size, int) else 0
    assert factor == r.sampling.shift == {1024: 3.0, 512: 2.0, 32: 3.0}.get(size, 1.0)
    assert not [line for line in concerns(r) if "shifts times" in line]


def test_the_formula_gives_4_where_sd3_says_3():
    assert resolution_shift(256**2, 1024**2) == 4.0
    r = recipe("sd3.medium")
    assert (r.objective.density.factor, r.sampling.shift) == (3.0, 3.0)
    for keys in (["sampling.shift=1"], ["objective.density.factor=4"], ["objective.density.kind=logit_normal"]):
        assert any("shifts times by" in line for line in concerns(recipe("sd3.medium", keys))), keys


@pytest.mark.parametrize(
    ("name", "solver", "steps", "scale"),
    [
        ("medium", "dpmpp_2m", 50, 5.0),
        ("medium_3_5", "dpmpp_2m", 50, 5.0),
        ("large_3_5", "dpmpp_2m", 40, 4.5),
        ("large_turbo_3_5", "euler", 4, None),
    ],
)
def test_official_samplers(name, solver, steps, scale):
    s = recipe(f"sd3.{name}").sampling
    assert (s.solver, s.steps, s.guidance and s.guidance.scale, s.spacing) == (solver, steps, scale, "sd3")
    grid = s.times(recipe("sd3.medium").objective.path, "velocity")
    assert len(grid) == steps + 1 and grid[0] == 1 and grid[-1] == 0
    assert float(grid[-2]) == pytest.approx(0.008929, abs=1e-6), "the low end is shifted twice"
    skip = recipe(f"sd3.{name}", ["sampling.guidance.kind=skip_layer"]).sampling.guidance if scale else None
    if skip is not None:
        assert isinstance(skip, SkipLayer) and (skip.blocks, skip.skip_scale) == ((8, 9, 10), 2.5)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_lines_are_complete(name):
    r = recipe(name)
    for p in r.published:
        assert p.table and (p.geneval is None) != (p.fid is None)
        assert p.exact or p.note
        assert p.steps == r.training.steps
        assert r.source.startswith("arXiv")


def test_published_scores_are_the_papers():
    found = {
        (name, p.note.rpartition("; ")[2] if "DPO" in p.note else ""): p.geneval
        for name in PUBLISHED
        for p in recipe(name).published
        if p.geneval is not None and p.table == "SD3 Table 5"
    }
    for (name, dpo), score in found.items():
        depth, pixels = name.removeprefix("sd3.d").split("_")
        assert score == TABLE_5[f"SD3 depth {depth}, {pixels} px" + (", DPO" if dpo else "")].overall
    assert len(found) == 6
    for name, row in (("original", "original captions"), ("synthetic", "50 % synthetic captions")):
        assert recipe(f"sd3.d15_{name}").published[0].geneval == pytest.approx(TABLE_4[row][0] / 100)
        assert recipe(f"sd3.d15_{name}").data.synthetic_share == (0.5 if name == "synthetic" else 0)
    fids = {n: [p.fid for p in recipe(f"repa_t2i.{n}").published] for n in ("coco", "coco_plain")}
    assert fids == {"coco": [4.73, 4.14], "coco_plain": [6.05, 5.30]}
    assert [p.sampling.steps for p in recipe("repa_t2i.coco").published] == [50, 250]
    assert recipe("sd3.study_imagenet").published[0].fid == 45.78


@pytest.mark.parametrize("name", TEXT)
def test_unpublished_keys_exist(name):
    for key in recipe(name).unpublished:
        place = recipe(name)
        for part in key.split("."):
            place = getattr(place, part)


@pytest.mark.parametrize("name", ["sd3.medium", "sd3.medium_3_5", "sd3.large_turbo_3_5", "repa_t2i.coco", "t2i.scenes"])
def test_samplers_run_on_a_small_network(name):
    """A few steps of each recipe's sampler on a network of the same kind stay finite."""
    r = recipe(name)
    dual = (1,) if r.model.dual else ()
    small = {"depth": 2, "width": 32, "heads": 2, "size": (8, 8), "patch": 2, "dual": dual, "text_length": 4}
    settings = r.model.model_copy(update=small)
    generator = torch.Generator().manual_seed(0)
    model = build_model(settings, generator=generator).eval()
    for p in model.parameters():
        p.data.normal_(std=0.05, generator=generator)
    noise = SampleNoise(0, [0, 1], (settings.channels, 8, 8))
    for sampling in (r.sampling, *(p.sampling for p in r.published)):
        few = sampling.model_copy(update={"steps": 4})
        latents, evaluations = few.run(
            model, noise.initial(), example_condition(settings, 2), path=r.objective.path,
            prediction=r.objective.prediction, noise_source=noise,
        )  # fmt: skip
        assert latents.shape == (2, settings.channels, 8, 8) and bool(latents.isfinite().all())
        assert evaluations == 4 * (1 if sampling.guidance is None else 2)


def test_a_text_model_needs_an_encoder_and_a_class_model_has_none():
    with pytest.raises(ValueError, match=r"model 'mmdit' reads text: name its encoders by text"):
        recipe("t2i.scenes").with_({"text": None})
    with pytest.raises(ValueError, match="model 'dit' knows classes and no text"):
        recipe("sit.s_2").with_({"text": {"kind": "toy"}})
