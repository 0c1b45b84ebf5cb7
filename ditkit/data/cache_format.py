"""What a cache of latents is on disk: a manifest, and shards of a fixed number of source images each.

CACHE/manifest.json             what it holds and how it was made; a folder without one is no cache (yet)
CACHE/shard-00000.safetensors   moments, features, labels, captions and their embeddings of images [0, shard)
CACHE/empty.safetensors         the empty prompt, where there is text
CACHE/labels.safetensors        the labels of all images
CACHE/rejects.jsonl             images that could not be encoded: index, path, reason
CACHE/plan.json                 what all shards are made by, from the first call on
CACHE/shard-00000.json          what a finished shard adds to the manifest, which is made again of these

A shard has a row for every image of its part of the source, zeros for those that could not be used, so that image i
stands in shard i // size at row i % size. Checksums (CRC-32) stand beside the rows: what is read is checked, and
nothing else has to be.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch
from pydantic import Field, ValidationError, model_validator

from ditkit.config import Settings
from ditkit.data.source import DataError

KIND: Final = "ditkit-cache"
PLAN_KIND: Final = "ditkit-cache-plan"
VERSION = 1
MANIFEST, PLAN, REJECTS, LABELS, EMPTY = (
    "manifest.json", "plan.json", "rejects.jsonl", "labels.safetensors", "empty.safetensors"
)  # fmt: skip
MIRRORED = "mirrored."  # before the names of the mirrored copy's tensors
DTYPES = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "I8": torch.int8,
    "U8": torch.uint8,
}  # fmt: skip
NAMES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "int8": "I8", "uint8": "U8"}
Number = Literal["fp32", "fp16", "bf16"]


class Stored(Settings):
    """How things are stored."""

    shard: int = Field(2048, ge=1, description="source images a shard; a kill costs one at most")
    batch: int = Field(64, ge=1, description="images that are encoded together; cut by index, so that it decides bytes")
    mirror: bool = Field(False, description="the mirrored copy of each image too, which data.flip=true asks for")
    dtype: Literal["fp32", "fp16", "bf16", "uint8"] = Field("fp16", description="of moments; uint8: pixels, exactly")
    features: Literal["fp32", "fp16", "bf16", "int8"] = Field("fp16", description="int8: one scale a token")
    texts: Number = Field("fp16", description="of text embeddings; the pooled ones are always fp32")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="in which codec and teachers compute")
    tf32: bool = Field(False, description="TensorFloat-32 in their float32 products (GPU only)")


class SourceFacts(Settings):
    """The images. content: the fingerprint without choices about captions; kept: a hash of what the index keeps."""

    place: str
    index: str | None = None
    kept: str | None = None
    fingerprint: str
    content: str
    items: int = Field(ge=1)
    size: tuple[int, int]
    channels: int
    crop: str = "centre, as ADM (halve with BOX, then BICUBIC)"
    classes: tuple[str, ...] = ()
    template: str | None = None
    captioned: bool = False


class CodecFacts(Settings):
    """Whose moments these are. shape: (C, h, w) of an image's moments; 2 x channels where they are mean and std."""

    id: str
    settings: dict[str, Any]
    channels: int
    factor: int
    scale: float | tuple[float, ...]
    shift: float | tuple[float, ...]
    shape: tuple[int, int, int]


class TeacherFacts(Settings):
    """Whose features these are: rows x columns tokens of `width` numbers."""

    id: str
    settings: dict[str, Any]
    width: int
    grid: tuple[int, int]


class TextFacts(Settings):
    """Whose embeddings these are. masked: whether it says which tokens count; parts: as protocols.Part."""

    id: str
    settings: dict[str, Any]
    width: int
    length: int
    pooled_width: int
    masked: bool
    parts: tuple[tuple[str, tuple[int, int], tuple[int, int], tuple[int, int]], ...] = ()


class Plan(Settings):
    """Everything that the shards' bytes depend on; two jobs may share a folder if theirs are equal."""

    kind: Literal["ditkit-cache-plan"] = PLAN_KIND
    version: int = VERSION
    source: SourceFacts
    codec: CodecFacts
    teachers: tuple[TeacherFacts, ...] = ()
    text: TextFacts | None = None
    stored: Stored

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-self.source.items // self.stored.shard)

    def window(self, shard: int) -> range:
        """The source images of a shard."""
        start = shard * self.stored.shard
        return range(start, min(start + self.stored.shard, self.source.items))

    @property
    def copies(self) -> tuple[str, ...]:
        """What the names of an image's tensors begin with, for each of its copies."""
        return ("", MIRRORED) if self.stored.mirror else ("",)

    def column(self, prefix: str, group: int) -> int:
        """Where in its row of the checksums that of a copy's group stands; the last one is of the words."""
        return self.copies.index(prefix) * (1 + len(self.teachers)) + group

    @property
    def columns(self) -> int:
        """Checksums a row."""
        return len(self.copies) * (1 + len(self.teachers)) + 1


class FileFacts(Settings):
    """A file and its checksum."""

    file: str
    bytes: int
    crc32: str


class ShardFacts(Settings):
    """A shard, its part of the counts, and of the statistics: sums and squares of normalised latents, one a channel."""

    file: str
    bytes: int
    crc32: str
    items: int
    usable: int
    captioned: int = 0
    prompts: int = 0
    numbers: int = 0
    sums: tuple[float, ...] = ()
    squares: tuple[float, ...] = ()


class Statistics(Settings):
    """Of all normalised latents (posterior draws included), a number a channel, and over all channels."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    overall_mean: float
    overall_std: float


class Counts(Settings):
    """items = usable + rejects."""

    items: int
    usable: int
    rejects: int
    captioned: int


class Manifest(Settings):
    """A finished cache: its plan, and what became of it."""

    kind: Literal["ditkit-cache"] = KIND
    version: int = VERSION
    source: SourceFacts
    codec: CodecFacts
    teachers: tuple[TeacherFacts, ...] = ()
    text: TextFacts | None = None
    stored: Stored
    counts: Counts
    statistics: Statistics
    files: tuple[FileFacts, ...]
    contents: tuple[ShardFacts, ...]

    @model_validator(mode="after")
    def _whole(self) -> Manifest:
        """Every file is told of."""
        needed = {LABELS, REJECTS} | ({EMPTY} if self.text is not None else set())
        if missing := needed - {facts.file for facts in self.files}:
            raise ValueError(f"it does not tell of {min(missing)}")
        if len(self.contents) != self.plan.shards:
            raise ValueError(f"it tells of {len(self.contents)} shards, not of {self.plan.shards}")
        return self

    @property
    def plan(self) -> Plan:
        """What it was made by."""
        return Plan(
            source=self.source, codec=self.codec, teachers=self.teachers, text=self.text, stored=self.stored
        )  # fmt: skip


def plain(value: Any) -> float | tuple[float, ...]:
    """A scale or shift as JSON knows numbers."""
    return float(value) if isinstance(value, (int, float)) else tuple(map(float, value))


def shard_name(shard: int) -> str:
    """shard-00007.safetensors."""
    return f"shard-{shard:05d}.safetensors"


def kind_of(folder: Path, name: str = MANIFEST) -> str | None:
    """What the manifest (or plan) in a folder says it is; None without one, or where it is something else's."""
    try:
        tree = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return tree.get("kind") if isinstance(tree, dict) else None


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a cache; DataError, one line, where it is damaged or of another version."""
    return _read(Manifest, folder / MANIFEST)


def sound_manifest(folder: Path) -> Manifest | None:
    """The manifest of a cache; None where it is missing or damaged. DataError for one of another version."""
    if kind_of(folder) != KIND:
        return None
    try:
        tree = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return read_manifest(folder) if tree.get("version") != VERSION else Manifest.model_validate(tree)
    except (OSError, ValidationError):
        return None


def read_plan(folder: Path) -> Plan | None:
    """What the unfinished or finished cache in a folder is made by; None where there is neither."""
    if (manifest := sound_manifest(folder)) is not None:
        return manifest.plan
    return _read(Plan, folder / PLAN) if (folder / PLAN).exists() else None


def _read(cls: Any, file: Path) -> Any:
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        if (found := tree.get("version")) != VERSION:
            raise DataError(f"{file}: a cache of version {found}, this ditkit reads {VERSION}: encode it again")
        return cls.model_validate(tree)
    except (OSError, ValidationError, AttributeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        reason = _first_of(error) if isinstance(error, ValidationError) else str(error).splitlines()[0]
        raise DataError(
            f"{file}: not readable as a cache's: {reason}; `ditkit encode` with the words that made it mends it"
        ) from None


def _first_of(error: ValidationError) -> str:
    """The first problem in a few words."""
    found = error.errors()[0]
    where, what = ".".join(map(str, found["loc"])), found["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if where else what


# ------------------------------------------------------------------------------------------------ safetensors


class Slot(NamedTuple):
    """Where a tensor stands in a file: its first axis are rows of `row` bytes, from `offset` on."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def row(self) -> int:
        return prod(self.shape[1:]) * DTYPES[self.dtype].itemsize

    @property
    def bytes(self) -> int:
        return prod(self.shape) * DTYPES[self.dtype].itemsize


def lay_out(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], facts: Mapping[str, str]
) -> tuple[bytes, dict[str, Slot]]:
    """(head of a safetensors file, where each tensor of {name: (dtype, shape)} stands); wide types first."""
    order = sorted(tensors, key=lambda name: -DTYPES[tensors[name][0]].itemsize)
    header: dict[str, Any] = {"__metadata__": dict(facts)}
    end = 0
    for name in order:
        dtype, shape = tensors[name]
        start, end = end, end + prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    slots = {
        name: Slot(tensors[name][0], tuple(tensors[name][1]), len(head) + header[name]["data_offsets"][0])
        for name in order
    }
    return head, slots


def read_slots(file: int, size: int) -> dict[str, Slot]:
    """The tensors of an open safetensors file of `size` bytes. ValueError where its head does not describe it."""
    length = int.from_bytes(os.pread(file, 8, 0), "little")
    if not 0 < length <= size - 8:
        raise ValueError("its head is damaged")
    try:
        header = json.loads(os.pread(file, length, 8))
        header.pop("__metadata__", None)
        slots = {
            name: Slot(told["dtype"], tuple(told["shape"]), 8 + length + told["data_offsets"][0])
            for name, told in header.items()
        }
        if 8 + length + sum(slot.bytes for slot in slots.values()) != size:
            raise ValueError("its head describes another file")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"its head is damaged ({error})") from None
    return slots


Tensors = dict[str, tuple[str, tuple[int, ...]]]  # name -> (dtype, shape)


def image_groups(plan: Plan, rows: int) -> list[Tensors]:
    """What is stored of one copy of `rows` images: the moments, then each teacher's features.

    A row of a group is read as one and has one checksum, over its tensors in this order.
    """
    stored = plan.stored
    found: list[Tensors] = [{"moments": (NAMES[stored.dtype], (rows, *plan.codec.shape))}]
    for i, teacher in enumerate(plan.teachers):
        tokens, name = teacher.grid[0] * teacher.grid[1], f"features.{i}"
        group: Tensors = {name: (NAMES[stored.features], (rows, tokens, teacher.width))}
        if stored.features == "int8":
            group[f"{name}.scale"] = ("F32", (rows, tokens))
        pooled = "F32" if stored.features == "int8" else NAMES[stored.features]
        group[f"{name}.pooled"] = (pooled, (rows, teacher.width))
        found.append(group)
    return found


def text_tensors(plan: Plan, rows: int) -> Tensors:
    """What is stored of the embeddings of `rows` prompts, in the order of their checksum; none without text."""
    if (text := plan.text) is None:
        return {}
    found: Tensors = {"text": (NAMES[plan.stored.texts], (rows, text.length, text.width))}
    if text.pooled_width:
        found["text.pooled"] = ("F32", (rows, text.pooled_width))
    if text.masked:
        found["text.mask"] = ("U8", (rows, text.length))
    return found
