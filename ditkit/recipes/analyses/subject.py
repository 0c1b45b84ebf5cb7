"""What an analysis looks at: a loaded model, real images as it sees them, and the teachers it is held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from ditkit.config import Settings
from ditkit.data import DataSettings, ImageSource, open_source, to_float
from ditkit.diffusion import philox_normal
from ditkit.diffusion.noise import stream_id
from ditkit.evaluation import read_items
from ditkit.models import Condition
from ditkit.pretrained import TeacherSettings, load_teacher
from ditkit.protocols import Extractor
from ditkit.recipes.load import Loaded
from ditkit.recipes.text import Captioned

AT_ONCE = 32  # images that the codec encodes together


def _teachers(value: Any) -> Any:
    names = [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value
    return [TeacherSettings.parse(name) if isinstance(name, str) else name for name in names]


Teachers = Annotated[tuple[TeacherSettings, ...], BeforeValidator(_teachers)]


class Asked(Settings):
    """On which images an analysis looks, and beside which teachers."""

    n: int = Field(500, ge=2, description="held-out images that are looked at (REPA's papers: 10,000)")
    train: int = Field(2000, ge=0, description="other images, which probes learn from")
    seed: int = Field(0, ge=0, description="of the noise on the images")
    batch: int = Field(64, ge=1, description="images that go through the network together")
    data: DataSettings | None = Field(None, description="the images; None: the recipe's")
    teachers: Teachers = Field((), description="folders, names or hub ids, with commas; none: the recipe's")


@dataclass(frozen=True)
class Pictures:
    """Images uint8 (N, C, H, W), labels (N,) (-1: none), latents (N, c, h, w) float32, and what conditions them."""

    images: Tensor
    labels: Tensor
    latents: Tensor
    cond: Condition | Captioned

    def __len__(self) -> int:
        return len(self.images)


def chosen_blocks(asked: Sequence[int], depth: int, most: int | None = None) -> tuple[int, ...]:
    """The blocks asked for, counted from 1; none: all of `depth`, or `most` of them, evenly spread, with the last.

    ValueError for one that does not exist.
    """
    if wrong := [block for block in asked if not 1 <= block <= depth]:
        raise ValueError(f"blocks={','.join(map(str, wrong))}: blocks of this model count from 1 to {depth}")
    count = depth if most is None else min(most, depth)
    return tuple(asked) or tuple(round((i + 1) * depth / count) for i in range(count))


@dataclass
class Subject:
    """A model under analysis. Images and teachers are opened when they are first asked for.

    name: what it is called beside others. folder: its run folder, None for a model from elsewhere.
    """

    name: str
    loaded: Loaded
    asked: Asked
    folder: Path | None = None

    @cached_property
    def data(self) -> DataSettings:
        """Where the images come from, read at the model's native size and channels."""
        recipe = self.loaded.recipe
        settings = self.asked.data or recipe.data.single()
        factor = self.loaded.codec.factor
        height, width = getattr(self.loaded.settings, "size", recipe.model.size)
        channels = self.loaded.codec.channels if recipe.codec.kind == "pixels" else 3
        return settings.model_copy(
            update={"size": (height * factor, width * factor), "channels": channels, "buckets": None}
        )

    def open(self, split: str) -> ImageSource:
        """The "test" or "train" part of the images. DataError, one line."""
        words = self.loaded.recipe.text is not None
        return open_source(self.data.model_copy(update={"split": split}), captioned=words)

    @cached_property
    def test(self) -> Pictures:
        """At most asked.n held-out images."""
        return self.read("test", self.asked.n)

    @cached_property
    def train(self) -> Pictures:
        """At most asked.train other images."""
        return self.read("train", self.asked.train)

    def read(self, split: str, n: int) -> Pictures:
        """At most n images of a part, spread evenly over it, with their latents (mean of the posterior)."""
        items = read_items(self.open(split), n)
        images = torch.stack([item.image for item in items])
        labels = torch.tensor([item.label for item in items])
        cond: Condition | Captioned = Condition()
        if (text := self.loaded.text) is not None:
            cond = Captioned(text, [item.caption for item in items])
        elif self.loaded.recipe.model.num_classes:
            cond = Condition(label=labels.clamp(min=0))
        return Pictures(images, labels, self.latents(images), cond)

    @torch.no_grad()
    def latents(self, images: Tensor) -> Tensor:
        """Latents (N, c, h, w) of uint8 images (N, C, H, W) on the CPU."""
        codec, device = self.loaded.codec, self.loaded.device
        parts = (codec.encode(to_float(part.to(device))) for part in images.split(AT_ONCE))
        return torch.cat([codec.sample(moments, None).float().cpu() for moments in parts])

    @cached_property
    def teachers(self) -> dict[str, Extractor]:
        """The teachers by id. PretrainedMissing, one line."""
        loaded = [load_teacher(teacher, self.loaded.device) for teacher in self.asked.teachers]
        return {teacher.id: teacher for teacher in loaded}

    def noise(self, n: int) -> Tensor:
        """Unit noise (n, c, h, w) for the first n images, the same at every time and for every layer."""
        shape = (n, *self.test.latents.shape[1:])
        return philox_normal(self.asked.seed, (stream_id("analysis"),), shape)

    def noised(self, latents: Tensor, t: float, eps: Tensor | None = None) -> Tensor:
        """x_t = alpha(t) x + sigma(t) eps of latents (N, c, h, w) at one time t (0 = data, 1 = noise)."""
        path, time = self.loaded.path, torch.tensor(t, dtype=torch.float64)
        eps = self.noise(len(latents)) if eps is None else eps
        return (path.alpha(time) * latents.double() + path.sigma(time) * eps.double()).float()

    def null(self, cond: Condition) -> Condition:
        """The unconditional counterpart: what representations are looked at with (REPA issue 24)."""
        return self.loaded.model.null(cond)  # type: ignore[operator]
