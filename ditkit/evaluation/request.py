"""What to generate, as data: how many images, of which classes, from which seed."""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ditkit.config import Settings
from ditkit.diffusion.noise import philox_uniform, stream_id
from ditkit.evaluation.images import rule_name
from ditkit.evaluation.protocols import LabelMode


class Request(Settings):
    """N images. All draws depend on (seed, index) alone; batches are cut by index, in chunks of a fixed size.

    The chunk size belongs to the request: draws do not depend on it, but networks round differently for other batch
    sizes, so byte-equal files are promised for equal chunks only (and then for any number of processes; on a CPU, of as
    many threads each, which the folder remembers). With `exact`
    they are promised for any chunk: `rows` take its place, and the last batch is filled up.
    """

    n: int = Field(ge=1, description="number of images")
    labels: tuple[int, ...] = Field((), description="the class of each image; beside prompts: what they name, to score")
    prompts: tuple[str, ...] = Field((), description="the prompt of each image, for text models")
    negative: str | None = Field(None, description="what guidance moves away from; None: the empty prompt")
    mode: LabelMode = Field("none", description="how the labels were chosen")
    seed: int = Field(0, description="seed of all draws")
    chunk: int = Field(64, ge=1, description="images that go through the network together")
    decode: int = Field(16, ge=1, description="images that go through the codec together")
    exact: bool = Field(False, description="same bytes for any chunk: batches of `rows`, the last one filled up")
    rows: int = Field(16, ge=1, description="exact: images in every batch; image i is row i % rows of batch i // rows")
    size: tuple[int, int] | None = Field(None, description="latent (H, W); None: the model's native size")
    quantiser: str = Field("round", description="uint8 rule, see evaluation.images")

    @model_validator(mode="after")
    def _fits(self) -> Request:
        rule_name(self.quantiser)
        for name in ("labels", "prompts"):
            given = len(getattr(self, name))
            if given not in (0, self.n):
                raise ValueError(f"{given} {name} for {self.n} images: give one for each, or none")
        if self.negative is not None and not self.prompts:
            raise ValueError("a negative prompt has no use without prompts")
        return self

    @property
    def batch(self) -> int:
        """Images that are made together: `chunk`, or with `exact` `rows`."""
        return self.rows if self.exact else self.chunk

    @property
    def essence(self) -> Request:
        """This request without what its images do not depend on: `chunk` with `exact`, `rows` without."""
        unused = "chunk" if self.exact else "rows"
        return self.model_copy(update={unused: type(self).model_fields[unused].default})

    @property
    def chunks(self) -> int:
        """Number of chunks; chunk c holds the images c * batch .. min((c + 1) * batch, n) - 1."""
        return -(-self.n // self.batch)

    def indices(self, chunk: int) -> range:
        """The global indices of one chunk."""
        return range(chunk * self.batch, min((chunk + 1) * self.batch, self.n))

    def filled(self, chunk: int) -> list[int]:
        """The images that stand in the rows of one chunk's batch: its indices, and with `exact` the last one again."""
        indices = list(self.indices(chunk))
        return indices + indices[-1:] * (self.rows - len(indices)) if self.exact else indices


def balanced_labels(n: int, classes: int, in_order: bool = False) -> Tensor:
    """n labels with equal counts (up to one), int64.

    Classes take turns (i mod K); in_order puts them one after the other (i K // n; DDT's files: i // 50), which
    changes the Inception Score, whose splits then hold few classes.
    """
    i = torch.arange(n)
    return i * classes // n if in_order else i % classes


def random_labels(n: int, classes: int, seed: int) -> Tensor:
    """n uniformly random labels, int64; those of a smaller n are a prefix of those of a larger one."""
    u = philox_uniform(seed, (stream_id("labels"),), (n,))
    return (u.double() * classes).long().clamp(max=classes - 1)


def make_request(
    n: int, classes: int, labels: LabelMode = "random", *, seed: int = 0, chunk: int = 64, quantiser: str = "round"
) -> Request:
    """A request for n images of a model with that many classes (0: unconditional), with labels chosen by mode."""
    if classes == 0:
        labels = "none"
    made = {
        "random": lambda: random_labels(n, classes, seed),
        "balanced": lambda: balanced_labels(n, classes),
        "balanced_sorted": lambda: balanced_labels(n, classes, in_order=True),
        "none": lambda: torch.empty(0, dtype=torch.int64),
    }
    if labels not in made:
        raise ValueError(f"labels {labels!r} cannot be chosen here: use {', '.join(made)}, or build a Request yourself")
    chosen = tuple(made[labels]().tolist())
    return Request(n=n, labels=chosen, mode=labels, seed=seed, chunk=chunk, quantiser=quantiser)
