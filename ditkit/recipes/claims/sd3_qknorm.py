"""SD3's norm of queries and keys (Esser et al. 2024, section 5.3.2, Figure 5): attention logits in mixed precision.

The paper meets growing attention logits and collapsing entropy late in the training of a large model at a high
resolution. A small model shows the same early at a high learning rate (Wortsman et al. 2023, arXiv 2309.14322), so
that is what stands in for scale. Full precision, the paper's other remedy, is there for comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ditkit.evaluation import Panel
from ditkit.evaluation.sections import Cell, curves, table
from ditkit.recipes.analyses.attention import BlockAttention, look
from ditkit.recipes.analyses.noised import noised
from ditkit.recipes.analyses.subject import Asked, Subject
from ditkit.recipes.reproduce.claim import Finding
from ditkit.recipes.reproduce.comparison import PAPERS, Table, Trial, claim
from ditkit.recipes.reproduce.measures import Measure, Quality
from ditkit.recipes.reproduce.rules import PAIRED, Paired, shown, together
from ditkit.recipes.reproduce.shown import COLUMNS, series
from ditkit.recipes.reproduce.testbed import Testbed

FASTER = 4.0  # the learning rate over the budget's
WITHOUT, WITH = "bf16", "bf16, QK-norm"
FULL, FULL_WITH = "fp32", "fp32, QK-norm"
ARMS = {WITHOUT: ("bf16", "none"), WITH: ("bf16", "rms"), FULL: ("fp32", "none"), FULL_WITH: ("fp32", "rms")}


@dataclass(frozen=True)
class AttentionAt:
    """Attention of the weights at a step: {"logit": the largest of any block, "entropy": mean of the lowest block}.

    Of held-out images with noise at three times, under their labels; entropy over the log of the number of tokens.
    """

    step: int
    images: int = 64
    times: tuple[float, ...] = (0.1, 0.5, 0.9)

    @property
    def name(self) -> str:
        """attention@STEP, and what is looked at."""
        return f"attention@{self.step}, {self.images} images, t {' '.join(f'{t:g}' for t in self.times)}"

    def cost(self, bed: Testbed) -> float:
        """An evaluation for each image and time, and about one more to look at it."""
        return 2.0 * self.images * len(self.times)

    def __call__(self, bed: Testbed, folder: Path, seed: int) -> dict[str, float]:
        """Of the raw weights: averages lag behind what makes a training diverge."""
        loaded = bed.load(folder, self.step, "raw")
        subject = Subject("", loaded, Asked(n=self.images, seed=seed))
        seen: list[BlockAttention] = []
        for t in self.times:
            seen += look(subject, loaded.model, list(noised(subject, t, self.images, null=False)))
        blocks = [seen[i :: loaded.recipe.model.depth] for i in range(loaded.recipe.model.depth)]
        entropy = min(float(np.mean([at.entropy for at in block])) for block in blocks)
        return {"logit": max(at.largest_logit for at in seen), "entropy": entropy}


def measured(bed: Testbed) -> list[Trial]:
    """The small model at a high rate, in both precisions, without and with the norm."""
    measures: list[Measure] = [*(AttentionAt(step) for step in bed.budget.checkpoints), Quality(bed.budget.steps)]
    fast = {"training.lr": FASTER * bed.budget.lr}
    return [
        Trial(name, bed.sit("small", {**fast, "training.precision": precision, "model.qk_norm": norm}), measures)
        for name, (precision, norm) in ARMS.items()
    ]


def logits(found: Table, trial: str, key: str = "logit") -> np.ndarray:
    """(steps, seeds): the largest logit at each checkpoint; infinite where a run diverged."""
    rows = np.array([found.values(trial, AttentionAt(step), key) for step in found.bed.budget.checkpoints])
    return np.where(np.isnan(rows), np.inf, rows) if key == "logit" else rows


def judge(found: Table) -> Finding:
    """Whether the largest logit grows without the norm, and whether the norm keeps it smaller."""
    grown = {name: logits(found, name) for name in ARMS}
    start = np.where(np.isinf(grown[WITHOUT][0]), 1.0, grown[WITHOUT][0])  # of a run that diverged nothing is scored
    growth = Paired.of(start, grown[WITHOUT][-1])
    kept = Paired.of(grown[WITH][-1], grown[WITHOUT][-1])
    lost = {name: int(np.isinf(rows[-1]).sum()) for name, rows in grown.items()}
    steps = found.bed.budget.checkpoints
    reason = (
        f"In bf16 without the norm the largest logit goes from {shown(grown[WITHOUT][0])} at step {steps[0]} to "
        f"{shown(grown[WITHOUT][-1])} at step {steps[-1]}: {growth.verdict()}. With the norm it is "
        f"{shown(grown[WITH][-1])} there: {kept.verdict()}. In fp32 without it: {shown(grown[FULL][-1])}. "
        f"Diverged: {', '.join(f'{name} {n}' for name, n in lost.items() if n) or 'none'} of {len(found.seeds)}."
    )
    keys = {"logit": ("Largest attention logit", True), "entropy": ("Entropy, lowest block", False)}
    panels = [
        Panel(title, [series(name, steps, list(logits(found, name, key))) for name in ARMS], "step", log_y=log)
        for key, (title, log) in keys.items()
    ]
    last = Quality(found.bed.budget.steps)
    rows: list[list[Cell]] = [
        [name, shown(grown[name][-1]), *(shown(found.values(name, last, key)) for key in COLUMNS)] for name in ARMS
    ]
    note = f"At step {steps[-1]} with a learning rate of {FASTER * found.bed.budget.lr:g}. FD: Fréchet distance."
    ours: dict[str, Any] = {
        "steps": steps,
        "logit": {name: at.tolist() for name, at in grown.items()},
        "diverged": lost,
    }
    told = f"largest logit {shown(grown[WITHOUT][-1])} without, {shown(grown[WITH][-1])} with the norm (bf16)"
    return Finding(
        {"figure 5": "curves only", "remedy": "RMSNorm of queries and keys; full precision, at half the speed"},
        ours, together(growth.verdict(), kept.verdict()), reason,
        [curves("Attention over training", panels, "Held-out images at t 0.1, 0.5 and 0.9; raw weights."),
         table("Last checkpoint", ("", "largest logit", *COLUMNS.values()), rows, note)],
        number=told, effect=kept.ratio.tolist(),
    )  # fmt: skip


QKNORM = claim(
    "sd3-qknorm",
    (PAPERS["SD3"], "Section 5.3.2, Figure 5"),
    "in mixed precision attention logits grow without a norm of queries and keys; with RMSNorm they stay small",
    f"Holds: in bf16 at {FASTER:g} times the learning rate, the largest attention logit without the norm is smaller at "
    f"the first checkpoint than at the last, {PAIRED}, and at the last it is smaller with the norm than without, by "
    "the same measure. Does not hold: one of the two is the other way round by that measure. Undecided: else. A run "
    "that diverged counts as an infinite logit at the last checkpoint.",
    trials=measured,
    judge=judge,
    number="curves only; RMSNorm on queries and keys makes bf16 training stable at high resolution",
    minutes=4,
)
CLAIMS = (QKNORM,)
