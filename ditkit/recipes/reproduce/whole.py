"""All claims one after another: what they take together, what came of each, and the page that shows them.

One that fails is named and does not keep the others from being run.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ditkit.config import SettingsError
from ditkit.data import DataError
from ditkit.files import write_atomic, write_text
from ditkit.recipes.reproduce.claim import Claim, Question, Show
from ditkit.recipes.reproduce.ledger_page import Ledger, ledger_page
from ditkit.recipes.reproduce.ledger_picture import ledger_picture
from ditkit.recipes.reproduce.result import RESULT, Result, read_result
from ditkit.recipes.reproduce.study import ASKED, Plan, Seen, carry_out, make_plan, minutes

FAILED = "failed.txt"  # in the claim's folder: the traceback
PAGE, PICTURE = "claims.md", "ledger.png"
Say = Callable[[str], None]


@dataclass
class Whole:
    """What is to be done. left_out: claim -> why it has no use for the data or keys; failed: claim -> what went wrong.

    runs, scores: of all claims, those that several ask once; seconds: that they take.
    """

    questions: list[Question]
    left_out: dict[str, str]
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    runs: int = 0
    seen: Seen = field(default_factory=Seen)

    def lines(self) -> list[str]:
        """The plan in words."""
        told = [f"left out: {name}: {why}" for name, why in self.left_out.items()]
        told += [f"failed: {name}: {why}" for name, why in self.failed.items()]
        there = (
            f"{len(self.questions)} claims; {self.runs} runs are to be trained or scored, those that are shared once"
        )
        return [*told, there, f"about {minutes(self.seconds)} on this machine, as its networks were just timed"]


def plan_all(questions: Sequence[Question], left_out: Mapping[str, str], say: Say) -> Whole:
    """Plan every question; DataError, the first one's, where no claim has use for the data."""
    whole = Whole([], dict(left_out))
    for q in questions:
        try:
            plan = make_plan(q, whole.seen)
        except DataError as error:
            whole.left_out[q.claim.name] = str(error)
            continue
        except Exception as error:
            whole.failed[q.claim.name] = _why(error)
            continue
        say(f"{plan.lines()[0]}, {minutes(sum(plan.seconds.values()))}")
        whole.questions.append(q)
        whole.seconds += sum(plan.seconds.values())
    if not whole.questions:
        raise DataError(next(iter([*whole.failed.values(), *whole.left_out.values()])))
    whole.runs = len(whole.seen.runs)
    return whole


def carry_out_all(whole: Whole, show: Callable[[Plan], Show], say: Say) -> dict[str, Result]:
    """Carry out every question; results by claim. One that fails is added to `whole.failed`, its traceback to OUT."""
    results: dict[str, Result] = {}
    for number, q in enumerate(whole.questions, 1):
        name, failed = q.claim.name, q.out / FAILED
        say(f"{number} of {len(whole.questions)}: {name}")
        failed.unlink(missing_ok=True)
        try:
            plan = make_plan(q, Seen(whole.seen.paces))
            results[name], _ = carry_out(plan, show(plan), say)
        except Exception as error:
            whole.failed[name] = _why(error)
            say(f"failed: {name}: {whole.failed[name]}")
            if not isinstance(error, (ValueError, OSError)) and (q.out / ASKED).is_file():  # a defect, no bad input
                write_text(failed, traceback.format_exc())
            continue
        say(f"{name}: {results[name].verdict}")
    return results


def write_ledger(folder: Path, whole: Whole, claims: Mapping[str, Claim]) -> Path:
    """Write claims.md and ledger.png from the results of all questions that are there; the page's path."""
    results: dict[str, Result] = {}
    for q in whole.questions:
        try:
            results[f"{q.out.name}/{Path(RESULT).stem}"] = read_result(q.out)
        except SettingsError:
            continue  # it failed, or was never finished
    sources = {str(result.data.get("source")) for result in results.values()}
    given = {q.data for q in whole.questions} - {q.claim.data for q in whole.questions}
    ledger = Ledger(claims, results, {}, whole.questions[0].size, sources.pop() if given and len(sources) == 1 else "")
    write_atomic(folder / PICTURE, lambda file: file.write(ledger_picture(ledger)))
    return write_text(folder / PAGE, ledger_page(ledger, PICTURE, "."))


def _why(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"
