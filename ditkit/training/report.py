"""Rows of metrics and checkpoints, when they are due."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ditkit.training import checkpoint
from ditkit.training.guard import NonFinite
from ditkit.training.log import Clock, Log, Row, peak_memory
from ditkit.training.optim import learning_rate
from ditkit.training.state import State


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
        if state.guard.accept(values):
            state.meter.add(values)
        else:
            log.say(f"step {step} skipped: loss or gradient is not finite ({state.guard.in_row} in a row)")
        if state.guard.dead == 100:
            log.say(f"warning: step {step}: the gradient has been exactly 0 for 100 steps; the model no longer learns")
        failure = failure or state.guard.failure(step, values)
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
        state.model.eval()
        row |= {f"validation_raw_{k}": v for k, v in job.validate(state.model).items()}
        state.model.train()
    return row


def save(state: State, clock: Clock, log: Log) -> None:
    """Write a checkpoint of this step unless there is one already, then remove what keep_last no longer keeps.

    Weights that are not finite are never saved: NonFinite says which checkpoint to go back to.
    """
    settings, folder = state.job.settings, state.job.folder
    if state.saved == state.step or state.job.rank != 0:
        return
    note(state, log, everything=True)
    state.seconds += clock.spent()
    if not state.finite():
        raise NonFinite(
            f"step {state.step}: the weights are not finite and were not saved; good checkpoints: "
            f"{checkpoint.list_steps(folder) or 'none'}. Resume from one with a lower training.lr or training.clip=1.0"
        )
    checkpoint.write(folder, state.step, state.files(), state.numbers())
    state.saved = state.step
    checkpoint.prune(folder, settings.keep_last, settings.keep_every)
    clock.lap("checkpoint")
    log.say(f"checkpoint of step {state.step} written")


class OutOfMemory(RuntimeError):
    """The accelerator's memory does not hold one forward and backward pass."""


@contextmanager
def rescue(state: State, clock: Clock, log: Log) -> Iterator[None]:
    """Errors before the update leave a whole state: it is saved, so that hours of training outlive a bad file."""
    try:
        yield
    except Exception as error:
        if state.step:
            save(state, clock, log)
        if isinstance(error, StopIteration):
            raise ValueError(f"the batches ended at step {state.step} of {state.job.settings.steps}") from None
        if isinstance(error, torch.OutOfMemoryError):
            raise OutOfMemory(
                f"step {state.step + 1}: out of memory on {clock.device}; set training.micro_batch (fewer rows a pass, "
                "the same numbers), model.checkpointing=true or training.precision=bf16"
            ) from None
        raise
