"""REPA (Yu et al., arXiv 2410.06940): all rows of its tables, one function per training run, and one for users.

SiT with a projector on one block that must agree with a frozen teacher. Against SiT: time grows with noise, gradients
clipped at 1.0, no flips (latents were cached), half precision. `sit_s_2` has no published row: it is for one's own
images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ditkit.align import AlignSettings, Cosine, NTXent
from ditkit.diffusion import CFG, DDPM, Flow, ImprovedDDPM, Linear, SamplerSettings, Uniform
from ditkit.models import dit_settings
from ditkit.pretrained import TeacherSettings
from ditkit.recipes.imagenet import EPOCH, adamw, imagenet, row, rows, sd_vae
from ditkit.recipes.recipe import Published, Recipe

# Euler-Maruyama: 249 steps to 0.04, one without noise, float64 state (appendix D; its "w = sigma" is 2 t in the code)
SDE = SamplerSettings(
    solver="euler_maruyama", steps=250, last=0.04, options={"form": "linear", "last_rule": "mean"}, state="float64"
)
HALF = "published in fp16 autocast with a loss scaler; here bf16 autocast"
QUANTISE = {"quantise": "floor_255"}
NT_XENT = ("align.similarity.temperature",)


def guided(scale: float, high: float = 1.0) -> SamplerSettings:
    """All 4 channels guided for t in [0, high], ends included; one pass outside."""
    return SDE.model_copy(update={"guidance": CFG(scale=scale, low=0.0, high=high)})


def line(table: str, steps: int, *scores: float, sampling: SamplerSettings = SDE, **facts: Any) -> Published:
    """A published line, Euler-Maruyama 250 without guidance unless said."""
    return row(table, steps, sampling, *scores, **facts, **QUANTISE)


def run(size: str, depth: int, published: tuple[Published, ...]) -> Recipe:
    """SiT + REPA with the settings of the final rows: DINOv2-B, lambda 0.5, cosine (Table 6 and appendix G)."""
    return Recipe(
        title=f"SiT-{size} + REPA, ImageNet 256",
        source="arXiv 2410.06940, Table 6 and appendix G",
        model=dit_settings(size),
        data=imagenet(flip=False),
        codec=sd_vae(),
        objective=Flow(path=Linear(), prediction="velocity", density=Uniform(), drop=0.1),
        align=AlignSettings(depth=depth, weight=0.5, projector_width=2048, similarity=Cosine()),
        teachers=(TeacherSettings.parse("dinov2-vit-b"),),
        training=adamw(400_000).with_({"clip": 1.0, "precision": "bf16", "tf32": True}),
        sampling=guided(1.8, 0.7),
        notes=(HALF,),
        published=published,
    )


# ---------------------------------------------------------------------------------- main rows (Tables 3, 4, 7-9)

EARLY = (50_000, 100_000, 200_000, 400_000)


def b_2_256() -> Recipe:
    """SiT-B/2 + REPA at block 4, 400K steps (Table 7). The paper's Table 6 swaps its columns; the authors say 4."""
    scores = [
        (78.2, 11.71, 17.1, 0.33, 0.48, 43.2),
        (49.5, 7.00, 27.5, 0.46, 0.59, 50.9),
        (33.2, 6.68, 43.7, 0.54, 0.63, 50.9),
        (24.4, 6.40, 59.9, 0.59, 0.65, 61.2),
    ]
    again = "re-trained by others: FID 23 (REPA issue 5), 22.75 (iREPA), 22.2 (DDT Table 2), 27.3 (DeltaFM, 50 steps)"
    base = run("B/2", 4, rows("REPA Table 7", EARLY, SDE, scores, **QUANTISE))
    return base.with_({"notes": (HALF, again)})


def l_2_256() -> Recipe:
    """SiT-L/2 + REPA at block 8, cosine (Table 7)."""
    scores = [
        (55.4, 24.0, 23.0, 0.43, 0.53, 55.3),
        (24.1, 6.25, 55.7, 0.62, 0.60, 61.8),
        (14.0, 5.18, 86.5, 0.67, 0.64, 66.3),
        (10.0, 5.20, 109.2, 0.69, 0.65, 69.4),
    ]
    return run("L/2", 8, rows("REPA Table 7", EARLY, SDE, scores, **QUANTISE))


def xl_2_256() -> Recipe:
    """SiT-XL/2 + REPA at block 8, 4M steps: the released weights (Tables 3, 4, 7, 8 and 9)."""
    last = 4_000_000
    scores = [
        (52.3, 31.24, 24.3, 0.45, 0.53, 56.1),
        (19.4, 6.06, 67.4, 0.64, 0.61, 62.9),
        (11.1, 5.05, 100.4, 0.69, 0.64, 67.3),
        (7.9, 5.06, 122.6, 0.70, 0.65, 70.3),
        (5.9, 5.73, 157.8, 0.70, 0.69, 74.6),
    ]
    scales = {
        1.3: (1.80, 4.55, 268.6, 0.80, 0.63),
        1.325: (1.79, 4.51, 276.8, 0.81, 0.62),
        1.35: (1.80, 4.50, 284.0, 0.81, 0.61),
        1.375: (1.84, 4.48, 291.7, 0.82, 0.61),
        1.4: (1.90, 4.48, 297.5, 0.82, 0.60),
    }
    intervals = {
        (2.0, 0.8): (2.23, 4.40, 360.9, 0.84, 0.60),
        (2.0, 0.75): (1.78, 4.50, 346.2, 0.82, 0.62),
        (2.0, 0.7): (1.48, 4.67, 324.0, 0.82, 0.62),
        (2.0, 0.65): (1.44, 4.88, 308.8, 0.79, 0.65),
        (2.0, 0.6): (1.56, 5.11, 290.7, 0.78, 0.66),
        (1.9, 0.7): (1.45, 4.68, 317.6, 0.80, 0.64),
    }
    published = (
        *rows("REPA Table 7", (*EARLY, last), SDE, scores, **QUANTISE),
        line("REPA Table 3", 150_000, 13.6),
        line("REPA Table 3", 1_000_000, 6.4),
        line(
            "REPA Table 4",
            200 * EPOCH,
            1.96,
            4.49,
            264.0,
            0.82,
            0.60,
            sampling=guided(1.35),
            exact=False,
            note="200 epochs; the scale is not given: that of 800 epochs assumed",
        ),
        *(line("REPA Table 8", last, *s, sampling=guided(scale)) for scale, s in scales.items()),
        *(line("REPA Table 9", last, *s, sampling=guided(*interval)) for interval, s in intervals.items()),
        line(
            "REPA Table 9", last, 1.42, 4.70, 305.7, 0.80, 0.64, sampling=guided(1.8, 0.7), note="Table 4: recall 0.65"
        ),
    )
    return run("XL/2", 8, published).with_({"training.steps": last})


def xl_2_512() -> Recipe:
    """SiT-XL/2 + REPA at 512 x 512, 200 epochs; the teacher sees 448 x 448 (Table 11)."""
    table = "REPA Table 11"
    published = (
        line(table, 80 * EPOCH, 2.44, sampling=guided(1.35), note="80 epochs"),
        line(table, 100 * EPOCH, 2.32, sampling=guided(1.35), note="100 epochs"),
        line(table, 200 * EPOCH, 2.08, 4.19, 274.6, 0.83, 0.58, sampling=guided(1.35), note="200 epochs"),
    )
    changes = {
        "title": "SiT-XL/2 + REPA, ImageNet 512",
        "source": "arXiv 2410.06940, Table 11 and appendix J",
        "model.size": (64, 64),
        "data.size": 512,
        "training.steps": 200 * EPOCH,
        "sampling": guided(1.35),
    }
    return run("XL/2", 8, published).with_(changes)


# --------------------------------------------------------------------------- component analysis (Tables 2 and 5)


def component(changes: Mapping[str, Any], *scores: float, extra: tuple[Published, ...] = ()) -> Recipe:
    """A line of Table 2: SiT-L/2, 400K steps, lambda 0.5, NT-Xent at block 8 unless changed."""
    base = run("L/2", 8, (line("REPA Table 2", 400_000, *scores), *extra))
    return base.with_(
        {
            "source": "arXiv 2410.06940, Table 2",
            "align.similarity": NTXent(),
            "unpublished": NT_XENT,
            "notes": (HALF, "NT-Xent's temperature and negatives (the tokens of the same image) are ours"),
            **changes,
        }
    )


def teacher(title: str, model: str, *scores: float, extra: tuple[Published, ...] = ()) -> Recipe:
    """Another target representation (Table 2, first two blocks)."""
    changes = {"title": f"SiT-L/2 + REPA towards {title}, ImageNet 256", "teachers": (TeacherSettings.parse(model),)}
    return component(changes, *scores, extra=extra)


def depth(block: int, *scores: float) -> Recipe:
    """Another aligned block, towards DINOv2-L (Table 2, third block)."""
    changes = {
        "title": f"SiT-L/2 + REPA at block {block}, ImageNet 256",
        "teachers": (TeacherSettings.parse("dinov2-vit-l"),),
        "align.depth": block,
    }
    return component(changes, *scores)


def weight(value: float, fid: float, inception_score: float) -> Recipe:
    """Another lambda (Table 5): SiT-XL/2, 400K steps."""
    measured = line("REPA Table 5", 400_000, fid).with_({"inception_score": inception_score})
    changes = {"title": f"SiT-XL/2 + REPA, lambda {value}, ImageNet 256", "source": "arXiv 2410.06940, Table 5"}
    return run("XL/2", 8, (measured,)).with_({**changes, "align.weight": value})


def l_2_256_mae_l() -> Recipe:
    """Towards MAE-L."""
    return teacher("MAE-L", "mae-vit-l", 12.5, 4.89, 90.7, 0.68, 0.63, 57.3)


def l_2_256_dino_b() -> Recipe:
    """Towards DINO-B."""
    return teacher("DINO-B", "dinov1-vit-b", 11.9, 5.00, 92.9, 0.68, 0.63, 59.3)


def l_2_256_mocov3_l() -> Recipe:
    """Towards MoCo-v3-L."""
    return teacher("MoCo-v3-L", "mocov3:mocov3_vitl.pth", 11.9, 5.06, 92.2, 0.68, 0.64, 63.0)


def l_2_256_ijepa_h() -> Recipe:
    """Towards I-JEPA-H."""
    return teacher("I-JEPA-H", "jepa-vit-h", 11.6, 5.21, 98.0, 0.68, 0.64, 62.1)


def l_2_256_clip_l() -> Recipe:
    """Towards CLIP-L."""
    return teacher("CLIP-L", "clip-vit-L", 11.0, 5.25, 100.4, 0.67, 0.66, 67.2)


def l_2_256_siglip_l() -> Recipe:
    """Towards SigLIP-L (final version of the paper; not in its code). Preprocessing was not published."""
    base = teacher("SigLIP-L", "siglip-vit-l", 10.2)
    scored = base.published[0].model_copy(update={"accuracy": 68.8})
    return base.with_({"published": (scored,), "unpublished": (*NT_XENT, "teachers")})


def l_2_256_dinov2_l() -> Recipe:
    """Towards DINOv2-L; also the depth-8 line of the depth ablation."""
    return teacher("DINOv2-L", "dinov2-vit-l", 10.0, 5.09, 106.6, 0.68, 0.65, 68.1)


def l_2_256_dinov2_b() -> Recipe:
    """Towards DINOv2-B with NT-Xent: the SiT-L/2 line of Table 3 (9.7 at 400K, 8.4 at 700K)."""
    note = "Table 6 says DINOv2-L here, but 9.7 at 400K is Table 2's DINOv2-B line"
    extra = (line("REPA Table 3", 700_000, 8.4, note=note),)
    return teacher("DINOv2-B", "dinov2-vit-b", 9.7, 5.13, 107.5, 0.69, 0.64, 65.7, extra=extra).with_(
        {"training.steps": 700_000}
    )


def l_2_256_dinov2_g() -> Recipe:
    """Towards DINOv2-g."""
    return teacher("DINOv2-g", "dinov2-vit-g", 9.8, 5.22, 108.9, 0.69, 0.64, 65.7)


def l_2_256_depth_6() -> Recipe:
    """Aligned at block 6."""
    return depth(6, 10.3, 5.23, 106.5, 0.69, 0.65, 66.2)


def l_2_256_depth_10() -> Recipe:
    """Aligned at block 10."""
    return depth(10, 10.5, 5.50, 105.0, 0.68, 0.65, 68.6)


def l_2_256_depth_12() -> Recipe:
    """Aligned at block 12."""
    return depth(12, 11.2, 5.14, 100.2, 0.68, 0.64, 69.4)


def l_2_256_depth_14() -> Recipe:
    """Aligned at block 14."""
    return depth(14, 11.6, 5.61, 99.5, 0.67, 0.65, 70.0)


def l_2_256_depth_16() -> Recipe:
    """Aligned at block 16."""
    return depth(16, 12.1, 5.34, 96.1, 0.67, 0.64, 71.1)


def l_2_256_cosine() -> Recipe:
    """Cosine instead of NT-Xent, towards DINOv2-L (Table 2, last block)."""
    changes = {
        "title": "SiT-L/2 + REPA with cosine towards DINOv2-L, ImageNet 256",
        "teachers": (TeacherSettings.parse("dinov2-vit-l"),),
        "align.similarity": Cosine(),
        "unpublished": (),
        "notes": (HALF,),
    }
    return component(changes, 9.9, 5.34, 111.9, 0.68, 0.65, 68.2)


def xl_2_256_lambda_25() -> Recipe:
    """lambda 0.25; 0.5 is `xl_2_256` at 400K."""
    return weight(0.25, 8.6, 118.6)


def xl_2_256_lambda_75() -> Recipe:
    """lambda 0.75."""
    return weight(0.75, 7.8, 124.4)


def xl_2_256_lambda_100() -> Recipe:
    """lambda 1.0."""
    return weight(1.0, 7.8, 124.8)


# ------------------------------------------------------------------------------------- DiT + REPA (Table 3)


def on_dit(size: str, steps: int, *published: Published) -> Recipe:
    """REPA with DiT's objective. The paper gives scores only: what it shares with SiT + REPA is our assumption."""
    changes = {
        "title": f"DiT-{size} + REPA, ImageNet 256",
        "source": "arXiv 2410.06940, Table 3",
        "model": dit_settings(size, variance="learned", time_scale=999.0, time_offset=0.0),
        "objective": ImprovedDDPM(path=DDPM(), drop=0.1),
        "training.steps": steps,
        "sampling": ANCESTRAL,
        "unpublished": (
            "align.depth", "align.weight", "align.projector_width", "align.similarity", "teachers", "data.flip",
            "training.clip", "training.precision", "sampling",
        ),
        "notes": (HALF, "REPA on DiT: no hyper-parameter was published; all are those of SiT + REPA"),
    }  # fmt: skip
    return run(size, 8, published).with_(changes)


ANCESTRAL = SamplerSettings(solver="ancestral", steps=250)


def on_dit_row(steps: int, fid: float) -> Published:
    """A DiT + REPA line of Table 3."""
    return row("REPA Table 3", steps, ANCESTRAL, fid, exact=False, note="sampler not given: DiT's", **QUANTISE)


def dit_l_2_256() -> Recipe:
    """DiT-L/2 + REPA, 400K steps."""
    return on_dit("L/2", 400_000, on_dit_row(400_000, 15.6))


def dit_xl_2_256() -> Recipe:
    """DiT-XL/2 + REPA, 850K steps."""
    return on_dit("XL/2", 850_000, on_dit_row(400_000, 12.3), on_dit_row(850_000, 9.6))


# ------------------------------------------------------------------------------------- for one's own images


def sit_s_2() -> Recipe:
    """SiT-S/2 + REPA on your own images: ours, no S row was published. Block 4 as for B: a third of 12 blocks."""
    changes = {
        "title": "SiT-S/2 + REPA on your own images",
        "source": "ours; after arXiv 2410.06940",
        "data.source": "images",
        "data.size": None,
        "data.channels": None,
        "data.flip": True,
        "training.save_every": 10_000,
        "sampling": SamplerSettings(solver="heun", steps=50, guidance=CFG(scale=2.0)),
        "unpublished": ("model", "align.depth", "data.flip", "sampling"),
        "notes": ("no S row was published: sizes are DiT's, the rest is REPA's B/2 recipe",),
    }
    return run("S/2", 4, ()).with_(changes)


ROWS = (
    b_2_256, l_2_256, xl_2_256, xl_2_512,
    l_2_256_mae_l, l_2_256_dino_b, l_2_256_mocov3_l, l_2_256_ijepa_h, l_2_256_clip_l, l_2_256_siglip_l,
    l_2_256_dinov2_l, l_2_256_dinov2_b, l_2_256_dinov2_g,
    l_2_256_depth_6, l_2_256_depth_10, l_2_256_depth_12, l_2_256_depth_14, l_2_256_depth_16, l_2_256_cosine,
    xl_2_256_lambda_25, xl_2_256_lambda_75, xl_2_256_lambda_100, dit_l_2_256, dit_xl_2_256, sit_s_2,
)  # fmt: skip
