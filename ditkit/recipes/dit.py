"""DiT (Peebles and Xie, arXiv 2212.09748): all rows of its tables, one function per training run.

Improved DDPM on Stable Diffusion latents, 1000 linear betas, learned-range variance. Scaling rows (Table 4) were
decoded with ft-MSE and sampled without guidance; final rows (Tables 2 and 3) with ft-EMA and 3-channel guidance.
"""

from __future__ import annotations

from ditkit.diffusion import DDPM, ImprovedDDPM, SamplerSettings, first3
from ditkit.models import dit_settings
from ditkit.recipes.imagenet import FT_MSE, adamw, imagenet, row, sd_vae
from ditkit.recipes.recipe import Published, Recipe

ANCESTRAL = SamplerSettings(solver="ancestral", steps=250)  # 250 respaced DDPM steps, learned variance


def guided(scale: float) -> SamplerSettings:
    """DDPM 250 with guidance on the first 3 of 4 channels, as published (DiT appendix A)."""
    return ANCESTRAL.model_copy(update={"guidance": first3(scale)})


def scaling(fid: float, steps: int = 400_000) -> Published:
    """A line of Table 4: FID-50K without guidance, ft-MSE decoder."""
    return row("DiT Table 4", steps, ANCESTRAL, fid, decoder=FT_MSE)


def run(size: str, fid: float) -> Recipe:
    """One of the twelve scaling runs (section 4, Table 4): 400K steps at 256 x 256."""
    return Recipe(
        title=f"DiT-{size}, ImageNet 256",
        source="arXiv 2212.09748, section 4 and Table 4",
        model=dit_settings(size, variance="learned", time_scale=999.0, time_offset=0.0),
        data=imagenet(),
        codec=sd_vae(),
        objective=ImprovedDDPM(path=DDPM(schedule="linear", steps=1000), drop=0.1),
        training=adamw(400_000),
        sampling=guided(1.5),
        published=(scaling(fid),),
    )


def s_8_256() -> Recipe:
    """DiT-S/8, 33M."""
    return run("S/8", 153.60)


def s_4_256() -> Recipe:
    """DiT-S/4, 33M."""
    return run("S/4", 100.41)


def s_2_256() -> Recipe:
    """DiT-S/2, 33M."""
    return run("S/2", 68.40)


def b_8_256() -> Recipe:
    """DiT-B/8, 131M."""
    return run("B/8", 122.74)


def b_4_256() -> Recipe:
    """DiT-B/4, 130M; also re-trained with the released PyTorch code (its README)."""
    again = [
        row("DiT README", 400_000, ANCESTRAL, fid, decoder=FT_MSE, note=f"PyTorch re-training, seed {seed}")
        for seed, fid in ((42, 68.9), (100, 68.3))
    ]
    return run("B/4", 68.38).with_({"published": (scaling(68.38), *again)})


def b_2_256() -> Recipe:
    """DiT-B/2, 130M."""
    return run("B/2", 43.47)


def l_8_256() -> Recipe:
    """DiT-L/8, 459M."""
    return run("L/8", 118.87)


def l_4_256() -> Recipe:
    """DiT-L/4, 458M."""
    return run("L/4", 45.64)


def l_2_256() -> Recipe:
    """DiT-L/2, 458M; also FID-10K with all 1000 steps (section 5.2)."""
    thousand = ANCESTRAL.model_copy(update={"steps": 1000})
    more = row("DiT section 5.2", 400_000, thousand, 25.9, images=10_000, decoder=FT_MSE)
    return run("L/2", 23.33).with_({"published": (scaling(23.33), more)})


def xl_8_256() -> Recipe:
    """DiT-XL/8, 676M."""
    return run("XL/8", 106.41)


def xl_4_256() -> Recipe:
    """DiT-XL/4, 675M."""
    return run("XL/4", 43.01)


def xl_2_256() -> Recipe:
    """DiT-XL/2, 675M, trained for 7M steps: the released 256 x 256 weights (Tables 2, 4 and 5)."""
    steps = 7_000_000
    fewer = ANCESTRAL.model_copy(update={"steps": 128})
    decoders = "DiT Table 5"
    published = (
        scaling(19.47),
        row("DiT README", 400_000, ANCESTRAL, 18.1, decoder=FT_MSE, note="PyTorch re-training, seed 42"),
        row("DiT section 5.2", 400_000, fewer, 23.7, images=10_000, decoder=FT_MSE),
        scaling(10.67, 2_352_000),
        row("DiT section 5.1", 2_352_000, guided(1.5), 2.55, note="the paper names no scale: 1.5 assumed", exact=False),
        scaling(9.62, steps),
        row("DiT Table 2", steps, ANCESTRAL, 9.62, 6.85, 121.50, 0.67, 0.67),
        row("DiT Table 2", steps, guided(1.25), 3.22, 5.28, 201.77, 0.76, 0.62),
        row("DiT Table 2", steps, guided(1.5), 2.27, 4.60, 278.24, 0.83, 0.57),
        row("DiT README", steps, guided(1.5), 2.21, note="float32 re-evaluation in PyTorch"),
        row(decoders, steps, guided(1.5), 2.46, 5.18, 271.56, 0.82, 0.57, decoder="Stable Diffusion's original VAE"),
        row(decoders, steps, guided(1.5), 2.30, 4.73, 276.09, 0.83, 0.57, decoder=FT_MSE),
        row(
            "DiT appendix A", steps, ANCESTRAL.with_({"guidance": {"kind": "cfg", "scale": 1.375}}), 2.20,
            note="all 4 channels guided",
        ),
    )  # fmt: skip
    return run("XL/2", 19.47).with_({"training.steps": steps, "published": published})


def xl_2_512() -> Recipe:
    """DiT-XL/2 at 512 x 512, 3M steps: the released weights (Tables 3 and 4, which differ without guidance)."""
    steps = 3_000_000
    changes = {
        "title": "DiT-XL/2, ImageNet 512",
        "source": "arXiv 2212.09748, section 5.1, Tables 3 and 4",
        "model.size": (64, 64),
        "data.size": 512,
        "training.steps": steps,
        "published": (
            scaling(13.78, 1_301_000),
            scaling(11.93, steps),
            row("DiT Table 3", steps, ANCESTRAL, 12.03, 7.12, 105.25, 0.75, 0.64),
            row("DiT Table 3", steps, guided(1.25), 4.64, 5.77, 174.77, 0.81, 0.57),
            row("DiT Table 3", steps, guided(1.5), 3.04, 5.02, 240.82, 0.84, 0.54),
        ),
    }
    return run("XL/2", 19.47).with_(changes)


def block(conditioning: str, fid: float, notes: tuple[str, ...]) -> Recipe:
    """DiT-XL/2 with another conditioning block (section 3.2, Figure 5, Table 4), 400K steps. No code was released."""
    changes = {
        "title": f"DiT-XL/2 with {conditioning.replace('_', '-')} blocks, ImageNet 256",
        "source": "arXiv 2212.09748, section 3.2, Figure 5 and Table 4",
        "model.conditioning": conditioning,
        "unpublished": ("model.conditioning",),
        "notes": notes,
        "published": (scaling(fid),),
    }
    return run("XL/2", 19.47).with_(changes)


PLAIN_NORM = "final layer without modulation, as the published parameter counts demand; affine LayerNorms are ours"


def xl_2_256_in_context() -> Recipe:
    """Time and label as two extra tokens, 449M. The order of the tokens is ours."""
    return block("in_context", 35.24, ("order of the appended tokens (time, label) is ours", PLAIN_NORM))


def xl_2_256_cross_attention() -> Recipe:
    """Cross-attention to a sequence of time and label, 598M. The order of the two is ours."""
    return block("cross_attention", 26.14, ("order of the context (time, label) is ours", PLAIN_NORM))


def xl_2_256_adaln() -> Recipe:
    """adaLN without gates, 600M. Its initialisation is ours."""
    return block(
        "adaln", 25.21, ("the modulation starts at zero, as in adaLN-Zero: the paper gives no initialisation",)
    )


ROWS = (
    s_8_256, s_4_256, s_2_256, b_8_256, b_4_256, b_2_256, l_8_256, l_4_256, l_2_256, xl_8_256, xl_4_256, xl_2_256,
    xl_2_512, xl_2_256_in_context, xl_2_256_cross_attention, xl_2_256_adaln,
)  # fmt: skip
