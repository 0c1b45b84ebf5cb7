"""One shard of a cache: what is read of the images, what the networks make of them, what is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ditkit.align import compute_targets
from ditkit.align.targets import GridExtractor
from ditkit.config import fingerprint
from ditkit.data import DataError, ImageSource
from ditkit.data.cache_format import Plan
from ditkit.data.cache_numbers import quantised, rounded
from ditkit.data.cache_read import Words, say_words
from ditkit.data.cache_write import Draft, essence
from ditkit.data.transforms import to_float
from ditkit.protocols import BadImage, Captions, Codec, Features, TextEncoder
from ditkit.recipes.text import ToldText

AT_ONCE = 32  # images that the codec encodes together, as in training


class Read(NamedTuple):
    """A batch as it was read: uint8 (n, C, H, W) of the usable images, their indices and names, rejects, captions."""

    images: np.ndarray
    indices: list[int]
    names: list[str]
    rejects: list[tuple[int, str, str]]
    captioned: set[int]


class Texts(NamedTuple):
    """What is said of all images of a shard, labels, and the prompts among it, each once."""

    words: list[bytes]
    labels: np.ndarray
    prompts: list[str]


class Work(NamedTuple):
    """One thing to read: the texts of a shard, or a batch of its images; the last one closes the shard."""

    shard: int
    indices: range
    texts: bool = False
    last: bool = False


class Reader(Dataset):
    """Work -> Texts or Read; runs in worker processes. What it returns depends on the images alone."""

    def __init__(self, source: ImageSource, plan: Plan):
        self.source, self.plan = source, plan

    def jobs(self, shards: Sequence[int]) -> Iterator[Work]:
        """The work of some shards in order: texts first, then batches cut by index."""
        for shard in shards:
            window, batch = self.plan.window(shard), self.plan.stored.batch
            yield Work(shard, window, texts=True)
            for start in range(window.start, window.stop, batch):
                stop = min(start + batch, window.stop)
                yield Work(shard, range(start, stop), last=stop == window.stop)

    def __getitem__(self, work: Work) -> Texts | Read:
        return self._texts(work.indices) if work.texts else self._images(work.indices)

    def _texts(self, indices: range) -> Texts:
        source, words, prompts = self.source, [], dict[str, int]()
        for index in indices:
            try:
                captions = source.all_captions(index)
            except (ValueError, OSError):  # the image will be rejected for it
                captions = Captions()
            mine = [text for text in (*captions.original, *captions.synthetic) if text] if self.plan.text else []
            rows = {text: prompts.setdefault(text, len(prompts)) for text in mine}
            words.append(say_words(Words(source.key(index), source.name(index), captions, rows)))
        labels = np.asarray(source.labels[indices.start : indices.stop], dtype=np.int64)
        return Texts(words, labels, list(prompts))

    def _images(self, indices: range) -> Read:
        images, used, names, rejects, captioned = [], [], [], [], set()
        for index in indices:
            try:
                item = self.source.read(index)  # anew: nothing is kept in memory
            except BadImage as bad:
                rejects.append((index, bad.path, bad.reason))
                continue
            images.append(item.image.numpy())
            used.append(index)
            names.append(self.source.name(index))
            if any(item.captions) or item.caption:
                captioned.add(index)
        empty = np.zeros((0, self.plan.source.channels, *self.plan.source.size), dtype=np.uint8)
        return Read(np.stack(images) if images else empty, used, names, rejects, captioned)


class Totals(NamedTuple):
    """A batch as it will be written: tensors of each copy, and its part of counts and statistics."""

    copies: dict[str, dict[str, Tensor]]
    indices: list[int]
    rejects: list[tuple[int, str, str]]
    captioned: int
    sums: np.ndarray
    squares: np.ndarray
    numbers: int


@dataclass
class Networks:
    """The frozen networks, and how what they say is stored. grid: that teachers are asked for; None: their own."""

    codec: Codec
    teachers: tuple[GridExtractor, ...]
    text: ToldText | TextEncoder | None
    device: torch.device
    grid: tuple[int, int] | None = None
    plan: Plan | None = None

    @torch.no_grad()
    def look(self, images: Tensor) -> tuple[Tensor, list[Features]]:
        """(moments, features of each teacher) of uint8 images, on the device."""
        images = images.to(self.device)
        half = self.plan is not None and self.plan.stored.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            moments = torch.cat([self.codec.encode(to_float(part)) for part in images.split(AT_ONCE)])
            if self.grid is None:
                features = compute_targets(self.teachers, images, (1, 1), "resize_features")
            else:
                features = compute_targets(self.teachers, images, self.grid)
        return moments, features

    @torch.no_grad()
    def encode(self, read: Read) -> Totals:
        """What is written of a batch; images that give no finite numbers are rejected."""
        assert self.plan is not None
        images, kept, rejects = torch.from_numpy(read.images), list(read.indices), list(read.rejects)
        copies: dict[str, dict[str, Tensor]] = {}
        good = torch.ones(len(images), dtype=torch.bool)
        for prefix in self.plan.copies if len(images) else ():
            seen = images.flip(-1) if prefix else images
            moments, features = self.look(seen)
            numbers = [moments, *(part for f in features for part in (f.tokens, f.pooled))]
            for one in numbers:
                good &= one.flatten(1).isfinite().all(1).cpu()
            copies[prefix] = self._stored(seen, moments, features)
        if not good.all():
            reason = "codec or teacher make no finite numbers of it"
            named = zip(kept, read.names, good.tolist(), strict=True)
            rejects += [(i, name, reason) for i, name, ok in named if not ok]
            kept = [i for i, ok in zip(kept, good.tolist(), strict=True) if ok]
            copies = {k: {name: tensor[good] for name, tensor in found.items()} for k, found in copies.items()}
        sums, squares, numbers_seen = self._sums(copies.get("", {}).get("moments"))
        captioned = len(read.captioned.intersection(kept))
        return Totals(copies, kept, sorted(rejects), captioned, sums, squares, numbers_seen)

    def _stored(self, images: Tensor, moments: Tensor, features: Sequence[Features]) -> dict[str, Tensor]:
        """One copy's tensors in the cache's dtypes, on the CPU. DataError where they do not fit."""
        assert self.plan is not None
        stored = self.plan.stored
        try:
            exact = stored.dtype == "uint8"
            found = {"moments": images if exact else rounded(moments.float(), stored.dtype)}
            for i, (tokens, pooled, _) in enumerate(features):
                name = f"features.{i}"
                if stored.features == "int8":
                    found[name], found[f"{name}.scale"] = quantised(tokens)
                    found[f"{name}.pooled"] = pooled.float()
                else:
                    found[name] = rounded(tokens.float(), stored.features)
                    found[f"{name}.pooled"] = rounded(pooled.float(), stored.features)
        except OverflowError as error:
            raise DataError(f"encode: {error}; set dtype=bf16 or features=bf16 (or fp32)") from None
        return {name: tensor.cpu() for name, tensor in found.items()}

    def _sums(self, moments: Tensor | None) -> tuple[np.ndarray, np.ndarray, int]:
        """Sums and squares a channel of the normalised latents, of their draws in the mean, and how many a channel.

        In float64 and by one thread, of what is stored: E[z] of the mean and E[z^2] of mean and spread.
        """
        channels = self.codec.channels
        if moments is None or not len(moments):
            return np.zeros(channels), np.zeros(channels), 0
        wide = (to_float(moments) if moments.dtype == torch.uint8 else moments).double()
        mean = self.codec.sample(wide, None).double().numpy()
        squares = np.square(mean).sum((0, 2, 3))
        if wide.shape[1] != channels:
            drawn = self.codec.sample(wide, torch.ones(mean.shape, dtype=torch.float64)).double().numpy()
            squares = squares + np.square(drawn - mean).sum((0, 2, 3))
        return mean.sum((0, 2, 3)), squares, mean.size // channels

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The tensors of `text_tensors` for some prompts. DataError where they do not fit into the dtype."""
        assert self.text is not None and self.plan is not None
        cond = self.text(prompts).to("cpu")
        assert cond.text is not None
        try:
            found = {"text": rounded(cond.text.float(), self.plan.stored.texts)}
        except OverflowError as error:
            raise DataError(f"encode: text: {error}; set texts=bf16 (or fp32)") from None
        if cond.pooled is not None:
            found["text.pooled"] = cond.pooled.float()
        if cond.mask is not None:
            found["text.mask"] = cond.mask.to(torch.uint8)
        return found


class ShardWork:
    """A shard that grows batch by batch, in the order of its images. The embeddings are written first."""

    def __init__(self, folder: Path, plan: Plan, shard: int, texts: Texts, networks: Networks):
        self.plan, self.networks, self.shard = plan, networks, shard
        self.draft = Draft(folder, plan, shard, texts.words, len(texts.prompts))
        self.draft.labels[:] = texts.labels
        self.prompts, self.totals = len(texts.prompts), [0, 0, 0]  # usable, captioned, numbers
        self.sums, self.squares = np.zeros(plan.codec.channels), np.zeros(plan.codec.channels)
        self.rejects: list[tuple[int, str, str]] = []
        try:
            for first in range(0, len(texts.prompts), plan.stored.batch):
                part = texts.prompts[first : first + plan.stored.batch]
                self.draft.put_texts(first, networks.embed(part))
        except BaseException:
            self.draft.drop()
            raise

    def add(self, indices: Sequence[int], found: Totals) -> None:
        """Write a batch."""
        start = self.plan.window(self.shard).start
        rows = [index - start for index in found.indices]
        for prefix, tensors in found.copies.items():
            self.draft.put(rows, tensors, prefix)
        self.rejects += found.rejects
        self.totals = [a + b for a, b in zip(self.totals, (len(rows), found.captioned, found.numbers), strict=True)]
        self.sums, self.squares = self.sums + found.sums, self.squares + found.squares

    def finish(self) -> None:
        """Give the shard its name."""
        usable, captioned, numbers = self.totals
        facts = {
            "usable": usable, "captioned": captioned, "prompts": self.prompts, "numbers": numbers,
            "sums": tuple(self.sums.tolist()), "squares": tuple(self.squares.tolist()),
        }  # fmt: skip
        self.draft.finish(facts, self.rejects, fingerprint(essence(self.plan)))

    def drop(self) -> None:
        """Leave nothing of it behind."""
        self.draft.drop()
