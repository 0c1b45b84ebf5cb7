"""The only place where all meets: a recipe becomes live objects (data, codec, teachers, network) and a Job."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ditkit.align import Aligner, compute_targets
from ditkit.align.targets import GridExtractor
from ditkit.data import DataSettings, ImageSource, Loader, open_source, to_float
from ditkit.data.cache import Cache, is_cache
from ditkit.data.cache_batches import Asked, HeldTexts, read_held
from ditkit.evaluation import read_items, spread
from ditkit.models import build_model, token_side
from ditkit.pretrained import load_codec, load_teacher
from ditkit.protocols import Codec, Condition, Features, Noise
from ditkit.ranks import ALONE, Ranks
from ditkit.recipes.adapt import adapt, even_patch, has_pixel_patch
from ditkit.recipes.cached import StoredTeacher, check_codec_settings, check_grids, from_cache, marks, teacher_numbers
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.text import Captioned, ToldText, condition_of, identity_of, open_text
from ditkit.training.state import Job
from ditkit.training.validation import ValidationLoss

VALIDATION_IMAGES = 512
AT_ONCE = 32  # images that the codec encodes together: a VAE needs more memory than the model that is trained
log = logging.getLogger("ditkit.data")


@dataclass
class Parts:
    """What a recipe names, loaded; `recipe` is already adapted to the data.

    cache: where images are encoded already, and the teachers are names; asked: what its batches bring along.
    """

    recipe: Recipe
    source: ImageSource
    codec: Codec
    teachers: Sequence[GridExtractor | StoredTeacher]
    device: torch.device
    text: ToldText | None = None
    cache: Cache | None = None
    asked: Asked = field(default_factory=Asked)


def pick_device(name: str = "auto") -> torch.device:
    """The accelerator where there is one, else the CPU (auto), or a named torch device; ValueError if it is absent."""
    if name == "auto":
        if torch.accelerator.is_available() and (found := torch.accelerator.current_accelerator()) is not None:
            return found
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        if reason.startswith(("Expected one of", "Invalid device")):  # the first lists all that PyTorch ever knew
            reason = "there is no such kind of device (auto, cpu, cuda, cuda:1, mps)"
        elif reason.startswith("Could not run"):
            reason = "this PyTorch was not built for it"
        raise ValueError(f"device {name!r} cannot be used: {reason}") from None
    return device


def prepare(recipe: Recipe, device: torch.device, keep: Collection[str] = ()) -> Parts:
    """Open the data, load codec, text encoder and teachers, and fit the recipe to them. keep: keys the user has set.

    Raises DataError, PretrainedMissing or ValueError, one line each.
    """
    codec, source = open_images(recipe, device, keep)
    found = from_cache(recipe, source, codec, device)
    teachers: list = []
    if found is not None:
        text, teachers = found.text, [*found.teachers]
    else:
        teachers = [load_teacher(settings, device) for settings in recipe.teachers]
        text = open_text(recipe.text, device, recipe.data.text_cache)
    fitted = adapt(recipe, source, channels=codec.channels, factor=codec.factor, keep=keep, text=text)
    if found is None:
        return Parts(fitted, source, codec, teachers, device, text)
    check_grids(fitted, found.cache, teacher_numbers(fitted, found.cache))
    return Parts(fitted, source, codec, teachers, device, text, found.cache, found.asked)


def open_images(recipe: Recipe, device: torch.device, keep: Collection[str] = ()) -> tuple[Codec, ImageSource]:
    """The codec and the images as it takes them, at a size that the model's patches cut evenly where it is free."""

    def opened(data: DataSettings, multiple: int | None) -> ImageSource:
        return open_source(data, multiple=multiple, captioned=recipe.text is not None, batch=recipe.training.batch)

    if is_cache(Path(recipe.data.source).expanduser()):
        source = opened(recipe.data, None)
        check_codec_settings(recipe, source)
        return load_codec(recipe.codec, device, channels=source.channels), source
    if recipe.codec.kind != "pixels":  # autoencoders see colours; grey images are repeated
        codec: Codec = load_codec(recipe.codec, device)
        in_colour = recipe.data.model_copy(update={"channels": 3})
        return codec, opened(in_colour, codec.factor * token_side(recipe.model))
    if "model.patch" in keep or recipe.data.buckets is not None or recipe.model.patch != token_side(recipe.model):
        source = opened(recipe.data, token_side(recipe.model))
    else:
        source = opened(recipe.data, None)
        if recipe.data.size is None and not has_pixel_patch(source.size):
            source = opened(recipe.data, even_patch(source.size))
    return load_codec(recipe.codec, device, channels=source.channels), source


def encoder_of(recipe: Recipe, codec: Codec) -> Callable[[Tensor, Noise], Tensor]:
    """What turns the recipe's images, its pairs of them, or what a cache holds of them, into latents."""
    if is_cache(Path(recipe.data.source).expanduser()):
        return stored_encoder(codec)
    return pair_encoder(codec) if recipe.data.pairs == "both" else encoder(codec)


def encoder(codec: Codec) -> Callable[[Tensor, Noise], Tensor]:
    """images uint8 (B, C, H, W) -> normalised latents; the posterior is drawn afresh at every visit."""

    def encode(images: Tensor, noise: Noise) -> Tensor:
        return drawn(codec, torch.cat([codec.encode(to_float(part)) for part in images.split(AT_ONCE)]), noise)

    return encode


def stored_encoder(codec: Codec) -> Callable[[Tensor, Noise], Tensor]:
    """Moments (B, C, h, w) of a cache, in its dtype -> normalised latents, drawn as by `encoder`."""

    def encode(moments: Tensor, noise: Noise) -> Tensor:
        return drawn(codec, to_float(moments) if moments.dtype == torch.uint8 else moments.float(), noise)

    return encode


def drawn(codec: Codec, moments: Tensor, noise: Noise) -> Tensor:
    """Normalised latents of moments: a draw from the posterior, where there is one."""
    if moments.shape[1] == codec.channels:
        return codec.sample(moments, None)
    shape = (len(moments), codec.channels, *moments.shape[2:])
    return codec.sample(moments, noise.normal("posterior", shape))


def pair_encoder(codec: Codec) -> Callable[[Tensor, Noise], Tensor]:
    """Pairs uint8 (B, 2C, H, W) -> latents (B, 2c, h, w), winner first, each half encoded by itself."""

    def encode(images: Tensor, noise: Noise) -> Tensor:
        halves = images.chunk(2, dim=1)
        moments = [torch.cat([codec.encode(to_float(part)) for part in half.split(AT_ONCE)]) for half in halves]
        drawn: tuple[Tensor | None, ...] = (None, None)
        if moments[0].shape[1] != codec.channels:
            shape = (len(images), 2 * codec.channels, *moments[0].shape[2:])
            drawn = noise.normal("posterior", shape).chunk(2, dim=1)
        return torch.cat([codec.sample(m, d) for m, d in zip(moments, drawn, strict=True)], dim=1)

    return encode


def build_job(parts: Parts, folder: Path, ranks: Ranks = ALONE) -> Job:
    """The training Job of these parts: network and projectors freshly initialised from `training.seed`.

    ranks: this process's place among those that train together; it reads its rows of every global batch.
    """
    recipe, device, codec = parts.recipe, parts.device, parts.codec
    settings = recipe.training
    model = build_model(recipe.model, generator=torch.Generator().manual_seed(settings.seed)).to(device)
    aligner, targets = alignment(parts)
    encode = encoder_of(recipe, codec)

    def batches(start: int):
        loader = Loader(
            parts.source, settings.batch, settings.seed, start_step=start, rank=ranks.rank, world=ranks.world,
            workers=recipe.data.workers, flip=recipe.data.flip, synthetic_share=recipe.data.synthetic_share,
            asked=parts.asked, rejects=folder / "rejects.jsonl",
        )  # fmt: skip
        return iter(loader)

    return Job(
        model=model,
        objective=recipe.objective,
        encode=encode,
        batches=batches,
        condition=lambda batch: condition_of(batch, recipe, parts.text, device),
        settings=settings,
        folder=folder,
        device=device,
        aligner=aligner,
        targets=targets,
        validate=validation(parts, encode),
        check_latents=recipe.codec.kind != "pixels",
        identity=identity(parts),
        ranks=ranks,
    )


def identity(parts: Parts) -> dict[str, Any]:
    """What must not change when a run is resumed. An exact cache of images counts as the images."""
    recipe, rounding = parts.recipe, marks(parts.cache, parts.recipe.training.tf32)
    text = identity_of(parts.text)
    return {
        "data": parts.source.fingerprint,
        "flip": recipe.data.flip,
        **({"captions": [recipe.data.synthetic_share, recipe.data.empty_share]} if recipe.text else {}),
        "codec": parts.codec.id + rounding["codec"],
        "text": None if text is None else text + rounding["text"],
        "teachers": [teacher.id + rounding["teachers"] for teacher in parts.teachers],
        "start": recipe.start.model_dump() if recipe.start else None,
    }


def alignment(parts: Parts) -> tuple[nn.Module | None, Callable[[Tensor], Sequence[Features]] | None]:
    """The projectors and the function that asks the teachers, None on a cache; (None, None) without REPA."""
    recipe, settings = parts.recipe, parts.recipe.align
    if settings is None:
        return None, None
    widths, token = [teacher.width for teacher in parts.teachers], token_side(recipe.model) * parts.codec.factor
    fixed = None if recipe.data.buckets is not None else recipe.model.grid  # buckets: each batch has its own
    if fixed is None and settings.grid == "resize_features":
        raise ValueError("align.grid=resize_features needs images of one size: leave data.buckets out")
    generator = torch.Generator().manual_seed(recipe.training.seed + 1)
    aligner = Aligner(settings, recipe.model.width, widths, fixed, generator=generator).to(parts.device)
    teachers = [teacher for teacher in parts.teachers if not isinstance(teacher, StoredTeacher)]
    if len(teachers) < len(parts.teachers):
        return aligner, None  # batches bring the features

    def targets(images: Tensor) -> Sequence[Features]:
        grid = fixed or (images.shape[2] // token, images.shape[3] // token)
        return compute_targets(teachers, images, grid, settings.grid)

    return aligner, targets


def validation_source(recipe: Recipe, source: ImageSource) -> ImageSource:
    """The held-out part where the recipe trains on the "train" split, else the training images themselves.

    All of one size: of aspect-ratio buckets, the square.
    """
    if recipe.data.split != "train" and recipe.data.buckets is None:
        return source
    split = "test" if recipe.data.split == "train" else recipe.data.split
    test = recipe.data.model_copy(update={"split": split, "size": source.size, "buckets": None})
    return open_source(test, captioned=recipe.text is not None)


def validation(parts: Parts, encode: Callable[[Tensor, Noise], Tensor]) -> ValidationLoss:
    """The objective on fixed images, noise and times: the same number for any batch size."""
    recipe = parts.recipe
    source = validation_source(recipe, parts.source)
    chosen = spread(len(source), VALIDATION_IMAGES)
    captions: Captioned | HeldTexts | None = None
    if isinstance(source, Cache):
        held = read_held(source, chosen)
        images, labels, captions = held.moments, held.labels, HeldTexts(source, held)
    else:
        items = read_items(source, VALIDATION_IMAGES)
        images, labels = torch.stack([item.image for item in items]), torch.tensor([item.label for item in items])
        captions = Captioned(parts.text, [item.caption for item in items]) if parts.text is not None else None
    if lost := len(chosen) - len(images):
        log.warning("validation leaves out %d images that cannot be used", lost)
    cond: Condition | Captioned | HeldTexts = Condition()
    if parts.text is not None and captions is not None:
        cond = captions
    elif recipe.model.num_classes:
        cond = Condition(label=labels)
    return ValidationLoss(recipe.objective, encode, images, cond, seed=recipe.training.seed, device=parts.device)
