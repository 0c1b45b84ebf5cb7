"""`ditkit encode`: images become a cache of latents, features and embeddings, in shards that any process can write."""

from __future__ import annotations

import copy
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ditkit.data import DataError, ImageSource
from ditkit.data.cache import Cache
from ditkit.data.cache_format import (
    REJECTS,
    CodecFacts,
    Manifest,
    Plan,
    SourceFacts,
    Stored,
    TeacherFacts,
    TextFacts,
    plain,
    sound_manifest,
)
from ditkit.data.cache_write import begin, compose, ranges, read_reports, wrong_files
from ditkit.data.index import hash_of
from ditkit.data.loader import read_ahead
from ditkit.protocols import TextEncoder
from ditkit.ranks import ALONE, Ranks
from ditkit.recipes.build import Parts, prepare
from ditkit.recipes.encode_shard import Networks, Reader, ShardWork, Totals
from ditkit.recipes.place import check_writable
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.text import ToldText
from ditkit.training.precision import matmul_precision

Progress = Callable[[str, int, int], None]  # (stage, done, total)
LOOK = 5.0  # seconds between looks at what other processes have written


@dataclass
class Encoding:
    """A cache that is being written: what it is made of, and into which folder."""

    folder: Path
    plan: Plan
    parts: Parts
    networks: Networks
    notes: tuple[str, ...] = ()


def default_stored(recipe: Recipe) -> Stored:
    """How a recipe's cache is stored where nobody says: pixels exactly, latents in half precision."""
    dtype: Literal["uint8", "fp16"] = "uint8" if recipe.codec.kind == "pixels" else "fp16"
    return Stored(mirror=recipe.data.flip, dtype=dtype, tf32=recipe.training.tf32)


def open_encoding(
    recipe: Recipe, folder: Path, device: torch.device, stored: Stored, keep: Collection[str] = (),
    shards: range | None = None,
) -> Encoding:  # fmt: skip
    """Open images and networks as training would, and begin or continue the cache in `folder`.

    All images are encoded, whatever data.split says: a run takes its part. shards: those that will be asked for, to be
    refused before the cache begins. Raises what `prepare` raises, or DataError
    or ValueError, one line each, before anything is computed.
    """
    check_writable(folder)
    if recipe.data.pairs == "both":
        raise ValueError("encode: pairs of images have no cache; data.pairs=winners encodes the winners")
    if recipe.data.buckets is not None:
        raise ValueError("encode: a cache has images of one size: set data.buckets=none and --size")
    if stored.dtype == "uint8" and recipe.codec.kind != "pixels":
        raise ValueError("encode: dtype=uint8 is for pixels; latents need fp16, bf16 or fp32")
    parts = prepare(recipe.with_({"data.split": "all"}), device, keep)
    if isinstance(parts.source, Cache):
        raise ValueError(f"encode: {recipe.data.source} is a cache already; name the images")
    text = None if parts.text is None else ToldText(parts.text.encoder, limit_bytes=0)  # batches as they are cut
    networks = Networks(parts.codec, tuple(parts.teachers), text, device)
    plan = plan_of(parts, networks, stored)
    _, cut = fitting(shards, plan)
    plan = begin(folder, plan)
    networks.plan = plan
    notes = (*parts.source.notes, *getattr(parts.text, "notes", ()), *cut)
    return Encoding(folder, plan, parts, networks, notes)


def plan_of(parts: Parts, networks: Networks, stored: Stored) -> Plan:
    """What the cache of these parts will be; sizes are found by encoding one blank image."""
    recipe, source, codec = parts.recipe, parts.source, parts.codec
    blank = torch.zeros((1, source.channels, *source.size), dtype=torch.uint8)
    policy = recipe.align.grid if recipe.align is not None else "resize_image"
    networks.grid = recipe.model.grid if policy == "resize_image" else None
    moments, features = networks.look(blank)
    teachers = [
        TeacherFacts(id=teacher.id, settings=settings.model_dump(mode="json"), width=teacher.width, grid=found.grid)
        for teacher, settings, found in zip(parts.teachers, recipe.teachers, features, strict=True)
    ]
    return Plan(
        source=SourceFacts(
            place=recipe.data.source, index=recipe.data.index,
            kept=None if recipe.data.index is None else hash_of(recipe.data.index), fingerprint=source.fingerprint,
            content=bare_fingerprint(source), items=len(source), size=source.size, channels=source.channels,
            classes=source.classes, template=source.template, captioned=source.captioned,
        ),
        codec=CodecFacts(
            id=codec.id, settings=recipe.codec.model_dump(mode="json"), channels=codec.channels, factor=codec.factor,
            scale=plain(codec.scale), shift=plain(codec.shift), shape=tuple(moments.shape[1:]),
        ),
        teachers=tuple(teachers),
        text=text_facts(recipe, networks.text),
        stored=stored,
    )  # fmt: skip


def bare_fingerprint(source: ImageSource) -> str:
    """The images' fingerprint without choices about captions: that of a run which does not read them."""
    if source.template is None and not source.captioned:
        return source.fingerprint
    bare = copy.copy(source)
    bare.__dict__.pop("fingerprint", None)
    bare.template, bare.captioned = None, False
    return bare.fingerprint


def text_facts(recipe: Recipe, text: TextEncoder | None) -> TextFacts | None:
    """What the text encoder's conditions look like."""
    if text is None or recipe.text is None:
        return None
    empty = text([""])
    parts = tuple((part.name, part.tokens, part.channels, part.pooled) for part in empty.parts)
    return TextFacts(
        id=text.id, settings=recipe.text.model_dump(mode="json"), width=text.width, length=text.length,
        pooled_width=text.pooled_width, masked=empty.mask is not None, parts=parts,
    )  # fmt: skip


def encode(
    encoding: Encoding, shards: range | None = None, ranks: Ranks = ALONE, progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Manifest | None:  # fmt: skip
    """Write the shards that are missing or damaged, then the manifest; None while shards are missing.

    shards: only these, as one of several jobs on one folder; whichever finds all of them there composes the manifest.
    ranks: processes that share the work. The bytes are the same however the work is cut or interrupted.
    """
    folder, plan = encoding.folder, encoding.plan
    with ranks.agreed():
        found = unfinished(folder, plan, progress if ranks.first else None)
        shards, _ = fitting(shards, plan)
    todo = [k for k in ranks.tell(found) if shards is None or k in shards]
    if ranks.first and say is not None:
        say(f"{len(todo)} of {plan.shards} shards of {plan.stored.shard:,} images to encode")
    show = told(encoding, todo, ranks, progress)
    encode_shards(encoding, ranks.share(todo), show)
    ranks.wait(show)
    with ranks.agreed():
        return finished(encoding, shards) if ranks.first else None


def fitting(shards: range | None, plan: Plan) -> tuple[range | None, tuple[str, ...]]:
    """The shards asked for that there are, and a note where those end before. ValueError where there are none."""
    if shards is None:
        return None, ()
    asked, there = f"--shards {shards.start}:{shards.stop}", f"there are {plan.shards} shards, 0:{plan.shards}"
    found = range(shards.start, min(shards.stop, plan.shards))
    if shards.start < 0 or not len(found):
        raise ValueError(f"{asked}: {there}")
    return found, (f"{asked}: {there}; this job makes {found.start}:{found.stop}",) if found != shards else ()


def unfinished(folder: Path, plan: Plan, progress: Progress | None) -> list[int]:
    """The shards that are not there; of a finished cache, which is read whole, those that are damaged."""
    bad: set[int] = set()
    if (manifest := sound_manifest(folder)) is not None:
        names = {facts.file: shard for shard, facts in enumerate(manifest.contents)}
        look = None if progress is None else (lambda done, total: progress("checking MiB", done >> 20, total >> 20))
        for facts, _ in wrong_files(folder, manifest, look):
            if facts.file in names:
                bad.add(names[facts.file])
            elif facts.file == REJECTS:
                (folder / REJECTS).unlink(missing_ok=True)  # the shards know theirs
    return sorted((set(range(plan.shards)) - read_reports(folder, plan).keys()) | bad)


def finished(encoding: Encoding, shards: range | None) -> Manifest | None:
    """The manifest, composed where all shards are there; DataError or None (one job of several) where some are not."""
    folder, plan = encoding.folder, encoding.plan
    missing = sorted(set(range(plan.shards)) - read_reports(folder, plan).keys())
    if missing and shards is not None:
        return None
    if missing:
        raise DataError(f"{folder}: shards {ranges(missing)} of {plan.shards} are missing: encode again")
    with matmul_precision(plan.stored.tf32), one_thread_each(encoding.parts.device):  # as all other prompts
        empty = encoding.networks.embed([""]) if plan.text is not None else None
    return compose(folder, plan, encoding.parts.source.labels, empty)


def told(encoding: Encoding, todo: Sequence[int], ranks: Ranks, progress: Progress | None) -> Callable[..., None]:
    """Called with the images that this process has done: says how far all are, the others by the shards they wrote."""
    total = sum(len(encoding.plan.window(shard)) for shard in todo)
    others = [shard for shard in todo if shard not in set(ranks.share(todo))]
    mine, looked, seen = [0], [0.0], [0]

    own = total - sum(len(encoding.plan.window(shard)) for shard in others)

    def show(done: int = own) -> None:
        if progress is None or not ranks.first:
            return
        mine[0] = max(mine[0], done)
        if others and time.monotonic() - looked[0] > LOOK:
            there = read_reports(encoding.folder, encoding.plan).keys()
            looked[0], seen[0] = time.monotonic(), sum(len(encoding.plan.window(k)) for k in others if k in there)
        progress("images", min(total, mine[0] + seen[0]), total)

    return show


def encode_shards(encoding: Encoding, todo: Sequence[int], progress: Callable[[int], None]) -> None:
    """Write these shards, one after the other; what is read and what is computed runs ahead of what is written.

    On a CPU each batch is computed by one thread and several at once, so that no number of threads rounds otherwise.
    """
    plan, source = encoding.plan, encoding.parts.source
    reader = Reader(source, plan)
    jobs, workers = list(reader.jobs(todo)), encoding.parts.recipe.data.workers
    room = plan.stored.batch * math.prod((plan.source.channels, *plan.source.size, 2))  # of the arrays of a batch
    done = 0
    switches = matmul_precision(plan.stored.tf32)
    with switches, one_thread_each(encoding.parts.device) as threads, ThreadPoolExecutor(threads, "encode") as pool:
        pending: deque[tuple[Sequence[int], Future[Totals]]] = deque()
        work: ShardWork | None = None
        try:
            for job, read in zip(jobs, read_ahead(reader, jobs, workers, room), strict=True):
                if job.texts:
                    work = ShardWork(encoding.folder, plan, job.shard, read, encoding.networks)
                    continue
                assert work is not None
                pending.append((job.indices, pool.submit(encoding.networks.encode, read)))
                while pending and (len(pending) > threads or job.last):
                    indices, future = pending.popleft()
                    work.add(indices, future.result())
                    done += len(indices)
                    progress(done)
                if job.last:
                    work.finish()
                    work = None
        finally:
            for _, future in pending:
                future.cancel()
            if work is not None:
                work.drop()


@contextmanager
def one_thread_each(device: torch.device) -> Iterator[int]:
    """How many batches are computed at once: as many as there are CPU threads, each with one; one on accelerators."""
    threads = torch.get_num_threads()
    if device.type != "cpu":
        yield 1
        return
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
