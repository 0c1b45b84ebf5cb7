"""HASTE's claim on REPA: alignment serves early in training and is in the way later, so it should stop."""

from __future__ import annotations

from ditkit.recipes.claims.baselines import REPA, repa
from ditkit.recipes.claims.repa_gain import measured, steps_of
from ditkit.recipes.reproduce.claim import Finding
from ditkit.recipes.reproduce.comparison import Table, Trial, claim
from ditkit.recipes.reproduce.rules import PAIRED, Paired, percent, shown
from ditkit.recipes.reproduce.shown import over_training, scores
from ditkit.recipes.reproduce.testbed import Testbed

HALF, QUARTER = "REPA, first half", "REPA, first quarter"
HASTE = "HASTE, a successor of REPA (arXiv 2505.16792)"
PAPER = {"training to what REPA has at 800 epochs (SiT-XL/2)": "500 epochs, stopped at 250K steps"}


def stopped(bed: Testbed) -> list[Trial]:
    """SiT and REPA of the long run, and REPA that stops half way and after a quarter."""
    common = measured(bed)
    stops = {HALF: bed.budget.long // 2, QUARTER: bed.budget.long // 4}
    return [
        *common,
        *(
            Trial(name, repa(bed).with_({"align.stop_step": stop}), common[1].measures)
            for name, stop in stops.items()
        ),
    ]  # fmt: skip


def judge(found: Table) -> Finding:
    """Stopped half way over never stopped, at the last step."""
    steps = steps_of(found.trials[0])
    last = {t.name: found.distance(t.name, steps[-1]) for t in found.trials}
    half, quarter = Paired.of(last[HALF], last[REPA]), Paired.of(last[QUARTER], last[REPA])
    values = ", ".join(f"{name} {shown(distance)}" for name, distance in last.items())
    reason = (
        f"{half.words('Stopped half way', 'alignment to the end')} "
        f"{quarter.words('Stopped after a quarter', 'alignment to the end')} Distance at {steps[-1]} steps: {values}."
    )
    ours = {
        "distance": {t.name: [found.distance(t.name, step).tolist() for step in steps] for t in found.trials},
        "steps": steps,
        "half over never": half.ratio.tolist(),
        "quarter over never": quarter.ratio.tolist(),
    }
    curves = over_training(found, {t.name: steps for t in found.trials})
    return Finding(
        PAPER, ours, half.verdict(), reason, [curves, scores(found)],
        number=f"at {steps[-1]} steps: half way {percent(half.ratio)}, after a quarter {percent(quarter.ratio)}",
        effect=half.ratio.tolist(),
    )  # fmt: skip


STOP = claim(
    "repa-stop",
    (HASTE, "abstract"),
    "stopping alignment part way is better in the end than aligning throughout",
    "Holds: at the end of the long run the distance is smaller where alignment stopped half way than where it never "
    f"did, {PAIRED}. Does not hold: it is larger by the same measure. Undecided: else. Stopping after a quarter is "
    "shown beside it and decides nothing.",
    trials=stopped,
    judge=judge,
    number="FID of REPA's 800 epochs after 500 (SiT-XL/2); alignment stopped at 250K steps",
    minutes=6,
)
CLAIMS = (STOP,)
