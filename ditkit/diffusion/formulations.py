"""The 61 formulations of SD3's study (Esser et al. 2024, section 5.1) by the paper's names, as objectives and samplers.

A name says path, prediction, loss weight and density of times: see `formulation`. The paper does not print LDM's noise
rates nor how it samples the diffusion formulations; both are named here. The prediction "edm" is F of Karras et al.
2022, which on a variance-preserving path with data of deviation 1 is minus v = alpha eps - sigma x.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from ditkit.config import nearest
from ditkit.diffusion.ddpm import DDPM
from ditkit.diffusion.guidance import CFG
from ditkit.diffusion.objective import Flow
from ditkit.diffusion.path import EDM, Cosine, Path, determinant
from ditkit.diffusion.prediction import interval
from ditkit.diffusion.sample import SamplerSettings
from ditkit.diffusion.times import AnyDensity, CosMap, Discrete, EDMLogNormal, LogitNormal, Mode, Uniform
from ditkit.diffusion.weight import squared_gain

LDM = DDPM(schedule="scaled_linear")


def _plain(path: Path, prediction: str, density: AnyDensity) -> Flow:
    return Flow.model_validate({"path": path, "prediction": prediction, "density": density})


def _noise_cosine() -> Flow:
    path = Cosine()
    low, high = interval(path, "noise")
    return _plain(path, "noise", Uniform(low=low, high=high))


def _matched(schedule: str, form: str) -> Flow:
    """The EDM network with the log-SNRs and the weighting of another formulation."""
    path = EDM.model_validate({"schedule": schedule})
    return Flow.model_validate({"path": path, "prediction": "edm", "weight": {"kind": "sd3", "form": form}})


_NAMED: dict[str, Callable[[], Flow]] = {
    "rf": Flow,
    "rf/cosmap": lambda: Flow(density=CosMap()),
    "edm/rf": lambda: _matched("rf", "rf"),
    "edm/cos": lambda: _matched("cosine", "v_cos"),
    "eps/linear": lambda: _plain(LDM, "noise", Discrete()),
    "v/linear": lambda: _plain(LDM, "edm", Discrete()),
    "eps/cos": _noise_cosine,
    "v/cos": lambda: _plain(Cosine(), "velocity", Uniform()),
}
_WITH_NUMBERS: dict[str, Callable[..., Flow]] = {
    "rf/lognorm": lambda mean, std: Flow(density=LogitNormal(mean=mean, std=std)),
    "rf/mode": lambda scale: Flow(density=Mode(scale=scale)),
    "edm": lambda mean, std: _plain(EDM(), "edm", EDMLogNormal(mean=mean, std=std)),
}
_COUNTS = {"rf/lognorm": 2, "rf/mode": 1, "edm": 2}


def formulation(name: str) -> Flow:
    """The objective that SD3 calls by this name (its sections 2, 3 and 5.1).

    rf, rf/lognorm(mean,std), rf/mode(scale), rf/cosmap: rectified flow, velocity, the density of its times.
    eps/linear, v/linear: latent diffusion's 1000 steps (betas with linear roots, 8.5e-4 to 0.012), noise or v.
    eps/cos, v/cos: the quarter circle; noise keeps 1e-3 off both ends, where it does not say what the data are.
    edm(P_mean,P_std): Karras et al. 2022, log sigma ~ N(P_mean, P_std^2) cut off at 0.002 and 80, prediction F.
    edm/rf, edm/cos: that network with the noise levels and the weighting of rf and v/cos.
    Raises ValueError for any other name.
    """
    found = re.fullmatch(r"([a-z/]+)(?:\(([^()]*)\))?", name.replace(" ", ""))
    family, numbers = found.groups() if found else (name, None)
    if numbers is None and family in _NAMED:
        return _NAMED[family]()
    if numbers is None or family not in _WITH_NUMBERS:
        examples = [*_NAMED, "rf/lognorm(0,1)", "rf/mode(1.29)", "edm(-1.2,1.2)"]
        raise ValueError(f"formulation {name!r} is not known{nearest(name, examples)}")
    try:
        values = [float(part) for part in numbers.split(",")]
    except ValueError:
        raise ValueError(
            f"formulation {name!r}: {numbers!r} are not numbers: write for example rf/mode(1.29)"
        ) from None
    if len(values) != _COUNTS[family]:
        raise ValueError(f"formulation {name!r}: {family} takes {_COUNTS[family]} numbers, given {len(values)}")
    try:
        return _WITH_NUMBERS[family](*values)
    except ValidationError as error:
        raise ValueError(f"formulation {name!r}: {error.errors()[0]['msg']}") from None


def sampler(flow: Flow, steps: int, scale: float = 1.0) -> SamplerSettings:
    """Euler's method in `steps` network evaluations (twice as many with guidance) for an objective of this study.

    Rectified flow takes Euler's steps in t. The others take them in sigma / alpha, where their equation is straight
    (EDM's Euler sampler; on variance-preserving paths DDIM; on rectified flow the same as in t): a step in t would
    follow the bends of the schedule. A DDPM table is visited at equally spaced indices with both ends.
    """
    guidance = None if scale == 1 else CFG(scale=scale)
    return SamplerSettings(solver="euler" if flow.path.kind == "linear" else "ddim", steps=steps, guidance=guidance)


def induced_weight(flow: Flow, t: Tensor) -> Tensor:
    """w(t) of SD3's unified loss -1/2 E_{uniform t} w lambda' |eps error|^2 that this objective trains, (N,) as t.

    -1/2 w lambda' = pi(t) weight(t) g^2, with g^2 the squared error of the prediction for one of the noise; as a
    function of the log-SNR, w does not depend on the path. Discrete times count as uniform. t: (N,) inside (0, 1).
    """
    half_slope = determinant(flow.path, t) / (flow.path.alpha(t) * flow.path.sigma(t))  # -lambda' / 2
    density = torch.ones_like(t) if isinstance(flow.density, Discrete) else torch.exp(flow.density.log_prob(t))
    gain = squared_gain(flow.path, t, flow.prediction)
    return density * flow.weight(flow.path, t, flow.prediction) * gain / half_slope


# ------------------------------------------------------------------------------------------------ the paper's tables

_MEANS, _STDS = (-1.0, -0.5, 0.0, 0.5, 1.0), (0.2, 0.6, 1.0, 1.4, 1.8, 2.2)
_MODES = (-1.0, -0.54, -0.08, 0.38, 0.83, 1.0, 1.29, 1.75)
_P_MEANS, _P_STDS = (-1.2, -0.6, 0.0, 0.6, 1.2), (0.6, 1.2, 1.8)

FORMULATIONS: tuple[str, ...] = (
    *("eps/linear", "eps/cos", "v/linear", "v/cos", "rf", "rf/cosmap", "edm/rf", "edm/cos"),
    *(f"rf/mode({s:.2f})" for s in _MODES),
    *(f"rf/lognorm({m:.2f},{s:.2f})" for m in _MEANS for s in _STDS),
    *(f"edm({m:.2f},{s:.2f})" for m in _P_MEANS for s in _P_STDS),
)  # section 5.1; the grids are inferred from the printed ranges, counts and labels

SAMPLERS: tuple[tuple[int, float], ...] = ((50, 1.0), (50, 2.5), (50, 5.0), (5, 5.0), (10, 5.0), (25, 5.0))
"""The study's six sampler settings, (steps, guidance scale)."""


class Ranks(NamedTuple):
    """A row of SD3's Table 1: ranks averaged over all 24 settings, over those with 5 and with 50 steps."""

    name: str
    every: float
    five: float
    fifty: float


TABLE1: tuple[Ranks, ...] = (
    Ranks("rf/lognorm(0.00,1.00)", 1.54, 1.25, 1.50),
    Ranks("rf/lognorm(1.00,0.60)", 2.08, 3.50, 2.00),
    Ranks("rf/lognorm(0.50,0.60)", 2.71, 8.50, 1.00),
    Ranks("rf/mode(1.29)", 2.75, 3.25, 3.00),
    Ranks("rf/lognorm(0.50,1.00)", 2.83, 1.50, 2.50),
    Ranks("eps/linear", 2.88, 4.25, 2.75),
    Ranks("rf/mode(1.75)", 3.33, 2.75, 2.75),
    Ranks("rf/cosmap", 4.13, 3.75, 4.00),
    Ranks("edm(0.00,0.60)", 5.63, 13.25, 3.25),
    Ranks("rf", 5.67, 6.50, 5.75),
    Ranks("v/linear", 6.83, 5.75, 7.75),
    Ranks("edm(0.60,1.20)", 9.00, 13.00, 9.00),
    Ranks("v/cos", 9.17, 12.25, 8.75),
    Ranks("edm/cos", 11.04, 14.25, 11.25),
    Ranks("edm/rf", 13.04, 15.25, 13.25),
    Ranks("edm(-1.20,1.20)", 15.58, 20.25, 15.00),
)


class Scores(NamedTuple):
    """A row of SD3's Table 2, 25 steps: CLIP score and FID on CLIP features, trained on ImageNet and on CC12M."""

    name: str
    imagenet_clip: float
    imagenet_fid: float
    cc12m_clip: float
    cc12m_fid: float


TABLE2: tuple[Scores, ...] = (
    Scores("rf", 0.247, 49.70, 0.217, 94.90),
    Scores("edm(-1.20,1.20)", 0.236, 63.12, 0.200, 116.60),
    Scores("eps/linear", 0.245, 48.42, 0.222, 90.34),
    Scores("v/cos", 0.244, 50.74, 0.209, 97.87),
    Scores("v/linear", 0.246, 51.68, 0.217, 100.76),
    Scores("rf/lognorm(0.50,0.60)", 0.256, 80.41, 0.233, 120.84),
    Scores("rf/mode(1.75)", 0.253, 44.39, 0.218, 94.06),
    Scores("rf/lognorm(1.00,0.60)", 0.254, 114.26, 0.234, 147.69),
    Scores("rf/lognorm(-0.50,1.00)", 0.248, 45.64, 0.219, 89.70),
    Scores("rf/lognorm(0.00,1.00)", 0.250, 45.78, 0.224, 89.91),
)
