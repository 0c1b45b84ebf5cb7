"""A GenEval result in a report: its table with the published rows beside it, and what of the prompts was right."""

from __future__ import annotations

from ditkit.evaluation.geneval.metadata import TAGS, TITLES
from ditkit.evaluation.geneval.published import IMAGES, TABLE_4, TABLE_5, overall
from ditkit.evaluation.geneval.result import GenEvalResult
from ditkit.evaluation.geneval.scoring import ASPECTS
from ditkit.evaluation.sections import Cell, Section, join, number, table

COLUMNS = ("", "overall", *(TITLES[tag] for tag in TAGS))
PUBLISHED = (
    "Published rows: Esser et al. 2024 (SD3), Tables 4 and 5, on GenEval's 553 prompts about photographs of 80 kinds "
    "of objects, found by Mask2Former and CLIP."
)
ONE_PROMPT = "prompts were not shuffled: no task has two that ask for different objects; more images take more prompts"
SCENES = " Scenes are another, easier test: the rows show the tasks' order of difficulty, not a contest."


def geneval_rows(result: GenEvalResult, name: str = "this run") -> list[list[Cell]]:
    """Rows in COLUMNS: the scores, their 95 % limits, and the same images with the prompts shuffled."""
    tasks = {t.tag: t for t in result.tasks}
    limits = {tag: task.correct.interval for tag, task in tasks.items()}
    rows: list[list[Cell]] = [
        [name, _share(result.overall), *(_share(result.scores.get(tag)) for tag in TAGS)],
        ["95 % limits", _limits(result.interval), *(_limits(limits.get(tag)) for tag in TAGS)],
    ]
    if shuffled := result.shuffled:
        rows.append(["prompts shuffled", _share(overall(shuffled)), *(_share(shuffled.get(tag)) for tag in TAGS)])
    return rows


def published_rows() -> list[list[Cell]]:
    """SD3's Table 5, then Table 4, in COLUMNS."""
    rows: list[list[Cell]] = [[name, _share(r.overall), *map(_share, r.tasks)] for name, r in TABLE_5.items()]
    for name, (mean, correct) in TABLE_4.items():
        rows.append([f"SD3, {name}", _share(mean / 100), *(_share(correct[tag] / IMAGES[tag]) for tag in TAGS)])
    return rows


def aspect_rows(result: GenEvalResult) -> list[list[Cell]]:
    """One row a task: the shares of images in which each of ASPECTS is right; None where the task asks nothing."""
    rows: list[list[Cell]] = []
    for task in result.tasks:
        shares = [task.aspects.get(aspect) for aspect in ASPECTS]
        rows.append([TITLES[task.tag], *(None if s is None or not s.of else f"{s.right}/{s.of}" for s in shares)])
    return rows


def geneval_section(result: GenEvalResult, title: str = "GenEval", published: bool = True) -> Section:
    """The section of a report. published: with the published table under the run's own rows."""
    n = sum(t.correct.of for t in result.tasks)
    note = (
        f"Share of {n:,} images ({result.each} a prompt) that show what the prompt asks for; overall is the unweighted "
        f"mean over tasks. Detector {result.detector}, colours {result.colours}. Limits: Wilson's, over images."
    )
    if not result.shuffled:
        note += f" Its {ONE_PROMPT}."
    rows = geneval_rows(result)
    if published:
        rows += published_rows()
        note += f" {PUBLISHED}{SCENES if result.detector == 'scenes' else ''}"
    scores = table("Scores", COLUMNS, rows)
    if not any(task.aspects for task in result.tasks):
        return Section(title, scores.body, note)
    meaning = "Images right of images looked at. Relation: only of images with the right pairs, where it can be asked."
    return join(title, [scores, table("What was right", ("task", *ASPECTS), aspect_rows(result), meaning)], note)


def geneval_lines(result: GenEvalResult) -> list[str]:
    """The scores as lines of plain text, for a terminal."""
    width = max(map(len, COLUMNS))
    shuffled = {**result.shuffled}
    lines = []
    for task in result.tasks:
        low, high = task.correct.interval or (0.0, 1.0)
        chance = f", prompts shuffled {shuffled[task.tag]:.2f}" if task.tag in shuffled else ""
        lines.append(
            f"{TITLES[task.tag]:<{width}} {task.correct.value:.2f}  [{low:.2f}, {high:.2f}]  "
            f"{task.correct.right} of {task.correct.of} images, {task.prompts} prompts{chance}"
        )
    low, high = result.interval
    chance = f", prompts shuffled {overall(shuffled):.2f}" if shuffled else ""
    lines.append(f"{'overall':<{width}} {result.overall:.2f}  [{low:.2f}, {high:.2f}]  mean over tasks{chance}")
    return lines if shuffled else [*lines, ONE_PROMPT]


def _share(value: float | None) -> str:
    return number(None) if value is None else f"{value:.2f}"


def _limits(interval: tuple[float, float] | None) -> str:
    return number(None) if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"
