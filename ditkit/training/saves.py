"""A run's checkpoints: when one is written, and what happens where it cannot be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

from ditkit.training import checkpoint
from ditkit.training.files import SaveError
from ditkit.training.guard import Interrupted, NonFinite
from ditkit.training.log import Clock, Log
from ditkit.training.report import due, note
from ditkit.training.saving import Saved, Whole, Writer
from ditkit.training.sharded import Sharded
from ditkit.training.state import State
from ditkit.training.trackers import first_line


def open_writer(state: State) -> Writer:
    """What writes this run's checkpoints; every process opens its own."""
    settings, team = state.job.settings, state.team
    return Sharded(settings, team.ranks) if settings.checkpoint == "sharded" and team.many else Whole(settings)


class Saves:
    """Writes checkpoints by a writer. `with saves:` what is being written when the block ends is waited for.

    A checkpoint that cannot be written ends the run with SaveError, or (on_save_error=continue) is told, and the next
    one is tried when it is due. Several processes decide alike: one's failure is everyone's.
    """

    def __init__(self, state: State, clock: Clock, log: Log, writer: Writer | None = None):
        self.state, self.clock, self.log = state, clock, log
        self.writer = writer or open_writer(state)
        self.begun = state.saved  # the step whose checkpoint is there or being written, in every process alike

    def __call__(self, *, last: bool = False) -> None:
        """Write a checkpoint of this step unless there is one already, or begin to, after the one before.

        last: nothing is tried after this one, so that it is on the disk when this returns, or SaveError. Weights that
        are not finite are never saved: NonFinite says which checkpoint to go back to. It is raised too where numbers
        that come late tell that the run cannot go on.
        """
        state = self.state
        if self.begun != state.step:
            failure = note(state, self.log, everything=True)
            if failure and not last:  # before the last one there is time to go back; steps that failed changed nothing
                raise failure
            state.seconds += self.clock.spent()
            self._check_finite()
        elif not last:
            return
        self._do(self.writer.wait, fatal=not last)  # of an earlier step, or of this one, which then is tried again
        if self.begun != state.step:
            self.begun = state.step
            self._do(lambda: self.writer.save(state), strict=last)
        if self.begun == state.step and (last or not state.job.settings.save_async):
            self._do(self.writer.wait, strict=last)
        self.clock.lap("checkpoint")

    def settle(self) -> None:
        """Wait for what is being written; a failure is only told."""
        self._do(self.writer.wait, fatal=False)

    def poll(self) -> None:
        """Hear of what was written in the background since; several processes do so where a row or a save is due."""
        if self.state.job.settings.save_async and (not self.state.team.many or due(self.state)):
            self._do(self.writer.poll)

    def _do(self, what: Callable[[], Saved | None], *, strict: bool = False, fatal: bool = True) -> None:
        """strict: a failure ends the run whatever the settings say; fatal: as they say; neither: it is only told."""
        state, done, error = self.state, None, None
        try:
            done = what()
        except SaveError as failed:
            error = failed
        if state.team.any(error is not None):
            self.begun = None
            error = error or SaveError("another process could not write its part of a checkpoint")
            if strict or (fatal and state.job.settings.on_save_error == "stop"):
                raise error
            self.log.say(f"{error}; training goes on, the next checkpoint is tried when it is due")
        elif done is not None:
            state.saved = done.step
            how = f" in the background, in {done.seconds:.1f} s" if done.background else ""
            self.log.say(f"checkpoint of step {done.step} written{how}")
            if done.doubt:
                self.log.say(done.doubt)

    def _check_finite(self) -> None:
        state = self.state
        if state.finite():
            return
        raise NonFinite(
            f"step {state.step}: the weights are not finite and were not saved; good checkpoints: "
            f"{checkpoint.list_steps(state.job.folder) or 'none'}. Resume from one with a lower training.lr or "
            "training.clip=1.0"
        )

    def __enter__(self) -> Saves:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            self._do(self.writer.wait, strict=True)
            self.log.flush()
        elif not (isinstance(error, Interrupted) and error.at_once):
            self.writer.close()
            with suppress(SaveError):  # what came first is raised
                self.log.flush()


class OutOfMemory(RuntimeError):
    """The accelerator's memory does not hold one forward and backward pass."""


@contextmanager
def rescue(saves: Saves) -> Iterator[None]:
    """Errors before the update leave a whole state: it is saved, so that hours of training outlive a bad file.

    Not where several processes train, since the others are still in the step: there the last checkpoint counts.
    """
    state = saves.state
    try:
        yield
    except Exception as error:
        if state.step and state.job.world == 1:
            try:
                saves(last=True)
            except Exception as second:  # also of a device that is gone; what came first is raised
                saves.log.say(f"the state of step {state.step} could not be saved: {first_line(second)}")
        if isinstance(error, StopIteration):
            raise ValueError(f"the batches ended at step {state.step} of {state.job.settings.steps}") from None
        if isinstance(error, torch.OutOfMemoryError):
            raise OutOfMemory(
                f"step {state.step + 1}: out of memory on {saves.clock.device}; set training.micro_batch (fewer rows a "
                "pass, the same numbers), model.checkpointing=true or training.precision=bf16"
            ) from None
        raise
