"""Back to the last good checkpoint, when skipping steps has not helped."""

from __future__ import annotations

from ditkit.checkpoints import CheckpointError
from ditkit.training import checkpoint
from ditkit.training.files import SaveError
from ditkit.training.guard import NonFinite, guard_numbers
from ditkit.training.report import note
from ditkit.training.saves import Saves


def roll_back(saves: Saves, failure: NonFinite) -> None:
    """Bring the run back to its newest good checkpoint, from where other draws are made for the same data.

    Rows of metrics and checkpoints after it are dropped and set aside. After max_rollbacks returns without a good
    checkpoint beyond the step of the first trouble, or without a checkpoint, `failure` is raised, with what was tried;
    the state is saved before, and the next start has all tries again.
    """
    state, log, guard, most = saves.state, saves.log, saves.state.guard, saves.state.job.settings.max_rollbacks
    saves.settle()
    found = good_checkpoint(saves) if most else None
    tried = guard.rollbacks if found and found[0] <= guard.trouble else 0
    if found is None or tried >= most:
        _give_up(saves, failure, tried, found and found[0])
    assert found is not None
    (step, numbers), attempt = found, state.attempt + 1
    trouble = max(state.step, guard.trouble if tried else 0)
    with state.job.ranks.connected.agreed():
        for line in state.restore(step, numbers):
            log.say(line)
    state.attempt, guard.rollbacks, guard.trouble, guard.in_row = attempt, tried + 1, trouble, 0
    saves.begun = state.saved
    with state.job.ranks.connected.agreed():
        if state.job.rank == 0:
            checkpoint.set_aside(state.job.folder, step)
        dropped = log.rewind(step)
    log.say(
        f"{failure}. Rolled back to the checkpoint of step {step} ({tried + 1} of {most}): the same data follow with "
        f"other draws; {dropped} rows of metrics dropped"
    )


def good_checkpoint(saves: Saves) -> tuple[int, dict] | None:
    """(step, numbers) of the newest whole checkpoint not written amid skipped steps; the same in all processes."""
    state, found = saves.state, None

    def good(step: int, numbers: dict) -> bool:
        return step <= state.step and not guard_numbers(numbers).get("in_row")

    if state.job.rank == 0:
        try:
            found = checkpoint.latest(state.job.folder, saves.log.say, good)
        except CheckpointError as error:
            saves.log.say(str(error))
    return state.job.ranks.connected.tell(found)


def _give_up(saves: Saves, failure: NonFinite, tried: int, step: int | None) -> None:
    """Save what is good, and raise."""
    state, most = saves.state, saves.state.job.settings.max_rollbacks
    note(state, saves.log, everything=True)
    state.guard.in_row = state.guard.rollbacks = state.guard.trouble = 0
    if state.finite():
        try:
            saves(last=True)
        except SaveError as error:
            saves.log.say(str(error))
    if not most:
        raise failure
    times = "once" if tried == 1 else f"{tried} times"
    what = f"rolled back {times} to step {step} with other draws" if tried else "no good checkpoint to go back to"
    raise NonFinite(f"{failure} (tried: steps skipped; {what})")
