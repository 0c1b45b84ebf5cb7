"""Several processes that train the toy, over gloo: each does what it is asked and leaves what it found in a file."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from toy import CLASSES, SIDE, WIDTH, make_job

from ditkit.models import DDTSettings, DiTSettings, MMDiTSettings, build_model
from ditkit.protocols import Condition
from ditkit.ranks import RENDEZVOUS, Ranks, together
from ditkit.training import State, fit
from ditkit.training.files import SaveError
from ditkit.training.guard import Interrupted
from ditkit.training.loop import forward_backward, update
from ditkit.training.precision import hasten
from ditkit.training.readings import Reading
from ditkit.training.report import validate
from ditkit.training.state import ATTEMPT

HERE = Path(__file__)
PATIENCE = 90.0  # seconds for one request


class Crew:
    """Processes that wait for requests, so that they import torch once for all tests of a file."""

    def __init__(self, world: int, place: Path):
        place.mkdir(parents=True, exist_ok=True)
        self.world, self.place, self.asked, self.running = world, place, 0, []
        self.start()

    def start(self) -> None:
        """New processes, after some have died of a request."""
        self.close()
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.running = [
            subprocess.Popen(
                [sys.executable, str(HERE), str(rank), str(self.world), str(self.place)],
                env=environment, stdin=subprocess.PIPE, stderr=(self.place / f"{rank}.err").open("w"), text=True,
            )
            for rank in range(self.world)
        ]  # fmt: skip

    def __call__(self, what: str, /, **request: Any) -> list[Any]:
        """What each process returned from the function `what` here."""
        self.asked += 1
        for process in self.running:
            request |= {"what": what, "number": self.asked}
            process.stdin.write(json.dumps(request, default=str) + "\n")
            process.stdin.flush()
        found = [self.place / f"{self.asked}-{rank}.pt" for rank in range(self.world)]
        deadline = time.monotonic() + PATIENCE
        while not all(file.exists() for file in found):
            if any(process.poll() is not None for process in self.running) or time.monotonic() > deadline:
                time.sleep(0.5)
                errors = [(self.place / f"{rank}.err").read_text()[-1500:] for rank in range(self.world)]
                self.start()
                raise AssertionError("\n".join(errors))
            time.sleep(0.01)
        return [torch.load(file, weights_only=False) for file in found]

    def close(self) -> None:
        for process in self.running:
            process.kill()
            process.wait()


def main() -> None:
    """One of the processes: team.py RANK WORLD PLACE."""
    torch.set_num_threads(1)
    rank, world, place = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    for line in sys.stdin:
        request = json.loads(line)
        number = request.pop("number")
        os.environ[RENDEZVOUS] = (place / f"meeting-{number}").as_uri()
        with together(Ranks(rank, world, rank)) as ranks:
            result = globals()[request.pop("what")](ranks, **request)
        torch.save(result, place / f"draft-{rank}")
        (place / f"draft-{rank}").rename(place / f"{number}-{rank}.pt")


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def network(name: str, checkpointing: bool = False):
    """A tiny model with tokens like the toy's, no weight of which is zero; and what makes its condition of a batch."""
    shape = {"width": WIDTH, "heads": 2, "patch": 1, "channels": 1, "size": (SIDE, SIDE)}
    more = {
        "dit": {"depth": 2, "num_classes": CLASSES},
        "ddt": {"encoder_blocks": 1, "decoder_blocks": 1, "num_classes": CLASSES},
        "mmdit": {"depth": 2, "text_width": 4, "pooled_width": 4, "text_length": 3},
    }[name]
    kind = {"dit": DiTSettings, "ddt": DDTSettings, "mmdit": MMDiTSettings}[name]
    generator = torch.Generator().manual_seed(0)
    model = build_model(kind(**shape, **more, checkpointing=checkpointing), generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))

    def condition(batch) -> Condition:
        if name != "mmdit":
            return Condition(label=batch.labels)
        text = (batch.labels[:, None, None] + 1) * torch.linspace(-1, 1, 12).view(1, 3, 4)
        return Condition(text=text, pooled=text.mean(1))

    return {"model": model, "condition": condition}


def shared_job(ranks: Ranks, folder: str, *, net: str = "", checkpointing: bool = False, fields=None, **settings: Any):
    """The toy's job whose batches are this process's rows."""
    job = make_job(folder, job={**(network(net, checkpointing) if net else {}), **(fields or {})}, **settings)
    whole_batches, rows = job.batches, job.settings.batch // ranks.world
    mine = slice(ranks.rank * rows, (ranks.rank + 1) * rows)
    job.batches = lambda start: (type(b)(*(part[mine] for part in b)) for b in whole_batches(start))
    job.ranks = ranks
    return job


def weights(state: State) -> dict[str, Tensor]:
    return {f"{k}.{n}": whole(v) for k, part in state.tensors().items() for n, v in part.items()}


# ------------------------------------------------------------------------------------------------ what they do


def gradients(ranks: Ranks, folder: str, **settings: Any) -> dict[str, Tensor]:
    """The gradients of the first step, and its numbers."""
    job = shared_job(ranks, folder, **settings)
    state = State.fresh(job)
    hasten(job.model, job.settings)
    values = forward_backward(state, next(job.batches(0)))
    named = {n: whole(p.grad) for module in job.modules for n, p in module.named_parameters()}
    return {"norm": values["grad_norm"].clone(), "loss": state.team.mean(values["loss"]), **named}


def train(ranks: Ranks, folder: str, *, limit: int = 0, **settings: Any) -> dict[str, Any]:
    """A run: its last weights and averages, the images that each step saw, what it said and how it ended.

    limit: bytes that no file may be larger than, as on a full disk.
    """
    job, seen, said, scored = shared_job(ranks, folder, **settings), [], [], []
    batches = job.batches

    def watched(start: int):
        for step, batch in enumerate(batches(start), start):
            seen.append((step, batch.images.flatten(1).sum(1).tolist()))
            yield batch

    def evaluate(model, step: int) -> dict[str, float]:
        scored.append(step)
        return {"weight": sum(p.double().sum().item() for p in model.parameters())}

    job.batches = watched
    if settings.get("validate"):
        job.evaluate, job.evaluate_every = evaluate, 6
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    end, state = "", None
    try:
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        state = fit(job, on_message=said.append)
    except SaveError as error:
        end = str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    found = weights(state) if state else {}
    step = state.step if state else 0
    return {"weights": found, "seen": seen[:12], "step": step, "said": said, "scored": scored, "end": end}


def stopped(ranks: Ranks, folder: str, *, at: int, signal: int, **settings: Any) -> tuple[int, str, int]:
    """One process gets a signal at a step: what each is told, and the exit code."""
    job, reached = shared_job(ranks, folder, **settings), []

    def on_step(step: int, values: dict) -> None:
        reached.append(step)
        if step == at and ranks.rank == ranks.world - 1:
            os.kill(os.getpid(), signal)

    try:
        fit(job, on_step=on_step)
    except Interrupted as asked:
        return reached[-1], str(asked), asked.exit_code
    return reached[-1], "went on", 0


def poisoned(ranks: Ranks, folder: str, *, at: int, **settings: Any) -> dict[str, Any]:
    """The latents of one process are not finite at one step."""
    job, said, passes = shared_job(ranks, folder, **settings), [], [0]
    encode = job.encode

    def bad(images: Tensor, noise) -> Tensor:
        passes[0] += 1
        latents = encode(images, noise)
        return latents * float("nan") if passes[0] == at and ranks.rank == ranks.world - 1 else latents

    job.encode = bad
    state = fit(job, on_message=said.append)
    return {"weights": weights(state), "said": said, "skipped": state.guard.skipped}


def short(ranks: Ranks, folder: str, **settings: Any) -> dict[str, Any]:
    """One process has no memory for its first copy of a checkpoint."""
    from torch.distributed.checkpoint.staging import BlockingAsyncStager

    real, calls, said = BlockingAsyncStager.stage, [], []

    def stage(self, tensors: Any) -> Any:
        calls.append(1)
        if ranks.rank == ranks.world - 1 and len(calls) == 1:
            raise RuntimeError("out of host memory")
        return real(self, tensors)

    BlockingAsyncStager.stage = stage
    try:
        fit(shared_job(ranks, folder, **settings), on_message=said.append)
    finally:
        BlockingAsyncStager.stage = real
    return {"said": said}


def rolled_back(ranks: Ranks, folder: str, *, bad: list[int], **settings: Any) -> dict[str, Any]:
    """The latents of one process are not finite at some steps, with the first draws."""
    job, said = shared_job(ranks, folder, **settings), []
    encode = job.encode

    def poison(images: Tensor, noise) -> Tensor:
        hurt = noise.step in bad and noise.seed < ATTEMPT and ranks.rank == ranks.world - 1
        return encode(images, noise) * (float("nan") if hurt else 1.0)

    job.encode = poison
    state = fit(job, on_message=said.append)
    return {"weights": weights(state), "said": said, "attempt": state.attempt, "step": state.step}


def halves(ranks: Ranks, folder: str, **settings: Any) -> dict[str, Any]:
    """bf16: the types of what the network and its blocks see and hold, and two steps' losses."""
    job, types, losses = shared_job(ranks, folder, net="dit", **settings), {}, []
    job.model.time.register_forward_pre_hook(lambda _, given: types.update(t=given[0].dtype))
    state = State.fresh(job)
    block = job.model.blocks[0]
    block.attention.register_forward_pre_hook(lambda m, _: types.update(block=whole(m.qkv.weight).dtype))
    state.team.many and types.update(stored=next(block.parameters()).dtype)
    state.step = 0
    batches = job.batches(0)
    for _ in range(4):
        totals = forward_backward(state, next(batches))
        reading = state.team.agree(Reading.of(totals))
        update(state, reading)
        losses.append(dict(zip(reading.names, reading.values.tolist(), strict=True))["loss"])
    types["average"] = next(state.ema.parameters()).dtype
    return {"types": {k: str(v) for k, v in types.items()}, "losses": losses, "row": validate(state)}


if __name__ == "__main__":
    main()
