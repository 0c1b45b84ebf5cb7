"""Train a teacher on one's own images, without labels: SimCLR (arXiv 2002.05709) on a compact ViT.

Two random views of an image must find each other among all views of a batch. On digits it takes about half a minute
on two CPU cores; the steps are fixed, not the seconds.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ditkit.config import Settings
from ditkit.files import new_folder
from ditkit.pretrained.augment import Augment, default_augment
from ditkit.pretrained.vit import SelfTaught, ViT, ViTSettings, vit_settings
from ditkit.protocols import BadImage, Source

Progress = Callable[[int, dict[str, float]], None]


class TeacherTraining(Settings):
    """How the teacher is trained; the defaults are the measured digits recipe."""

    steps: int = Field(500, ge=0, description="Optimiser steps; 0: a random network, to compare with.")
    batch: int = Field(96, ge=2, description="Images a step; each gives two views.")
    learning_rate: float = Field(3e-3, gt=0, description="AdamW; cosine decay to 0.")
    weight_decay: float = Field(0.05, ge=0, description="AdamW, on matrices only.")
    warmup: int = Field(20, ge=0, description="Steps of linear warm-up.")
    temperature: float = Field(0.2, gt=0, description="NT-Xent temperature.")
    projector_width: int = Field(256, ge=1, description="Hidden width of the projector (with BatchNorm).")
    projector_out: int = Field(64, ge=1, description="Width in which views are compared.")
    network: ViTSettings | None = Field(
        None, description="Shape of the ViT; None: chosen from image size and channels."
    )
    augment: Augment | None = Field(None, description="Random views; None: chosen from the channels.")


def train_teacher(
    source: Source,
    settings: TeacherTraining,
    folder: str | Path | None,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> SelfTaught:
    """Train on all images of `source` (labels are not looked at) and write the teacher to `folder` (None: nowhere).

    progress(step, {"loss", "accuracy", "images_per_s"}) is called after each step; steps count from 1.
    The folder must be new or empty (FileExistsError, before anything starts) and gets its name at the end, so an
    interrupt leaves nothing behind. Unreadable images are left out, listed under "rejects" in teacher.json, and
    warned about once.
    """
    with new_folder(folder) if folder is not None else nullcontext() as draft:
        teacher = _train(source, settings, seed, torch.device(device), progress)
        if draft is not None:
            teacher.write(draft)
    return teacher


def _train(
    source: Source, settings: TeacherTraining, seed: int, device: torch.device, progress: Progress | None
) -> SelfTaught:
    images = _Images(source)
    network = ViT(_shape(settings, source, images), torch.Generator().manual_seed(seed)).to(device)
    augment = settings.augment or default_augment(source.channels)
    started = time.perf_counter()
    losses = _fit(network, images, augment, settings, seed, progress) if settings.steps else []
    if images.rejects:
        warnings.warn(f"{len(images.rejects)} images could not be read and were left out", stacklevel=3)
    facts = {
        "seed": seed,
        "steps": settings.steps,
        "training": settings.model_dump(),
        "augment": augment.model_dump(),
        "data": source.fingerprint,
        "images": len(images),
        "rejects": images.rejects,
        "seconds": round(time.perf_counter() - started, 1),
        "loss_first": losses[0] if losses else None,
        "loss_last": sum(losses[-20:]) / len(losses[-20:]) if losses else None,
    }
    return SelfTaught(network, facts)


def _fit(
    network: ViT, images: _Images, augment: Augment, settings: TeacherTraining, seed: int, progress: Progress | None
) -> list[float]:
    device = network.position.device
    projector = _projector(network.settings.width, settings, torch.Generator().manual_seed(seed + 1)).to(device)
    optimiser = _optimiser(nn.ModuleList((network, projector)), settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, settings))
    order = torch.Generator().manual_seed(seed + 2)
    draws = torch.Generator(device=device).manual_seed(seed + 3)
    mean, std = (
        torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (network.settings.mean, network.settings.std)
    )
    size = tuple(g * network.settings.patch for g in network.settings.grid)
    queue, losses, last = torch.empty(0, dtype=torch.long), [], time.perf_counter()
    for step in range(settings.steps):
        batch, queue = images.next(queue, settings.batch, order)
        batch = batch.to(device).float().div(255).repeat(2, 1, 1, 1)  # both views, [0, 1]
        views = augment(batch, draws)
        if views.shape[2:] != size:
            views = F.interpolate(views, size=size, mode="bicubic", antialias=True, align_corners=False)
        loss, accuracy = nt_xent(projector(network((views - mean) / std).mean(1)), settings.temperature)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"teacher: the loss is {loss.item()} at step {step + 1}; lower the learning rate")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if progress:
            now = time.perf_counter()
            rate, last = len(batch) / 2 / (now - last), now
            progress(step + 1, {"loss": loss.item(), "accuracy": accuracy, "images_per_s": rate})
    return losses


def nt_xent(vectors: Tensor, temperature: float) -> tuple[Tensor, float]:
    """SimCLR's loss (its eq. 1) on (2B, D), where rows i and i + B are views of one image; and the share found."""
    z = F.normalize(vectors.float(), dim=1)
    logits = (z @ z.T / temperature).fill_diagonal_(-math.inf)
    partner = torch.arange(len(z), device=z.device).roll(len(z) // 2)
    return F.cross_entropy(logits, partner), (logits.argmax(1) == partner).float().mean().item()


def _projector(width: int, settings: TeacherTraining, generator: torch.Generator) -> nn.Sequential:
    """Linear, BatchNorm, ReLU, Linear: without the BatchNorm SimCLR needs 2-3 times the steps here."""
    hidden = settings.projector_width
    projector = nn.Sequential(
        nn.Linear(width, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, settings.projector_out),
    )
    for layer in projector:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return projector


def _optimiser(modules: nn.Module, settings: TeacherTraining) -> torch.optim.AdamW:
    """Weight decay on matrices only."""
    groups = [
        {"params": [p for p in modules.parameters() if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in modules.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


def _rate(step: int, settings: TeacherTraining) -> float:
    """Factor of the learning rate: linear warm-up, then half a cosine to 0."""
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    return warm * (1 + math.cos(math.pi * step / settings.steps)) / 2


def _shape(settings: TeacherTraining, source: Source, images: _Images) -> ViTSettings:
    """The network's shape with the mean and standard deviation of the images filled in."""
    shape = settings.network or vit_settings(source.size, source.channels)
    if shape.channels != source.channels:
        raise ValueError(f"teacher: network.channels is {shape.channels}, the images have {source.channels}")
    sample = images.sample(max(2, min(1024, 2**25 // math.prod((source.channels, *source.size))))).double().div(255)
    mean, std = sample.mean((0, 2, 3)), sample.std((0, 2, 3)).clamp(min=1e-3)
    rounded = {name: tuple(round(v, 6) for v in values.tolist()) for name, values in (("mean", mean), ("std", std))}
    return shape.model_copy(update=rounded)


class _Images:
    """The images of a source as uint8 tensors, in memory if they take less than 512 MB; bad ones are listed."""

    def __init__(self, source: Source):
        self.source = source
        self.rejects: list[list[str]] = []
        self.good = list(range(len(source)))
        self.kept: dict[int, Tensor] | None = (
            {} if len(source) * math.prod(source.size) < 2**29 / source.channels else None
        )
        self.sample(2)

    def __len__(self) -> int:
        return len(self.good)

    def read(self, index: int) -> Tensor | None:
        if self.kept is not None and index in self.kept:
            return self.kept[index]
        try:
            image = self.source[index].image
        except BadImage as error:
            self.good.remove(index)
            self.rejects.append([error.path, error.reason])
            if len(self.good) < 2:
                raise ValueError("teacher: fewer than 2 readable images; it needs at least 2") from error
            return None
        if self.kept is not None:
            self.kept[index] = image
        return image

    def sample(self, count: int) -> Tensor:
        """Up to `count` evenly spaced images (n, C, H, W)."""
        if len(self.good) < 2:
            raise ValueError("teacher: fewer than 2 readable images; it needs at least 2")
        chosen = self.good[:: max(1, len(self.good) // count)][:count]
        return torch.stack([image for i in list(chosen) if (image := self.read(i)) is not None])

    def next(self, queue: Tensor, count: int, order: torch.Generator) -> tuple[Tensor, Tensor]:
        """`count` images in shuffled order (fewer only if there are fewer), and what is left of the shuffle."""
        images: list[Tensor] = []
        while len(images) < min(count, len(self.good)):
            if not len(queue):
                queue = torch.tensor(self.good)[torch.randperm(len(self.good), generator=order)]
            index, queue = int(queue[0]), queue[1:]
            image = self.read(index)
            if image is not None:
                images.append(image)
        return torch.stack(images), queue
