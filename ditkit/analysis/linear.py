"""Linear classifiers on frozen features: REPA's linear probing protocol, and faster ones for small machines.

Each learns from features (n, D) with labels (n,) in 0 .. K - 1 and answers the labels (m,) that it predicts for other
features (m, D). Everything is deterministic for a seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ditkit.config import Settings

PENALTIES = tuple(10.0**power for power in range(-5, 3))  # ridge: squared weights for each training image
HELD_OUT = 0.2  # share of the training images that chooses among them


class PaperProbe(Settings):
    """REPA's linear probing (arXiv 2410.06940, appendix C.1): parameter-free batch norm and one Linear, Adam."""

    epochs: int = Field(90, ge=1, description="passes over the training images")
    batch: int = Field(16384, ge=2, description="images a step; all of them where there are fewer")
    lr: float = Field(1e-3, gt=0, description="falls to 0 along a cosine")

    def parts(self, n: int) -> int:
        """Steps of an epoch for n training images: parts of nearly equal size, none too small for the batch norm."""
        return math.ceil(n / self.batch)


def standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both (n, D), float64, shifted and scaled by the training part's mean and standard deviation per column."""
    train, test = train.double(), test.double()
    mean, std = train.mean(0), train.std(0, correction=0)
    std = torch.where(std > 1e-6 * std.max().clamp(min=1e-12), std, torch.ones_like(std))  # constant columns stay
    return (train - mean) / std, (test - mean) / std


def predict_logistic(
    train: Tensor, labels: Tensor, test: Tensor, classes: int, penalty: float = 1.0, iterations: int = 200
) -> Tensor:
    """Multinomial logistic regression on standardised features, fitted by L-BFGS in float64.

    penalty: factor of half the squared weights beside the summed cross-entropy (scikit-learn's 1 / C).
    """
    train, test = standardised(train, test)
    weight = torch.zeros(classes, train.shape[1], dtype=train.dtype, requires_grad=True)
    bias = torch.zeros(classes, dtype=train.dtype, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=iterations, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(F.linear(train, weight, bias), labels, reduction="sum")
        value = (value + 0.5 * penalty * weight.square().sum()) / len(train)
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(loss)
    with torch.no_grad():
        return F.linear(test, weight, bias).argmax(1)


def predict_ridge(
    train: Tensor, labels: Tensor, test: Tensor, classes: int, *,
    penalties: Sequence[float] = PENALTIES, seed: int = 0,
) -> tuple[Tensor, float]:  # fmt: skip
    """Least squares towards one-hot labels with a penalty on standardised features: (predictions, the penalty).

    In closed form, float64. The penalty is the one that classifies most of a random fifth of the training images right
    after learning from the others (the largest of equals); then all are learned from.
    """
    train, test = standardised(train, test)
    targets = F.one_hot(labels, classes).to(train)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    held, kept = order.split([max(1, round(HELD_OUT * len(train))), len(train) - max(1, round(HELD_OUT * len(train)))])
    tried = _ridge(train[kept], targets[kept], train[held], penalties)
    right = [int((scores.argmax(1) == labels[held]).sum()) for scores in tried]
    best = max(range(len(right)), key=lambda i: (right[i], penalties[i]))
    return _ridge(train, targets, test, penalties[best : best + 1])[0].argmax(1), penalties[best]


def _ridge(x: Tensor, y: Tensor, test: Tensor, penalties: Sequence[float]) -> list[Tensor]:
    """The scores of `test` for each penalty (times n); features and targets are centred, the intercept is not held."""
    shift, mean = x.mean(0), y.mean(0)
    x, test, y = x - shift, test - shift, y - mean
    wide = x.shape[1] > len(x)
    values, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
    answers = vectors.T @ (y if wide else x.T @ y)
    left = test @ (x.T @ vectors if wide else vectors)
    return [left @ (answers / (values.clamp(min=0) + len(x) * p)[:, None]) + mean for p in penalties]


def predict_paper(
    train: Tensor, labels: Tensor, test: Tensor, classes: int, *,
    settings: PaperProbe, seed: int = 0, device: torch.device | str = "cpu",
) -> Tensor:  # fmt: skip
    """REPA's probe: BatchNorm1d without parameters and one Linear, learned by Adam in float32.

    What the paper does not print follows MAE's probing: weights start as N(0, 0.01^2), biases at 0.
    """
    generator = torch.Generator().manual_seed(seed)
    head = nn.Sequential(nn.BatchNorm1d(train.shape[1], affine=False, eps=1e-6), nn.Linear(train.shape[1], classes))
    nn.init.normal_(head[1].weight, std=0.01, generator=generator)  # type: ignore[arg-type]
    nn.init.zeros_(head[1].bias)  # type: ignore[arg-type]
    head.to(device)
    x, y = train.to(device, torch.float32), labels.to(device)
    solver = torch.optim.Adam(head.parameters(), lr=settings.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(solver, settings.epochs * settings.parts(len(x)))
    with torch.enable_grad():
        for _ in range(settings.epochs):
            for rows in torch.randperm(len(x), generator=generator).to(device).tensor_split(settings.parts(len(x))):
                solver.zero_grad()
                F.cross_entropy(head(x[rows]), y[rows]).backward()
                solver.step()
                schedule.step()
    with torch.no_grad():
        return head.eval()(test.to(device, torch.float32)).argmax(1).cpu()
