"""What a run's scores of itself show over its steps: curves with their limits, and what can be said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ditkit.evaluation import Panel, Score, Section, Series, compare
from ditkit.evaluation.score_table import TITLES
from ditkit.evaluation.sections import curves
from ditkit.recipes.online import FOLDER, found_at, path_of
from ditkit.training.online import PREFIX

DISTANCES = ("frechet", "spatial_frechet", "kernel", "mind", "cmmd")  # every space has a scale of its own
SHARES = ("precision", "recall", "inception_score", "agreement")

History = dict[tuple[str, str], dict[int, Score]]  # (space, metric) -> step -> score


def history(folder: Path, rows: Sequence[Mapping]) -> History:
    """The scores of all steps that metrics.jsonl has scores of, made by the protocol of the last.

    Files of steps that metrics.jsonl no longer has (the run went back) are passed over, and so are numbers of another
    protocol: they are not comparable.
    """
    steps = sorted({int(row["step"]) for row in rows if any(key.startswith(PREFIX) for key in row)})
    found: History = {}
    for step in steps:
        scores = found_at(path_of(folder, step))
        for name, space in scores.spaces.items() if scores else ():
            for score in space.scores:
                found.setdefault((name, score.metric), {})[step] = score
    return {key: _of_one_protocol(by_step) for key, by_step in found.items()}


def _of_one_protocol(by_step: dict[int, Score]) -> dict[int, Score]:
    last = by_step[max(by_step)].protocol.fingerprint
    return {step: score for step, score in by_step.items() if score.protocol.fingerprint == last}


def score_curves(folder: Path, rows: Sequence[Mapping]) -> list[Section]:
    """The section of a run's report; none for a run that never scored itself."""
    found = history(folder, rows)
    if not found:
        return []
    spaces = list(dict.fromkeys(space for space, _ in found))
    panels = [
        Panel(_title(metric, found[space, metric], f", {space}"), [_series(space, found[space, metric])])
        for metric in DISTANCES
        for space in spaces
        if (space, metric) in found
    ]
    for metric in SHARES:
        there = {space: found[space, metric] for space in spaces if (space, metric) in found}
        if there:
            title = _title(metric, next(iter(there.values())))
            panels.append(Panel(title, [_series(space, by_step) for space, by_step in there.items()]))
    protocol = next(iter(found.values()))
    told = [f"Averaged weights, {protocol[max(protocol)].protocol.sentence()}."]
    told += [sentence(space, by_step) for (space, metric), by_step in found.items() if metric == "frechet"]
    count = max(len(by_step) for by_step in found.values())
    if count > 2:
        told.append(f"The lowest of {count} scores that vary by chance looks a little better than it is.")
    told.append(f"Bars: 95 % confidence limits over the sampled images. Every score stands in {FOLDER}/STEP.json.")
    return [curves("Scores during training", panels, " ".join(told))]


def _title(metric: str, by_step: Mapping[int, Score], where: str = "") -> str:
    return f"{TITLES.get(metric, metric)}{where} ({by_step[max(by_step)].better} is better)"


def _series(space: str, by_step: Mapping[int, Score]) -> Series:
    scores = list(by_step.values())
    limits = [score.interval or (score.value, score.value) for score in scores]
    return Series(space, list(by_step), [score.value for score in scores], limits=limits)


def sentence(space: str, by_step: Mapping[int, Score]) -> str:
    """Where a score was best, how the last step compares with that, and whether the difference is beyond its limits."""
    steps = sorted(by_step)
    last, lower = steps[-1], by_step[steps[-1]].better == "lower"
    best = (min if lower else max)(steps, key=lambda step: by_step[step].value)
    title, word = TITLES.get(by_step[last].metric, by_step[last].metric), "lowest" if lower else "highest"
    start = f"{title}, {space}: {by_step[last].value:.4g} at step {last:,}"
    if len(steps) == 1:
        return f"{start}."
    if best == last:
        before = steps[-2]
        return f"{start}, the {word} so far; {_against(by_step, before, last)}."
    return f"{start}; {word} at step {best:,}, {by_step[best].value:.4g}. The last is {_against(by_step, best, last)}."


def _against(by_step: Mapping[int, Score], other: int, last: int) -> str:
    """ "clearly lower than that of step 600 (0.52)", or that this cannot be said."""
    a, b = by_step[other], by_step[last]
    there = f"that of step {other:,} ({a.value:.4g})"
    found = compare(a, b)
    if found.verdict == "equal":
        return f"the same as {there}"
    way = "lower" if found.difference < 0 else "higher"
    if found.interval is None:
        return f"{way} than {there}, by a difference whose limits are not known"
    limits = f"95 % limits of the difference {found.interval[0]:.3g} to {found.interval[1]:.3g}"
    return (
        f"clearly {way} than {there}, {limits}" if found.verdict != "unclear" else f"within noise of {there}, {limits}"
    )
