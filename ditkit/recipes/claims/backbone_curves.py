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
from ditkit.recipes.reproduce.rules import PAIRED, Paired, shown

ORDER = ("DiT", "UViT", "CrossDiT", "MMDiT")  # worst first: section 5.2.3; the paper shows curves, no numbers
BEST = ORDER[-1]
PAPER = "curves only, no numbers: DiT, then UViT, CrossDiT, and MMDiT best"
RULE = (
    "Validation loss is the mean over seven of the eight fixed times: below t = 1/8 the velocity's error is that "
    "of the predicted image divided by t^2, and a few draws would outweigh all others. "
    f"Holds: MMDiT's final validation loss is below that of each of the others, {PAIRED}; and no other backbone's "
    "GenEval-style score is above the upper 95 % limit of MMDiT's (means over seeds). Does not hold: a backbone's loss "
    "is below MMDiT's by the same measure, and its score above the upper limit of MMDiT's. Undecided: all else. "
    "The order of the other three is told beside the verdict and does not decide it. A run that diverges is worst."
)
VALIDATION = "validation_loss_t"
LEAST = 0.125  # times below it are left out of the mean


def judge(
    names: Sequence[str], arms: Sequence[Arm], sizes: Mapping[str, int], scores: Mapping[str, Any],
    folders: Mapping[str, Path],
) -> Finding:  # fmt: skip
    """The finding. sizes: name -> parameters; scores: arm.key -> what the study measured, None if the run diverged.

    folders: of the runs, whose training losses are drawn where they are there; nothing else is read from them.
    """
    losses: dict[str, list[float]] = {name: [] for name in names}
    overall: dict[str, list[float]] = {name: [] for name in names}
    limits: dict[str, list[float]] = {name: [] for name in names}
    for arm in arms:
        found = scores[arm.key]
        losses[arm.name].append(_last(found))
        overall[arm.name].append(found["overall"] if found else 0.0)
        limits[arm.name].append(found["interval"][1] if found else 0.0)
    loss = {name: float(np.mean(values)) for name, values in losses.items()}
    verdict, reason = decide(losses, {n: float(np.mean(v)) for n, v in overall.items()}, float(np.mean(limits[BEST])))
    ours = {
        name: {
            "parameters": sizes[name], "validation loss": loss[name], "validation loss, spread": _spread(losses[name]),
            "geneval": float(np.mean(overall[name])), "geneval, spread": _spread(overall[name]),
        }
        for name in names
    }  # fmt: skip
    order = sorted(names, key=lambda name: -loss[name])
    remarks = [f"By final validation loss, worst first: {', '.join(order)}; the paper: {', '.join(ORDER)}."]
    if len(losses[BEST]) == 1:
        remarks.append("One seed: what another would change is not known.")
    next_best = min((name for name in names if name != BEST), key=loss.__getitem__)
    ratio = Paired.of(losses[BEST], losses[next_best]).ratio
    number = f"validation loss, worst first: {', '.join(f'{n} {shown(losses[n])}' for n in order)}"
    sections = [loss_plot(arms, scores, folders), score_table(arms, ours, scores), time_plot(arms, scores)]
    return Finding({"order, worst first": ORDER}, {"order, worst first": order, "backbones": ours}, verdict, reason,
                   sections, remarks, number=number, effect=ratio.tolist())  # fmt: skip


def decide(losses: Mapping[str, Sequence[float]], geneval: Mapping[str, float], limit: float) -> tuple[Verdict, str]:
    """RULE. losses: by seed; limit: upper 95 % limit of MMDiT's score."""
    others = [name for name in losses if name != BEST]
    against = {name: Paired.of(losses[BEST], losses[name]) for name in others}
    lower = [name for name in others if against[name].worse()]
    behind = [name for name in others if against[name].better()]
    above = [name for name in others if geneval[name] > limit]
    mean = {name: float(np.mean(values)) for name, values in losses.items()}
    rho = ""
    if all(math.isfinite(v) for v in mean.values()):
        found, p = spearman([ORDER.index(name) for name in mean], [-mean[name] for name in mean])
        rho = f"; rank correlation of the losses' order with the paper's {found:.2f} (p = {p:.2g})"
    better = f"clearly above it {' and '.join(above)}" if above else "no other is clearly above it"
    reason = (
        f"MMDiT's final validation loss is {shown(losses[BEST])}, clearly below {' and '.join(behind) or 'none'}, "
        f"clearly above {' and '.join(lower) or 'none'}; its GenEval-style score is {geneval[BEST]:.2f}, {better}{rho}."
    )
    if len(behind) == len(others) and not above and math.isfinite(mean[BEST]):
        return HOLDS, reason
    return (FAILS if set(lower) & set(above) else UNDECIDED), reason


def _rows(folder: Path) -> list[dict]:
    file = folder / "metrics.jsonl"
    return read_rows(file) if file.is_file() else []


def read_validations(folder: Path) -> list[dict[str, Any]]:
    """[{"step", "losses": [[t, validation loss], ...]}] of every validated step of a run, as it wrote them down."""
    found = [(row["step"], by_time(row)) for row in _rows(folder)]
    return [{"step": step, "losses": [list(pair) for pair in times.items()]} for step, times in found if times]


def by_time(row: Mapping[str, float]) -> dict[float, float]:
    """Time -> validation loss of a row of metrics.jsonl; empty where nothing was validated."""
    return {float(k.removeprefix(VALIDATION)): v for k, v in sorted(row.items()) if k.startswith(VALIDATION)}


def validations(found: Mapping[str, Any] | None) -> list[tuple[int, float]]:
    """(step, validation loss as in RULE) of every validated step of a run's scores; nothing if it diverged.

    A loss that was not finite is None in result.json, and makes its step's infinite.
    """
    rows = [
        (row["step"], [v for t, v in row["losses"] if t > LEAST]) for row in (found["validations"] if found else [])
    ]
    return [(step, float(np.mean([math.inf if v is None else v for v in losses]))) for step, losses in rows]


def _last(found: Mapping[str, Any] | None) -> float:
    """The last validation loss; infinite where there is none."""
    told = validations(found)
    return told[-1][1] if told and math.isfinite(told[-1][1]) else math.inf


def _spread(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds; None of one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 and np.isfinite(values).all() else None


def loss_plot(arms: Sequence[Arm], scores: Mapping[str, Any], folders: Mapping[str, Path]) -> Section:
    """Validation and, where the runs are there, training losses of the first seed over steps."""
    first = [arm for arm in arms if arm.seed == arms[0].seed]
    validation, training = [], []
    for arm in first:
        found = validations(scores[arm.key])
        validation.append(Series(arm.name, [step for step, _ in found], [loss for _, loss in found]))
        if rows := _rows(folders[arm.key]):
            training.append(series_of(rows, "loss_denoise", arm.name, smooth=True))
    note = "Validation: held-out scenes, the same images, noise and times every time, averaged weights. First seed."
    panels = [Panel("Validation loss", validation), *([Panel("Training loss", training)] if training else [])]
    return curves("Losses", panels, note)


def time_plot(arms: Sequence[Arm], scores: Mapping[str, Any]) -> Section:
    """The final validation loss at each of its eight times, first seed."""
    lines = []
    for arm in (arm for arm in arms if arm.seed == arms[0].seed):
        found = scores[arm.key]
        last = found["validations"][-1]["losses"] if found and found["validations"] else []
        lines.append(Series(arm.name, [t for t, _ in last], [loss for _, loss in last]))
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
