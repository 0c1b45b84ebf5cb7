"""A small classifier trained on the data set itself: class agreement, and a feature space of its own for distances.

It shares nothing with a REPA teacher, so that a Frechet distance in its features does not favour the aligned model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from ditkit.config import Settings, fingerprint
from ditkit.evaluation.features import Progress
from ditkit.files import write_atomic
from ditkit.protocols import Features


class ClassifierSettings(Settings):
    """Network and training of the classifier; the defaults take about 2 s on 1,437 digits of 8 x 8."""

    width: int = Field(32, ge=1, description="channels of the first stage; features are twice as many")
    steps: int = Field(500, ge=1, description="optimiser steps")
    batch: int = Field(64, ge=2, description="images a step")
    lr: float = Field(3e-3, gt=0, description="peak learning rate of AdamW, cosine to 0")
    weight_decay: float = Field(0.05, ge=0)
    shift: float = Field(0.0625, ge=0, lt=0.5, description="largest random shift, as a share of the side")
    smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing (it would flatten the Inception Score)")


class Network(nn.Module):
    """Convolutions that halve the grid until it is at most 4 x 4 pixels: uint8 (B, C, H, W) -> tokens and logits."""

    def __init__(self, channels: int, size: tuple[int, int], classes: int, width: int):
        super().__init__()
        self.made_with = (channels, tuple(size), classes, width)
        halvings = max(1, math.ceil(math.log2(max(size) / 4))) if max(size) > 4 else 0
        layers: list[nn.Module] = [*_block(channels, width, 1)]
        inside = width
        for _ in range(halvings):
            layers += [*_block(inside, 2 * width, 2), *_block(2 * width, 2 * width, 1)]
            inside = 2 * width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(inside, classes)
        self.width = inside

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 or float images in 0..255 -> (feature map (B, D, h, w), logits (B, K))."""
        features = self.body(images.float() / 127.5 - 1)
        return features, self.head(features.mean((2, 3)))


def _block(inside: int, outside: int, stride: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU(inplace=True),
    )


class Classifier:
    """A trained network as an Extractor: pooled features (B, D) for distances, `probabilities` for agreement.

    accuracy: share of held-out real images that it names correctly (the ceiling of class agreement), or None.
    """

    def __init__(self, network: Network, classes: tuple[str, ...], identity: str, accuracy: float | None = None):
        self.network = network.eval().requires_grad_(False)
        self.classes, self.accuracy = classes, accuracy
        self.id = identity
        self.width = network.width

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.network.head.weight.device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """uint8 images (B, C, H, W) -> Features, tokens row by row on the last grid."""
        maps, _ = self.network(images.to(self.device))
        return Features(maps.flatten(2).mT, maps.mean((2, 3)), (maps.shape[2], maps.shape[3]))

    @torch.no_grad()
    def probabilities(self, images: Tensor, batch: int = 128) -> Tensor:
        """Class probabilities (N, K) float64 on the CPU of uint8 images (N, C, H, W)."""
        rows = [self.network(images[i : i + batch].to(self.device))[1] for i in range(0, len(images), batch)]
        return torch.cat(rows).double().cpu().softmax(1)

    def save(self, path: str | Path) -> None:
        """Write a .safetensors file for `read_classifier`."""
        told = {"made_with": self.network.made_with, "classes": self.classes, "id": self.id, "accuracy": self.accuracy}
        state = {name: value.cpu().contiguous() for name, value in self.network.state_dict().items()}
        write_atomic(path, lambda file: file.write(save(state, {"classifier": json.dumps(told)})))


def read_classifier(path: str | Path, device: str | torch.device = "cpu") -> Classifier:
    """A classifier that was saved, the same to the bit. OSError without a file, ValueError for another one."""
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            told = json.loads((file.metadata() or {})["classifier"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} holds no classifier, or is damaged: remove it ({error})") from None
    with torch.device("meta"):  # no weights are drawn
        network = Network(*told["made_with"])
    network.load_state_dict(state, assign=True)
    return Classifier(network.to(device), tuple(told["classes"]), told["id"], told["accuracy"])


def _augment(images: Tensor, largest: int, generator: torch.Generator) -> Tensor:
    """Shift each image (B, C, H, W) by up to `largest` pixels either way; the border is repeated."""
    if largest == 0:
        return images
    b, _, height, width = images.shape
    padded = F.pad(images, (largest,) * 4, mode="replicate")
    dy, dx = torch.randint(0, 2 * largest + 1, (2, b), generator=generator)
    rows = (dy[:, None] + torch.arange(height))[:, None, :, None]
    columns = (dx[:, None] + torch.arange(width))[:, None, None, :]
    which, channels = torch.arange(b)[:, None, None, None], torch.arange(images.shape[1])[None, :, None, None]
    return padded[which, channels, rows, columns]


def split(n: int, seed: int, held_out: float = 0.2) -> tuple[Tensor, Tensor]:
    """A fixed cut of n samples into (training, held-out) indices."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    cut = n - round(n * held_out)
    return order[:cut].sort().values, order[cut:].sort().values


def classifier_id(images: Tensor, labels: Tensor, settings: ClassifierSettings, seed: int = 0) -> str:
    """Names what a classifier is trained on and how."""
    digest = hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes() + f"{seed}".encode())
    return f"classifier-{fingerprint(settings)[:6]}-{digest.hexdigest()[:8]}"


def train_classifier(
    images: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    settings: ClassifierSettings | None = None,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    held_out: tuple[Tensor, Tensor] | None = None,
    progress: Progress | None = None,
) -> Classifier:
    """Train on uint8 images (N, C, H, W) with labels (N,) in 0..K-1; deterministic for one seed on one machine.

    On the CPU one thread works, whatever torch may use: sums cut otherwise round otherwise, and after some hundred
    steps that alone moves Frechet distances by 3 %.

    held_out: (images, labels) for `accuracy`; without it a fifth of the images is kept back for that. ValueError for
    fewer than two classes or labels outside 0..K-1.
    """
    s = settings or ClassifierSettings()
    if len(classes) < 2 or labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(
            f"class agreement needs labels of at least 2 classes, numbered from 0; got {len(classes)} classes and "
            f"labels {int(labels.min())}..{int(labels.max())}"
        )
    if held_out is None:
        train, test = split(len(images), seed)
        images, labels, held_out = images[train], labels[train], (images[test], labels[test])
    with torch.random.fork_rng(devices=[]):  # layers draw their first weights from torch's global state: lend them ours
        torch.manual_seed(seed)
        network = Network(images.shape[1], (images.shape[2], images.shape[3]), len(classes), s.width).to(device)
    with one_thread():
        _fit(network, images, labels, s, torch.Generator().manual_seed(seed), progress)
    result = Classifier(network, tuple(classes), classifier_id(images, labels, s, seed))
    if len(held_out[0]):
        found = result.probabilities(held_out[0]).argmax(1)
        result.accuracy = (found == held_out[1].cpu()).double().mean().item()
    return result


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch computes with one CPU thread inside the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _fit(
    network: Network,
    images: Tensor,
    labels: Tensor,
    s: ClassifierSettings,
    generator: torch.Generator,
    progress: Progress | None,
) -> None:
    """AdamW with a cosine schedule on randomly shifted images, batches drawn from `generator`."""
    device = network.head.weight.device
    network.train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=s.lr, weight_decay=s.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, s.lr, total_steps=s.steps, pct_start=0.1)
    largest = round(s.shift * min(images.shape[-2:]))
    batch = min(s.batch, len(images))
    rows = torch.empty(0, dtype=torch.long)
    for step in range(s.steps):
        if len(rows) < batch:
            rows = torch.randperm(len(images), generator=generator)
        chosen, rows = rows[:batch], rows[batch:]
        x = _augment(images[chosen].float(), largest, generator).to(device)
        loss = F.cross_entropy(network(x)[1], labels[chosen].to(device), label_smoothing=s.smoothing)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, s.steps)
    _settle(network, images)


@torch.no_grad()
def _settle(network: Network, images: Tensor, batch: int = 256, most: int = 2048) -> None:
    """Replace the running statistics of the normalisations, which lag behind, by those of the final weights."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # a plain mean over the batches that follow
    network.train()
    kept = images[torch.linspace(0, len(images) - 1, min(most, len(images))).long()]
    for part in kept.chunk(max(1, len(kept) // batch)):
        network(part.to(network.head.weight.device))
