"""What was measured about encoder sharing, as sections of a report and as rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ditkit.analysis.schedule import cumulative_error
from ditkit.diffusion import Sharing, uniform_schedule
from ditkit.evaluation import Panel, Section, Series
from ditkit.evaluation.maps import HeatMap, Ticks
from ditkit.evaluation.sections import curves, facts, heat_maps, join, table, tick_rows
from ditkit.recipes.sharing import Measured
from ditkit.recipes.trade_off import Point, TradeOff

KINDS = {"uniform": "uniform", "dp": "DP on similarity", "velocity": "DP on velocity error"}  # in the plots' order
SPACES = {"pixels": "pixels", "classifier": "classifier features"}
WAYS = {
    "branch": "one branch encoded, their difference kept",
    "time": "shared in time, equal work",
    "same": "one s for both branches",
}
BEGIN = "evaluation (0 = noise)"


@dataclass(frozen=True)
class SharingFindings:
    """What the sections show: measurements, solved schedules (uniform ones are added), the trade-off if measured."""

    measured: Measured
    schedules: Sequence[Sharing]
    trade_off: TradeOff | None = None


def sharing_sections(f: SharingFindings) -> list[Section]:
    """Alikeness, schedules, trade-off (where measured), branches, and how all was measured."""
    found = [alikeness(f), schedules(f)]
    if f.trade_off is not None:
        found.append(trade_off(f.trade_off))
    if f.measured.branches:
        found.append(branches(f.measured))
    return [*found, protocol(f)]


def kind_of(sharing: Sharing) -> str:
    """The rule's first word: "dp"."""
    return sharing.rule.partition(":")[0]


def middle(f: SharingFindings, kind: str) -> tuple[int, ...]:
    """The schedule of this kind whose budget is nearest to a fifth of the evaluations; () where there is none."""
    mine = [s for s in f.schedules if kind_of(s) == kind]
    best = min(mine, key=lambda s: abs(s.budget - s.evaluations / 5), default=None)
    return best.encode if best else ()


def alikeness(f: SharingFindings) -> Section:
    """Heat maps of similarity and of the harm of reuse, each with its schedule as blocks on the diagonal."""
    reached = np.where(np.isfinite(f.measured.error), f.measured.error, 0.0)
    moved = np.sqrt(np.maximum(cumulative_error(reached), 0.0))
    moved[np.triu_indices_from(moved, 1)] = np.nan
    moved[~np.isfinite(f.measured.error)] = np.nan
    panels = [
        HeatMap("Similarity of s", f.measured.similarity, BEGIN, "mean cosine", middle(f, "dp")),
        HeatMap("Harm of using an s again", moved, BEGIN, "RMS move of the sample", middle(f, "velocity")),
    ]
    note = (
        "Left: mean cosine similarity of the self-condition s between two evaluations. Right: how far the final sample "
        "would move if the s of the column served until the row, by the velocity errors along runs without sharing. "
        f"Squares: stretches that one s serves, as solved for {len(middle(f, 'dp'))} encoder runs."
    )
    return heat_maps("How alike the self-conditions are", panels, note)


def schedules(f: SharingFindings) -> Section:
    """Where the encoder runs, a row for each schedule."""
    order, steps = list(KINDS), f.measured.evaluations
    rows: dict[str, tuple[Sequence[int], int]] = {}
    for budget in sorted({s.budget for s in f.schedules}):
        rows[f"uniform:{budget}"] = uniform_schedule(steps, budget), order.index("uniform")
        for s in (s for s in f.schedules if s.budget == budget):
            rows[s.rule] = s.encode, order.index(kind_of(s))
    note = f"A tick is an evaluation, of {steps}, that runs the encoder. The sampler goes from noise (left) to data."
    return tick_rows("Schedules", Ticks("Evaluations that run the encoder", rows, steps, BEGIN), note)


def trade_off(t: TradeOff) -> Section:
    """Speed-up against what it costs, a line for each kind of schedule; then all numbers."""
    return join("Trade-off", [trade_off_plot(t), trade_off_table(t)])


def trade_off_plot(t: TradeOff) -> Section:
    """Panels: loss of quality in each space, and change of the images, over the measured speed-up."""
    panels = []
    for space in t.spaces:
        lines, title = [_line(t, kind, space) for kind in KINDS], f"Fréchet distance, {SPACES.get(space, space)}"
        panels.append(Panel(title, lines, "speed-up", "more than unshared"))
    panels.append(Panel("Change of the latents", [_line(t, kind) for kind in KINDS], "speed-up", "relative RMS"))
    note = (
        f"Speed-up as measured, against the same sampler without sharing; K: encoder runs, of {t.evaluations} "
        f"evaluations. {_bars(t)}"
    )
    return curves("Speed against quality", panels, note)


def _bars(t: TradeOff) -> str:
    """What the limits are, or why there are none."""
    if any(d.more_interval for p in t.points for d in p.distances.values()):
        return "Bars: 95 % limits of the difference, over the same images with and without sharing."
    return "No limits: too few images to tell them."


def _line(t: TradeOff, kind: str, space: str | None = None) -> Series:
    """The points of one kind, most encoder runs first: loss in a space, or change of the latents."""
    chosen = [p for p in t.points if p.sharing is not None and kind_of(p.sharing) == kind]
    chosen.sort(key=lambda p: -p.sharing.budget if p.sharing else 0)
    words = [f"K={p.sharing.budget}" for p in chosen if p.sharing is not None and kind == "uniform"]
    x = [p.speedup for p in chosen]
    if space is None:
        return Series(KINDS[kind], x, [p.change for p in chosen], labels=words)
    lost = [p.distances[space] for p in chosen]
    limits = [d.more_interval or (d.more, d.more) for d in lost]
    return Series(KINDS[kind], x, [d.more for d in lost], limits=limits, labels=words)


def trade_off_columns(t: TradeOff) -> list[str]:
    """The heads of `trade_off_rows`."""
    spaces = [head for space in t.spaces for head in (f"FD {space}", "more than unshared")]
    return ["sharing", "s/image", "speed-up", "predicted", "latents moved", "PSNR, dB", *spaces]


def trade_off_rows(t: TradeOff) -> list[list[str]]:
    """A row for no sharing, then one for each different schedule, most encoder runs first."""
    rows = [_row(t, "none", t.unshared)]
    for budget in sorted({p.sharing.budget for p in t.points if p.sharing}, reverse=True):
        rows += [_row(t, f"{' = '.join(kinds)}:{budget}", p) for kinds, p in different(t, budget)]
    return rows


def _row(t: TradeOff, name: str, p: Point) -> list[str]:
    cells = [name, f"{p.seconds:.4g}", f"{p.speedup:.2f}", f"{p.predicted:.2f}"]
    cells += [f"{p.change:.2%}", "equal" if p.psnr is None else f"{p.psnr:.1f}"]
    for space in t.spaces:
        found = p.distances[space]
        limits = "" if found.more_interval is None else " ({:+.2g} to {:+.2g})".format(*found.more_interval)
        cells += [f"{found.value:.4g}", f"{found.more:+.2g}{limits}" if p.sharing else ""]
    return cells


def different(t: TradeOff, budget: int) -> list[tuple[list[str], Point]]:
    """(kinds that chose it, point) of every different schedule with this budget."""
    kinds: dict[tuple[int, ...], list[str]] = {}
    points: dict[tuple[int, ...], Point] = {}
    for kind in KINDS:
        if (p := t.find(f"{kind}:{budget}")) is not None and p.sharing is not None:
            kinds.setdefault(p.sharing.encode, []).append(kind)
            points[p.sharing.encode] = p
    return [(names, points[encode]) for encode, names in kinds.items()]


def trade_off_table(t: TradeOff) -> Section:
    """The numbers behind the plot."""
    note = (
        f"{t.images:,} images without and with every schedule, from the same noise; seconds of network and solver for "
        f"one image, median of {t.rounds} rounds in which the schedules take turns, over all with as many encoder "
        f"runs, which do the same work (batch {t.batch}, {t.device}, threads {t.threads}). Predicted: ratio of "
        f"multiply-accumulates. FD: Fréchet distance to {t.real_images:,} real images; in brackets the 95 % limits of "
        f"the difference, where there are images enough to tell them.{doubt(t)}"
    )
    return table("Numbers", trade_off_columns(t), trade_off_rows(t), note)


def doubt(t: TradeOff) -> str:
    """The sentence that names spaces with too few images for their distances; "" where there are none."""
    named = " and ".join(SPACES.get(space, space) for space in t.biased)
    return f" In {named} there are no more images than features: distances are biased upwards." if named else ""


def branches(m: Measured) -> Section:
    """Sharing between the conditional and the unconditional branch: how alike their s are, and what it does."""
    x = list(range(m.evaluations))
    output = np.maximum(m.branches["output"], np.finfo(float).tiny)
    errors = [Series(WAYS[way], x, [float(v) for v in np.sqrt(m.branches[way] / output)]) for way in WAYS]
    alike = Series("similarity of the two s", x, [float(v) for v in m.branches["similarity"]])
    panels = [
        Panel("The two branches", [alike], BEGIN, "mean cosine"),
        Panel("Error of the guided velocity", errors, BEGIN, "relative RMS"),
    ]
    share = {way: _relative(m, way) for way in WAYS}
    told = {way: f"{value:.2%}" for way, value in share.items()}
    better = "less" if share["branch"] < share["time"] else "more"
    better = "as much" if told["branch"] == told["time"] else better
    note = (
        f"At {m.facts['branch_work']:.0%} of the encoder runs: the conditional branch encoded at every evaluation, and "
        f"the other one guessed by their last difference, errs by {told['branch']} of the guided velocity; both "
        f"shared in time, by {told['time']}. So sharing between branches does {better} harm here; it can never "
        f"save more than half. One s for both branches takes guidance away: {share['same']:.1%}."
    )
    return curves("Between branches", panels, note)


def _relative(m: Measured, way: str) -> float:
    """RMS error of the guided velocity over all evaluations, relative to its RMS."""
    return float(np.sqrt(m.branches[way].sum() / max(m.branches["output"].sum(), np.finfo(float).tiny)))


def protocol(f: SharingFindings) -> Section:
    """How it was measured."""
    told: dict[str, Any] = {k: v for k, v in f.measured.facts.items() if isinstance(v, (str, int, float))}
    sections = [facts("Statistics", told)]
    if (t := f.trade_off) is not None:
        values: dict[str, Any] = {
            "sampler": t.sampler, "images": t.images, "labels": t.labels, "seed": t.seed, "batch": t.batch,
            "rounds": t.rounds, "device": t.device, "threads": t.threads, "real images": t.real_images,
            "their fingerprint": t.real, **{f"features, {name}": told for name, told in t.spaces.items()},
        }  # fmt: skip
        if t.classifier_accuracy is not None:
            values["classifier, held-out accuracy"] = f"{t.classifier_accuracy:.1%}"
        sections.append(facts("Trade-off", values))
    return join("How it was measured", sections)


def summary(f: SharingFindings) -> list[str]:
    """The findings in words; what did not win is said as well."""
    m, steps = f.measured, f.measured.evaluations
    near = float(np.mean(np.diagonal(m.similarity, -1))) if steps > 1 else 1.0
    lines = [
        f"{steps} evaluations a run; s is {near:.4f} alike from one to the next and {m.similarity[-1, 0]:.4f} from the "
        "first to the last (mean cosine)."
    ]
    return lines if f.trade_off is None else [*lines, *compared(f.trade_off)]


def compared(t: TradeOff) -> list[str]:
    """At about one encoder run in five: speed, then a sentence for each schedule; and which kind moved images least."""
    budgets = sorted({p.sharing.budget for p in t.points if p.sharing})
    budget = min(budgets, key=lambda k: abs(k - t.evaluations / 5))
    space = list(t.spaces)[-1]
    found = different(t, budget)
    speed, base = found[0][1], t.unshared.distances[space].value
    lines = [
        f"Encoder at {budget} of {t.evaluations} evaluations: {speed.speedup:.2f} times as fast (multiply-accumulates "
        f"predict {speed.predicted:.2f}). Fréchet distance in {SPACES.get(space, space)} without sharing: {base:.4g}."
    ]
    for kinds, p in found:
        lost = p.distances[space]
        told = f"{_named(kinds)}: Fréchet distance {lost.value:.4g}{_limits(lost.more_interval)}"
        lines.append(f"{told[0].upper()}{told[1:]}, latents moved by {p.change:.1%}.")
    least: dict[str, list[int]] = {}
    for k in budgets:
        least.setdefault(_named(least_moving(t, k)), []).append(k)
    told = "; ".join(f"{names} at K = {', '.join(map(str, ks))}" for names, ks in least.items())
    return [*lines, f"The latents move least with {told}.{doubt(t)}"]


def least_moving(t: TradeOff, budget: int) -> list[str]:
    """The kinds of this budget whose latents move least; what a tenth of a per cent does not tell apart is equal."""
    found = different(t, budget)
    least = f"{min(p.change for _, p in found):.1%}"
    return [kind for kinds, p in found if f"{p.change:.1%}" == least for kind in kinds]


def _named(kinds: Sequence[str]) -> str:
    return " = ".join(KINDS[kind] for kind in kinds)


def _limits(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" (difference {interval[0]:+.2g} to {interval[1]:+.2g})"
