"""The training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ditkit.protocols import Features
from ditkit.training.ahead import pinned
from ditkit.training.averaging import keep_averages
from ditkit.training.files import prepare
from ditkit.training.guard import Interrupted, NonFinite, Stop
from ditkit.training.log import Clock, Log
from ditkit.training.online import Evaluations, farewell
from ditkit.training.optim import apply, gradient_norm, learning_rate, pieces, set_rate
from ditkit.training.parallel import check_shards
from ditkit.training.precision import autocast, hasten, matmul_precision
from ditkit.training.ratio import Movement
from ditkit.training.readings import Reading, Row
from ditkit.training.report import RATIO, note, report
from ditkit.training.rollback import roll_back
from ditkit.training.saves import Saves, rescue
from ditkit.training.start import Resume, announce, open_batches, resume_run
from ditkit.training.state import Job, State
from ditkit.training.trackers import check_trackers, tracked


def fit(
    job: Job,
    *,
    resume: Resume = "auto",
    on_log: Callable[[Row], None] | None = None,
    on_step: Callable[[int, Row], None] | None = None,
    on_message: Callable[[str], None] | None = None,
) -> State:
    """Train `job` to its last step and return the final state (`.model`, `.ema`, `.step`).

    resume: "auto" continues from the newest whole checkpoint of the folder, "never" refuses a folder that has one, a
    step number continues from there. on_log gets every row of metrics.jsonl, on_step every finished step and its
    values (for a progress bar), on_message every line of log.txt.
    Raises Unwritable or CheckpointError (no whole one is left) before anything starts; Interrupted after Ctrl-C or
    SIGTERM, NonFinite where skipping steps and going back to a checkpoint have not helped, and whatever data, codec,
    teacher or network raise, all with the state saved; SaveError on a full disk.
    """
    settings = job.settings
    ranks = job.ranks.connected
    with ranks.agreed():
        check_trackers(settings.trackers)
        check_shards(settings.parallel.shards, ranks.world)
    prepare(job.folder)
    log = Log(job.folder, on_log, on_message, writes=job.rank == 0, patient=settings.on_save_error == "continue")
    with ranks.agreed():
        state = State.fresh(job)
    resume_run(state, resume, log)
    with ranks.agreed():
        for line in hasten(job.model, settings):
            log.say(line)
    announce(state, log)
    with (
        tracked(state, log),
        matmul_precision(settings.tf32) as outside,
        Stop() as stop,
        Saves(state, Clock(torch.device(job.device)), log) as saves,
    ):
        batches = pinned(open_batches(state, log), job.device)
        evaluate = Evaluations(saves, stop, outside)
        evaluate()  # one that was broken off
        while state.step < settings.steps:
            train_step(saves, batches, stop)
            try:
                follow(saves, stop, on_step)
                evaluate()
            except NonFinite as failure:
                roll_back(saves, failure)
                del batches  # and what fetches them
                batches = pinned(open_batches(state, log), job.device)
                saves.clock.lap("rollback")  # no part of a step
    return state


def train_step(saves: Saves, batches: Iterator[Any], stop: Stop) -> None:
    """The next batch, its gradient, the update. Processes tell each other whether one was asked to stop."""
    state, clock = saves.state, saves.clock
    with rescue(saves):
        batch = next(batches)
        clock.lap("data")
        totals = forward_backward(state, batch)
        clock.lap("model")
    update(state, state.team.agree(Reading.of(totals), stop.signal))
    clock.step("optimizer")


def follow(saves: Saves, stop: Stop, on_step: Callable[[int, Row], None] | None) -> None:
    """What comes after an update: numbers that have arrived, a row, a checkpoint, a request to stop.

    NonFinite if the run cannot go on from here; Interrupted if it was asked to stop, with the state saved.
    """
    state, settings = saves.state, saves.state.job.settings
    failure = note(state, saves.log, on_step)
    asked = state.readings.signal if state.team.many else stop.signal
    report(state, saves.clock, saves.log)
    saves.poll()
    if failure:
        raise failure
    keep_averages(state, saves.clock, saves.log)
    last = asked != 0 or state.step == settings.steps
    if last or state.step % settings.save_every == 0:
        saves(last=last)
    if asked:
        raise Interrupted(farewell(state), 128 + asked)


def forward_backward(state: State, batch: Any) -> dict[str, Tensor]:
    """Leave the (clipped) gradient of the global batch in the parameters; return loss, terms and gradient norm.

    batch: this process's rows. Draws are keyed by (seed, step, row of the global batch), so the cut into pieces and
    processes does not change them. The numbers (scalars on the device) are means over this process's rows, the norm is
    of the whole gradient; the device is not waited for.
    """
    job, settings, device = state.job, state.job.settings, torch.device(state.job.device)
    rows = len(batch.images)
    if rows * job.world != settings.batch:
        raise ValueError(f"a batch of {rows} rows for {job.world} processes; settings say batch={settings.batch}")
    condition, first = job.condition(batch).to(device, non_blocking=True), job.rank * rows
    totals: dict[str, Tensor] = {}
    for start, stop in pieces(rows, settings):
        noise = state.draws(first + start, first + stop)
        images = batch.images[start:stop].to(device, non_blocking=True)
        with torch.no_grad():
            x = job.encode(images, noise)
        with state.team.piece(state.shared, last=stop == rows):
            with autocast(settings, device):
                auxiliary = alignment(state, images, cached(batch, start, stop))
                loss = job.objective(state.shared[0], x, condition.index(slice(start, stop)), noise, auxiliary)
            share = loss.total * ((stop - start) / rows)
            share.backward()
        for name, value in (("loss", share.detach()), *((f"loss_{k}", v.sum() / rows) for k, v in loss.terms.items())):
            totals[name] = totals.get(name, 0) + value.float()
    totals["grad_norm"] = gradient_norm(state.parameters, settings.clip)
    return totals


def cached(batch: Any, start: int, stop: int) -> tuple[Features, ...]:
    """The teachers' features of some rows of a batch, where it comes from a cache; else nothing."""
    found = getattr(batch, "features", ())
    return tuple(Features(f.tokens[start:stop], f.pooled[start:stop], f.grid) for f in found)


def alignment(state: State, images: Tensor, features: tuple[Features, ...] = ()) -> tuple:
    """REPA's auxiliary terms, from cached features or the teachers; from the stop step on nothing, none is asked."""
    job = state.job
    if job.aligner is None or not job.aligner.active(state.step):
        return ()
    with torch.no_grad():
        targets: Sequence[Features] | None = [_moved(f, torch.device(job.device)) for f in features]
        if not targets and job.targets is None:
            raise ValueError("alignment without targets: the batch brings no features, and the Job names no teachers")
        if not targets and job.targets is not None:
            targets = job.targets(images)
    return state.team.terms(job.aligner.terms(targets, state.step), state.shared[1])


def _moved(found: Features, device: torch.device) -> Features:
    return Features(found.tokens.to(device, non_blocking=True), found.pooled.to(device, non_blocking=True), found.grid)


def update(state: State, reading: Reading) -> None:
    """Apply the gradient, average the weights, count the step; a gradient that is not finite changes nothing.

    At the last step of a row the size of the update is measured too.
    """
    settings, step = state.job.settings, state.step + 1
    measured = step == settings.steps or step % settings.log_every == 0
    before = Movement(state.parameters) if measured else None
    set_rate(state.optimizer, learning_rate(settings, state.step))
    apply(state.optimizer, reading.good)
    if step % settings.ema_every == 0:
        for ema, module in zip(state.emas, state.job.modules, strict=True):
            ema.update(module, reading.good)
        state.averages.update(reading.good)
    state.optimizer.zero_grad(set_to_none=True)
    state.step = step
    if before is not None:
        reading = reading.plus(RATIO, before.ratio(state.team))
    state.readings.push(step, reading)
