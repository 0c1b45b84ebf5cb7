"""Carrying out a study: plan, runs, scores, result.json and report.html; what a killed one finished stays finished.

OUT/study.json              what is asked; another question is refused
    result.json report.html
POOL/...                    runs and scores, which claims share (recipes/reproduce/pool.py)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ditkit.evaluation import read_rows, write_report
from ditkit.files import write_text
from ditkit.recipes.environment import environment
from ditkit.recipes.place import check_writable
from ditkit.recipes.reproduce.claim import SCORING, TRAINING, Arm, Finding, Question, Show, Study
from ditkit.recipes.reproduce.pace import Pace, pace
from ditkit.recipes.reproduce.page import page
from ditkit.recipes.reproduce.pool import Pool, pool_of
from ditkit.recipes.reproduce.result import Result, make_result, save_result
from ditkit.recipes.run import train
from ditkit.recipes.stopwatch import cpu_name
from ditkit.training.guard import NonFinite

ASKED = "study.json"
CHECK = 512 * 8  # network evaluations of a validation loss: images, times
WAIT = 2.0  # seconds between looks at arms that other processes work on
AROUND = 3.0  # seconds around a training: opening data, writing checkpoints, the sheet of samples


@dataclass
class Plan:
    """What a study will do: its runs and scores, those that are there already, and the seconds that the rest takes."""

    question: Question
    study: Study
    runs: int
    trained: int
    scores: int
    scored: int
    seconds: dict[str, float]

    def lines(self) -> list[str]:
        """The plan in words."""
        there = (
            f", {self.trained} runs and {self.scored} scores of them are there" if self.trained or self.scored else ""
        )
        left = sum(self.seconds.values())
        return [
            f"{self.question.claim.name}, budget {self.question.size}: {self.runs} runs, {self.scores} scores{there}",
            f"about {minutes(left)} on this machine, as its networks were just timed",
        ]


@dataclass
class Seen:
    """What was planned before where several studies are: paces of networks, and scores by run that count already."""

    paces: dict[str, Pace] = field(default_factory=dict)
    runs: dict[Path, set[str]] = field(default_factory=dict)


def minutes(seconds: float) -> str:
    """A time as people say it."""
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )


def make_plan(q: Question, seen: Seen | None = None) -> Plan:
    """Look at the data and at what OUT holds, and time the networks. Writes study.json alone, if OUT is new.

    Runs and scores that `seen` holds take no time; those of this plan are added to it. DataError or ValueError, one
    line, where the claim has no use for the data or OUT holds something else.
    """
    check_writable(q.out)
    check_writable(q.pool, "--pool")
    study = q.claim.open(q)
    claim_folder(q, study)
    pool, seen = pool_of(q, study.shelf), seen or Seen()
    seconds = {TRAINING: 0.0, SCORING: 0.0}
    trained = scored = 0
    for arm in study.arms:
        found, recipe, left = pool.read(arm), arm.recipe, pool.missing(arm)
        missing = {part: n for part, n in arm.parts.items() if part not in found["parts"]}
        trained, scored = trained + (left == 0 or failed(found)), scored + len(arm.parts) - len(missing)
        if failed(found) or not (left or missing):
            continue
        known = seen.runs.setdefault(pool.run(arm), set())
        left, new = 0 if known else left, {part: n for part, n in missing.items() if part not in known}
        known |= {TRAINING, *missing}
        each = timed(arm, q, seen.paces)
        checks = left // (recipe.training.validate_every or left or 1)
        seconds[TRAINING] += left * each.training * recipe.training.batch + checks * each.evaluation * CHECK
        seconds[TRAINING] += AROUND if left else 0.0
        seconds[SCORING] += each.evaluation * sum(new.values())
    total = sum(len(arm.parts) for arm in study.arms)
    return Plan(q, study, len(study.arms), trained, total, scored, seconds)


def timed(arm: Arm, q: Question, paces: dict[str, Pace]) -> Pace:
    """The pace of an arm's network, measured once."""
    network = json.dumps([arm.recipe.model.model_dump(mode="json"), arm.recipe.training.batch])
    if network not in paces:
        paces[network] = pace(arm.recipe, getattr(q.budget, "chunk", 64), q.device)
    return paces[network]


def claim_folder(q: Question, study: Study) -> None:
    """Write study.json, or refuse a folder that holds something else."""
    card = q.out / ASKED
    wanted = {
        "claim": q.claim.name, "budget": q.size, "settings": q.settings, "data": study.data,
        "seeds": list(q.seeds),
    }  # fmt: skip
    wanted = json.loads(json.dumps(wanted))  # tuples as they read back
    if card.is_file():
        there = json.loads(card.read_text(encoding="utf-8"))
        more = wanted["seeds"][: len(there.get("seeds", ()))] == there.get("seeds")
        if {**there, "seeds": 0} != {**wanted, "seeds": 0}:
            keys = [key for key in wanted if key != "seeds" and there.get(key) != wanted[key]]
            raise ValueError(f"{q.out} holds a study of another {' and '.join(keys)}; name another folder with --out")
        if not more:
            raise ValueError(f"{q.out} holds a study with {len(there['seeds'])} seeds; ask for as many or more")
    elif q.out.exists() and any(q.out.iterdir()):
        raise ValueError(f"{q.out} exists and holds no study; name another folder with --out")
    write_text(card, json.dumps(wanted, indent=2) + "\n")


def failed(found: dict[str, Any]) -> bool:
    """Whether the run diverged, so that there is nothing to score."""
    return bool(found["failed"])


def carry_out(plan: Plan, show: Show, say: Callable[[str], None] = lambda text: None) -> tuple[Result, Path]:
    """Train and score what is missing, then write result.json and report.html; the result and the page's path.

    An arm that another process is working on is left for later, and found finished then.
    """
    q, study, pool = plan.question, plan.study, pool_of(plan.question, plan.study.shelf)
    if any(unfinished(pool, arm) for arm in study.arms):
        study.begin(show)
    known: dict[str, dict[str, Any]] = {}
    while len(known) < len(study.arms):
        before = len(known)
        for arm in study.arms:
            if arm.key in known:
                continue
            with pool.hold(arm.file) as ours:
                if ours:
                    known[arm.key] = finished(plan, pool, arm, len(known), show, say)
        if len(known) == before:
            time.sleep(WAIT)
    ordered = {arm.key: known[arm.key] for arm in study.arms}
    asked = {arm.key: list(arm.parts) for arm in study.arms}
    scores = {key: {part: found["parts"][part] for part in asked[key]} for key, found in ordered.items()}
    seconds = sum(
        found["training"] + sum(found["seconds"][part] for part in asked[key]) for key, found in ordered.items()
    )
    clock = time.perf_counter()
    finding = study.find(scores, {arm.key: pool.run(arm) for arm in study.arms})
    return finish(q, study, finding, seconds + time.perf_counter() - clock, scores)


def unfinished(pool: Pool, arm: Arm) -> bool:
    """Whether steps or scores of an arm are missing. One that diverged has no more steps to come."""
    found = pool.read(arm)
    return bool(set(arm.parts) - set(found["parts"])) or (not failed(found) and pool.missing(arm) > 0)


def finished(plan: Plan, pool: Pool, arm: Arm, number: int, show: Show, say: Callable[[str], None]) -> dict[str, Any]:
    """Train and score an arm as far as that is not done; everything that is known of it."""
    found = taught(plan, pool, arm, number, show, say)
    each = plan.scores / max(1, plan.runs)
    for place, part in enumerate(arm.parts):
        if part not in found["parts"]:
            clock = time.perf_counter()
            value = None if failed(found) else plan.study.score(arm, pool.run(arm), part, show)
            found["parts"][part], found["seconds"][part] = value, time.perf_counter() - clock
            pool.write(arm, found)
        show(SCORING, min(plan.scores, round(number * each) + place + 1), plan.scores, arm.name)
    return found


def taught(plan: Plan, pool: Pool, arm: Arm, number: int, show: Show, say: Callable[[str], None]) -> dict[str, Any]:
    """Train an arm, or find it trained; what is known of it. A run that diverges is written down as failed."""
    found, folder, steps = pool.read(arm), pool.run(arm), arm.recipe.training.steps

    def on_step(step: int, values: dict[str, float]) -> None:
        note = f"{arm.name}, seed {arm.seed}, loss {values['loss']:.3f}"
        show(TRAINING, number * steps + step, plan.runs * steps, note)

    if not failed(found) and pool.missing(arm):
        try:
            train(arm.recipe, folder, plan.question.device, on_step=on_step)
        except NonFinite as error:
            found["failed"] = str(error)
            say(f"{arm.name}, seed {arm.seed} diverged and ranks last: {error}")
    own = arm.run is None and (folder / "metrics.jsonl").is_file()
    rows = read_rows(folder / "metrics.jsonl") if own else []
    found["training"] = max((row.get("seconds", 0.0) for row in rows), default=0.0)
    show(TRAINING, (number + 1) * steps, plan.runs * steps, arm.name)
    return found


def finish(q: Question, study: Study, finding: Finding, seconds: float, scores: dict[str, Any]) -> tuple[Result, Path]:
    """Write result.json and report.html."""
    result = make_result(q, finding, study.data, seconds, environment(q.device, cpu=cpu_name()), scores)
    save_result(result, q.out)
    return result, write_report(page(result, finding), q.out / "report.html")
