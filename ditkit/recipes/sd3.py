"""SD3 (Esser et al., arXiv 2403.03206) and SD3.5: the released models, the paper's ladder of depths, and its studies.

Much of how they were trained was never published: `unpublished` names those keys, whose values are then the study's
(appendix B.3: AdamW, 1e-4, 1,000 steps of warm-up, averages of 0.99 every 100 steps) or ours. The released models are
sampled as Stability's code does it (its grid shifts the low end twice: spacing sd3).
"""

from __future__ import annotations

from typing import Any

from ditkit.data import BucketSettings, DataSettings
from ditkit.diffusion import CFG, Flow, Linear, LogitNormal, SamplerSettings, Shifted, resolution_shift
from ditkit.models import SD3_SIZES, mmdit_settings
from ditkit.pretrained import CodecSettings, TextSettings
from ditkit.recipes.recipe import Published, Recipe
from ditkit.training import TrainSettings

SHIFT = 3.0  # at 1024 x 1024, in training and in sampling; sqrt(m / n) from 256 x 256 would be 4 (section 5.3.2)
DROP_EACH = 0.463  # of each encoder: a tenth of all samples lose the three of them (section 5.3.3; appendix: .464)
PAPER = "arXiv 2403.03206"
OPTIMIZER = ("training.lr", "training.warmup", "training.betas", "training.eps", "training.weight_decay")
EULER = SamplerSettings(solver="euler", steps=50, guidance=CFG(scale=5.0))
TABLE_5 = "SD3 Table 5"
CLIP = {"decoder": "SD3's own", "quantise": "floor_255", "images": 1000}
COCO = "CLIP L/14 image features, COCO-2014 validation"


def official(steps: int, scale: float) -> SamplerSettings:
    """Stability's sampler for models without distillation: DPM-Solver++(2M) in -log sigma, on its own grid."""
    return SamplerSettings(
        solver="dpmpp_2m", steps=steps, options={"variable": "log_sigma"}, guidance=CFG(scale=scale), shift=SHIFT,
        spacing="sd3",
    )  # fmt: skip


def flow(shift: float = 1.0, drop_each: float = DROP_EACH) -> Flow:
    """Rectified flow with logit-normal times (section 3.1), moved by `shift`; each text encoder dropped by itself."""
    density = LogitNormal() if shift == 1 else Shifted(base=LogitNormal(), factor=shift)
    return Flow(path=Linear(), prediction="velocity", density=density, drop=0.0, drop_each=drop_each)


def adamw(steps: int, batch: int) -> TrainSettings:
    """The optimizer of the 61-run study (appendix B.3)."""
    return TrainSettings(
        steps=steps, batch=batch, lr=1e-4, warmup=1000, ema=0.99, ema_every=100, precision="bf16", tf32=True
    )


def mmdit(depth: int, pixels: int, steps: int, published: tuple[Published, ...] = (), **model: Any) -> Recipe:
    """The paper's MMDiT of this depth on one's own images with captions, half of them synthetic (section 5.2.2)."""
    latent, shift = (pixels // 8, pixels // 8), 1.0
    if pixels > 256:
        shift = SHIFT if pixels == 1024 else resolution_shift(256**2, pixels**2)
    return Recipe(
        title=f"MMDiT depth {depth}, {pixels} pixels",
        source=f"{PAPER}, section 5.3",
        model=mmdit_settings(depth, size=latent, step=256 / pixels, **model),
        data=DataSettings(source="images", size=pixels, channels=3),
        codec=CodecSettings.parse("sd3"),
        text=TextSettings(kind="sd3"),
        objective=flow(shift),
        training=adamw(steps, 4096),
        sampling=EULER.with_({"shift": shift}),
        unpublished=("data", *OPTIMIZER, "training.ema", "training.ema_every"),
        published=published,
    )


def high(depth: int, pixels: int, *scores: tuple[float, str]) -> Recipe:
    """After 256 pixels: q and k normalised, images in buckets of aspect ratios; scores: (GenEval, note)."""
    steps = 100_000
    lines = tuple(
        Published(
            table=TABLE_5,
            steps=steps,
            sampling=EULER,
            geneval=score,
            images=2212,
            exact=False,
            decoder="SD3's own",
            reference="GenEval, Mask2Former and CLIP",
            note="; ".join(x for x in ("sampler not stated", note) if x),
        )
        for score, note in scores
    )
    made = mmdit(depth, pixels, steps, lines, qk_norm="rms")
    changes = {
        "data.buckets": BucketSettings(side=pixels),
        "training.eps": 1e-15,
        "unpublished": (*made.unpublished, "training", "model.qk_norm"),
        "notes": ("trained on from the weights of 256 pixels: --start RUN",),
    }
    if pixels != 1024:
        changes["unpublished"] = (*changes["unpublished"], "objective.density", "sampling.shift")  # type: ignore[misc]
    return made.with_(changes)


# ------------------------------------------------------------------------------------------------ released models


def released(size: str, title: str, sampling: SamplerSettings, *notes: str) -> Recipe:
    """A released model as one would train it on: 1024 pixels, times shifted by 3 in training and sampling."""
    base = mmdit(24, 1024, 500_000)
    changes: dict[str, Any] = {
        "title": title,
        "source": f"{PAPER}; Stability AI's model card and inference code",
        "model": SD3_SIZES[size],
        "data.buckets": BucketSettings(side=1024),
        "sampling": sampling,
        "unpublished": ("data", "training", "objective.drop_each"),
        "notes": notes,
    }
    if SD3_SIZES[size].qk_norm == "rms":
        changes["training.eps"] = 1e-15  # with q and k normalised it keeps bf16 stable (section 5.3.2)
    return base.with_(changes)


def medium() -> Recipe:
    """SD3 medium: depth 24, 2.03 billion parameters."""
    note = "the released inference code says shift 1 for this file and, in a comment, that public models use 3"
    return released("sd3-medium", "SD3 medium, 1024 pixels", official(50, 5.0), note)


def medium_3_5() -> Recipe:
    """SD3.5 medium: depth 24, MMDiT-X, 2.24 billion parameters; sampling.guidance.kind=skip_layer is its other mode."""
    note = "trained at 256, 512, 768, 1024 and 1440 pixels in turn, with crops of the position table (model card)"
    return released("sd3.5-medium", "SD3.5 medium, 1024 pixels", official(50, 5.0), note)


def large_3_5() -> Recipe:
    """SD3.5 large: depth 38, 8.06 billion parameters."""
    return released("sd3.5-large", "SD3.5 large, 1024 pixels", official(40, 4.5))


def large_turbo_3_5() -> Recipe:
    """SD3.5 large turbo: the same network distilled to 4 steps without guidance."""
    sampling = SamplerSettings(solver="euler", steps=4, shift=SHIFT, spacing="sd3")
    made = released("sd3.5-large", "SD3.5 large turbo, 1024 pixels", sampling, "its distillation is not in ditkit")
    return made.with_({"unpublished": (*made.unpublished, "objective")})


# ------------------------------------------------------------------------------------------- the ladder of depths


def d15_256() -> Recipe:
    """Depth 15 of the scaling study: 500K steps of 4,096 at 256 pixels (section 5.3.3)."""
    return mmdit(15, 256, 500_000)


def d18_256() -> Recipe:
    """Depth 18 of the scaling study."""
    return mmdit(18, 256, 500_000)


def d22_256() -> Recipe:
    """Depth 22, at which 8 and 16 latent channels come out alike (section 5.2.1, Figure 10)."""
    return mmdit(22, 256, 500_000)


def d24_256() -> Recipe:
    """Depth 24, the 2 billion parameters of SD3 medium."""
    return mmdit(24, 256, 500_000)


def d30_256() -> Recipe:
    """Depth 30 of the scaling study."""
    return mmdit(30, 256, 500_000)


def d38_256() -> Recipe:
    """Depth 38, 8 billion parameters; its learning rate had to be changed at 300K steps (section 5.3.3)."""
    return mmdit(38, 256, 500_000).with_(
        {"notes": ("the learning rate was lowered at 300,000 steps, to what is unsaid",)}
    )


def d18_512() -> Recipe:
    """Depth 18 at 512 pixels (Table 5)."""
    return high(18, 512, (0.58, ""))


def d24_512() -> Recipe:
    """Depth 24 at 512 pixels (Table 5)."""
    return high(24, 512, (0.62, ""))


def d30_512() -> Recipe:
    """Depth 30 at 512 pixels (Table 5)."""
    return high(30, 512, (0.64, ""))


def d38_512() -> Recipe:
    """Depth 38 at 512 pixels, before and after preference tuning (Table 5)."""
    return high(38, 512, (0.68, ""), (0.71, "after DPO"))


def d38_1024() -> Recipe:
    """Depth 38 at 1024 pixels (Table 5)."""
    return high(38, 1024, (0.74, "after DPO"))


# --------------------------------------------------------------------------------------------------------- studies


def captions(share: float, score: float) -> Recipe:
    """One of the two models of the caption study: depth 15, 250K steps (section 5.2.2, Table 4)."""
    line = Published(
        table="SD3 Table 4", steps=250_000, sampling=EULER, geneval=score, images=2212, exact=False,
        decoder="SD3's own", reference="GenEval, Mask2Former and CLIP", note="sampler not stated",
    )  # fmt: skip
    made = mmdit(15, 256, 250_000, (line,))
    return made.with_(
        {"data.synthetic_share": share, "source": f"{PAPER}, section 5.2.2", "title": "MMDiT depth 15, captions' study"}
    )


def d15_original() -> Recipe:
    """Original captions only (Table 4)."""
    return captions(0.0, 0.4327)


def d15_synthetic() -> Recipe:
    """Half of the captions by CogVLM (Table 4)."""
    return captions(0.5, 0.4978)


def study(data: DataSettings, title: str, fid: float) -> Recipe:
    """rf/lognorm(0.00, 1.00), the best of 61 formulations (section 5.1, Tables 1 and 2); `ditkit reproduce` has all."""
    steps = 500_000
    line = Published(
        table="SD3 Table 2", steps=steps, sampling=EULER.with_({"steps": 25}), fid=fid, reference=COCO, exact=False,
        note="CLIP features, 1,000 samples; one of 24 settings; steps not stated", **CLIP,
    )  # fmt: skip
    base = mmdit(15, 256, steps, (line,))
    changes = {
        "title": title,
        "source": f"{PAPER}, section 5.1 and appendix B.3",
        "data": data,
        "objective": flow(drop_each=0.464),
        "training": adamw(steps, 1024),
        "sampling.steps": 25,
        "unpublished": ("model", "training.steps", *OPTIMIZER[2:]),
    }
    return base.with_(changes)


def study_imagenet() -> Recipe:
    """The study on ImageNet, captions made of class names."""
    data = DataSettings(source="imagenet/train", size=256, channels=3, caption="a photo of a {class}")
    return study(data, "SD3's study, ImageNet 256", 45.78)


def study_cc12m() -> Recipe:
    """The study on CC12M."""
    return study(DataSettings(source="images", size=256, channels=3), "SD3's study, CC12M 256", 89.91)


ROWS = (
    medium, medium_3_5, large_3_5, large_turbo_3_5, d15_256, d18_256, d22_256, d24_256, d30_256, d38_256, d18_512,
    d24_512, d30_512, d38_512, d38_1024, d15_original, d15_synthetic, study_imagenet, study_cc12m,
)  # fmt: skip
