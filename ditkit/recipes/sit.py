"""SiT (Ma et al., arXiv 2401.08740): all rows of its tables, one function per training run, and plain runs for users.

Same network, data and optimizer as DiT; the process varies: linear path and velocity for the main rows. The last
recipes (s_2 ... xl_2) have no published row: they are for one's own images.
"""

from __future__ import annotations

from typing import Any

from ditkit.diffusion import CFG, DDPM, VP, Cosine, Discrete, Flow, Linear, SamplerSettings, SiTWeight, Uniform, first3
from ditkit.models import dit_settings
from ditkit.recipes.imagenet import adamw, imagenet, row, sd_vae
from ditkit.recipes.recipe import Published, Recipe

# Heun with 250 network evaluations; Euler-Maruyama with 250 steps, the last of 0.04 without noise (appendix D, E).
ODE = SamplerSettings(solver="heun", steps=125, options={"correct_last": True})
SDE = SamplerSettings(solver="euler_maruyama", steps=250, last=0.04, options={"form": "sigma", "last_rule": "mean"})

ETA = "published with w^{KL,eta}, whose eta was never given; sigma, the released code's default, stands in"
KL = "w^KL, which is infinite at the paper's t0 = 1 on this path: started at 0.999"


def guided(sampling: SamplerSettings, scale: float) -> SamplerSettings:
    """The same sampler, guided on the first 3 of 4 channels as the released code does."""
    return sampling.model_copy(update={"guidance": first3(scale)})


def both(steps: int, ode: tuple, sde: tuple) -> tuple[Published, Published]:
    """A cell of Table 8: ODE and SDE, no guidance."""
    return row("SiT Table 8", steps, ODE, *ode), row("SiT Table 8", steps, SDE, *sde, exact=False, note=ETA)


def run(size: str, published: tuple[Published, ...]) -> Recipe:
    """One of the four sizes at 256 x 256 with linear path and velocity (section 3, Table 8)."""
    return Recipe(
        title=f"SiT-{size}, ImageNet 256",
        source="arXiv 2401.08740, Tables 1 and 8, appendix E",
        model=dit_settings(size, variance="dropped", time_scale=-1.0, time_offset=1.0),
        data=imagenet(),
        codec=sd_vae(),
        objective=Flow(path=Linear(), prediction="velocity", density=Uniform(), drop=0.1),
        training=adamw(400_000),
        sampling=guided(SDE, 1.5),
        published=published,
    )


def s_2_256() -> Recipe:
    """SiT-S/2, 33M."""
    return run("S/2", both(400_000, (58.97, 8.95, 23.34, 0.40, 0.59), (57.64, 9.05, 24.78, 0.41, 0.60)))


def b_2_256() -> Recipe:
    """SiT-B/2, 130M; also the linear-velocity line of the ablations (Tables 4, 5 and 6)."""
    scores = both(400_000, (34.84, 6.59, 41.53, 0.52, 0.64), (33.02, 6.46, 43.71, 0.53, 0.63))
    return run(
        "B/2", (*scores, row("SiT Table 4", 400_000, ODE, 34.8), *diffusions(33.6, 33.5, 33.3, 33.0, singular=True))
    )


def l_2_256() -> Recipe:
    """SiT-L/2, 458M."""
    return run("L/2", both(400_000, (20.01, 5.31, 67.76, 0.62, 0.64), (18.79, 5.29, 72.02, 0.64, 0.64)))


def xl_2_256() -> Recipe:
    """SiT-XL/2, 675M, trained for 7M steps: the released weights."""
    steps = 7_000_000
    published = (
        *both(400_000, (18.04, 5.17, 73.90, 0.63, 0.64), (17.19, 5.07, 76.52, 0.65, 0.63)),
        *both(steps, (9.35, 6.38, 126.06, 0.67, 0.68), (8.26, 6.32, 131.65, 0.68, 0.67)),
        row("SiT Table 7", steps, guided(ODE, 1.5), 2.15, 4.60, 258.09, 0.81, 0.60),
        row("SiT Table 7", steps, guided(SDE, 1.5), 2.06, 4.49, 277.50, 0.83, 0.59, exact=False, note=ETA),
        row("SiT README", steps, guided(SDE, 1.5), 2.06, 4.50, 270.27, 0.82, 0.59, note="later papers quote this line"),
    )
    return run("XL/2", published).with_({"training.steps": steps})


def xl_2_512() -> Recipe:
    """SiT-XL/2 at 512 x 512, 3M steps (Table 7). These weights were never released."""
    steps = 3_000_000
    changes = {
        "title": "SiT-XL/2, ImageNet 512",
        "source": "arXiv 2401.08740, Table 7",
        "model.size": (64, 64),
        "data.size": 512,
        "training.steps": steps,
    }
    line = row("SiT Table 7", steps, guided(SDE, 1.5), 2.62, 4.18, 252.21, 0.84, 0.57, exact=False, note=ETA)
    return run("XL/2", (line,)).with_(changes)


# ------------------------------------------------------------------------------- ablations on B/2 (Tables 2 to 6)


def diffusions(kl: float, sigma: float, sin2: float, eta: float, *, singular: bool, start: float | None = None):
    """The line of Table 6: FID with four diffusion coefficients, Euler-Maruyama 250, last step 0.04.

    The paper's w is 2 D of our forms, so w^KL is "sbdm"; for sigma and sin^2 the released code's norm 1 is taken.
    singular: w^KL is infinite at t = 1 (linear, GVP). start: t0 of Table 10 where it is not 1.
    """
    table, sde = "SiT Table 6", SDE.model_copy(update={"start": start})

    def form(name: str) -> SamplerSettings:
        return sde.with_({"options.form": name, **({"start": 0.999} if name == "sbdm" and singular else {})})

    return (
        row(table, 400_000, form("sbdm"), kl, exact=not singular, note=KL if singular else ""),
        row(table, 400_000, form("sigma"), sigma),
        row(table, 400_000, form("increasing-decreasing"), sin2),
        row(table, 400_000, sde, eta, exact=False, note=ETA),
    )


def ablation(title: str, tables: str, changes: dict[str, Any], *published: Published) -> Recipe:
    """A run of B/2 that differs from the main row in path, prediction or weight."""
    base = run("B/2", published)
    return base.with_({"title": f"SiT-B/2, {title}, ImageNet 256", "source": f"arXiv 2401.08740, {tables}", **changes})


def b_2_256_ddpm_noise() -> Recipe:
    """The starting point, Table 2: discrete DDPM, noise prediction, no learned variance. The sampler is not given."""
    changes = {
        "objective": Flow(path=DDPM(), prediction="noise", density=Discrete(), drop=0.1),
        "sampling": {"solver": "ddim", "steps": 250},
        "unpublished": ("model.time_scale", "model.time_offset", "sampling.solver"),
    }
    ddim = SamplerSettings(solver="ddim", steps=250)
    line = row("SiT Table 2", 400_000, ddim, 44.2, exact=False, note="the paper does not name this row's sampler")
    return ablation("DDPM noise", "Table 2", changes, line)


VP_TIMES = Uniform(low=1e-5, high=1.0)  # d_sigma is infinite at t = 0
SCORE_TIMES = Uniform(low=1e-3, high=0.999)  # a score model has no velocity at t = 1
VP_ODE = ODE.model_copy(update={"stop": 1e-5})  # Table 10
SCORE_ODE = ODE.model_copy(update={"start": 1 - 1e-5, "stop": 0.0})  # Table 10


def b_2_256_vp_score() -> Recipe:
    """Continuous time, VP, unweighted score (Tables 2 and 3)."""
    changes = {"objective": Flow(path=VP(), prediction="score", density=VP_TIMES, drop=0.1), "sampling": VP_ODE}
    return ablation("VP score", "Tables 2 and 3", changes, row("SiT Table 3", 400_000, VP_ODE, 43.6))


def b_2_256_vp_weighted_score() -> Recipe:
    """VP, score weighted so that its loss equals the velocity's (Tables 3 and 6)."""
    flow = Flow(path=VP(), prediction="score", density=VP_TIMES, weight=SiTWeight(form="velocity"), drop=0.1)
    lines = (row("SiT Table 3", 400_000, VP_ODE, 39.1), *diffusions(35.7, 37.1, 37.7, 38.9, singular=False))
    return ablation("VP weighted score", "Tables 3 and 6", {"objective": flow, "sampling": VP_ODE}, *lines)


def b_2_256_vp_velocity() -> Recipe:
    """VP, velocity (Tables 3 to 6)."""
    changes = {"objective": Flow(path=VP(), prediction="velocity", density=VP_TIMES, drop=0.1), "sampling": VP_ODE}
    lines = (row("SiT Table 4", 400_000, VP_ODE, 39.8), *diffusions(37.8, 38.7, 39.2, 41.1, singular=False))
    return ablation("VP velocity", "Tables 3 to 6", changes, *lines)


def b_2_256_gvp_velocity() -> Recipe:
    """GVP (cosine), velocity (Tables 4 to 6)."""
    changes = {"objective": Flow(path=Cosine(), prediction="velocity", density=Uniform(), drop=0.1)}
    lines = (row("SiT Table 4", 400_000, ODE, 34.6), *diffusions(32.9, 33.4, 33.6, 33.2, singular=True))
    return ablation("GVP velocity", "Tables 4 to 6", changes, *lines)


def b_2_256_gvp_score() -> Recipe:
    """GVP (cosine), score (Table 6)."""
    flow = Flow(path=Cosine(), prediction="score", density=SCORE_TIMES, drop=0.1)
    lines = diffusions(37.8, 33.5, 33.2, 33.3, singular=False, start=0.999)
    return ablation("GVP score", "Table 6", {"objective": flow, "sampling": SCORE_ODE}, *lines)


def b_2_256_linear_score() -> Recipe:
    """Linear path, score (Table 6)."""
    flow = Flow(path=Linear(), prediction="score", density=SCORE_TIMES, drop=0.1)
    lines = diffusions(41.0, 35.3, 34.4, 34.9, singular=False, start=0.999)
    return ablation("linear score", "Table 6", {"objective": flow, "sampling": SCORE_ODE}, *lines)


# ------------------------------------------------------------------------------------- for one's own images


def own(size: str) -> Recipe:
    """SiT on a folder of images: the published recipe without the unused variance half; Heun, all channels guided."""
    changes = {
        "title": f"SiT-{size} on your own images",
        "source": "ours; after arXiv 2401.08740",
        "model.variance": "none",
        "data.source": "images",
        "data.size": None,
        "data.channels": None,
        "sampling": SamplerSettings(solver="heun", steps=50, guidance=CFG(scale=2.0)),
        "training.save_every": 10_000,
    }
    return run(size, ()).with_(changes)


def s_2() -> Recipe:
    """SiT-S/2 on your own images; no published row."""
    return own("S/2")


def b_2() -> Recipe:
    """SiT-B/2 on your own images; no published row."""
    return own("B/2")


def l_2() -> Recipe:
    """SiT-L/2 on your own images; no published row."""
    return own("L/2")


def xl_2() -> Recipe:
    """SiT-XL/2 on your own images; no published row."""
    return own("XL/2")


ROWS = (
    s_2_256, b_2_256, l_2_256, xl_2_256, xl_2_512, b_2_256_ddpm_noise, b_2_256_vp_score, b_2_256_vp_weighted_score,
    b_2_256_vp_velocity, b_2_256_gvp_velocity, b_2_256_gvp_score, b_2_256_linear_score, s_2, b_2, l_2, xl_2,
)  # fmt: skip
