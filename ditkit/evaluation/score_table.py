"""Scores as a section: runs side by side, uncertainty and floor beside them, the protocol underneath."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from ditkit.evaluation.protocols import Score, compare, differences
from ditkit.evaluation.sections import Section, cell, number, scrolling

TITLES = {
    "frechet": "Fréchet distance",
    "spatial_frechet": "Spatial Fréchet distance (sFID)",
    "kernel": "Kernel distance (KID)",
    "cmmd": "CMMD",
    "mind": "Sliced Wasserstein (MIND)",
    "precision": "Precision",
    "recall": "Recall",
    "inception_score": "Inception Score",
    "agreement": "Class agreement",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
}


@dataclass(frozen=True)
class Space:
    """The scores of one feature space: run -> its scores, and what real images reach (metric -> number)."""

    title: str
    runs: Mapping[str, Sequence[Score]]
    floor: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


def _find(scores: Sequence[Score], metric: str) -> Score | None:
    return next((s for s in scores if s.metric == metric), None)


def _comparable(scores: Sequence[Score], ignore: Sequence[str]) -> bool:
    return all(not differences(scores[0], s, ignore) for s in scores[1:])


def _best(scores: Sequence[Score | None], ignore: Sequence[str]) -> Score | None:
    """The score clearly better than every other; None where there is none, or protocols differ."""
    present = [s for s in scores if s is not None]
    if len(present) < 2 or not _comparable(present, ignore):
        return None
    clear = (s for s in present if all(compare(o, s, ignore=ignore).verdict == "better" for o in present if o is not s))
    return next(clear, None)


def _score_cell(score: Score | None, best: bool, powers: bool) -> str:
    if score is None:
        return cell(None)
    limits = ""
    if score.interval is not None:
        limits = f"<small>{' … '.join(number(limit, 3, powers) for limit in score.interval)}</small>"
    return cell(score.value, limits, "best" if best else "", powers)


def _tiny(scores: Sequence[Score | None], floor: float | None) -> bool:
    """Whether a number of the row is so small that `number` writes a power of ten; then the whole row does."""
    numbers = [n for s in scores if s is not None for n in (s.value, *(s.interval or ()))]
    return any(0 < abs(n) < 1e-4 for n in (*numbers, floor or 0))


def _rows(space: Space, runs: Sequence[str], ignore: Sequence[str]) -> list[str]:
    columns = len(runs) + 2
    note = f"<small>{escape(space.note)}</small>" if space.note else ""
    lines = [f'<tr><th scope="rowgroup" colspan="{columns}">{escape(space.title)}{note}</th></tr>']
    metrics = list(dict.fromkeys(s.metric for scores in space.runs.values() for s in scores))
    for metric in metrics:
        scores = [_find(space.runs.get(run, ()), metric) for run in runs]
        best = _best(scores, ignore)
        way = next(s.better for s in scores if s is not None)
        title = f"{escape(TITLES.get(metric, metric))}<small>{way} is better</small>"
        floor = space.floor.get(metric)
        powers = _tiny(scores, floor)
        cells = "".join(_score_cell(s, s is not None and s is best, powers) for s in scores)
        lines.append(f'<tr><th scope="row">{title}</th>{cells}{cell(floor, powers=powers)}</tr>')
    return lines


def _protocols(spaces: Sequence[Space]) -> str:
    """Every protocol in use, in words, with the runs it was used for."""
    users: dict[str, list[str]] = {}
    for space in spaces:
        for run, scores in space.runs.items():
            for sentence in dict.fromkeys(s.protocol.sentence() for s in scores):
                users.setdefault(sentence, []).append(f"{run} ({space.title})")
    items = "".join(f"<li>{escape(sentence)} — {escape(', '.join(u))}</li>" for sentence, u in users.items())
    return f"<details><summary>Protocol of every number</summary><ul>{items}</ul></details>"


def score_table(
    title: str, spaces: Sequence[Space], note: str = "", ignore: Sequence[str] = (), real: str = "real half / half"
) -> Section:
    """Metrics as rows, runs as columns, the real images' own score last.

    A value is marked where it is clearly better than all others (`compare`), and only where all protocols agree
    (but for the keys in `ignore`); where they do not, the table says so.
    """
    runs = list(dict.fromkeys(run for space in spaces for run in space.runs))
    head = "".join(f'<th scope="col">{escape(c)}</th>' for c in ["Score", *runs, real])
    lines = [line for space in spaces for line in _rows(space, runs, ignore)]
    body = f'<table class="data"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    apart = [space.title for space in spaces if not _agree(space, ignore)]
    warning = ""
    if apart:
        listed = escape(", ".join(apart))
        warning = f"<p><strong>Not comparable:</strong> the runs were scored by different protocols in {listed}.</p>"
    small = (
        "Below a value: its 95 % confidence limits over the sampled images (not over training runs). Marked: better "
        "than every other run, the 95 % limits of the difference excluding 0. "
    )
    return Section(title, warning + scrolling(title, body) + _protocols(spaces), small + note)


def _agree(space: Space, ignore: Sequence[str]) -> bool:
    metrics = {s.metric for scores in space.runs.values() for s in scores}
    for metric in metrics:
        scores = [s for s in (_find(v, metric) for v in space.runs.values()) if s is not None]
        if scores and not _comparable(scores, ignore):
            return False
    return True
