"""What an analysis looks at: a loaded model, real images as it sees them, and the teachers it is held against."""

from __future__ import annotations

import zlib
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
from ditkit.pretrained import PretrainedMissing, TeacherSettings, load_teacher
from ditkit.protocols import Extractor
from ditkit.recipes.load import Loaded
from ditkit.recipes.memory import available
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
    named: bool = Field(False, description="the user named the teachers: none of them may be missing")


@dataclass(frozen=True)
class Pictures:
    """Images uint8 (N, C, H, W), labels (N,) (-1: none), latents (N, c, h, w) float32, and what conditions them.

    conditioned: that in words.
    """

    images: Tensor
    labels: Tensor
    latents: Tensor
    cond: Condition | Captioned
    conditioned: str = "their labels"

    @cached_property
    def keys(self) -> list[int]:
        """CRC-32 of each image: what names its noise."""
        return [zlib.crc32(image.cpu().contiguous().numpy().tobytes()) for image in self.images]

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

    name: what it is called beside others. folder: its run folder, None for a model from elsewhere. missing: why one of
    the recipe's teachers could not be had, once they were asked for.
    """

    name: str
    loaded: Loaded
    asked: Asked
    folder: Path | None = None
    missing: str = ""

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
        source = self.open(split)
        self.check_room(source, min(n, len(source)))
        items = read_items(source, n)
        images = torch.stack([item.image for item in items])
        labels = torch.tensor([item.label for item in items])
        cond, conditioned = self.condition(labels, source.classes, [item.caption for item in items])
        return Pictures(images, labels, self.latents(images), cond, conditioned)

    def condition(
        self, labels: Tensor, classes: Sequence[str], captions: Sequence[str]
    ) -> tuple[Condition | Captioned, str]:
        """(what conditions these images, in words): captions of a text model, labels where the model knows them.

        Labels of other data (more classes, other names) say nothing to the model: its null condition stands for them.
        """
        if (text := self.loaded.text) is not None:
            return Captioned(text, captions), "their captions"
        count, names = self.loaded.recipe.model.num_classes, self.loaded.classes
        if not count:
            return Condition(), "no condition"
        same = tuple(names) == tuple(classes) if names and classes else len(classes) in (0, count)
        if same and bool(((labels >= 0) & (labels < count)).all()):
            return Condition(label=labels), "their labels"
        return self.null(Condition(label=torch.zeros_like(labels))), "the null condition (labels it does not know)"

    def check_room(self, source: ImageSource, n: int) -> None:
        """ValueError where n images, their latents and two sets of noise in float64 do not fit into memory."""
        pixels = source.channels * source.size[0] * source.size[1]
        numbers = self.loaded.codec.channels * pixels // source.channels // self.loaded.codec.factor**2
        needed, there = n * (2 * pixels + 28 * numbers), available(torch.device("cpu"))
        if there is not None and needed > 0.8 * there:
            raise ValueError(
                f"{n:,} images of {source.size[0]} x {source.size[1]} need about {needed / 2**30:.0f} GiB, here are "
                f"{there / 2**30:.0f}: look at fewer with n= and train="
            )

    @torch.no_grad()
    def latents(self, images: Tensor) -> Tensor:
        """Latents (N, c, h, w) of uint8 images (N, C, H, W) on the CPU."""
        codec, device = self.loaded.codec, self.loaded.device
        parts = (codec.encode(to_float(part.to(device))) for part in images.split(AT_ONCE))
        return torch.cat([codec.sample(moments, None).float().cpu() for moments in parts])

    @cached_property
    def teachers(self) -> dict[str, Extractor]:
        """The teachers by name (of a folder, its name; else its id), without those of a recipe that cannot be had.

        PretrainedMissing, one line, for one that was named.
        """
        found: dict[str, Extractor] = {}
        for teacher in self.asked.teachers:
            try:
                loaded = load_teacher(teacher, self.loaded.device)
            except PretrainedMissing as error:
                if self.asked.named:
                    raise
                self.missing = str(error)
                continue
            name = Path(teacher.source).name if teacher.kind == "selftaught" else loaded.id
            found[loaded.id if name in found else name] = loaded
        return found

    @property
    def watched(self) -> str:
        """What the images are to the model: "held-out images", or "images it was trained on"."""
        mine = self.loaded.recipe.data
        own = self.loaded.source == "ditkit" and self.data.source == mine.source
        return "images it was trained on" if own and mine.split in ("all", "test") else "held-out images"

    def noise_of(self, pictures: Pictures) -> Tensor:
        """Unit noise (N, c, h, w): of each image its own, whatever the others, at every time and for every layer."""
        shape, stream = pictures.latents.shape[1:], stream_id("analysis")
        return torch.stack([philox_normal(self.asked.seed, (stream, key), shape) for key in pictures.keys])

    @cached_property
    def noise(self) -> Tensor:
        """`noise_of` the test images, drawn once for all times."""
        return self.noise_of(self.test)

    def noised(self, latents: Tensor, t: float, eps: Tensor) -> Tensor:
        """x_t = alpha(t) x + sigma(t) eps of latents and noise (N, c, h, w) at one time t (0 = data, 1 = noise)."""
        path, time = self.loaded.path, torch.tensor(t, dtype=torch.float64)
        return (path.alpha(time) * latents.double() + path.sigma(time) * eps.double()).float()

    def null(self, cond: Condition) -> Condition:
        """The unconditional counterpart: what representations are looked at with (REPA issue 24)."""
        return self.loaded.model.null(cond)  # type: ignore[operator]
