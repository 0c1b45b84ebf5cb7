"""Fine-tuning recipes made of the recipe that a run was trained with: preference tuning, and plain tuning on winners.

SD3 was tuned by DPO with a LoRA of rank 128 on all linear layers (arXiv 2403.03206, appendix C; 4,000 steps at 2B);
its beta, rate and data are unpublished, so those here are ours.
"""

from __future__ import annotations

from ditkit.config import Settings
from ditkit.data import DataSettings
from ditkit.diffusion import DPO, Discrete
from ditkit.recipes.recipe import Recipe, Start
from ditkit.training import AdapterSettings

PAIRS = "pairs.parquet"
BETA = 500.0


class Tuning(Settings):
    """What both arms of a comparison share."""

    start: str = ""  # the run that it begins from; empty: --start says
    adapter: AdapterSettings | None = None  # None: all weights are tuned
    steps: int = 400
    lr: float = 2e-4
    seed: int = 0


def preferred(base: Recipe, pairs: str = PAIRS, tuning: Tuning | None = None, beta: float = BETA) -> Recipe:
    """Diffusion-DPO on pairs of images for the network of `base`, with its path, prediction and density of times.

    A flow's errors count as velocities, a DDPM's as noise. SettingsError where `base` aligns, or where its density
    reaches an end of time at which the loss is infinite.
    """
    own = base.objective
    if own.kind == "flow":
        objective = DPO(path=own.path, prediction=own.prediction, density=own.density, form="velocity", beta=beta)
    else:
        objective = DPO(path=own.path, prediction=own.prediction, density=Discrete(), form="noise", beta=beta)
    title = f"DPO of {base.title}"
    return _on_pairs(base, pairs, "both", tuning).with_({"title": title, "objective": objective})


def on_winners(base: Recipe, pairs: str = PAIRS, tuning: Tuning | None = None) -> Recipe:
    """The control of `preferred`: as many steps of the base's own objective on the winners alone."""
    return _on_pairs(base, pairs, "winners", tuning).with_({"title": f"{base.title}, tuned on winners"})


def _on_pairs(base: Recipe, pairs: str, show: str, tuning: Tuning | None) -> Recipe:
    """The base's recipe as both arms have it, not validated yet: the objective may not fit what is shown."""
    t = tuning or Tuning()
    data = DataSettings(source=pairs, pairs="winners", size=base.data.size, channels=base.data.channels)
    changes = {
        "name": "", "source": "ours", "published": (), "unpublished": (), "notes": (), "data": data,
        "adapter": t.adapter, "start": Start(path=t.start) if t.start else None, "training.steps": t.steps,
        "training.lr": t.lr, "training.seed": t.seed, "training.schedule": "constant",
        "training.warmup": min(t.steps // 10, 100), "training.ema": max(0.0, round(1 - 10 / t.steps, 4)),
        "training.ema_every": 1, "training.log_every": max(1, min(50, t.steps // 10)),
        "training.validate_every": t.steps, "training.save_every": t.steps,
    }  # fmt: skip
    return base.with_(changes).model_copy(update={"data": data.model_copy(update={"pairs": show})})
