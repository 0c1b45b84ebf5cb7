"""Frequency content: of the predicted velocity, the data estimate, hidden states and DDT's s over t, and of samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from pydantic import Field
from torch import Tensor

from ditkit.analysis.spectrum import centroid, high_share, on_grid, power, radial, white
from ditkit.config import Settings
from ditkit.data import to_float
from ditkit.evaluation import Panel, Request, Series, generate
from ditkit.evaluation.sections import Cell
from ditkit.evaluation.uncertainty import Interval
from ditkit.protocols import Decoupled
from ditkit.recipes.analyses.analysis import Analysis, Bar, Floats, Found, Ints, Shown, Table
from ditkit.recipes.analyses.noised import Noised, no_grid, noised, picked, token_grid
from ditkit.recipes.analyses.subject import Subject, chosen_blocks
from ditkit.recipes.analyses.verdicts import Standing, changed, gap, judged, paired, ranked, side_by_side
from ditkit.recipes.analyses.words import check_times, middle, of, plus_minus
from ditkit.recipes.sampling import Choices, choose_sampler, describe_sampler
from ditkit.recipes.text import Captioned

LEAST = 4  # a side on which some frequency but zero is low
NOTE = (
    "Power of a two-dimensional Fourier transform over the token or latent grid, mean over channels and images; the "
    "share above half of Nyquist's frequency, without the zero frequency. Null condition, "
    "where the model has one. ± is one standard error over images."
)


class SpectrumSettings(Settings):
    """What is transformed."""

    t: Floats = Field((0.1, 0.3, 0.5, 0.7, 0.9), description="times, 0 = data")
    blocks: Ints = Field((), description="hidden states; none: DDT's two halves' last blocks, else middle and last")
    images: int = Field(128, ge=2, description="held-out images, and as many samples")
    samples: bool = Field(True, description="whether samples are drawn and compared with real images")


class Share(Settings):
    """Of the power above half of Nyquist's frequency, and the mean frequency; with standard errors over images."""

    high: float
    high_error: float | None
    centroid: float
    centroid_error: float | None
    each: list[float] = Field([], description="of images and samples: the high share of every one, linearised")


class Change(Settings):
    """Of a high share from the first time to the last, image by image, with 95 % limits."""

    difference: float
    limits: Interval | None = None


class Curve(Settings):
    """A radially averaged spectrum; frequency in units of Nyquist's."""

    frequency: list[float]
    power: list[float]


class SpectrumResult(Settings):
    """over_t: what -> a share at each time. shares, spectra: of images in [-1, 1]. white: of noise.

    changes: of what is on the token grid; small: why there is no spectrum of tokens.
    """

    images: int
    watched: str
    conditioned: str
    small: str = ""
    changes: dict[str, Change] = Field(default_factory=dict)
    t: list[float]
    over_t: dict[str, list[Share]]
    shares: dict[str, Share]
    spectra: dict[str, Curve]
    white_latent: float
    white_tokens: float | None
    sampler: str = ""


def share_of(powers: Tensor) -> Share:
    """Both numbers of spectra (B, h, w)."""
    high, mean = high_share(powers), centroid(powers)
    return Share(high=high.value, high_error=high.error, centroid=mean.value, centroid_error=mean.error)


def drawn_of(powers: Tensor) -> Share:
    """The same, and of every image."""
    return share_of(powers).model_copy(update={"each": high_share(powers).each.tolist()})


def spectra(part: Noised, blocks: tuple[int, ...], grid: tuple[int, int]) -> Iterator[tuple[str, Tensor]]:
    """(what, power (b, h, w)) of one batch at one time."""
    output = part.run(blocks)
    estimate = part.estimate(output)
    yield "velocity", power(estimate.velocity)
    yield "its target", power(part.target)
    yield "data estimate", power(estimate.data)
    model = part.subject.loaded.model
    if small(part.subject):
        return
    for block in blocks:
        yield f"block {block}", power(on_grid(output.hidden[block], grid))
    if isinstance(model, Decoupled) and (s := model.encode(part.seen, part.t, part.cond)).shape[1] > 1:
        yield "s", power(on_grid(s, grid))


def small(subject: Subject) -> str:
    """Why tokens have no spectrum: on a side of fewer than 4 every frequency is above half Nyquist."""
    return no_grid(subject, LEAST)


def too_small(subject: Subject) -> str:
    """Why there is no spectrum at all: latents of fewer than 4 a side."""
    rows, columns = getattr(subject.loaded.settings, "size", subject.loaded.recipe.model.size)
    return "" if min(rows, columns) >= LEAST else f"its latents of {rows} x {columns} are too small for a spectrum"


def default_blocks(subject: Subject) -> tuple[int, ...]:
    """The last blocks of DDT's encoder and decoder; of other models the middle and the last."""
    settings = subject.loaded.settings
    first = getattr(settings, "encoder_blocks", 0) or settings.depth // 2
    return tuple(dict.fromkeys(block for block in (first, settings.depth) if block))


@torch.no_grad()
def measure(subject: Subject, settings: SpectrumSettings, bar: Bar) -> Found:
    """Spectra at every time, then of real images and of samples."""
    check_times(settings.t)
    blocks = chosen_blocks(settings.blocks or default_blocks(subject), subject.loaded.settings.depth)
    grid, rows = token_grid(subject), picked(subject, settings.images)
    n = len(rows)
    over_t: dict[str, list[Share]] = {}
    ends: dict[str, list[Tensor]] = {}  # of each image, at the first and the last time
    for done, t in enumerate(settings.t, start=1):
        powers: dict[str, list[Tensor]] = {}
        for part in noised(subject, t, n):
            for name, values in spectra(part, blocks, grid):
                powers.setdefault(name, []).append(values.cpu())
        for name, parts in powers.items():
            over_t.setdefault(name, []).append(share_of(torch.cat(parts)))
            if done in (1, len(settings.t)):
                ends.setdefault(name, []).append(high_share(torch.cat(parts)).each)
        bar("spectra", done, len(settings.t))
    pictures, sampler = {"real images": subject.test.images[rows]}, ""
    if settings.samples:
        pictures["samples"], sampler = draw_samples(subject, rows, bar)
    found = {name: power(to_float(images)) for name, images in pictures.items()}
    rings = {name: radial(powers.mean(0)) for name, powers in found.items()}
    curves = {name: Curve(frequency=r.frequency.tolist(), power=r.power.tolist()) for name, r in rings.items()}
    latent = subject.test.latents.shape[2:]
    shares = {name: drawn_of(powers) for name, powers in found.items()}
    gaps = {name: paired(pair[-1] - pair[0]) for name, pair in ends.items() if len(pair) > 1}
    return Found(
        SpectrumResult(
            images=n,
            watched=subject.watched,
            conditioned=subject.test.conditioned,
            small=small(subject),
            changes={name: Change(difference=g.difference, limits=g.limits) for name, g in gaps.items()},
            t=list(settings.t),
            over_t=over_t,
            shares=shares,
            spectra=curves,
            sampler=sampler,
            white_latent=white(*latent)[0],
            white_tokens=None if small(subject) else white(*grid)[0],
        )
    )


def draw_samples(subject: Subject, rows: Tensor, bar: Bar) -> tuple[Tensor, str]:
    """(uint8 images (n, C, H, W) of these test images' labels or captions, the sampler in words)."""
    loaded, cond = subject.loaded, subject.test.cond
    sampler, _ = choose_sampler(loaded, Choices())
    request = Request(n=len(rows), seed=subject.asked.seed, chunk=subject.asked.batch)
    if isinstance(cond, Captioned):
        request = request.with_({"prompts": tuple(cond.captions[i] for i in rows.tolist())})
    elif cond.label is not None:
        request = request.with_({"labels": tuple(cond.label[rows].tolist()), "mode": "given"})
    made = generate(loaded, sampler, request, device=loaded.device, progress=partial(bar, "samples"))
    return torch.as_tensor(made.images[:]), describe_sampler(sampler)


def show(found: Mapping[str, Found]) -> Shown:
    """Shares over t, and the spectra of samples and real images."""
    results: dict[str, SpectrumResult] = {name: f.result for name, f in found.items()}  # type: ignore[misc]
    said = [line for name, r in results.items() for line in said_of(name, r)]
    drawn = {n: r.shares["samples"] for n, r in results.items() if "samples" in r.shares}
    seen = {n: Standing(s.high, each=s.each) for n, s in drawn.items()}
    said += side_by_side(ranked("In the share of high frequencies of samples", seen, plus_minus))
    rows: list[list[Cell]] = []
    for name, r in results.items():
        for what, shares in r.over_t.items():
            rows += [[f"{of(name)}{what}", t, s.high, s.centroid] for t, s in zip(r.t, shares, strict=True)]
        rows += [[f"{of(name)}{what}", None, s.high, s.centroid] for what, s in r.shares.items()]
    columns = ("what", "t", "share above half Nyquist", "mean frequency / Nyquist")
    panels = [latent_panel(results), token_panel(results), *image_panels(results)]
    first = next(iter(results.values()))
    of_what = f"Of {first.images} {first.watched}; as many samples as the recipe samples, with {first.conditioned}. "
    panels = [panel for panel in panels if panel.finite]
    return Shown(said, panels, {"Frequency content": Table(columns, rows)}, note=of_what + NOTE)


def over_t(name: str, r: SpectrumResult, what: str) -> Series:
    """A line over t, with standard errors."""
    shares = r.over_t[what]
    limits = [(s.high - (s.high_error or 0), s.high + (s.high_error or 0)) for s in shares]
    return Series(f"{of(name)}{what}", r.t, [s.high for s in shares], limits=limits)


def level(r: SpectrumResult, value: float) -> Series:
    """What white noise has."""
    return Series("white noise", [r.t[0], r.t[-1]], [value, value])


def latent_panel(results: Mapping[str, SpectrumResult]) -> Panel:
    """Velocity and its target; of one model the data estimate too."""
    last = list(results.values())[-1]
    series = [over_t(name, r, "velocity") for name, r in results.items()]
    series += [over_t("", last, what) for what in ("its target", "data estimate")[: 2 if len(results) == 1 else 1]]
    title = "Latents: share of high frequencies"
    return Panel(title, [*series, level(last, last.white_latent)], "t", "share above half Nyquist")


def token_panel(results: Mapping[str, SpectrumResult]) -> Panel:
    """Hidden states and DDT's s of one model; of several, s where there is one, else the first block looked at."""
    series = []
    for name, r in results.items():
        tokens = [what for what in r.over_t if what == "s" or what.startswith("block ")]
        shown = tokens if len(results) == 1 else ["s"] if "s" in tokens else tokens[:1]
        series += [over_t(name, r, what) for what in shown]
    title = "Tokens: share of high frequencies"
    levels = [level(r, r.white_tokens) for r in results.values() if r.white_tokens is not None]
    return Panel(title, [*series, *levels[-1:]], "t", "share above half Nyquist")


def image_panels(results: Mapping[str, SpectrumResult]) -> list[Panel]:
    """Power of real images and samples over the frequency, and the one over the other."""
    first = next(iter(results.values()))
    real = first.spectra["real images"]
    spectra, ratios = [Series("real images", real.frequency, real.power)], []
    for name, r in results.items():
        if (drawn := r.spectra.get("samples")) is not None:
            own = f"{of(name)}samples"
            spectra.append(Series(own, drawn.frequency, drawn.power))
            pairs = zip(drawn.power, r.spectra["real images"].power, strict=True)
            ratios.append(Series(own, drawn.frequency, [a / b if b > 0 else float("nan") for a, b in pairs]))
    panels = [Panel("Images: power", spectra, "frequency / Nyquist", "power", log_y=True)]
    return panels + (
        [Panel("Samples over real images", ratios, "frequency / Nyquist", "ratio of power")] if ratios else []
    )


def said_of(name: str, r: SpectrumResult) -> list[str]:
    """What is seen of s, the velocity and the samples."""
    i, said = middle(r.t), []
    v, target = r.over_t["velocity"][i], r.over_t["its target"][i]
    tokens = [what for what in r.over_t if what == "s" or what.startswith("block ")]
    parts = [f"{what} {plus_minus(r.over_t[what][i].high, r.over_t[what][i].high_error)}" for what in tokens]
    line = (
        f"{of(name)}at t = {r.t[i]:g}, the share of power above half Nyquist is {plus_minus(v.high, v.high_error)} of "
    )
    line += (
        f"the velocity (its target has {plus_minus(target.high, target.high_error)}, white noise {r.white_latent:.3g})"
    )
    grid = f"; on the token grid it is {', '.join(parts)} (white noise {r.white_tokens or 0:.3g})."
    said.append(line + (grid if tokens else f". There is no spectrum of tokens: {r.small}."))
    if len(r.t) > 1 and tokens:
        for what in ("s",) if "s" in tokens else tokens[-1:]:
            a, b, change = r.over_t[what][0], r.over_t[what][-1], r.changes[what]
            ends = f"from {a.high:.3g} at t = {r.t[0]:g} to {b.high:.3g} at t = {r.t[-1]:g}"
            said.append(f"{of(name)}that of {what} goes {ends}: {changed(judged(change.difference, change.limits))}.")
    if (drawn := r.shares.get("samples")) is not None:
        real = r.shares["real images"]
        differ = gap(Standing(drawn.high, each=drawn.each), Standing(real.high, each=real.each)).word == "beyond"
        how = ("more" if drawn.high > real.high else "less") if differ else "as much, within noise,"
        said.append(
            f"{of(name)}samples ({r.sampler}) have {how} high frequency {'than' if differ else 'as'} real images: "
            f"{plus_minus(drawn.high, drawn.high_error)} against {plus_minus(real.high, real.high_error)}."
        )
    return said


ANALYSIS = Analysis(
    "spectrum",
    "Frequency content",
    SpectrumSettings,
    SpectrumResult,
    measure,
    show,
    too_small,
    uses=("images", "sampling"),
)
