"""Every published row: golden trees, published sizes, conventions, and samplers that run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ditkit.align import Aligner
from ditkit.config import diff, flatten
from ditkit.diffusion import SampleNoise, Sharing
from ditkit.models import Condition, build_model
from ditkit.recipes import RECIPES, recipe

GOLDEN = {file.stem: json.loads(file.read_text()) for file in sorted((Path(__file__).parent / "golden").glob("*.json"))}
ALL = sorted(RECIPES)
LABELLED = [name for name in ALL if recipe(name).text is None]  # the others: test_text_recipes.py
PUBLISHED = [name for name in LABELLED if recipe(name).published]
DIGITS = {"digits.sit", "digits.repa", "digits.ddt", "digits.best"}
OURS = {"sit.s_2", "sit.b_2", "sit.l_2", "sit.xl_2", "repa.sit_s_2", *DIGITS}

# Trainable parameters without the frozen position table (counted on the official code).
SIZES = {
    "S/8": 33_142_016, "S/4": 32_920_448, "S/2": 32_865_056,
    "B/8": 130_869_248, "B/4": 130_426_496, "B/2": 130_315_808,
    "L/8": 458_578_432, "L/4": 457_988_224, "L/2": 457_840_672,
    "XL/8": 675_664_640, "XL/4": 675_000_704, "XL/2": 674_834_720,
}  # fmt: skip


def meta_parameters(settings) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(settings).parameters() if p.requires_grad)


# ------------------------------------------------------------------------------------------------------ golden


def test_golden_covers_every_recipe():
    stored = {name for recipes in GOLDEN.values() for name in recipes}
    assert stored == set(RECIPES), "run tests/recipes/regenerate.py if the change is meant"


@pytest.mark.parametrize("name", ALL)
def test_resolved_recipe_is_golden(name):
    stored, made = GOLDEN[name.partition(".")[0]][name], recipe(name).model_dump(mode="json")
    a, b = flatten(stored), flatten(made)
    changed = {key: (a.get(key), b.get(key)) for key in a.keys() | b.keys() if a.get(key) != b.get(key)}
    assert not changed, f"{name} changed; run tests/recipes/regenerate.py if it is meant: {changed}"
    assert stored == made


# ------------------------------------------------------------------------------------------------ completeness


def test_every_published_run_is_there():
    dit = {f"dit.{s}_{p}_256" for s in ("s", "b", "l", "xl") for p in (8, 4, 2)}
    dit |= {"dit.xl_2_512", *(f"dit.xl_2_256_{block}" for block in ("in_context", "cross_attention", "adaln"))}
    sit = {"sit.s_2_256", "sit.b_2_256", "sit.l_2_256", "sit.xl_2_256", "sit.xl_2_512"}
    processes = (
        "ddpm_noise",
        "vp_score",
        "vp_weighted_score",
        "vp_velocity",
        "gvp_velocity",
        "gvp_score",
        "linear_score",
    )
    sit |= {f"sit.b_2_256_{process}" for process in processes}
    repa = {"repa.b_2_256", "repa.l_2_256", "repa.xl_2_256", "repa.xl_2_512", "repa.dit_l_2_256", "repa.dit_xl_2_256"}
    teachers = ("mae_l", "dino_b", "mocov3_l", "ijepa_h", "clip_l", "siglip_l", "dinov2_b", "dinov2_l", "dinov2_g")
    repa |= {f"repa.l_2_256_{teacher}" for teacher in teachers}
    repa |= {f"repa.l_2_256_depth_{block}" for block in (6, 10, 12, 14, 16)} | {"repa.l_2_256_cosine"}
    repa |= {f"repa.xl_2_256_lambda_{percent}" for percent in (25, 75, 100)}
    ddt = {f"ddt.{name}" for name in ("b_2_256", "l_2_256", "xl_2_256", "xl_2_512")}
    ddt |= {f"ddt.improved_{what}_{size}_2_256" for what in ("sit", "repa") for size in ("b", "l", "xl")}
    ddt |= {f"ddt.b_2_256_{split}" for split in ("4en8de", "6en6de", "10en2de")}
    ddt |= {f"ddt.l_2_256_{split}" for split in ("10en14de", "12en12de", "16en8de")}
    assert set(PUBLISHED) == dit | sit | repa | ddt
    assert set(LABELLED) - set(PUBLISHED) == OURS


@pytest.mark.parametrize(
    ("name", "scale", "high", "scores"),
    [
        ("dit.xl_2_256", 1.5, 1.0, (2.27, 4.60, 278.24, 0.83, 0.57)),
        ("dit.xl_2_512", 1.5, 1.0, (3.04, 5.02, 240.82, 0.84, 0.54)),
        ("sit.xl_2_256", 1.5, 1.0, (2.06, 4.49, 277.50, 0.83, 0.59)),
        ("sit.xl_2_512", 1.5, 1.0, (2.62, 4.18, 252.21, 0.84, 0.57)),
        ("repa.xl_2_256", 1.8, 0.7, (1.42, 4.70, 305.7, 0.80, 0.64)),
        ("repa.xl_2_256", 1.35, 1.0, (1.80, 4.50, 284.0, 0.81, 0.61)),
        ("repa.xl_2_512", 1.35, 1.0, (2.08, 4.19, 274.6, 0.83, 0.58)),
        ("ddt.l_2_256", 2.0, 0.7, (1.64, None, 310.5, 0.81, 0.61)),
        ("ddt.xl_2_256", 2.0, 0.7, (1.31, None, 308.1, 0.78, 0.62)),
        ("ddt.xl_2_256", 2.0, 0.7, (1.26, None, 310.6, 0.79, 0.65)),
        ("ddt.xl_2_512", 3.0, 0.7, (1.28, 4.22, 305.1, 0.80, 0.63)),
    ],
)
def test_headline_rows(name, scale, high, scores):
    rows = [p for p in recipe(name).published if p.sampling.guidance and p.sampling.guidance.scale == scale]
    rows = [p for p in rows if p.sampling.guidance.high == high]
    found = [(p.fid, p.sfid, p.inception_score, p.precision, p.recall) for p in rows]
    assert scores in found, found


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_lines_are_complete(name):
    r = recipe(name)
    assert r.source.startswith("arXiv") and r.title
    assert RECIPES[name].__doc__
    for p in r.published:
        assert p.table and p.fid and 1 < p.fid < 200
        assert p.steps <= r.training.steps
        assert p.exact or p.note, f"{p.table}: say what stands in"
    assert max(p.steps for p in r.published) == r.training.steps


@pytest.mark.parametrize("name", ALL)
def test_unpublished_keys_exist(name):
    r = recipe(name)
    for key in r.unpublished:
        place = r
        for part in key.split("."):
            place = getattr(place, part)


# ------------------------------------------------------------------------------------------------- conventions


@pytest.mark.parametrize("name", LABELLED)
def test_conventions_of_the_family(name):
    r, family = recipe(name), name.partition(".")[0]
    on_dit = family == "dit" or name.startswith("repa.dit_")
    maps = {"dit": (999.0, 0.0), "sit": (-1.0, 1.0), "repa": (1.0, 0.0), "ddt": (-1.0, 1.0), "digits": (1.0, 0.0)}
    map_of = "dit" if on_dit else "ddt" if r.model.kind == "ddt" else family
    assert (r.model.time_scale, r.model.time_offset) == maps[map_of]
    assert r.model.variance == ("learned" if on_dit else "dropped" if family == "sit" and name not in OURS else "none")
    aligned = family in ("repa", "ddt") and "improved_sit" not in name
    assert (r.align is not None) == (aligned or name in DIGITS - {"digits.sit"})
    assert r.objective.drop == 0.1
    if family == "digits":
        return
    betas = (0.9, 0.95) if family == "ddt" and "improved" not in name else (0.9, 0.999)
    assert (r.training.lr, r.training.batch, r.training.ema, r.training.betas) == (1e-4, 256, 0.9999, betas)
    assert (r.training.weight_decay, r.training.warmup, r.training.schedule) == (0.0, 0, "constant")
    assert r.training.clip == (1.0 if family == "repa" else None)
    assert r.data.flip == (family not in ("repa", "ddt") or name == "repa.sit_s_2")
    assert r.codec.kind == "kl" and r.codec.source.startswith("stabilityai/sd-vae-ft-") and r.codec.scale is None
    if name in OURS:
        assert (r.data.size, r.data.channels, r.data.source) == (None, None, "images"), "from the user's images"
    else:
        assert r.model.size == (r.data.size // 8, r.data.size // 8) and r.data.channels == 3
    assert r.model.num_classes == 1000


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_samplers_are_the_papers(name):
    r, family = recipe(name), name.partition(".")[0]
    for p in r.published:
        s, g = p.sampling, p.sampling.guidance
        if s.solver == "euler_maruyama":
            assert (s.steps, s.last) == (250, 0.04)
            assert s.options["form"] == "linear" if family == "repa" else s.options["form"] != "linear"
            assert s.state == ("float64" if family == "repa" else "float32")
        elif s.solver == "heun":
            assert (2 * s.steps, s.options["correct_last"]) == (250, True)
        elif s.solver == "ancestral":
            assert s.steps == 250 or p.images == 10_000
        elif s.solver == "euler":
            assert (family, s.steps, s.last, p.labels) == ("ddt", 250, 0.04, "balanced")
        assert p.quantise == {"repa": "floor_255", "ddt": "truncate_half"}.get(family, "truncate_128")
        if g is not None and family == "ddt":
            assert (g.channels, g.closed, g.skip_outside, g.low) == (None, False, False, 0.0)
        elif g is not None:
            four = family == "repa" or "4 channels" in p.note
            assert (g.channels, g.closed, g.low) == (None if four else 3, True, 0.0)
    if name.startswith("dit.") and "512" not in name:
        assert r.published[0].decoder.endswith("ft-mse"), "the scaling rows were decoded with ft-MSE"


DIT_SIZED = [n for n in PUBLISHED if "_256_" not in n and not n.startswith(("repa.dit", "ddt."))]


@pytest.mark.parametrize("name", DIT_SIZED)
def test_parameter_counts_are_published(name):
    r = recipe(name)
    size, patch = name.split(".")[1].split("_")[:2]
    expected = SIZES[f"{size.upper()}/{patch}"]
    if name.startswith("repa."):  # no variance half: P P C fewer rows of the last layer
        expected -= r.model.patch**2 * r.model.channels * (r.model.width + 1)
    assert meta_parameters(r.model) == expected


@pytest.mark.parametrize(("block", "millions"), [("in_context", 449), ("cross_attention", 598), ("adaln", 600)])
def test_block_ablation_counts(block, millions):
    assert abs(meta_parameters(recipe(f"dit.xl_2_256_{block}").model) / 1e6 - millions) < 1


@pytest.mark.parametrize(
    ("name", "total"), [("b_2_256", 137_845_008), ("l_2_256", 465_955_600), ("xl_2_256", 683_242_512)]
)
def test_repa_totals_with_projector_and_position_table(name, total):
    r = recipe(f"repa.{name}")
    with torch.device("meta"):
        stored = sum(v.numel() for v in build_model(r.model).state_dict().values())
        stored += sum(p.numel() for p in Aligner(r.align, r.model.width, [768]).parameters())
    assert stored == total


# --------------------------------------------------------------------------------------------------- siblings


IGNORED = {"name", "title", "source", "published", "notes", "unpublished"}


@pytest.mark.parametrize(
    ("a", "b", "keys"),
    [
        ("repa.xl_2_256_lambda_25", "repa.xl_2_256_lambda_100", {"align.weight"}),
        ("repa.l_2_256_depth_6", "repa.l_2_256_depth_16", {"align.depth"}),
        ("repa.l_2_256_dinov2_l", "repa.l_2_256_dinov2_g", {"teachers.0.source"}),
        ("repa.l_2_256_dinov2_l", "repa.l_2_256_cosine", {"align.similarity.kind", "align.similarity.temperature"}),
        ("dit.xl_2_256", "dit.xl_2_512", {"model.size", "data.size", "training.steps"}),
        ("dit.b_2_256", "dit.b_4_256", {"model.patch"}),
        ("dit.xl_8_256", "dit.xl_2_256", {"model.patch", "training.steps"}),
        ("sit.b_2_256", "sit.b_2_256_gvp_velocity", {"objective.path.kind"}),
        ("ddt.b_2_256", "ddt.b_2_256_10en2de", {"model.encoder_blocks", "model.decoder_blocks"}),
        ("ddt.l_2_256_10en14de", "ddt.l_2_256_16en8de", {"model.encoder_blocks", "model.decoder_blocks"}),
        (
            "ddt.b_2_256",
            "ddt.improved_repa_b_2_256",
            {"model.encoder_blocks", "model.decoder_blocks", "align.depth", "training.betas"},
        ),
        ("sit.b_2_256_vp_score", "sit.b_2_256_vp_weighted_score", {"objective.weight.kind", "objective.weight.form"}),
    ],
)
def test_siblings_differ_by_what_differs(a, b, keys):
    assert {row.key for row in diff(recipe(a), recipe(b), ignore=IGNORED)} == keys


def test_inconsistent_recipes_are_refused():
    with pytest.raises(ValueError, match=r"align\.depth 30 is beyond the model's 28 blocks"):
        recipe("repa.xl_2_256").with_({"align.depth": 30})
    with pytest.raises(ValueError, match="align and teachers go together"):
        recipe("repa.xl_2_256").with_({"teachers": ()})
    with pytest.raises(ValueError, match=r"needs model\.variance=learned"):
        recipe("dit.xl_2_256").with_({"model.variance": "none"})
    with pytest.raises(ValueError, match=r"no use for model\.variance=learned"):
        recipe("sit.xl_2_256").with_({"model.variance": "learned"})


# --------------------------------------------------------------------------------------------- samplers run


def samplers() -> list[tuple[str, str]]:
    """One (recipe, index) for each distinct (path, prediction, variance, sampler)."""
    seen, found = set(), []
    for name in LABELLED:
        r = recipe(name)
        for i, sampling in enumerate([r.sampling, *(p.sampling for p in r.published)]):
            key = (r.objective.path.kind, r.objective.prediction, r.model.variance, sampling.model_dump_json())
            if key not in seen:
                seen.add(key)
                found.append((name, i - 1))
    return found


@pytest.mark.parametrize(("name", "index"), samplers())
def test_sampler_runs_on_its_model(name, index):
    """The full grid can be built, and a few steps on a small network of the same kind stay finite."""
    r = recipe(name)
    sampling = r.sampling if index < 0 else r.published[index].sampling
    path, prediction = r.objective.path, r.objective.prediction
    grid = sampling.times(path, prediction)
    assert len(grid) == sampling.steps + (path.kind != "ddpm")
    assert bool((grid.diff() < 0).all())
    if sampling.sharing is not None:
        assert sampling.evaluations(path, prediction) == sampling.sharing.evaluations
        sampling = sampling.model_copy(update={"sharing": Sharing(rule="", evaluations=4, encode=(0, 2))})
    blocks = {"encoder_blocks": 1, "decoder_blocks": 1} if r.model.kind == "ddt" else {"depth": 1}
    small = r.model.model_copy(update={**blocks, "width": 32, "heads": 2, "size": (4, 4), "patch": 2})
    generator = torch.Generator().manual_seed(0)
    model = build_model(small, generator=generator).eval()
    for p in model.parameters():  # the published initialisation would answer 0
        p.data.normal_(std=0.05, generator=generator)
    noise = SampleNoise(0, [0, 1], (small.channels, 4, 4))
    few = sampling.model_copy(update={"steps": 4})
    cond = Condition(label=torch.tensor([1, 3]))
    latents, evaluations = few.run(
        model, noise.initial(), cond, path=path, prediction=prediction, noise_source=noise
    )  # fmt: skip
    assert latents.shape == (2, small.channels, 4, 4) and bool(latents.isfinite().all())
    per_step = 2 if sampling.solver == "heun" else 1
    passes = 1 if sampling.guidance is None else 2
    assert 4 * per_step - 1 <= evaluations <= 4 * per_step * passes
