"""The numbers of steps: what guard and alarms make of them, and the rows of metrics that they become."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ditkit.training.guard import NonFinite
from ditkit.training.log import Clock, Log, Row, peak_memory
from ditkit.training.optim import learning_rate
from ditkit.training.state import State

RATIO = "update_ratio"  # norm of an update over that of the weights, measured at the last step of a row


def due(state: State) -> bool:
    """Whether this step is followed by a row of metrics, a validation or a checkpoint."""
    settings, step = state.job.settings, state.step
    every = (settings.log_every, settings.save_every, settings.validate_every or settings.steps)
    return step == settings.steps or any(step % n == 0 for n in every)


def note(
    state: State, log: Log, on_step: Callable[[int, Row], None] | None = None, *, everything: bool = False
) -> NonFinite | None:
    """Look at the numbers that have arrived from the device: sums, guard, alarms; what to raise, if anything."""
    failure = None
    for step, values in state.readings.take(everything=everything or due(state)):
        judged = {name: value for name, value in values.items() if name != RATIO}
        if state.guard.accept(judged):
            state.meter.add(values)
            for line in state.alarms.watch(step, judged):
                log.say(line)
        else:
            log.say(f"step {step} skipped: loss or gradient is not finite ({state.guard.in_row} in a row)")
        failure = failure or state.guard.failure(step, judged)
        if on_step:
            on_step(step, values)
    return failure


def report(state: State, clock: Clock, log: Log) -> None:
    """Write this step's row if training numbers or a validation are due; both share one row."""
    settings, step = state.job.settings, state.step
    last = step == settings.steps
    row: Row = {}
    if last or step % settings.log_every == 0:
        state.seconds += clock.spent()
        row |= state.meter.take()
        row |= {"lr": learning_rate(settings, step - 1), "skipped": state.guard.skipped}
        row |= {"spikes": state.alarms.spikes.count, "rollbacks": state.attempt}
        row |= {"images": step * settings.batch, "seconds": state.seconds}
        row |= clock.take(settings.batch) | {"memory_gib": peak_memory(clock.device)}
    if last or (settings.validate_every and step % settings.validate_every == 0):
        row |= validate(state)
        clock.lap("validation")
    if row:
        log.row({"step": step, **row})


@torch.no_grad()
def validate(state: State) -> Row:
    """The job's validation numbers as validation_NAME (averaged weights) and validation_raw_NAME (raw)."""
    job, row = state.job, Row()
    if job.validate is None:
        return row
    if job.settings.validate_on != "raw":
        row |= {f"validation_{k}": v for k, v in job.validate(state.ema).items()}
    if job.settings.validate_on != "ema":
        with state.team.readable(state.model, state.ema) as model:
            row |= {f"validation_raw_{k}": v for k, v in job.validate(model).items()}
    return row
