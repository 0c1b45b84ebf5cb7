"""How a number came about, stored with the number; numbers that came about differently are not compared."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, model_validator

from ditkit.config import Difference, Settings, diff, fingerprint
from ditkit.diffusion import CFG, Autoguidance, SamplerSettings, SkipLayer
from ditkit.evaluation.named import NAMED

LabelMode = Literal["random", "balanced", "balanced_sorted", "given", "prompts", "none"]

# Told, never compared: what an adaptive solver spent was not chosen, another device is meant to change nothing, and
# real images are known by the fingerprint of their pixels, however these came to their size.
OUTCOMES = ("evaluations", "arithmetic", "reference_resize")

# rule -> the metrics that follow it
RULED = {
    "distances": ("precision", "recall"),
    "neighbours": ("precision", "recall"),
    "split": ("inception_score",),
    "subsets": ("kernel",),
    "subset_size": ("kernel",),
}


class Rules(Settings):
    """How the metrics themselves compute, where evaluators differ."""

    distances: Literal["float64", "float32", "adm"] = Field(
        "float64", description="of precision and recall; adm: float16 where finite, as ADM's evaluator"
    )
    neighbours: int = Field(3, ge=1, description="k of precision and recall")
    split: int = Field(5000, ge=1, description="consecutive images in a split of the Inception Score")
    subsets: int = Field(100, ge=1, description="of the kernel distance")
    subset_size: int = Field(1000, ge=2, description="of the kernel distance")


class Protocol(Settings):
    """Everything besides the weights that decides a score."""

    name: str = Field("custom", description=f"one of {', '.join(NAMED)}, or your own word")
    n: int = Field(ge=1, description="number of generated images")
    size: tuple[int, int] | None = Field(None, description="(H, W) of the generated images; None: untold (old files)")
    labels: LabelMode = Field("random", description="how the classes were asked for (balanced lowers FID by about 0.1)")
    prompts: str = Field("", description="fingerprint of the prompts and the negative prompt of a text model")
    text: str = Field("", description="id of the text encoder that read the prompts (which of its parts, weights)")
    sampler: dict[str, Any] = Field(default_factory=dict, description="solver, steps and their options, as JSON")
    guidance: dict[str, Any] | None = Field(None, description="None: no guidance")
    autoguide: str = Field("", description="fingerprint of the weaker model's weights, where autoguidance has one")
    evaluations: float = Field(ge=0, description="network evaluations spent per image")
    codec: str = Field("given", description="id of the codec that decoded the images (weights included)")
    quantiser: str = Field("round", description="uint8 rule (evaluation.images.RULES)")
    resize: str = Field("none", description="of generated images, before the extractor, whose own resize is its part")
    extractor: str = Field(description="id of the network whose features or probabilities were used")
    reference: str = Field(description="fingerprint of the real images")
    reference_n: int = Field(0, ge=0, description="number of real images behind them; 0: untold")
    reference_resize: str = Field("", description="how the real images came to their size; empty: untold")
    seed: int = Field(0, description="seed of the draws")
    rules: Rules = Field(Rules(), description="how the metrics compute")
    arithmetic: str = Field("", description="device, and the float32 products on it, of the process that scored")

    @model_validator(mode="after")
    def _named(self) -> Protocol:
        if self.name in NAMED and (wrong := NAMED[self.name].unmet(self)):
            raise ValueError(f"protocol {self.name!r}: {'; '.join(wrong)} (call it 'custom', or another name)")
        return self

    @property
    def fingerprint(self) -> str:
        """16 hex digits; equal for equal protocols."""
        return fingerprint(self, OUTCOMES)

    @property
    def untold(self) -> bool:
        """Whether the images came from elsewhere, without a word on how they were made."""
        return not self.sampler

    def sentence(self) -> str:
        """One line for people: what stands under a table. Of sampler and guidance only what is not default is told."""
        real = f"{self.reference_n:,} real images" if self.reference_n else "real images of an untold number"
        resized = f", {self.reference_resize}" if self.reference_resize else ""
        rules = "".join(f", {told}" for told in _not_default(self.rules.model_dump(mode="json"), Rules()))
        on = f", scored on {self.arithmetic}" if self.arithmetic else ""
        against = f"features {self.extractor}, against {real} ({self.reference}{resized}){rules}{on}"
        sized = f" of {self.size[0]}x{self.size[1]}" if self.size else ""
        if posterior := self.sampler.get("posterior"):
            made = f"reconstructions{sized} by codec {self.codec} from the posterior's {posterior}"
            return f"{self.name}: {self.n:,} {made}, uint8 {self.quantiser}, resize {self.resize}, {against}"
        if self.untold:
            made = f"given images{sized}"
            return f"{self.name}: {self.n:,} {made}, uint8 {self.quantiser}, resize {self.resize}, {against}"
        return (
            f"{self.name}: {self.n:,} images{sized}, {self._asked()}, {self._sampler()}, "
            f"{self._guidance()}, {self.evaluations:g} network evaluations an image, codec {self.codec}, "
            f"uint8 {self.quantiser}, resize {self.resize}, {against}, seed {self.seed}"
        )

    def _asked(self) -> str:
        read = f" read by {self.text}" if self.text else ""
        return f"prompts {self.prompts}{read}" if self.prompts else f"{self.labels.replace('_', ', ')} labels"

    def _sampler(self) -> str:
        values = {k: v for k, v in self.sampler.items() if k not in ("solver", "steps", "options", "sharing")}
        told = _not_default({**self.sampler.get("options", {}), **values}, SamplerSettings())
        if shared := self.sampler.get("sharing"):
            told.append(f"sharing {shared['rule']} (encoder at {', '.join(map(str, shared['encode']))})")
        return " ".join([str(self.sampler.get("solver")), str(self.sampler.get("steps")), *told])

    def _guidance(self) -> str:
        if not self.guidance:
            return "no guidance"
        usual = {"autoguidance": Autoguidance(), "skip_layer": SkipLayer()}.get(self.guidance.get("kind", ""), CFG())
        values = {k: v for k, v in self.guidance.items() if k not in ("scale", "kind")}
        kind = "" if isinstance(usual, CFG) else f"{self.guidance['kind']} "
        by = [f"by weights {self.autoguide}"] if self.autoguide else []
        return " ".join([f"{kind}guidance", f"{self.guidance.get('scale')}", *_not_default(values, usual), *by])


def _not_default(values: dict[str, Any], settings: Settings) -> list[str]:
    usual = settings.model_dump(mode="json")
    return [f"{k} {v}" for k, v in values.items() if k not in usual or usual[k] != v]


class Score(Settings):
    """One number with its protocol. interval: 95 % confidence limits, where they were computed."""

    metric: str = Field(description="for example frechet, kernel, precision, recall, inception_score, agreement")
    value: float
    interval: tuple[float, float] | None = None
    better: Literal["lower", "higher"]
    protocol: Protocol


class ProtocolMismatch(ValueError):
    """Two scores were got in different ways; `differences` lists every one."""

    def __init__(self, what: str, differences: list[Difference]):
        self.differences = differences
        listed = "; ".join(f"{d.key}: {d.a!r} against {d.b!r}" for d in differences)
        super().__init__(f"{what} differ in protocol and cannot be compared: {listed} (force it to compare anyway)")


class Comparison(Settings):
    """What a comparison found. difference = b - a; relative = (b - a) / |a|, or None where a = 0."""

    difference: float
    relative: float | None
    interval: tuple[float, float] | None = Field(None, description="95 % limits of the difference, if both have any")
    verdict: Literal["better", "worse", "equal", "unclear"] = Field(
        description="of b against a; equal: the same number; unclear: the limits of the difference hold 0"
    )
    forced: bool = Field(False, description="the protocols differed and this was forced")


def differences(a: Score, b: Score, ignore: Iterable[str] = ()) -> list[Difference]:
    """Everything in which the ways to two scores differ: the metric, then every dotted key of the protocol.

    Rules of other metrics are passed over: a Frechet distance does not ask how recall was computed.
    """
    found = [
        d
        for d in diff(a.protocol, b.protocol, {*ignore, *OUTCOMES})
        if a.metric in RULED.get(d.key.removeprefix("rules."), (a.metric,))
    ]
    return [Difference("metric", a.metric, b.metric), *found] if a.metric != b.metric else found


def compare(a: Score, b: Score, force: bool = False, ignore: Iterable[str] = ()) -> Comparison:
    """b against a. ProtocolMismatch, naming every difference, unless both were got in the same way.

    force compares whatever differs (the metric excepted) and says so in the result; `ignore` lets named top-level keys
    differ, for example ("seed",). Without intervals the verdict only looks at the values.
    """
    found = differences(a, b, ignore)
    if found and (not force or found[0].key == "metric"):
        raise ProtocolMismatch(f"{a.metric} {a.value:g} and {b.metric} {b.value:g}", found)
    difference = b.value - a.value
    low, high = difference_limits(a, b)
    verdict: Literal["better", "worse", "equal", "unclear"] = (
        "better" if (high < 0) == (a.better == "lower") else "worse"
    )
    if low <= 0 <= high:
        verdict = "equal" if difference == 0 else "unclear"
    return Comparison(
        difference=difference,
        relative=difference / abs(a.value) if a.value else None,
        interval=(low, high) if a.interval and b.interval else None,
        verdict=verdict,
        forced=bool(found),
    )


def difference_limits(a: Score, b: Score) -> tuple[float, float]:
    """95 % limits of b - a from the limits of each (MOVER: Zou and Donner 2008, eq. 3), as if drawn independently.

    Two intervals may overlap and their difference still be clear. Samples of two models from the same noise vary
    together, which makes these limits cautious.
    """
    (a_low, a_high), (b_low, b_high) = (s.interval or (s.value, s.value) for s in (a, b))
    difference = b.value - a.value
    below = math.hypot(b.value - b_low, a_high - a.value)
    above = math.hypot(b_high - b.value, a.value - a_low)
    return difference - below, difference + above


def in_words(a: Score, b: Score, names: tuple[str, str], title: str, force: bool = False) -> str:
    """A sentence for a headline: "REPA's Frechet distance is 14 % lower than SiT's (16.2 against 18.9)."

    It does not call a difference real where the confidence limits of the difference hold 0.
    """
    found = compare(a, b, force)
    numbers = f"({b.value:.4g} against {a.value:.4g})"
    if found.difference == 0:
        return f"{title}: {names[1]} equals {names[0]} {numbers}."
    size = f"{abs(found.relative):.0%}" if found.relative is not None else f"{abs(found.difference):.3g}"
    way = "lower" if found.difference < 0 else "higher"
    if found.verdict == "unclear":
        return f"{title}: no clear difference between {names[1]} and {names[0]} {numbers}."
    return f"{title}: {names[1]} is {size} {way} than {names[0]} {numbers}, which is {found.verdict}."
