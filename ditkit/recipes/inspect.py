"""Everything that can be known before a run: `ditkit doctor`. Nothing is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ditkit.analysis.cost import cost
from ditkit.data import ImageSource, open_source, scan
from ditkit.data.cache import Cache
from ditkit.diffusion import BatchNoise
from ditkit.evaluation import read_items
from ditkit.pretrained import PretrainedMissing, load_teacher
from ditkit.protocols import Codec, Extractor
from ditkit.recipes.adapt import adapt, concerns, explain
from ditkit.recipes.adapters import check_start, check_targets
from ditkit.recipes.build import encoder_of, open_images
from ditkit.recipes.cached import stored_text
from ditkit.recipes.estimate import CPU_GMACS, cpu_hours
from ditkit.recipes.inspect_cache import check_fits, look_through, some_moments, stored_teachers
from ditkit.recipes.memory import Memory, available, folder_bytes, frozen_memory, training_memory
from ditkit.recipes.place import nearest
from ditkit.recipes.prompts import remembered
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.run import check_folder, check_same
from ditkit.recipes.start import open_start
from ditkit.recipes.text import ToldText, heard, open_text
from ditkit.training import list_steps
from ditkit.training.optim import pieces
from ditkit.training.precision import has_bf16_products
from ditkit.training.start import latent_warning

LISTED = 10  # unusable images that are named; all are counted
LOOKED_AT = 16  # images that are encoded
HOPELESS = 1.5  # times the memory that is there: the estimate is not that wrong
MOST_VISITS, SOME_VISITS = 2000, 500  # of each image: beyond reason, and plenty
FOR_A_GPU = 1e7  # GMACs of a run; at the above a day on two cores
EXPECTED = (ValueError, OSError, RuntimeError)


@dataclass(frozen=True)
class Finding:
    """One line of the report; with a "fail" the run could not start or not end."""

    level: Literal["ok", "warn", "fail"]
    topic: str
    text: str


Scanned = Callable[[int, int], None]


def inspect(
    recipe: Recipe, folder: Path, device: torch.device, keep: Collection[str] = (), progress: Scanned | None = None
) -> Iterator[Finding]:
    """Check `recipe` on its data as `train` would run it in `folder`; findings come as they are made."""
    yield Finding("ok", "recipe", f"{recipe.title}" + (f" ({recipe.name})" if recipe.name else ""))
    codec: Codec | None = None
    source: ImageSource | None = None
    try:
        codec, source = open_images(recipe, device, keep)
        yield Finding("ok", "codec", f"{codec.id}: {codec.channels} channels, factor {codec.factor}")
    except PretrainedMissing as error:
        yield Finding("fail", "codec", str(error))
    except EXPECTED as error:
        yield Finding("fail", "data", str(error))
    if codec is None and recipe.codec.place:
        try:
            source = open_source(recipe.data)
        except EXPECTED as error:
            yield Finding("fail", "data", str(error))
    counted: list[int] = []
    if source is not None:
        yield from told("data", image_findings(source, progress, counted))
    usable = sum(counted)
    seen = source if usable else None
    teachers: list[Extractor] = []
    yield from told("teacher", teacher_findings(recipe, device, seen, teachers))
    texts: list[ToldText] = []
    yield from told("text", text_findings(recipe, device, seen, texts))
    lacking = len(teachers) < len(recipe.teachers) or bool(texts) != (recipe.text is not None)
    reader = texts[0] if texts else None
    if codec is None or source is None or not usable or lacking:
        yield Finding("warn", "model", "size, cost and memory not checked: data and frozen networks come first")
        yield from place_findings(folder, None)
        return
    try:
        fitted = adapt(recipe, source, channels=codec.channels, factor=codec.factor, keep=keep, text=reader)
    except EXPECTED as error:
        yield Finding("fail", "model", str(error))
        yield from place_findings(folder, None)
        return
    yield from (Finding("ok", "model", line) for line in explain(recipe, fitted, keep))
    yield from told("model", model_findings(fitted))
    yield from told("start", start_findings(fitted, folder))
    yield from told("compute", cost_findings(fitted, usable, device))
    yield from told("latents", latent_findings(fitted, codec, source, device))
    checkpoint = 0
    try:
        memory = known_memory(fitted, codec, teachers, source.size, reader)
        checkpoint = memory.checkpoint
        yield memory_finding(memory, device)
    except EXPECTED as error:
        yield Finding("fail", "memory", str(error))
    yield from place_findings(folder, fitted, checkpoint, source.fingerprint)


def told(topic: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """The findings of a check; one that raises has failed, and keeps the others from nothing."""
    try:
        yield from findings
    except EXPECTED as error:
        yield Finding("fail", topic, str(error))


def known_memory(
    recipe: Recipe, codec: Codec, teachers: list[Extractor], image: tuple[int, int], text: ToldText | None
) -> Memory:
    """What training takes with the frozen networks that are here."""
    rows = max(stop - start for start, stop in pieces(recipe.training.batch, recipe.training))
    frozen = frozen_memory(codec, teachers, recipe.codec, image, rows, text)
    return training_memory(recipe, tuple(teacher.width for teacher in teachers), frozen)


def memory_finding(memory: Memory, device: torch.device) -> Finding:
    """What training takes, beside what there is."""
    frozen, working = memory.frozen.weights, max(memory.working, memory.frozen.encoding)
    parts = f"state {gib(memory.state)}, activations and gradients {gib(working)}, frozen networks {gib(frozen)}"
    there = available(device)
    much = there is not None and memory.total > 0.9 * there
    mend = "; set training.micro_batch, model.checkpointing=true or a smaller training.batch" if much else ""
    of = f" of {gib(there)}" if there is not None else ""
    text = f"about {gib(memory.total)}{of} on {device} (an estimate: {parts}){mend}"
    hopeless = there is not None and memory.total > HOPELESS * there
    return Finding("fail" if hopeless else "warn" if much else "ok", "memory", text)


def image_findings(source: ImageSource, progress: Scanned | None, usable: list[int]) -> Iterator[Finding]:
    """A look at every image, or at every byte of a cache; puts how many can be used into `usable`."""
    if isinstance(source, Cache):
        yield from (Finding(level, "data", line) for level, line in look_through(source, progress))
        usable.append(source.manifest.counts.usable if source.rows is None else len(source))
        return
    found = scan(source, progress)
    usable.append(found.usable)
    yield from data_findings(found.lines(), found.usable)


def data_findings(lines: list[str], usable: int) -> Iterator[Finding]:
    """The scan's lines; unusable images and empty classes are warnings, no usable image at all is a failure."""
    bad = [line for line in lines if line.startswith("unusable:")]
    for line in (line for line in lines if line not in bad):
        empty = line.startswith("class ") and line.endswith("no usable image")
        yield Finding("warn" if empty else "ok", "data", line)
    yield from (Finding("warn", "data", line) for line in bad[:LISTED])
    if bad[LISTED:]:
        yield Finding("warn", "data", f"{len(bad) - LISTED} more unusable images")
    if not usable:
        yield Finding("fail", "data", "no image can be used")


def teacher_findings(
    recipe: Recipe, device: torch.device, source: ImageSource | None, found: list[Extractor]
) -> Iterator[Finding]:
    """Each teacher, put into `found`, and its features of an image, where there is any; of a cache those it holds."""
    if isinstance(source, Cache):
        for stored in stored_teachers(recipe, source):
            yield Finding("ok", "teacher", f"{stored.id}: width {stored.width}, its features are in the cache")
            found.append(stored)
        return
    for settings in recipe.teachers:
        try:
            teacher = load_teacher(settings, device)
            told = f"{teacher.id}: width {teacher.width}"
            if source is not None:
                rows, columns = teacher(read_items(source, 1)[0].image[None]).grid
                told += f", {rows}x{columns} tokens an image"
            yield Finding("ok", "teacher", told)
            found.append(teacher)
        except EXPECTED as error:
            yield Finding("fail", "teacher", str(error))


def text_findings(
    recipe: Recipe, device: torch.device, source: ImageSource | None, found: list[ToldText]
) -> Iterator[Finding]:
    """The text encoder, put into `found`: its sizes, what it says of itself, what it cuts off the first captions."""
    try:
        text = stored_text(recipe, source, device) if isinstance(source, Cache) else open_text(recipe.text, device)
    except EXPECTED as error:
        yield Finding("fail", "text", str(error))
        return
    if text is None:
        return
    found.append(text)
    pooled = f", pooled {text.pooled_width}" if text.pooled_width else ""
    yield Finding("ok", "text", f"{text.id}: {text.length} tokens of width {text.width}{pooled}")
    yield from (Finding("ok", "text", note) for note in text.notes)
    if source is None:
        return
    captions = remembered(source, LOOKED_AT)
    with heard() as lines:
        text(captions)
    cut = f"of {len(captions)} captions {len(lines)} are longer than the encoder reads; {lines[0]}" if lines else ""
    yield Finding("warn" if cut else "ok", "text", cut or f"captions such as {captions[0]!r}")


def model_findings(recipe: Recipe) -> Iterator[Finding]:
    """Tokens and numbers a patch; `concerns` are warnings."""
    model = recipe.model
    rows, columns = model.grid
    numbers = model.patch**2 * model.channels
    yield Finding(
        "ok", "model",
        f"{rows}x{columns} = {rows * columns} tokens; a patch holds {model.patch}x{model.patch}x{model.channels} = "
        f"{numbers} numbers, width {model.width}; "
        + ("text" if recipe.text is not None else f"classes: {model.num_classes or 'none'}"),
    )  # fmt: skip
    yield from (Finding("warn", "model", line) for line in concerns(recipe))


def start_findings(recipe: Recipe, folder: Path) -> Iterator[Finding]:
    """Whether the weights that the run begins from are there and fit its network and adapter; nothing without any."""
    try:
        check_start(recipe, folder)
        check_targets(recipe)
        if recipe.start is None:
            return
        loaded = open_start(recipe, folder)
    except EXPECTED as error:
        yield Finding("fail", "start", str(error))
        return
    again = "not asked again, the run goes on from its own checkpoint"
    fits = "fits" if loaded is None or loaded.step is None else f"step {loaded.step} fits"
    yield Finding("ok", "start", f"{recipe.start.path}: {again if loaded is None else fits}")


def cost_findings(recipe: Recipe, images: int, device: torch.device) -> Iterator[Finding]:
    """Parameters, multiply-accumulates and visits of each image; warnings where steps or a CPU make no sense."""
    spent, training = cost(recipe.model), recipe.training
    visits = training.batch * training.steps
    total = 3 * spent.gmacs * visits  # backward is about two forwards (DiT, section 5); codec, teachers not counted
    yield Finding(
        "ok", "compute",
        f"{spent.trainable:,} parameters, {spent.gmacs:.3g} GMACs a forward pass, about {total:.2g} "
        f"GMACs for {training.steps:,} steps of {training.batch} = {visits / images:,.0f} visits of {images:,} images",
    )  # fmt: skip
    if visits > MOST_VISITS * images:
        enough = max(1, SOME_VISITS * images // training.batch)
        text = f"every image is visited {visits / images:,.0f} times; training.steps={enough} makes it {SOME_VISITS}"
        yield Finding("warn", "compute", text)
    if training.precision == "bf16" and not has_bf16_products(device):
        text = "this processor has no bf16 matrix units: training.precision=bf16 is tens of times slower than fp32 here"
        yield Finding("warn", "compute", text)
    if device.type == "cpu" and total > FOR_A_GPU:
        hours, cores = cpu_hours(total)
        text = f"some {hours:,.0f} hours on {cores} CPU cores (an estimate that assumes "
        yield Finding("warn", "compute", text + f"{CPU_GMACS} GMACs a second and core); it asks for a GPU")


def latent_findings(recipe: Recipe, codec: Codec, source: ImageSource, device: torch.device) -> Iterator[Finding]:
    """Mean and standard deviation of a few latents: a missing or doubled scale ruins a run silently."""
    if isinstance(source, Cache):
        check_fits(recipe, source, codec)
        images = some_moments(source, LOOKED_AT)
    else:
        items = read_items(source, LOOKED_AT)
        same = [item.image for item in items if item.image.shape == items[0].image.shape]  # buckets have many sizes
        images = torch.stack(same)
    noise = BatchNoise(recipe.training.seed, 0, len(images), device=device)
    with torch.no_grad():
        latents = encoder_of(recipe, codec)(images.to(device), noise)
    if not latents.isfinite().all():
        yield Finding("fail", "latents", "latents are not finite: the codec's weights or scale are damaged")
        return
    warning = latent_warning(latents) if recipe.codec.kind != "pixels" else None
    text = f"mean {latents.mean().item():.2f}, std {latents.std().item():.2f} over {len(images)} images"
    yield Finding("warn", "latents", warning) if warning else Finding("ok", "latents", text)


def place_findings(
    folder: Path, recipe: Recipe | None, checkpoint: int = 0, fingerprint: str = ""
) -> Iterator[Finding]:
    """Whether the run folder can be written, what it holds, and whether the checkpoints fit on its disk."""
    try:
        check_folder(folder)
        if recipe is not None:
            check_same(recipe, folder, fingerprint)
    except (OSError, ValueError) as error:
        yield Finding("fail", "out", str(error))
        return
    steps = list_steps(folder)
    state = "can be written"
    if steps:
        state = f"continues at step {steps[-1]}" if recipe else f"holds a run of {steps[-1]} steps, not compared"
    yield Finding("ok", "out", f"{folder}: {state}")
    if recipe is None:
        return
    kept = recipe.training.keep_last + 1  # the newest is written before the oldest goes
    if recipe.training.keep_every:
        kept += recipe.training.steps // recipe.training.keep_every
    free, needed = shutil.disk_usage(nearest(folder)).free, kept * checkpoint - folder_bytes(folder / "checkpoints")
    text = f"{kept} checkpoints of {gib(checkpoint)}, {gib(free)} free"
    mend = "; set a smaller training.keep_last or name another disk with --out"
    yield Finding("fail", "disk", text + mend) if needed > free else Finding("ok", "disk", text)


def gib(count: float) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
