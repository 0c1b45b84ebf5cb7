"""A tiny training job. Run as a script it trains in a folder, and dies there if asked to: the resume tests do that."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ditkit.diffusion import Flow
from ditkit.protocols import Condition, Features, Output
from ditkit.training import Job, TrainSettings, ValidationLoss, checkpoint, fit

CLASSES, SIDE, WIDTH = 3, 4, 16


class Toy(nn.Module):
    """A Denoiser of 1x1 convolutions: every pixel is a token."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.enter, self.leave = nn.Conv2d(1, WIDTH, 1), nn.Conv2d(WIDTH, 1, 1)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU()) for _ in range(2))
        self.label = nn.Embedding(CLASSES + 1, WIDTH)
        self.register_buffer("calls", torch.zeros(()))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)

    def forward(self, x: Tensor, t: Tensor, cond: Condition, *, capture: tuple[int, ...] = ()) -> Output:
        h = self.enter(x).flatten(2).transpose(1, 2) + self.label(cond.label)[:, None] * t.view(-1, 1, 1)
        hidden = {}
        for i, block in enumerate(self.blocks, 1):
            h = h + block(h)
            hidden[i] = h
        out = self.leave(h.transpose(1, 2).reshape(len(x), WIDTH, *x.shape[2:]))
        return Output(out, {i: hidden[i] for i in capture})

    def null(self, cond: Condition) -> Condition:
        return cond.with_label(torch.full_like(cond.label, CLASSES))


class Term(NamedTuple):
    """The auxiliary term of ToyAligner."""

    module: nn.Module
    targets: list[Features]
    capture: tuple[int, ...] = (1,)
    weight: float = 0.5
    name: str = "align"

    def __call__(self, hidden: dict[int, Tensor]) -> Tensor:
        return (self.module(hidden[1]) - self.targets[0].tokens).square().mean((1, 2))


class ToyAligner(nn.Module):
    """A projector with the surface of align.Aligner."""

    def __init__(self, stop: int):
        super().__init__()
        self.stop = stop
        self.projector = nn.Linear(WIDTH, 2)
        nn.init.normal_(self.projector.weight, std=0.3, generator=torch.Generator().manual_seed(1))
        nn.init.zeros_(self.projector.bias)

    def forward(self, h: Tensor) -> Tensor:
        return self.projector(h)

    def active(self, step: int) -> bool:
        return step < self.stop

    def terms(self, targets: list[Features], step: int) -> tuple[Term, ...]:
        return (Term(self, targets),)


class ToyBatch(NamedTuple):
    images: Tensor
    labels: Tensor


def images_of(step: int, rows: int) -> Tensor:
    """uint8 images of one step."""
    drawn = np.random.Generator(np.random.Philox(key=step)).integers(0, 256, (rows, 1, SIDE, SIDE), dtype=np.uint8)
    return torch.from_numpy(drawn)


def to_latents(images: Tensor, noise) -> Tensor:
    return images.float() / 127.5 - 1 + 0.01 * noise.normal("posterior", tuple(images.shape))


def teach(images: Tensor) -> list[Features]:
    """Two numbers a pixel."""
    x = (images.float() / 255).flatten(1)
    return [Features(torch.stack((x, x.square()), -1), torch.stack((x.mean(1), x.std(1)), -1), (SIDE, SIDE))]


def make_job(folder, *, aligned: bool = True, stop: int = 10**9, validate: bool = False, job=None, **settings) -> Job:
    """Settings are TrainSettings fields; `job` overrides fields of the Job."""
    given = dict(steps=12, batch=6, lr=1e-2, ema=0.9, log_every=4, save_every=5, keep_last=2) | settings
    chosen, objective = TrainSettings(**given), Flow(drop=0.2)

    def batches(start: int):
        step = start
        while True:
            images = images_of(step, chosen.batch)
            yield ToyBatch(images, images.sum((1, 2, 3)) % CLASSES)
            step += 1

    fields = dict(
        model=Toy(),
        objective=objective,
        encode=to_latents,
        batches=batches,
        condition=lambda batch: Condition(label=batch.labels),
        settings=chosen,
        folder=Path(folder),
        aligner=ToyAligner(stop) if aligned else None,
        targets=teach if aligned else None,
        validate=make_validation(objective) if validate else None,
        check_latents=False,
    )
    return Job(**{**fields, **(job or {})})


def make_validation(objective, n: int = 5, **options) -> ValidationLoss:
    return ValidationLoss(objective, to_latents, images_of(10**6, n), Condition(torch.arange(n) % CLASSES), **options)


def die_at(number: int, name: str) -> None:
    """SIGKILL at the `number`-th call of checkpoint.`name`: in the middle of writing."""
    real, calls = getattr(checkpoint, name), [0]

    def counted(*args, **kwargs):
        calls[0] += 1
        if calls[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(checkpoint, name, counted)


def main() -> None:
    """toy.py FOLDER JSON: JSON holds `settings`, and optionally `signal` and `at` (a step), or `call` and `name`."""
    torch.set_num_threads(1)
    folder, request = sys.argv[1], json.loads(sys.argv[2])
    if "call" in request:
        die_at(request["call"], request["name"])

    def on_step(step: int, values: dict) -> None:
        if step == request.get("at"):
            os.kill(os.getpid(), request["signal"])

    try:
        fit(make_job(folder, **request["settings"]), on_step=on_step)
    except KeyboardInterrupt as interrupt:
        print(interrupt, file=sys.stderr)
        sys.exit(interrupt.exit_code)


if __name__ == "__main__":
    main()
