"""Writing a cache: shards as drafts that get their name when they are whole, then the manifest over all of them.

shard-00007.json beside a shard says what it adds to the manifest, and plan.json what all are made by; they stay, so
that a manifest that is lost is composed again. Any number of processes and jobs may write shards of one folder: what
they write is the same, byte for byte.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ditkit.config import Settings, diff, fingerprint
from ditkit.data.cache_drafts import clear_drafts, draft_path, place, writing
from ditkit.data.cache_format import (
    EMPTY,
    LABELS,
    MANIFEST,
    PLAN,
    REJECTS,
    Counts,
    FileFacts,
    Manifest,
    Plan,
    ShardFacts,
    Statistics,
    Tensors,
    image_groups,
    lay_out,
    read_plan,
    shard_name,
    sound_manifest,
    text_tensors,
)
from ditkit.data.cache_numbers import row_bytes
from ditkit.data.source import DataError

CHUNK = 2**22  # bytes read at a time for a checksum


class ShardReport(Settings):
    """What a shard adds to the manifest. plan: fingerprint of what it was made by; rejects: (index, path, reason)."""

    plan: str
    facts: ShardFacts
    rejects: tuple[tuple[int, str, str], ...] = ()


def essence(plan: Plan) -> Plan:
    """A plan without what may change from call to call: where images and networks lie."""
    return plan.with_(
        {
            "source.place": "",
            "source.index": None,  # what it keeps is in `kept`
            "codec": {**plan.codec.model_dump(), "settings": {}},
            "teachers": [{**teacher.model_dump(), "settings": {}} for teacher in plan.teachers],
            "text": None if plan.text is None else {**plan.text.model_dump(), "settings": {}},
        }
    )


def say_plan(plan: Plan) -> bytes:
    """The bytes of plan.json."""
    return (plan.model_dump_json(indent=1) + "\n").encode()


def begin(folder: Path, plan: Plan) -> Plan:
    """The plan of the cache in `folder`, which begins now if there is none. DataError where it is made by another.

    Any number of jobs may begin at once. What killed jobs left half written is removed.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    found = read_plan(folder)
    if found is None:
        odd = [p.name for p in folder.iterdir() if not p.name.startswith(".") and p.name != PLAN]
        if odd and not read_reports(folder, plan):  # with reports of this very plan it is ours, its plan is lost
            raise DataError(f"{folder}: holds something that is no cache ({odd[0]}); name another folder with --out")
        place(folder / PLAN, say_plan(plan), first=True)
        found = read_plan(folder) or plan
    if wrong := diff(essence(found), essence(plan)):
        told = "; ".join(f"{d.key} was {d.a!r}, is {d.b!r}" for d in wrong[:4])
        raise DataError(f"{folder}: holds a cache of other things: {told}; name another folder with --out")
    clear_drafts(folder)
    return found


class Draft:
    """A shard that is being written: its whole space is taken at once, rows arrive in any order.

    words: a JSON line an image, of every image of the shard's window; prompts: texts whose embeddings will come.
    """

    def __init__(self, folder: Path, plan: Plan, shard: int, words: Sequence[bytes], prompts: int):
        self.folder, self.plan, self.shard = folder, plan, shard
        rows = len(plan.window(shard))
        self.groups, self.texts = image_groups(plan, rows), text_tensors(plan, prompts)
        self.labels = np.full(rows, -1, dtype="<i8")
        self.crc = np.zeros((rows, plan.columns), dtype="<i8")
        self.crc[:, -1] = [zlib.crc32(line) for line in words]
        self.text_crc = np.zeros(prompts, dtype="<i8")
        self.words = b"".join(words)
        offsets = np.cumsum([0, *map(len, words)]).astype("<i8")
        tensors: Tensors = {
            **{prefix + name: told for prefix in plan.copies for group in self.groups for name, told in group.items()},
            **self.texts,
            "labels": ("I64", (rows,)),
            "crc": ("I64", self.crc.shape),
            "words": ("U8", (len(self.words),)),
            "words.offsets": ("I64", offsets.shape),
            **({"text.crc": ("I64", (prompts,))} if self.texts else {}),
        }
        head, self.slots = lay_out(tensors, {"kind": "ditkit-cache-shard", "shard": str(shard)})
        self.size = len(head) + sum(slot.bytes for slot in self.slots.values())
        self.path = draft_path(folder / shard_name(shard))
        with writing(folder):
            self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                _take(self.file, self.size)
                self._write(head, 0)
                self._write(self.words, self.slots["words"].offset)
                self._write(offsets.tobytes(), self.slots["words.offsets"].offset)
            except BaseException:
                self.drop()
                raise

    def put(self, rows: Sequence[int], tensors: dict[str, Tensor], prefix: str = "") -> None:
        """One copy of the images at these rows: every tensor of `image_groups`, a row each."""
        with writing(self.folder):
            for i, group in enumerate(self.groups):
                crc = self._put(rows, {name: tensors[name] for name in group}, prefix)
                self.crc[list(rows), self.plan.column(prefix, i)] = crc

    def put_texts(self, first: int, tensors: dict[str, Tensor]) -> None:
        """The embeddings of the prompts first, first + 1, ...: every tensor of `text_tensors`."""
        rows = range(first, first + len(tensors["text"]))
        with writing(self.folder):
            self.text_crc[rows.start : rows.stop] = self._put(rows, {name: tensors[name] for name in self.texts}, "")

    def _put(self, rows: Sequence[int], tensors: dict[str, Tensor], prefix: str) -> list[int]:
        crc = [0] * len(rows)
        for name, tensor in tensors.items():
            slot, data = self.slots[prefix + name], row_bytes(tensor)
            for i, row in enumerate(rows):
                self._write(data[i].data, slot.offset + row * slot.row)
                crc[i] = zlib.crc32(data[i].data, crc[i])
        return crc

    def _write(self, data: bytes | memoryview, offset: int) -> None:
        left = memoryview(data)
        while left:
            done = os.pwrite(self.file, left, offset)
            left, offset = left[done:], offset + done

    def finish(self, facts: dict, rejects: Sequence[tuple[int, str, str]], plan: str) -> None:
        """Give the shard its name, then its report. facts: those of ShardFacts that are not about the file.

        A draft that is gone is no error where another job has finished the same shard.
        """
        try:
            self._finish(facts, rejects, plan)
        except DataError as error:
            done = isinstance(error.__cause__, FileNotFoundError) and self.shard in read_reports(self.folder, self.plan)
            if not done:
                raise
            self.drop()

    def _finish(self, facts: dict, rejects: Sequence[tuple[int, str, str]], plan: str) -> None:
        with writing(self.folder):
            for name, table in (("labels", self.labels), ("crc", self.crc), ("text.crc", self.text_crc)):
                if name in self.slots:
                    self._write(table.tobytes(), self.slots[name].offset)
            os.fsync(self.file)
            name = shard_name(self.shard)
            told = ShardFacts(file=name, bytes=self.size, crc32=checksum(self.path), items=len(self.labels), **facts)
            os.close(self.file)
            self.file = -1
            os.replace(self.path, self.folder / name)
        report = ShardReport(plan=plan, facts=told, rejects=tuple(rejects))
        place(report_path(self.folder, self.shard), say_report(report))

    def drop(self) -> None:
        """Leave nothing of an unfinished shard behind."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1
        self.path.unlink(missing_ok=True)


def _take(file: int, size: int) -> None:
    """Take a file's whole space now, so that a full disk is told before anything is computed."""
    try:
        os.posix_fallocate(file, 0, size)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NO_FALLOCATE:
            raise
        os.ftruncate(file, size)


NO_FALLOCATE = (22, 38, 45, 95)  # EINVAL, ENOSYS, EOPNOTSUPP: file systems that cannot


def checksum(path: Path) -> str:
    """CRC-32 of a file as 8 hex digits."""
    crc = 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
    return f"{crc:08x}"


# ------------------------------------------------------------------------------------------------ what is there


def report_path(folder: Path, shard: int) -> Path:
    """Where a finished shard's report stands."""
    return folder / shard_name(shard).replace(".safetensors", ".json")


def say_report(report: ShardReport) -> bytes:
    """The bytes of a report's file."""
    return (report.model_dump_json() + "\n").encode()


def read_reports(folder: Path, plan: Plan) -> dict[int, ShardReport]:
    """The reports of the finished shards, from the manifest of an earlier call and from the files beside shards.

    A shard counts where its file has the size that its report says, and was made by this plan.
    """
    found: dict[int, ShardReport] = {}
    mark = fingerprint(essence(plan))
    if (manifest := sound_manifest(folder)) is not None:
        try:
            rejects = read_rejected(folder)
        except DataError:  # shards without rejects need no list
            rejects = {}
        for shard, facts in enumerate(manifest.contents):
            mine = tuple((i, *rejects[i]) for i in plan.window(shard) if i in rejects)
            if facts.usable + len(mine) == facts.items:
                found[shard] = ShardReport(plan=mark, facts=facts, rejects=mine)
    for path in folder.glob("shard-*.json"):
        try:
            shard = int(path.stem.removeprefix("shard-"))
            found[shard] = ShardReport.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # torn: the shard is made again
            continue
    return {k: r for k, r in found.items() if r.plan == mark and _size(folder / shard_name(k)) == r.facts.bytes}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def read_rejected(folder: Path) -> dict[int, tuple[str, str]]:
    """index -> (path, reason) of the images that a cache leaves out."""
    try:
        lines = (folder / REJECTS).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        return {row["index"]: (row["path"], row["reason"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / REJECTS}: not readable ({error}); `ditkit encode` makes it again") from None


def wrong_files(
    folder: Path, manifest: Manifest, progress: Callable[[int, int], None] | None = None
) -> Iterator[tuple[FileFacts | ShardFacts, str]]:
    """The files of a cache that are not what the manifest says, and why; every byte is read."""
    files: list[FileFacts | ShardFacts] = [*manifest.contents, *manifest.files]
    total, done = sum(file.bytes for file in files), 0
    for facts in files:
        path = folder / facts.file
        size = _size(path)
        if size != facts.bytes:
            yield facts, "is missing" if size < 0 else f"has {size:,} bytes, not {facts.bytes:,}"
        elif checksum(path) != facts.crc32:
            yield facts, "has another checksum than it was written with"
        done += facts.bytes
        if progress is not None:
            progress(done, total)


# ------------------------------------------------------------------------------------------------ the manifest


def compose(folder: Path, plan: Plan, labels: np.ndarray, empty: dict[str, Tensor] | None) -> Manifest:
    """Write manifest.json over finished shards. DataError names missing shards.

    labels: of all images of the source. empty: the empty prompt's embedding, one row of each text tensor. The plan and
    the reports that are lost are written again.
    """
    reports = read_reports(folder, plan)
    if missing := sorted(set(range(plan.shards)) - reports.keys()):
        raise DataError(f"{folder}: shards are missing: {ranges(missing)} of {plan.shards}")
    ordered = [reports[shard] for shard in range(plan.shards)]
    rejects = [line for report in ordered for line in report.rejects]
    contents = tuple(report.facts for report in ordered)
    counts = Counts(
        items=plan.source.items, usable=sum(facts.usable for facts in contents), rejects=len(rejects),
        captioned=sum(facts.captioned for facts in contents),
    )  # fmt: skip
    if counts.usable + counts.rejects != counts.items or sum(facts.items for facts in contents) != counts.items:
        raise DataError(
            f"{folder}: {counts.items} images in, {counts.usable} out and {counts.rejects} rejects: a defect"
        )
    if not counts.usable:
        _, path, reason = rejects[0]
        raise DataError(f"none of the {counts.items} images can be used; {path}: {reason}")
    lines = [json.dumps({"index": i, "path": path, "reason": reason}) + "\n" for i, path, reason in rejects]
    packed = _pack({"labels": torch.from_numpy(labels.astype("<i8"))}, {"labels": ("I64", labels.shape)})
    files = [place(folder / REJECTS, "".join(lines).encode()), place(folder / LABELS, packed)]
    if empty is not None:
        files.append(place(folder / EMPTY, _pack(empty, text_tensors(plan, 1))))
    made = Manifest(
        source=plan.source, codec=plan.codec, teachers=plan.teachers, text=plan.text, stored=plan.stored,
        counts=counts, statistics=statistics(contents), files=tuple(files), contents=contents,
    )  # fmt: skip
    place(folder / MANIFEST, (made.model_dump_json(indent=1) + "\n").encode())
    own = {report_path(folder, shard): say_report(report) for shard, report in reports.items()}
    for file, data in {folder / PLAN: say_plan(plan), **own}.items():
        if not (file.is_file() and file.read_bytes() == data):
            place(file, data)
    clear_drafts(folder)
    return made


def _pack(rows: dict[str, Tensor], told: Tensors) -> bytes:
    """A small safetensors file."""
    head, slots = lay_out(told, {"kind": "ditkit-cache"})
    return head + b"".join(row_bytes(rows[name]).tobytes() for name in slots)


def statistics(contents: Sequence[ShardFacts]) -> Statistics:
    """Mean and standard deviation of all normalised latents from the shards' sums, added in the order of shards."""
    numbers = sum(facts.numbers for facts in contents)
    channels = range(max(len(facts.sums) for facts in contents))
    filled = [facts for facts in contents if facts.numbers]
    sums = [math.fsum(facts.sums[c] for facts in filled) for c in channels]
    squares = [math.fsum(facts.squares[c] for facts in filled) for c in channels]
    mean = [s / numbers for s in sums]
    std = [math.sqrt(max(0.0, q / numbers - m * m)) for q, m in zip(squares, mean, strict=True)]
    overall = math.fsum(mean) / len(mean)
    spread = math.sqrt(max(0.0, math.fsum(squares) / numbers / len(mean) - overall * overall))
    return Statistics(mean=tuple(mean), std=tuple(std), overall_mean=overall, overall_std=spread)


def ranges(numbers: Sequence[int]) -> str:
    """ "0-3, 7": rising numbers for people; at most six ranges."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    told = [str(a) if a == b else f"{a}-{b}" for a, b in runs[:6]]
    return ", ".join(told) + (f" and {sum(b - a + 1 for a, b in runs[6:])} more" if runs[6:] else "")
