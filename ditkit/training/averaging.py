"""When power-function averages are stored, for widths that are chosen after training."""

from __future__ import annotations

from ditkit.training.files import SaveError
from ditkit.training.log import Clock, Log
from ditkit.training.snapshots import write_snapshots
from ditkit.training.state import State


def keep_averages(state: State, clock: Clock, log: Log) -> None:
    """Store the power-function averages of this step if that is due. Every process calls it alike.

    Due is every `ema_snapshots` steps (none given: every `save_every`) and the end.
    Nothing is stored before the first averaging: there is no average yet.
    It comes before the checkpoint of the same step, so that a run that goes on from one has all averages up to it.
    SaveError if they cannot be written, or (on_save_error=continue) a line: then widths are made of fewer.
    """
    settings, names = state.job.settings, list(state.averages.powers)
    last = state.step == settings.steps
    if not names or not (last or state.step % (settings.ema_snapshots or settings.save_every) == 0):
        return
    count = int(state.averages.count.item())
    if not count:
        return
    files, error = state.team.whole(state.averaged(names)), None
    if state.job.rank == 0:
        try:
            write_snapshots(state.job.folder, state.step, files, count, state.trained())
        except SaveError as failed:
            error = failed
    if state.team.any(error is not None):
        error = error or SaveError("another process could not write the averages")
        if settings.on_save_error == "stop":
            raise error
        log.say(f"{error}; training goes on, widths are made of the others")
    clock.lap("checkpoint")
