"""What a run asks of the scores that it computes of itself while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from ditkit.config import Settings
from ditkit.data import DataSettings
from ditkit.diffusion import SamplerSettings
from ditkit.evaluation import ClassifierSettings
from ditkit.evaluation.images import rule_name


class EvaluationSettings(Settings):
    """Scores of the averaged weights, by the code and with the defaults of `ditkit evaluate`.

    Of `sampling` and `data` a recipe fills in what is left out by its own.
    """

    every: int | None = Field(
        None, ge=1, description="steps between scores, each after a checkpoint; none: at the end only"
    )
    n: int = Field(1000, ge=2, description="images; they are held in memory")
    labels: Literal["random", "balanced"] = Field("random", description="how classes are asked for")
    seed: int = Field(0, ge=0, description="of the samples' draws: the same at every step")
    sampling: SamplerSettings | None = Field(None, description="none: the recipe's")
    guidance: float | None = Field(None, ge=0, description="guidance scale; 1 is none; none: the sampler's")
    extractors: tuple[str, ...] = Field((), description="feature spaces beside pixels: names, with commas")
    data: DataSettings | None = Field(None, description="the real images; none: those that are trained on")
    reference: str = Field("", description="an .npz of images and statistics, instead of data")
    real: int | None = Field(None, ge=2, description="real images at most; none: the protocol's number, else 10,000")
    classifier: ClassifierSettings = Field(ClassifierSettings(), description="trained on labelled real images")
    protocol: str = Field("custom", description="name stored with the scores")
    chunk: int = Field(64, ge=1, description="images that go through the network together")
    decode: int = Field(16, ge=1, description="images that go through the codec together")
    uint8: str = Field("round", description="uint8 rule, or the paper whose rule it is: dit, sit, repa, ddt")

    @field_validator("extractors", mode="before")
    @classmethod
    def _by_commas(cls, given: Any) -> Any:
        return [name.strip() for name in given.split(",") if name.strip()] if isinstance(given, str) else given

    @field_validator("uint8")
    @classmethod
    def _known(cls, rule: str) -> str:
        rule_name(rule)
        return rule


def complete(given: Any) -> Any:
    """A recipe's plain data with what its evaluation's sampling and data leave out filled in from its own.

    Another solver begins from its own defaults (steps and guidance excepted), another source likewise.
    """
    evaluation = given.get("evaluation") if isinstance(given, Mapping) else None
    if not isinstance(evaluation, Mapping):
        return given
    filled = dict(evaluation)
    for part, named, kept in (("sampling", "solver", ("steps", "guidance")), ("data", "source", ())):
        mine, own = evaluation.get(part), given.get(part)
        own = own.model_dump() if isinstance(own, Settings) else own
        if isinstance(mine, Mapping) and isinstance(own, Mapping):
            same = mine.get(named, own.get(named)) == own.get(named)
            filled[part] = {**(own if same else {key: own[key] for key in kept if key in own}), **mine}
    return {**given, "evaluation": filled}
