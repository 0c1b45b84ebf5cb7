"""Scores of the averaged weights while a run trains: when they are due, and that training does not feel them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ditkit.training.guard import Interrupted, Stop
from ditkit.training.log import Log, read_metrics
from ditkit.training.precision import Switches, switched
from ditkit.training.saves import Saves, rescue
from ditkit.training.state import State

PREFIX = "eval_"  # of these numbers in metrics.jsonl
SURVIVED = (ValueError, OSError, torch.OutOfMemoryError, torch.linalg.LinAlgError)  # training does not end of these


@dataclass
class Evaluations:
    """The job's evaluation inside a run. outside: the process's switches, so that scores are those of `evaluate`.

    Of several processes the first one scores, the others wait.
    """

    saves: Saves
    stop: Stop
    outside: Switches

    @property
    def state(self) -> State:
        """Of the run."""
        return self.saves.state

    @property
    def log(self) -> Log:
        """Of the run."""
        return self.saves.log

    def due(self) -> bool:
        """Whether this step is to be scored and has no scores in metrics.jsonl yet."""
        job, step = self.state.job, self.state.step
        if job.evaluate is None or step == 0:
            return False
        if step < job.settings.steps and (job.evaluate_every is None or step % job.evaluate_every):
            return False
        ranks = job.ranks.connected
        rows = (row for row in read_metrics(job.folder) if row["step"] == step) if ranks.first else ()
        return not ranks.tell(any(name.startswith(PREFIX) for row in rows for name in row))

    def __call__(self) -> None:
        """Score the averaged weights if that is due, and write the row.

        A checkpoint is written first. What cannot be scored (a sampler that diverges, no memory left for it) is told in
        one line, and training goes on. Ctrl-C and SIGTERM break an evaluation off at once: Interrupted is raised, and
        the next start scores anew.
        """
        if not self.due():
            return
        state, step = self.state, self.state.step
        self.saves()  # scoring may take long: a machine that dies meanwhile loses no training
        try:
            with rescue(self.saves):
                values = self._scores()
        except Interrupted as asked:
            self.saves(last=True)
            raise Interrupted(farewell(state), asked.exit_code) from None
        finally:
            self.saves.clock.lap("evaluation")
        if values:
            self.log.row({"step": step, **{f"{PREFIX}{name}": value for name, value in values.items()}})

    def _scores(self) -> dict[str, float]:
        """The first process's scores, in all of them; Interrupted in all where it was broken off."""
        team, ranks = self.state.team, self.state.job.ranks
        model = team.loose(self.state.ema)
        if not team.many:
            assert model is not None
            return self._undisturbed(model)
        values, code = {}, 0
        if model is not None:
            try:
                values = self._undisturbed(model)
            except Interrupted as asked:
                code = asked.exit_code
        ranks.wait()  # for hours, if need be
        values, code = ranks.tell((values, code))
        if code:
            raise Interrupted("", code)
        return values

    def _undisturbed(self, model: nn.Module) -> dict[str, float]:
        """The scores as a process that does not train computes them; torch's random state is as before after it."""
        job, step, device = self.state.job, self.state.step, torch.device(self.state.job.device)
        assert job.evaluate is not None
        self.stop.patient = False
        try:
            if self.stop.signal:
                raise Interrupted("stopped before it began", 128 + self.stop.signal)
            with switched(self.outside), torch.random.fork_rng([device] if device.type == "cuda" else []):
                return job.evaluate(model, step)
        except SURVIVED as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.log.say(f"step {step}: no scores: {reason}; training goes on")
            return {}
        finally:
            self.stop.patient = True


def farewell(state: State) -> str:
    """What an interrupted run says."""
    step, steps, folder = state.step, state.job.settings.steps, state.job.folder
    return f"interrupted at step {step} of {steps}; the state is saved in {folder}, the same command continues"
