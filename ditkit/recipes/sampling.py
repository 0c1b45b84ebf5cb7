"""Pictures from a loaded model: what a user may choose over the recipe's sampler, as data and plain functions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field, field_validator

from ditkit.checkpoints import Shape
from ditkit.config import Settings, fingerprint, nearest, override
from ditkit.data import ImageSource
from ditkit.diffusion import CFG, SamplerSettings, SkipLayer
from ditkit.evaluation import Generated, Request, generate, make_request, save_png
from ditkit.evaluation.features import Progress
from ditkit.evaluation.images import enlarge, viewing_factor
from ditkit.evaluation.sheet import contact_sheet
from ditkit.pretrained import CodecSettings, TextSettings
from ditkit.ranks import ALONE, Ranks
from ditkit.recipes.choose import parse_size
from ditkit.recipes.load import Loaded, load
from ditkit.recipes.prompts import EACH, data_prompts, prompt_request, read_prompts
from ditkit.recipes.sampling_words import describe_doubts, describe_sample, describe_sampler, describe_weights
from ditkit.recipes.sharing import Place, parse_sharing
from ditkit.training.files import prepare as prepare_folder
from ditkit.training.weights import Weights

__all__ = ["describe_doubts", "describe_sample", "describe_sampler", "describe_weights"]  # beside what is made here
# choices that `ditkit analyze sharing` must be given too
MEASURED = ("weights", "step", "guidance", "interval", "size", "codec")
SHEET = 100  # images on the contact sheet at most
SHORT = {
    "steps": "sampling.steps",
    "solver": "sampling.solver",
    "shift": "sampling.shift",
    "heads": "shape.heads",
    "patch": "shape.patch",
    "encoder_blocks": "shape.encoder_blocks",
    "encoder-blocks": "shape.encoder_blocks",
    "align_depth": "shape.align_depth",
    "align-depth": "shape.align_depth",
}


class Choices(Settings):
    """What to sample, where it is not the recipe's own; keys `sampling.*` change the sampler itself."""

    n: int | None = Field(None, ge=1, description="images; None: one of each named class, else the verb's own number")
    classes: str = Field(
        "random", description="'random', 'balanced', or classes by number or name: 207,360 (they take turns)"
    )
    prompts: tuple[str, ...] = Field((), description="text models: they take turns; none: captions of the data")
    negative: str | None = Field(None, description="text models: what guidance moves away from; None: no words")
    seed: int = Field(0, ge=0, description="of all draws; image i is the same in any n and chunk")
    guidance: float | None = Field(None, ge=0, description="guidance scale; 1 is none; None: the recipe's")
    interval: tuple[float, float] | None = Field(None, description="guide between these times: LOW,HIGH; 0 = data")
    weights: Weights = Field("ema", description="averaged or raw; of a run also ema:DECAY or power:WIDTH")
    step: int | None = Field(None, ge=0, description="which checkpoint of a run; None: the newest")
    codec: str | None = Field(None, description="'pixels', 'ft-ema', 'ft-mse', 'sd3', a hub id or a folder")
    text: str | None = Field(
        None, description="text models: 'toy', 'toy-sd3', 'clip', 'sd3', clip:SOURCE, sd3:SOURCE or a folder"
    )
    without: str = Field("", description="text encoders of SD3 that are left out, with commas: t5,clip_g")
    size: str | None = Field(None, description="pixels: 256 or HEIGHTxWIDTH; None: the model's native size")
    chunk: int = Field(64, ge=1, description="images that go through the network together")
    exact: bool = Field(False, description="same bytes for any chunk: batches of `rows`, the last one filled up")
    rows: int = Field(16, ge=1, description="exact: images in every batch")
    decode: int = Field(16, ge=1, description="images that go through the codec together")
    uint8: str = Field("round", description="uint8 rule, or the paper whose rule it is: dit, sit, repa, ddt")
    sharing: str | None = Field(
        None, description="which evaluations run a DDT's encoder: dp:K, velocity:K, uniform:K, every:r, none, or a FILE"
    )
    keep_modulations: bool = Field(True, description="while s is shared; false saves memory and costs time")
    shape: Shape = Field(Shape(), description="published files: what their tensors do not tell (shape.heads=6)")

    @field_validator("interval", mode="before")
    @classmethod
    def _pair(cls, value):
        return value.split(",") if isinstance(value, str) else value


def split(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Command-line overrides -> (those of `Choices`, those of the sampler), with the names in SHORT written in full."""
    full = [
        f"{SHORT.get(key.strip(), key)}{equals}{value}" for key, equals, value in (o.partition("=") for o in overrides)
    ]
    return [o for o in full if not o.startswith("sampling.")], [o for o in full if o.startswith("sampling.")]


def read_choices(overrides: Sequence[str]) -> Choices:
    """The choices of a command line: prompt=TEXT any number of times, or prompts=FILE, beside the fields' own keys.

    SettingsError or ValueError, one line.
    """
    pairs = [(o.partition("=")[0].strip(), o) for o in overrides]
    typed = [text.partition("=")[2] for key, text in pairs if key == "prompt"]
    files = [text.partition("=")[2].strip() for key, text in pairs if key == "prompts"]
    if typed and files:
        raise ValueError(f"--prompt and --prompts {files[-1]}: give prompts one by one or in a file, not both")
    prompts = read_prompts(Path(files[-1]).expanduser()) if files else tuple(typed)
    choices = override(Choices(), [text for key, text in pairs if key not in ("prompt", "prompts", "negative")])
    negatives = [text.partition("=")[2] for key, text in pairs if key == "negative"]
    if negatives[1:]:
        raise ValueError(f"--negative is given {len(negatives)} times; all images share one: write it as one text")
    return choices.model_copy(update={"prompts": prompts, "negative": negatives[0] if negatives else None})


def open_model(what: Path, source: str | None, choices: Choices, device: torch.device) -> Loaded:
    """The run, model folder or published file, on the device, with the chosen codec. What `load` raises."""
    shape = choices.shape.model_dump(exclude_defaults=True)
    loaded = load(what, choices.weights, step=choices.step, source=source, **shape)
    if choices.codec is not None:
        loaded.recipe = loaded.recipe.with_({"codec": CodecSettings.parse(choices.codec)})
    if text := choose_text(loaded, choices):
        loaded.recipe = loaded.recipe.with_({"text": text})
    return loaded.to(device)


def choose_text(loaded: Loaded, choices: Choices) -> TextSettings | None:
    """The text encoders that the user names or leaves out, None where that is nothing. ValueError, one line."""
    if choices.text is None and not choices.without:
        return None
    if loaded.recipe.text is None:
        raise ValueError("the model reads no text: leave --text and --without out")
    text = loaded.recipe.text if choices.text is None else TextSettings.parse(choices.text)
    left_out = [name.strip() for name in choices.without.split(",") if name.strip()]
    known = text.roles
    if wrong := [name for name in left_out if name not in known]:
        there = f"it has {', '.join(known)}" if known else f"text encoder {text.kind!r} is a single one"
        raise ValueError(f"without {wrong[0]!r}: {there}")
    return text.with_(dict.fromkeys(left_out, "none"))


def choose_sampler(
    loaded: Loaded, choices: Choices, overrides: Sequence[str] = (), what: Path = Path()
) -> tuple[SamplerSettings, list[str]]:
    """(the sampler, notes): the recipe's, changed by `sampling.*` overrides, then by guidance, interval and sharing.

    Another solver starts from its own defaults, since options, last step and grid belong to the recipe's solver.
    what: where the model came from, for what `ditkit analyze` stored beside it. SettingsError or ValueError, one line,
    for what does not exist or does not fit.
    """
    recipe, notes = loaded.recipe, []
    solver = dict(o.split("=", 1) for o in overrides if "=" in o).get("sampling.solver", recipe.sampling.solver).strip()
    if solver != recipe.sampling.solver:
        plain = SamplerSettings(steps=recipe.sampling.steps, guidance=recipe.sampling.guidance)
        recipe = recipe.model_copy(update={"sampling": plain})
    sampling = override(recipe, overrides).sampling
    guided = any(o.startswith("sampling.guidance") for o in overrides) or choices.guidance is not None
    wordless = loaded.recipe.model.num_classes == 0 and loaded.recipe.text is None
    if wordless and sampling.guidance is not None and not guided:
        notes.append("the model has no classes to guide by: the recipe's guidance is left out")
        sampling = sampling.model_copy(update={"guidance": None})
    sampling = guide(sampling, choices.guidance, choices.interval)
    if wordless and sampling.guidance is not None:
        raise ValueError("the model has no classes, so there is nothing to guide by: leave --guidance out")
    if choices.negative is not None and (sampling.guidance is None or sampling.guidance.scale == 1):
        notes.append("without guidance (a scale other than 1) the negative prompt has no effect")
    if isinstance(sampling.guidance, SkipLayer):
        sampling.guidance.check(loaded.model)  # type: ignore[arg-type]
    sampling.times(loaded.path, loaded.prediction)  # a grid that cannot be is refused before anything is computed
    if choices.sharing is not None:
        place = sharing_place(what, loaded, choices, overrides)
        sharing = parse_sharing(choices.sharing, loaded, sampling, place, choices.keep_modulations)
        sampling = sampling.model_copy(update={"sharing": sharing})
    elif not choices.keep_modulations:
        raise ValueError("keep_modulations has no use without sharing: give --sharing too")
    sampling.shared(loaded.model, loaded.path, loaded.prediction)  # type: ignore[arg-type]  # refused likewise
    return sampling, notes


def sharing_place(what: Path, loaded: Loaded, choices: Choices, overrides: Sequence[str] = ()) -> Place:
    """Where the measurements of this model are kept, and the words that name it and these choices."""
    chosen = {k: v for k, v in choices.model_dump(exclude_defaults=True).items() if k in MEASURED}
    words = [f"{k}={','.join(f'{t:g}' for t in v) if isinstance(v, tuple) else v}" for k, v in chosen.items()]
    shape = [f"shape.{k}={v}" for k, v in choices.shape.model_dump(exclude_defaults=True).items()]
    size = latent_size(loaded, choices.size) or tuple(getattr(loaded.settings, "size", (0, 0)))
    published = [] if loaded.source == "ditkit" or home_of(what) == what else ["--source", loaded.source]
    return Place(home_of(what), size, (str(what), *published, *words, *shape, *overrides))


def home_of(what: Path) -> Path:
    """Where things made of a model belong: the run or model folder; here, for a published file."""
    return what if (what / "recipe.json").is_file() else Path()


def guide(sampling: SamplerSettings, scale: float | None, interval: tuple[float, float] | None) -> SamplerSettings:
    """The sampler with this guidance scale (1: none) in this interval of our time; None leaves either as it is."""
    if scale is None and interval is None:
        return sampling
    if scale == 1:
        return sampling.model_copy(update={"guidance": None})
    if scale is None and sampling.guidance is None:
        raise ValueError("an interval has no use without guidance: give --guidance SCALE too")
    if interval is not None and not 0 <= interval[0] < interval[1] <= 1:
        raise ValueError(f"interval {interval[0]:g},{interval[1]:g}: give LOW,HIGH with 0 <= LOW < HIGH <= 1")
    guidance = sampling.guidance if sampling.guidance is not None else CFG()
    if interval is not None and not isinstance(guidance, CFG):
        raise ValueError(f"guidance {guidance.kind!r} has no interval: set sampling.guidance.kind=cfg first")
    changes = {} if scale is None else {"scale": scale}
    changes |= {} if interval is None else {"low": interval[0], "high": interval[1]}
    return sampling.model_copy(update={"guidance": guidance.with_(changes)})


def choose_request(loaded: Loaded, choices: Choices, n: int, real: ImageSource | None = None) -> Request:
    """The request: how many images (`n` unless chosen) of which classes or prompts and size. ValueError, one line.

    real: captioned images; without prompts of the user's, a text model draws their captions, labelled as they are.
    """
    classes, given = loaded.recipe.model.num_classes, choices.classes
    check_words(loaded, choices)
    if loaded.recipe.text is not None:
        prompts: tuple[str, ...] = choices.prompts
        named: tuple[int, ...] = ()
        if real is not None and not prompts:
            prompts, named = data_prompts(real, choices.n or n)
        count = choices.n or (n if real is not None else len(prompts) * EACH or min(n, len(loaded.captions) or n))
        request = prompt_request(
            loaded, prompts, count, negative=choices.negative, seed=choices.seed, labels=named
        )  # fmt: skip
    elif given in ("random", "balanced"):
        request = make_request(choices.n or n, classes, given, seed=choices.seed)  # type: ignore[arg-type]
    else:
        labels = parse_classes(given, classes, loaded.classes)
        count = choices.n or len(labels)
        turns = tuple(labels[i % len(labels)] for i in range(count))
        request = Request(n=count, labels=turns, mode="given", seed=choices.seed)
    changes = {key: getattr(choices, key) for key in ("chunk", "decode", "exact", "rows")}
    changes["quantiser"] = choices.uint8
    return request.with_({**changes, "size": latent_size(loaded, choices.size)})


def check_words(loaded: Loaded, choices: Choices) -> None:
    """ValueError, one line, where a text model is asked for classes, or a class model for prompts."""
    if loaded.recipe.text is None and (choices.prompts or choices.negative is not None):
        knows = "classes: name them with --classes" if loaded.recipe.model.num_classes else "nothing but images"
        raise ValueError(f"the model reads no text, it knows {knows}; leave --prompt, --prompts and --negative out")
    if loaded.recipe.text is not None and choices.classes != "random":
        raise ValueError(f"classes {choices.classes!r}: the model reads text and knows no classes: give --prompt TEXT")


def parse_classes(text: str, classes: int, names: Sequence[str] = ()) -> list[int]:
    """ "207,360" or "cat,dog" -> numbers; what can be read as a number is one.

    ValueError for anything else, and for classes that the model does not know.
    """
    if classes == 0:
        raise ValueError(f"classes {text!r}: the model was trained without classes; leave --classes out")
    ids = {name: number for number, name in enumerate(names)}
    labels = []
    for part in map(str.strip, text.split(",")):
        try:
            labels.append(int(part) if part.removeprefix("-").isdecimal() else ids[part])
        except KeyError:
            known = f", or names{nearest(part, names)}" if names else ""
            numbers = "random, balanced, or class numbers with commas (207,360)"
            raise ValueError(f"classes {text!r}: write {numbers}{known}") from None
    if wrong := [label for label in labels if not 0 <= label < classes]:
        raise ValueError(f"class {wrong[0]} does not exist: the model knows 0 to {classes - 1}")
    return labels


def latent_size(loaded: Loaded, text: str | None) -> tuple[int, int] | None:
    """A size in pixels as the model's (H, W); None stays None. ValueError where codec or patch do not divide it."""
    if text is None:
        return None
    side = parse_size(text)
    height, width = (side, side) if isinstance(side, int) else side
    factor, patch = loaded.codec.factor, getattr(loaded.settings, "patch", 1)
    if height % (factor * patch) or width % (factor * patch):
        raise ValueError(f"size {text}: give multiples of {factor * patch} (codec factor {factor}, patch {patch})")
    return height // factor, width // factor


def check_codec(loaded: Loaded) -> None:
    """Load codec and text encoder now; refuse other channels or widths than the model's.

    PretrainedMissing or ValueError.
    """
    if (text := loaded.text) is not None:
        wanted, given = getattr(loaded.settings, "text_width", text.width), text.width
        if getattr(loaded.settings, "pooled_width", 0) and wanted == given:
            wanted, given = loaded.settings.pooled_width, text.pooled_width  # type: ignore[union-attr]
        if wanted != given:
            raise ValueError(f"the model reads text of width {wanted}, {text.id} gives {given}: name its own by --text")
    channels = getattr(loaded.settings, "channels", loaded.codec.channels)
    pixels = loaded.recipe.codec.kind == "pixels"
    if loaded.codec.channels != channels or (pixels and channels not in (1, 3)):
        has = "pixels are 1 or 3" if pixels else f"codec {loaded.codec.id} has {loaded.codec.channels}"
        raise ValueError(f"the model works in {channels} channels, {has}: name its own codec with --codec")


def folder_for(what: Path, loaded: Loaded, sampling: SamplerSettings, request: Request) -> Path:
    """Where samples go by default: RUN/samples/..., or samples/... here for a published file.

    The name tells checkpoint, weights, sampler and n, and ends in a digest of everything that was asked, so that the
    same command continues and another one does not collide.
    """
    first = f"{loaded.step:07d}" if loaded.step is not None else what.stem
    asked = "".join(fingerprint(settings) for settings in (loaded.recipe.codec, sampling, request.essence))
    digest = hashlib.sha256(asked.encode()).hexdigest()[:8]
    name = f"{first}-{loaded.weights.replace(':', '-')}-{sampling.solver}-{sampling.steps}-n{request.n}-{digest}"
    return home_of(what) / "samples" / name


def draw(
    loaded: Loaded, sampling: SamplerSettings, request: Request, folder: Path, progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> tuple[Generated, Path]:  # fmt: skip
    """Make what is missing of the images in `folder`; (images, contact sheet FOLDER-grid.png beside the folder).

    The sheet is not inside, so that tools that score a folder of PNG files see images only. ranks: processes that share
    the work; the first one makes the sheet.
    """
    prepare_folder(folder)
    made = generate(
        loaded, sampling, request, folder=folder, device=loaded.device, progress=progress, ranks=ranks
    )  # fmt: skip
    sheet = folder.with_name(f"{folder.name}-grid.png")
    if not ranks.first:
        return made, sheet
    shown = made.images[0 : min(SHEET, request.n)]
    classes = loaded.recipe.model.num_classes if request.mode == "balanced" else 0
    if not request.prompts:
        shown = enlarge(shown, viewing_factor(min(shown.shape[2:])))
    return made, save_png(contact_sheet(shown, request, classes, gap=2), sheet)
