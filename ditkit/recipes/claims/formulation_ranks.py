"""What the formulation study found: ranks by repeated non-dominated sorting beside the paper's, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ditkit.analysis.ranking import Better, average_ranks, places, spearman
from ditkit.diffusion.formulations import TABLE1, TABLE2
from ditkit.evaluation import Panel, Section, Series
from ditkit.evaluation.sections import Cell, curves, table
from ditkit.recipes.reproduce.claim import FAILS, HOLDS, UNDECIDED, Arm, Finding, Verdict
from ditkit.recipes.reproduce.rules import FEWEST

BETTER: tuple[Better, Better] = ("higher", "lower")  # class agreement, Frechet distance
FAVOURITE, PLAIN = "rf/lognorm(0.00,1.00)", "rf"
SHOWN = (FAVOURITE, "rf", "rf/mode(1.29)", "eps/linear", "v/cos", "edm(0.00,0.60)")
SHORT = {FAVOURITE: "logit-normal(0, 1)", PLAIN: "uniform"}
LEVEL = 0.05
RULE = (
    "Holds: rf/lognorm(0.00,1.00) has a better average rank than rf with uniform times, is in the best quarter of the "
    "rows, and the rows' average ranks correlate with the paper's (Spearman's rho > 0, p < .05 over random orders). "
    "Does not hold: it has a worse average rank than rf with uniform times, and rho is not significantly above 0. "
    "Undecided: everything else, and with fewer than 3 seeds. A row whose images are not all finite ranks last in that "
    "setting."
)
Setting = tuple[int, float, str]  # sampler steps, guidance scale, weights


def judge(
    rows: Sequence[str], arms: Sequence[Arm], settings: Mapping[str, Setting], scores: Mapping[str, Mapping[str, Any]]
) -> Finding:
    """The finding. settings: part -> (steps, guidance, weights); scores: arm.key -> part -> scores or None."""
    seeds = sorted({arm.seed for arm in arms})
    keys = {(arm.name, arm.seed): arm.key for arm in arms}

    def numbers(row: str, seed: int, part: str) -> tuple[float, float]:
        found = scores[keys[row, seed]].get(part) or {}
        values = (found.get("agreement"), found.get("frechet"))
        return tuple(math.nan if v is None else v for v in values)  # type: ignore[return-value]

    def ranks(chosen: Sequence[int], steps: int | None = None) -> np.ndarray:
        wanted = [part for part, setting in settings.items() if steps in (None, setting[0])]
        return average_ranks([[numbers(r, s, p) for r in rows] for s in chosen for p in wanted], BETTER)

    def over_plain(seed: int) -> float:
        pairs = [(numbers(FAVOURITE, seed, part)[1], numbers(PLAIN, seed, part)[1]) for part in settings]
        return float(np.exp(np.mean([np.log(mine / plain) for mine, plain in pairs])))

    every, five, fifty = ranks(seeds), ranks(seeds, 5), ranks(seeds, 50)
    spread = np.std([ranks([seed]) for seed in seeds], axis=0, ddof=1) if len(seeds) > 1 else None
    middle = next(p for p, setting in settings.items() if setting == (25, 5.0, "ema"))
    mean = {row: np.mean([numbers(row, seed, middle) for seed in seeds], axis=0) for row in rows}
    lost = {r: sum(not np.isfinite(numbers(r, s, p)).all() for s in seeds for p in settings) for r in rows}
    ours = {
        row: {
            "every": every[i], "five": five[i], "fifty": fifty[i], "spread": None if spread is None else spread[i],
            "agreement": mean[row][0], "frechet": mean[row][1], "not finite": lost[row],
        }
        for i, row in enumerate(rows)
    }  # fmt: skip
    paper = {r.name: r._asdict() for r in TABLE1}
    rho, p = compared({row: ours[row]["every"] for row in rows})
    verdict, reason = decide({row: ours[row]["every"] for row in rows}, rho, p)
    verdict = verdict if len(seeds) >= FEWEST else UNDECIDED
    remarks = [f"{row}: images of {n} of {len(seeds) * len(settings)} settings were not finite; it ranks last there."
               for row, n in lost.items() if n]  # fmt: skip
    if len(seeds) == 1:
        remarks.append("One seed: what another would change is not known.")
    sections = [
        rank_table(ours, paper, len(seeds), len(settings)),
        score_table(ours),
        steps_plot(rows, seeds, settings, numbers),
    ]
    summed = {"rows": {row: {k: number(v) for k, v in values.items()} for row, values in ours.items()}}
    told = [f"{short} {ours[row]['every']:.2f}" for row, short in SHORT.items() if row in ours]
    return Finding(
        {"rows": paper}, {**summed, "rho": rho, "p": p}, verdict, reason, sections, remarks,
        number=f"average rank of {', '.join(told)} of {len(rows)}; rho {rho:.2f}",
        effect=[over_plain(seed) for seed in seeds] if {FAVOURITE, PLAIN} <= set(rows) else (),
    )  # fmt: skip


def number(value: Any) -> Any:
    """A JSON number."""
    return float(value) if isinstance(value, (float, np.floating)) else value


def compared(ours: Mapping[str, float]) -> tuple[float, float]:
    """Spearman's rho of our average ranks with the paper's, and p; (nan, 1) for fewer than 3 rows of its table."""
    known = [(row.every, ours[row.name]) for row in TABLE1 if row.name in ours]
    if len(known) < 3:
        return math.nan, 1.0
    a, b = zip(*known, strict=True)
    return spearman(a, b)


def decide(ours: Mapping[str, float], rho: float, p: float) -> tuple[Verdict, str]:
    """RULE. ours: row -> average rank."""
    if FAVOURITE not in ours or PLAIN not in ours:
        return UNDECIDED, f"{FAVOURITE} and {PLAIN} were not both among the rows."
    mine, plain = ours[FAVOURITE], ours[PLAIN]
    place = dict(zip(ours, places(list(ours.values())), strict=True))[FAVOURITE]
    alike = rho > 0 and p < LEVEL
    how = "better" if mine < plain else "worse" if mine > plain else "no better"
    reason = (
        f"Average rank of {FAVOURITE} {mine:.2f}, place {place:g} of {len(ours)}, {how} than rf's {plain:.2f}; "
        f"rank correlation with the paper {rho:.2f} (p = {p:.2g})."
    )
    if mine < plain and place <= max(1, len(ours) / 4) and alike:
        return HOLDS, reason
    return (FAILS if mine > plain and not alike else UNDECIDED), reason


def rank_table(ours: Mapping[str, dict], paper: Mapping[str, dict], seeds: int, settings: int) -> Section:
    """Average ranks, ours beside the paper's, best of ours first."""
    at = dict(zip(ours, places([row["every"] for row in ours.values()]), strict=True))
    lines: list[list[Cell]] = []
    for name, row in sorted(ours.items(), key=lambda item: item[1]["every"]):
        published = paper.get(name, {})
        mine = f"{row['every']:.2f}" + ("" if row["spread"] is None else f" ± {row['spread']:.2f}")
        theirs = [None if not published else f"{published[key]:.2f}" for key in ("every", "five", "fifty")]
        lines.append([name, f"{at[name]:g}", mine, f"{row['five']:.2f}", f"{row['fifty']:.2f}", *theirs])
    columns = ("formulation", "place", "ours, all", "5 steps", "50 steps", "paper, all", "5 steps", "50 steps")
    note = (
        f"Front in repeated non-dominated sorting by class agreement and Fréchet distance, averaged over {settings} "
        f"settings (samplers and weights) and {seeds} seed{'s' * (seeds > 1)}. The paper sorts 61 formulations, here "
        f"only {len(ours)} are sorted: compare the order, not the size of ranks."
    )
    if seeds > 1:
        note += " ±: standard deviation of a seed's average rank."
    return table("Ranks", columns, lines, note)


def score_table(ours: Mapping[str, dict]) -> Section:
    """The scores at 25 steps with guidance 5, averaged weights, beside the paper's Table 2."""
    published = {row.name: row for row in TABLE2}
    lines: list[list[Cell]] = []
    for name, row in sorted(ours.items(), key=lambda item: item[1]["every"]):
        theirs = published.get(name)
        clip, fid = (None, None) if theirs is None else (f"{theirs.imagenet_clip:.3f}", f"{theirs.imagenet_fid:.2f}")
        shown = [f"{v:.4g}" if math.isfinite(v) else "not finite" for v in (row["agreement"], row["frechet"])]
        lines.append([name, *shown, clip, fid, row["not finite"]])
    columns = (
        "formulation", "class agreement", "Fréchet distance", "CLIP score, ImageNet", "FID, ImageNet",
        "settings not finite",
    )  # fmt: skip
    note = "Ours: 25 steps, guidance 5, averaged weights, mean over seeds. Beside them the paper's Table 2."
    return table("Scores at 25 steps", columns, lines, note)


def steps_plot(rows: Sequence[str], seeds: Sequence[int], settings: Mapping[str, Setting], numbers: Any) -> Section:
    """Both scores over the number of steps, guidance 5, averaged weights."""
    chosen = sorted((s[0], part) for part, s in settings.items() if s[1:] == (5.0, "ema"))
    shown = [row for row in SHOWN if row in rows] or list(rows[:6])
    panels = []
    for column, (title, log) in enumerate((("Class agreement", False), ("Fréchet distance", True))):
        lines = []
        for row in shown:
            means = [float(np.mean([numbers(row, seed, part)[column] for seed in seeds])) for _, part in chosen]
            lines.append(Series(row, [steps for steps, _ in chosen], means))
        panels.append(Panel(title, lines, "sampler steps", log_y=log))
    return curves("Scores over sampler steps", panels, "Guidance 5, averaged weights; Table 1 has the other rows.")
