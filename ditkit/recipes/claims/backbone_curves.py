"""What the backbone study found: curves of validation loss, GenEval-style scores, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ditkit.analysis.ranking import spearman
from ditkit.evaluation import Panel, Section, Series, read_rows, series_of
from ditkit.evaluation.geneval import TAGS
from ditkit.evaluation.geneval.metadata import TITLES
from ditkit.evaluation.sections import Cell, curves, table
from ditkit.recipes.reproduce.claim import FAILS, HOLDS, UNDECIDED, Arm, Finding, Verdict

ORDER = ("DiT", "UViT", "CrossDiT", "MMDiT")  # worst first: section 5.2.3; the paper shows curves, no numbers
BEST = ORDER[-1]
RULE = (
    "Validation loss is the mean over seven of the eight fixed times: below t = 1/8 the velocity's error is that "
    "of the predicted image divided by t^2, and a few draws would outweigh all others. "
    "Holds: MMDiT has the lowest final validation loss of the four (mean over seeds), and no other backbone's "
    "GenEval-style score is above the upper 95 % limit of MMDiT's. Does not hold: a backbone has both a lower "
    "validation loss than MMDiT and a GenEval-style score above the upper limit of MMDiT's. Undecided: all else. "
    "The order of the other three is told beside the verdict and does not decide it. A run that diverges is worst."
)
VALIDATION = "validation_loss_t"
LEAST = 0.125  # times below it are left out of the mean


def judge(
    names: Sequence[str], arms: Sequence[Arm], sizes: Mapping[str, int], scores: Mapping[str, Any],
    folders: Mapping[str, Path],
) -> Finding:  # fmt: skip
    """The finding. sizes: name -> parameters; scores: arm.key -> what GenEval said, None if the run diverged."""
    rows = {arm.key: _rows(folders[arm.key]) for arm in arms}
    losses: dict[str, list[float]] = {name: [] for name in names}
    overall: dict[str, list[float]] = {name: [] for name in names}
    limits: dict[str, list[float]] = {name: [] for name in names}
    for arm in arms:
        found = scores[arm.key]
        losses[arm.name].append(_last(rows[arm.key]) if found else math.inf)
        overall[arm.name].append(found["overall"] if found else 0.0)
        limits[arm.name].append(found["interval"][1] if found else 0.0)
    loss = {name: float(np.mean(values)) for name, values in losses.items()}
    geneval = {name: float(np.mean(values)) for name, values in overall.items()}
    verdict, reason = decide(loss, geneval, float(np.mean(limits[BEST])))
    ours = {
        name: {
            "parameters": sizes[name], "validation loss": loss[name], "validation loss, spread": _spread(losses[name]),
            "geneval": geneval[name], "geneval, spread": _spread(overall[name]),
        }
        for name in names
    }  # fmt: skip
    order = sorted(names, key=lambda name: -loss[name])
    remarks = [f"By final validation loss, worst first: {', '.join(order)}; the paper: {', '.join(ORDER)}."]
    if len({arm.seed for arm in arms}) == 1:
        remarks.append("One seed: what another would change is not known.")
    sections = [loss_plot(arms, rows), score_table(arms, ours, scores), time_plot(arms, rows)]
    return Finding({"order, worst first": ORDER}, {"order, worst first": order, "backbones": ours}, verdict, reason,
                   sections, remarks)  # fmt: skip


def decide(loss: Mapping[str, float], geneval: Mapping[str, float], limit: float) -> tuple[Verdict, str]:
    """RULE. limit: upper 95 % limit of MMDiT's score."""
    others = [name for name in loss if name != BEST]
    lower = [name for name in others if loss[name] < loss[BEST]]
    above = [name for name in others if geneval[name] > limit]
    rho = ""
    if all(math.isfinite(v) for v in loss.values()):
        found, p = spearman([ORDER.index(name) for name in loss], [-loss[name] for name in loss])
        rho = f"; rank correlation of the losses' order with the paper's {found:.2f} (p = {p:.2g})"
    ahead = f"lower with {' and '.join(lower)}" if lower else "the lowest of the four"
    better = f"clearly above it {' and '.join(above)}" if above else "no other is clearly above it"
    reason = f"MMDiT's final validation loss is {loss[BEST]:.4g}, {ahead}"
    reason += f"; its GenEval-style score is {geneval[BEST]:.2f}, {better}{rho}."
    if not lower and not above and math.isfinite(loss[BEST]):
        return HOLDS, reason
    return (FAILS if set(lower) & set(above) else UNDECIDED), reason


def _rows(folder: Path) -> list[dict]:
    file = folder / "metrics.jsonl"
    return read_rows(file) if file.is_file() else []


def by_time(row: Mapping[str, float]) -> dict[float, float]:
    """Time -> validation loss of a row of metrics.jsonl; empty where nothing was validated."""
    return {float(k.removeprefix(VALIDATION)): v for k, v in sorted(row.items()) if k.startswith(VALIDATION)}


def validations(rows: Sequence[Mapping[str, float]]) -> list[tuple[float, float]]:
    """(step, validation loss as in RULE) of every validated step."""
    found = [(row["step"], [v for t, v in by_time(row).items() if t > LEAST]) for row in rows]
    return [(step, float(np.mean(values))) for step, values in found if values]


def _last(rows: Sequence[Mapping[str, float]]) -> float:
    """The last validation loss; infinite where there is none."""
    found = validations(rows)
    return found[-1][1] if found and math.isfinite(found[-1][1]) else math.inf


def _spread(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds; None of one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 and np.isfinite(values).all() else None


def loss_plot(arms: Sequence[Arm], rows: Mapping[str, Sequence[Mapping]]) -> Section:
    """Validation and training losses of the first seed over steps."""
    first = [arm for arm in arms if arm.seed == arms[0].seed]
    validation = []
    for arm in first:
        found = validations(rows[arm.key])
        validation.append(Series(arm.name, [step for step, _ in found], [loss for _, loss in found]))
    training = [series_of(rows[arm.key], "loss_denoise", arm.name, smooth=True) for arm in first]
    note = "Validation: held-out scenes, the same images, noise and times every time, averaged weights. First seed."
    return curves("Losses", [Panel("Validation loss", validation), Panel("Training loss", training)], note)


def time_plot(arms: Sequence[Arm], rows: Mapping[str, Sequence[Mapping]]) -> Section:
    """The final validation loss at each of its eight times, first seed."""
    lines = []
    for arm in (arm for arm in arms if arm.seed == arms[0].seed):
        found = [times for row in rows[arm.key] if (times := by_time(row))]
        last = found[-1] if found else {}
        lines.append(Series(arm.name, sorted(last), [last[t] for t in sorted(last)]))
    note = "0 = data, 1 = noise; the last validation of the first seed."
    return curves("Loss by time", [Panel("Validation loss", lines, "t", log_y=True)], note)


def score_table(arms: Sequence[Arm], ours: Mapping[str, dict], scores: Mapping[str, Any]) -> Section:
    """Sizes, losses and scores."""
    lines: list[list[Cell]] = []
    for name, row in sorted(ours.items(), key=lambda item: item[1]["validation loss"]):
        mine = [scores[arm.key] for arm in arms if arm.name == name and scores[arm.key]]
        tasks = [f"{np.mean([m['scores'][tag] for m in mine]):.2f}" if mine else None for tag in TAGS]
        chance = [value for m in mine for value in m["shuffled"].values()]
        shuffled = f"{np.mean(chance):.2f}" if chance else None
        told = [_with(row["validation loss"], row["validation loss, spread"], ".4g"),
                _with(row["geneval"], row["geneval, spread"], ".2f")]  # fmt: skip
        lines.append([name, row["parameters"], *told, shuffled, *tasks])
    titles = [TITLES[tag] for tag in TAGS]
    columns = ("backbone", "parameters", "validation loss", "GenEval, scenes", "prompts shuffled", *titles)
    note = (
        "Mean over seeds, ± their standard deviation where there are several. GenEval-style: share of images of "
        "held-out prompts that show what was asked for, mean over six tasks; shuffled: the same images against other "
        "prompts. The paper shows curves and prints no numbers."
    )
    return table("Scores", columns, lines, note)


def _with(value: float, spread: float | None, form: str) -> str:
    return f"{value:{form}}" + ("" if spread is None else f" ± {spread:.2g}")
