"""DDT (Wang et al., arXiv 2504.05741): all rows that DDT's released network can express, one function a training run.

A condition encoder, aligned like REPA, and a velocity decoder; beside it the paper's improved baselines (the same
blocks without a split), its splits, its 512 x 512 fine-tuning and its encoder sharing. Against REPA: logit-normal
times, beta2 0.95, projectors as wide as the model that begin as PyTorch makes them, no clipping, balanced labels.

Not here, as no network of ours has these blocks (FID, sFID, IS, precision, recall at 400K steps without guidance):
DDT-B/2 on the naive baseline (Table 2: LayerNorm, GELU, absolute positions, uniform times) 21.1/7.81/73.0/.60/.65;
decoder blocks of 3 x 3 convolutions (Table 5: Conv+MLP) 16.96/7.33/85.1/.62/.65, and of MLPs alone (MLP+MLP)
24.13/7.89/65.0/.57/.65. REPA-B/2 as its authors re-trained it, 22.2/7.50/69.1/.59/.65, is a note of `repa.b_2_256`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ditkit.align import AlignSettings, Cosine
from ditkit.diffusion import CFG, Flow, Linear, LogitNormal, SamplerSettings, Sharing, every_schedule
from ditkit.models import ddt_settings
from ditkit.pretrained import TeacherSettings
from ditkit.recipes.imagenet import adamw, imagenet, row, sd_vae
from ditkit.recipes.recipe import Published, Recipe, Start

# Euler: 249 equal steps to 0.04, then one (appendix B; the released configurations give the last step)
ODE = SamplerSettings(solver="euler", steps=250, last=0.04)
TABLE_STEPS = 400_000  # "80 epochs"
XL_STEPS = (400_000, 1_280_000, 2_000_000)  # "80, 256 and 400 epochs"
EARLY = (100_000, 200_000, 300_000, 400_000)

TRAINED = "published with float32 products of 'medium' precision beside bf16 autocast; here they are TF32"
DECODED = "published images were sampled and decoded under bf16 autocast; here in float32"
DEPTH = "the released configuration (of XL) aligns block 8; what this size aligned was not published"
SDE_CONFIG = "the released configurations of the baselines step with an SDE, the paper says Euler ODE: the paper's here"


def guided(scale: float, high: float = 0.7) -> SamplerSettings:
    """Both passes at every step, guided for t in (0, high), ends excluded: DDT's (1 - high, 1)."""
    interval = CFG(scale=scale, low=0.0, high=high, closed=False, skip_outside=False)
    return ODE.model_copy(update={"guidance": interval})


def shared(rule: str, encode: Sequence[int]) -> SamplerSettings:
    """The sampler of Table 4: scale 2, the encoder at these of 250 evaluations."""
    sharing = Sharing(rule=rule, evaluations=ODE.steps, encode=tuple(encode))
    return guided(2.0).model_copy(update={"sharing": sharing})


def line(
    table: str, steps: int, *scores: float | None, sampling: SamplerSettings = ODE, images: int = 50_000,
    exact: bool = True, note: str = "",
) -> Published:  # fmt: skip
    """A published line: Euler 250 without guidance unless said, 50 images of each class."""
    facts = {"labels": "balanced", "quantise": "truncate_half", "images": images, "exact": exact, "note": note}
    return row(table, steps, sampling, *scores, **facts)


def run(size: str, *published: Published) -> Recipe:
    """DDT of a published size with the released configuration: DINOv2-B at block 8, lambda 0.5, cosine."""
    model = ddt_settings(size)
    xl = size == "XL/2"
    return Recipe(
        title=f"DDT-{size} ({model.encoder_blocks}En{model.decoder_blocks}De), ImageNet 256",
        source="arXiv 2504.05741, Tables 1 and 2, appendix B",
        model=model,
        data=imagenet(flip=False),
        codec=sd_vae(),
        objective=Flow(path=Linear(), prediction="velocity", density=LogitNormal(), drop=0.1),
        align=AlignSettings(
            depth=8, weight=0.5, projector_width=model.width, projector_init="torch", similarity=Cosine()
        ),
        teachers=(TeacherSettings.parse("dinov2-vit-b"),),
        training=adamw(TABLE_STEPS).with_({"betas": (0.9, 0.95), "precision": "bf16", "tf32": True}),
        sampling=guided(2.0),
        unpublished=() if xl else ("align.depth",),
        notes=(TRAINED, DECODED, *(() if xl else (DEPTH,))),
        published=published,
    )


# ------------------------------------------------------------------------------------------ DDT (Tables 1 and 2)


def b_2_256() -> Recipe:
    """DDT-B/2, 8 encoder and 4 decoder blocks, 400K steps (Table 2; also 8En4De of figure 7)."""
    return run(
        "B/2",
        *figure(7, (27.12, 19.90, 17.78)),
        line("DDT Table 2", TABLE_STEPS, 16.32, 6.63, 86.0, 0.62, 0.66),
    )


def l_2_256() -> Recipe:
    """DDT-L/2, 20 encoder and 4 decoder blocks, 400K steps (Tables 1 and 2; also 20En4De of figure 8)."""
    return run(
        "L/2",
        *figure(8, (12.04, 8.94, 8.03)),
        line("DDT Table 2", TABLE_STEPS, 7.98, 5.50, 128.1, 0.68, 0.67),
        line("DDT Table 1", TABLE_STEPS, 1.64, None, 310.5, 0.81, 0.61, sampling=guided(2.0)),
    )


def xl_2_256() -> Recipe:
    """DDT-XL/2, 22 encoder and 6 decoder blocks, 2M steps (400 epochs): Tables 1, 2 and 4, figure 9.

    Kept checkpoints are those of the table's lines; `xl_2_512` begins from the one at 1.28M.
    """
    first, second, last = XL_STEPS
    published = (
        line("DDT Table 2", first, 6.62, 4.86, 135.1, 0.69, 0.67, note="Table 1: IS 135.2"),
        line("DDT Table 1", first, 1.52, None, 263.7, 0.78, 0.63, sampling=guided(2.0)),
        line("DDT Table 1", second, 6.30, None, 146.7, 0.68, 0.68),
        line("DDT Table 1", second, 1.31, None, 308.1, 0.78, 0.62, sampling=guided(2.0)),
        line("DDT Table 1", last, 6.27, None, 154.7, 0.68, 0.69),
        line("DDT Table 1", last, 1.26, None, 310.6, 0.79, 0.65, sampling=guided(2.0)),
        *sharing_lines(second),
        *sweep(second),
    )
    changes = {"training.steps": last, "training.save_every": 40_000, "training.keep_every": 80_000}
    return run("XL/2", *published).with_(changes)


def xl_2_512() -> Recipe:
    """DDT-XL/2 at 512 x 512: the 256-epoch model, fine-tuned for 500K steps (Table 3). Positions interpolate."""
    table, steps = "DDT Table 3", 500_000
    assumed = "section 5.3; scale and interval are not given: those of 256 x 256 assumed"
    published = (
        line(table, 100_000, 1.90, sampling=guided(2.0), exact=False, note=assumed),
        line(table, steps, 1.28, 4.22, 305.1, 0.80, 0.63, sampling=guided(3.0)),
    )
    changes = {
        "title": "DDT-XL/2 (22En6De), ImageNet 512, from 256",
        "source": "arXiv 2504.05741, Table 3",
        "start": Start(path="runs/ddt.xl_2_256", step=XL_STEPS[1]),
        "model.size": (64, 64),
        "data.size": 512,
        "training.steps": steps,
        "sampling": guided(3.0),
        "unpublished": ("start.weights", "training.lr", "align.weight"),
        "notes": (
            TRAINED, DECODED,
            "begins from the averaged weights, with a fresh optimizer, rate and alignment as before: none of it was "
            "published; latents were cached in fp16",
        ),
    }  # fmt: skip
    return run("XL/2", *published).with_(changes)


# ------------------------------------------------------------------------------- encoder sharing (Table 4), figure 9

# The one schedule of the dynamic programme that was published: 50 of 250 evaluations, in the released tools
DP_50 = (
    0, 3, 6, 9, 12, 16, 20, 24, 28, 33, 38, 43, 48, 53, 57, 62, 67, 72, 78, 83, 87, 91, 95, 98, 102, 106, 110, 115, 120,
    125, 130, 135, 141, 146, 152, 158, 164, 171, 179, 185, 191, 197, 203, 209, 216, 223, 229, 234, 240, 245,
)  # fmt: skip


def sharing_lines(steps: int) -> tuple[Published, ...]:
    """Table 4: encoder every r-th evaluation, or where the dynamic programme says; sharing ratio 1 - 1/r."""
    table = "DDT Table 4"
    plain = line(table, steps, 1.31, 4.62, 308.1, 0.78, 0.66, sampling=guided(2.0), note="Table 1: recall 0.62")
    every = {
        2: ("1.6", (1.31, 4.48, 300.5, 0.78, 0.65)),
        3: ("1.9", (1.32, 4.46, 301.2, 0.78, 0.65)),
        4: ("2.3", (1.34, 4.43, 302.7, 0.78, 0.65)),
        5: ("2.6", (1.36, 4.40, 303.3, 0.78, 0.64)),
        6: ("2.7", (1.37, 4.41, 302.8, 0.78, 0.64)),
        8: ("3.0", (1.42, 4.43, 302.8, 0.78, 0.64)),
    }
    programme = {
        5: (1.33, 4.37, 301.7, 0.78, 0.64),
        6: (1.36, 4.35, 300.3, 0.78, 0.64),
        8: (1.40, 4.35, 302.4, 0.78, 0.64),
    }
    lines = [plain]
    for r, (speed, scores) in every.items():
        sampling = shared(f"every:{r}", every_schedule(ODE.steps, r))
        lines.append(line(table, steps, *scores, sampling=sampling, note=f"{speed} x as fast"))
    return (*lines, *(programmed(table, steps, r, scores) for r, scores in programme.items()))


def programmed(table: str, steps: int, r: int, scores: tuple[float, ...]) -> Published:
    """A line of the dynamic programme. Only the schedule of r = 5 was published; the others are not guessed."""
    budget = ODE.steps // r
    if budget == len(DP_50):
        note = "2.6 x as fast; the schedule is that of the released tools"
        return line(table, steps, *scores, sampling=shared(f"dp:{budget}", DP_50), note=note)
    note = f"shared by a dynamic programme of {budget} that was not published: sampling here does not share"
    return line(table, steps, *scores, sampling=guided(2.0), exact=False, note=note)


def sweep(steps: int) -> tuple[Published, ...]:
    """Figure 9: FID of 10,000 images over guidance scales and intervals (0, high), in our time."""
    found = {
        1.0: {1.0: 9.23, 1.2: 5.08, 1.4: 4.32, 2.0: 7.13},
        0.8: {1.6: 3.96},
        0.7: {1.8: 3.98, 2.0: 3.87, 2.2: 3.91},
        0.65: {2.3: 3.88},
    }
    note = "which XL weights were swept is not given: those of 256 epochs assumed"
    return tuple(
        line(
            "DDT Figure 9", steps, fid, sampling=ODE if scale == 1 else guided(scale, high), images=10_000,
            exact=False, note=note,
        )
        for high, scales in found.items()
        for scale, fid in scales.items()
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ splits (figures 7 and 8)


def figure(number: int, fids: Sequence[float]) -> tuple[Published, ...]:
    """FID at 100K, 200K, ... steps without guidance."""
    return tuple(line(f"DDT Figure {number}", n, fid) for n, fid in zip(EARLY, fids, strict=False))


def split(size: str, encoder_blocks: int, *fids: float) -> Recipe:
    """Another split of the same blocks, aligned at block 8, or at the encoder's last where that comes first."""
    model = ddt_settings(size, encoder_blocks=encoder_blocks)
    number = {"B/2": 7, "L/2": 8}[size]
    changes = {
        "title": f"DDT-{size} ({model.encoder_blocks}En{model.decoder_blocks}De), ImageNet 256",
        "source": f"arXiv 2504.05741, figure {number}",
        "model": model,
        "align.depth": min(8, encoder_blocks),
    }
    return run(size, *figure(number, fids)).with_(changes)


def b_2_256_4en8de() -> Recipe:
    """B/2 with 4 encoder and 8 decoder blocks."""
    return split("B/2", 4, 31.40, 22.80, 20.13, 18.61)


def b_2_256_6en6de() -> Recipe:
    """B/2 with 6 encoder and 6 decoder blocks; 8En4De is `b_2_256`."""
    return split("B/2", 6, 27.61, 20.42, 17.95, 16.86)


def b_2_256_10en2de() -> Recipe:
    """B/2 with 10 encoder and 2 decoder blocks."""
    return split("B/2", 10, 29.70, 21.75, 18.95, 17.65)


def l_2_256_10en14de() -> Recipe:
    """L/2 with 10 encoder and 14 decoder blocks."""
    return split("L/2", 10, 15.17, 10.40, 9.32, 8.66)


def l_2_256_12en12de() -> Recipe:
    """L/2 with 12 encoder and 12 decoder blocks."""
    return split("L/2", 12, 13.79, 9.67, 8.64, 8.21)


def l_2_256_16en8de() -> Recipe:
    """L/2 with 16 encoder and 8 decoder blocks; 20En4De is `l_2_256`."""
    return split("L/2", 16, 12.41, 8.99, 8.18, 8.03)


# ------------------------------------------------------------------------------------ improved baselines (Table 2)


def improved_repa(size: str, depth: int, *scores: float) -> Recipe:
    """REPA on the improved DiT: the same blocks, no split; aligned where REPA aligns this size."""
    changes = {
        "title": f"Improved REPA-{size}, ImageNet 256",
        "source": "arXiv 2504.05741, Table 2",
        "model": ddt_settings(size, encoder_blocks=0),
        "align.depth": depth,
        "training.betas": (0.9, 0.999),
        "unpublished": ("align.depth", "align.projector_width"),
        "notes": (TRAINED, DECODED, SDE_CONFIG, "the aligned block is REPA's own for this size, the projector DDT's"),
    }
    return run(size, line("DDT Table 2", TABLE_STEPS, *scores)).with_(changes)


def improved_sit(size: str, *scores: float) -> Recipe:
    """SiT with SwiGLU, RoPE, RMSNorm and logit-normal times: the improved DiT without alignment."""
    changes = {
        "title": f"Improved SiT-{size}, ImageNet 256",
        "align": None,
        "teachers": (),
        "unpublished": (),
        "notes": (TRAINED, DECODED, SDE_CONFIG),
    }
    return improved_repa(size, 8, *scores).with_(changes)


def improved_sit_b_2_256() -> Recipe:
    """Improved SiT-B/2, 400K steps."""
    return improved_sit("B/2", 25.1, 6.54, 58.8, 0.57, 0.64)


def improved_sit_l_2_256() -> Recipe:
    """Improved SiT-L/2, 400K steps."""
    return improved_sit("L/2", 12.7, 5.48, 95.7, 0.65, 0.65)


def improved_sit_xl_2_256() -> Recipe:
    """Improved SiT-XL/2, 400K steps."""
    return improved_sit("XL/2", 10.9, 5.3, 103.4, 0.66, 0.65)


def improved_repa_b_2_256() -> Recipe:
    """Improved REPA-B/2, 400K steps."""
    return improved_repa("B/2", 4, 19.1, 6.88, 76.49, 0.60, 0.66)


def improved_repa_l_2_256() -> Recipe:
    """Improved REPA-L/2, 400K steps."""
    return improved_repa("L/2", 8, 9.3, 5.44, 116.6, 0.67, 0.66)


def improved_repa_xl_2_256() -> Recipe:
    """Improved REPA-XL/2, 400K steps."""
    return improved_repa("XL/2", 8, 8.14, 5.34, 124.9, 0.68, 0.67)


ROWS = (
    b_2_256, l_2_256, xl_2_256, xl_2_512, b_2_256_4en8de, b_2_256_6en6de, b_2_256_10en2de, l_2_256_10en14de,
    l_2_256_12en12de, l_2_256_16en8de, improved_sit_b_2_256, improved_sit_l_2_256, improved_sit_xl_2_256,
    improved_repa_b_2_256, improved_repa_l_2_256, improved_repa_xl_2_256,
)  # fmt: skip
