"""The training loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ditkit.diffusion import BatchNoise
from ditkit.training.files import prepare
from ditkit.training.guard import Interrupted, Stop
from ditkit.training.log import Clock, Log, Row
from ditkit.training.online import Evaluations, check_alone, farewell
from ditkit.training.optim import gradient_norm, learning_rate, pieces, set_rate
from ditkit.training.precision import autocast, compile_blocks, matmul_precision
from ditkit.training.report import report, rescue, save
from ditkit.training.start import Resume, announce, open_batches, resume_run
from ditkit.training.state import Job, State


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
    SIGTERM, NonFinite after too many skipped steps in a row, and whatever data, codec, teacher or network raise, all
    with the state saved; SaveError on a full disk.
    """
    settings = job.settings
    check_alone(job)
    prepare(job.folder)
    log = Log(job.folder, on_log, on_message, writes=job.rank == 0)
    state = State.fresh(job)
    resume_run(state, resume, log)
    if settings.compile:
        log.say(f"compiling {compile_blocks(job.model, settings.backend)} blocks with {settings.backend}")
    announce(state, log)
    with matmul_precision(settings.tf32) as outside, Stop() as stop:
        batches, clock = open_batches(state, log), Clock(torch.device(job.device))
        evaluate = Evaluations(state, clock, log, stop, outside)
        evaluate()  # one that was broken off
        while state.step < settings.steps:
            with rescue(state, clock, log):
                batch = next(batches)
                clock.lap("data")
                values = forward_backward(state, batch)
                clock.lap("model")
            update(state, values)
            state.seconds += clock.step("optimizer")
            report(state, clock, log)
            if on_step:
                on_step(state.step, values)
            failure, asked = state.guard.failure(state.step, values), stop.signal
            if failure or asked or state.step % settings.save_every == 0 or state.step == settings.steps:
                save(state, clock, log)
            if failure:
                raise failure
            if asked:
                raise Interrupted(farewell(state), 128 + asked)
            evaluate()
    return state


def forward_backward(state: State, batch: Any) -> Row:
    """Leave the (clipped) gradient of the global batch in the parameters; return loss, terms and gradient norm.

    batch: this process's rows. Draws are keyed by (seed, step, row of the global batch), so the cut into pieces and
    processes does not change them. The device is waited for once, here.
    """
    job, settings, device = state.job, state.job.settings, torch.device(state.job.device)
    rows = len(batch.images)
    if rows * job.world != settings.batch:
        raise ValueError(f"a batch of {rows} rows for {job.world} processes; settings say batch={settings.batch}")
    condition, first = job.condition(batch).to(device), job.rank * rows
    totals: dict[str, Tensor] = {}
    for start, stop in pieces(rows, settings):
        noise = BatchNoise(settings.seed, state.step, settings.batch, first + start, first + stop, device=device)
        images = batch.images[start:stop].to(device, non_blocking=True)
        with torch.no_grad():
            x = job.encode(images, noise)
        with autocast(settings, device):
            auxiliary = alignment(job, images, state.step)
            loss = job.objective(job.model, x, condition.index(slice(start, stop)), noise, auxiliary)
        share = loss.total * ((stop - start) / rows)
        share.backward()
        for name, value in (("loss", share.detach()), *((f"loss_{k}", v.sum() / rows) for k, v in loss.terms.items())):
            totals[name] = totals.get(name, 0) + value.float()
    totals["grad_norm"] = gradient_norm(state.parameters, settings.clip)
    return dict(zip(totals, torch.stack(list(totals.values())).tolist(), strict=True))


def alignment(job: Job, images: Tensor, step: int) -> tuple:
    """REPA's auxiliary terms; from the stop step on nothing, and the teachers are not run."""
    if job.aligner is None or job.targets is None or not job.aligner.active(step):
        return ()
    with torch.no_grad():
        targets = job.targets(images)
    return job.aligner.terms(targets, step)


def update(state: State, values: Row) -> None:
    """Apply the gradient, average the weights, count the step; a gradient that is not finite changes nothing."""
    if state.guard.accept(values):
        set_rate(state.optimizer, learning_rate(state.job.settings, state.step))
        state.optimizer.step()
        if (state.step + 1) % state.job.settings.ema_every == 0:
            for ema, module in zip(state.emas, state.job.modules, strict=True):
                ema.update(module)
        state.meter.add(values)
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
