"""What happens before the first step: resume, refuse or start, and a look at the first latents."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from ditkit.checkpoints import CheckpointError
from ditkit.diffusion import BatchNoise
from ditkit.training import checkpoint
from ditkit.training.log import Log
from ditkit.training.optim import describe, pieces
from ditkit.training.settings import TrainSettings
from ditkit.training.state import Job, State

Resume = Literal["auto", "never"] | int
FIXED = ("batch", "seed")  # data position and draws follow from these


def resume_run(state: State, resume: Resume, log: Log) -> None:
    """Bring `state` and the run folder to the step that training goes on from. The first process chooses for all."""
    folder, ranks = state.job.folder, state.job.ranks.connected
    found = None
    with ranks.agreed():
        if ranks.first:
            found = _choose(state.job, resume, log)
    found = ranks.tell(found)
    if found is not None:
        with ranks.agreed():
            for line in state.restore(*found):
                log.say(line)
    with ranks.agreed():
        if state.job.rank == 0:
            checkpoint.remove_drafts(folder)
            checkpoint.set_aside(folder, state.step)
        dropped = log.rewind(state.step)
    if found is not None:
        log.say(f"resumed at step {state.step}" + (f"; {dropped} later rows of metrics dropped" if dropped else ""))


def _choose(job: Job, resume: Resume, log: Log) -> tuple[int, dict] | None:
    """(step, numbers) of the checkpoint to go on from, or None; ValueError where it belongs to another run."""
    folder, steps = job.folder, checkpoint.list_steps(job.folder)
    if resume == "never":
        if steps:
            raise ValueError(f"{folder} holds a run up to step {steps[-1]}; resume it or name another folder")
        found = None
    elif resume == "auto":
        found = checkpoint.latest(folder, log.say)
    else:
        if resume not in steps:
            raise CheckpointError(f"{folder}: no checkpoint of step {resume}; there are {steps}")
        found = resume, checkpoint.read_state(folder, resume)
    if found is not None:
        _check_same(job, found[1], log)
    return found


def announce(state: State, log: Log) -> None:
    """Say what is trained, where and how; or that nothing is left to train."""
    job, settings = state.job, state.job.settings
    if state.step >= settings.steps:
        log.say(f"nothing to train: the run is at step {state.step}, {settings.steps} are asked for")
        return
    sizes = [sum(p.numel() for p in module.parameters() if p.requires_grad) for module in job.modules]
    cut = pieces(settings.batch // job.world, settings)
    device = torch.device(job.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    what = f"{sizes[0]:,} parameters" + (f" and {sizes[1]:,} of projectors" if sizes[1:] else "")
    batch = f"batch {settings.batch} = {job.world} x {len(cut)} passes of {max(b - a for a, b in cut)}"
    more = f", TF32 {'on' if settings.tf32 else 'off'}" if device.type == "cuda" else ""
    more += f", {_spread(job)}" if job.world > 1 else ""
    log.say(f"training {what} on {name}, steps {state.step} to {settings.steps}, {batch}, {settings.precision}{more}")
    if settings.muon is not None:
        log.say(describe(state.optimizer))


def _spread(job: Job) -> str:
    """How the processes share the model, in words."""
    parallel = job.settings.parallel
    if parallel.kind == "ddp":
        return "a copy of the model a process (ddp)"
    shards = parallel.shards or job.world
    return f"weights in {shards} shards (fsdp)" + (f", {job.world // shards} copies" if shards < job.world else "")


def _check_same(job: Job, numbers: dict, log: Log) -> None:
    """ValueError if what fixes data order and draws has changed; other changed settings are only said."""
    changed = _changes(_filled(numbers["settings"]), job.settings.model_dump(mode="json"))
    fixed = {k: v for k, v in changed.items() if k in FIXED}
    fixed |= _changes(numbers["identity"], json.loads(json.dumps(job.identity)))
    if fixed:
        what = ", ".join(f"{k} was {a}, is {b}" for k, (a, b) in sorted(fixed.items()))
        raise ValueError(f"{job.folder} cannot be resumed: {what}; set it back or name another folder")
    if changed:
        log.say("settings changed since: " + ", ".join(f"{k} {a} -> {b}" for k, (a, b) in sorted(changed.items())))


def _filled(before: dict) -> dict:
    """Settings of an earlier version: what it did not know is as today's defaults."""
    try:
        return TrainSettings.model_validate(before).model_dump(mode="json")
    except ValueError:
        return before


def _changes(before: dict, now: dict) -> dict[str, tuple]:
    return {k: (before.get(k), now.get(k)) for k in before.keys() | now.keys() if before.get(k) != now.get(k)}


def open_batches(state: State, log: Log) -> Iterator[Any]:
    """The batches from the state's step on; warns through `log` if the first latents are not normalised."""
    job = state.job
    batches = job.batches(state.step)
    if not job.check_latents or state.step >= job.settings.steps:
        return batches
    first = next(batches)
    rows = min(len(first.images), 64)
    noise = BatchNoise(job.settings.seed, state.step, job.settings.batch, 0, rows, device=job.device)
    with torch.no_grad():
        warning = latent_warning(job.encode(first.images[:rows].to(job.device), noise))
    if warning:
        log.say(warning)
    return itertools.chain([first], batches)


def latent_warning(latents: Tensor) -> str | None:
    """A line if latents are not near mean 0 and std 1: a missing or doubled normalisation ruins a run silently."""
    mean, std = latents.float().mean().item(), latents.float().std().item()
    if abs(mean) < 0.5 and 0.5 < std < 2:
        return None
    return (
        f"warning: the first latents have mean {mean:.3g} and std {std:.3g}, not about 0 and 1; "
        "check the codec's shift and scale (applied exactly once?)"
    )
