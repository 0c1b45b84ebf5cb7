"""The network at work on images at one time, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ditkit.align.targets import compute_targets
from ditkit.diffusion import Estimate, network_input
from ditkit.evaluation.sections import spread
from ditkit.protocols import Condition, Extractor, Features, Output
from ditkit.recipes.analyses.subject import Subject


@dataclass(frozen=True)
class Noised:
    """Some images, noised to time t, and what the network is told of them. rows: their numbers among the test images.

    x (b, C, H, W): the state x_t; t (b,) float32; target: the velocity of the path through image and noise.
    """

    subject: Subject
    rows: Tensor
    x: Tensor
    t: Tensor
    target: Tensor
    cond: Condition

    @property
    def seen(self) -> Tensor:
        """x as the network sees it."""
        return network_input(self.subject.loaded.path, self.x, self.t)

    def run(self, capture: tuple[int, ...] = ()) -> Output:
        """One pass of the network."""
        return self.subject.loaded.model(self.seen, self.t, self.cond, capture=capture)

    def estimate(self, output: Output) -> Estimate:
        """What the network says of x; a variance half is left aside."""
        loaded, value = self.subject.loaded, output.sample[:, : self.x.shape[1]]
        return Estimate(self.x, self.t, loaded.path, loaded.prediction, value.to(self.x.dtype))


def picked(subject: Subject, n: int) -> Tensor:
    """The numbers of n test images, spread evenly over them; of all where there are not as many."""
    return spread(len(subject.test), n)


@torch.no_grad()
def noised(subject: Subject, t: float, n: int, null: bool = True) -> Iterator[Noised]:
    """n of the test images (`picked`) at time t (0 = data, 1 = noise), each with its own noise, `asked.batch` a time.

    null: under the null condition, as representations are looked at, if the model has one; else under the images' own
    labels or captions.
    """
    settings = subject.loaded.settings
    null = null and getattr(settings, "null_label", True) | (settings.num_classes == 0)
    test, device, path = subject.test, subject.loaded.device, subject.loaded.path
    eps = subject.noise
    time = torch.tensor(t, dtype=torch.float64)
    for rows in picked(subject, n).split(subject.asked.batch):
        cond = test.cond.index(rows).to(device)
        x = subject.noised(test.latents[rows], t, eps[rows]).to(device)
        target = path.d_alpha(time) * test.latents[rows].double() + path.d_sigma(time) * eps[rows].double()
        times = torch.full((len(rows),), t, device=device)
        yield Noised(subject, rows, x, times, target.float().to(device), subject.null(cond) if null else cond)


def teachers_of(subject: Subject) -> tuple[dict[str, Extractor], str]:
    """(The teachers by name, what is missing of them in one sentence): the model can be looked at without."""
    found = subject.teachers
    return found, f"Without a teacher of the recipe: {subject.missing}" if subject.missing else ""


def teacher_features(subject: Subject, teacher: Extractor, rows: Tensor) -> Features:
    """A teacher's tokens of these test images on the model's own grid, as alignment asks for them."""
    images = subject.test.images[rows].to(subject.loaded.device)
    return compute_targets([teacher], images, token_grid(subject))[0]  # type: ignore[list-item]


def token_grid(subject: Subject) -> tuple[int, int]:
    """Token rows and columns of the model at its native size."""
    return subject.loaded.settings.grid


def no_grid(subject: Subject, least: int = 2) -> str:
    """Why there is no map of tokens, of so many a side at least; "" where there is one."""
    rows, columns = token_grid(subject)
    small = f"its tokens stand on a grid of {rows} x {columns}: no map"
    return "" if min(rows, columns) >= least else small + (f" of {least} x {least}" if least > 2 else "")
