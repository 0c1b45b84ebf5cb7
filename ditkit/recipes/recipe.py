"""A recipe: everything that a training run and its published scores depend on, as data."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from ditkit.align import AlignSettings
from ditkit.config import Settings
from ditkit.data import DataSettings
from ditkit.diffusion import AnyObjective, SamplerSettings
from ditkit.models import AnyModel, reads_text
from ditkit.pretrained import CodecSettings, TeacherSettings, TextSettings
from ditkit.recipes.online_settings import EvaluationSettings, complete
from ditkit.training import AdapterSettings, TrainSettings
from ditkit.training.weights import Weights


class Published(Settings):
    """One line of a published table: the averaged weights at `steps`, sampled and scored as the paper says."""

    table: str = Field(description="where the numbers stand")
    steps: int = Field(description="training steps of the weights")
    sampling: SamplerSettings = Field(description="solver, steps, guidance")
    fid: float | None = None
    sfid: float | None = None
    inception_score: float | None = None
    precision: float | None = None
    recall: float | None = None
    accuracy: float | None = Field(None, description="linear probe of the aligned block on ImageNet, per cent")
    geneval: float | None = Field(None, description="overall GenEval score, mean over its six tasks")
    images: int = 50_000
    labels: Literal["random", "balanced"] = "random"
    decoder: str = Field("stabilityai/sd-vae-ft-ema", description="the VAE whose decoder made the images")
    quantise: str = Field("truncate_128", description="float to uint8 rule (ditkit.evaluation.images)")
    reference: str = Field("ADM evaluator, full training set", description="evaluator and reference statistics")
    exact: bool = Field(True, description="False: `sampling` stands in for something that was never published")
    note: str = ""


class Start(Settings):
    """Weights that a run begins from, instead of random ones; a path alone will do: start=runs/mine."""

    path: str = Field(description="a run, a folder of `ditkit convert`, or a published file (with source)")
    source: str | None = Field(None, description="family of a published file: dit, sit, repa, ddt, improved-dit, ...")
    weights: Weights = Field("ema", description="averaged or raw (or, of a run, ema:DECAY, power:WIDTH) to begin from")
    step: int | None = Field(None, ge=0, description="of a run; none: its newest")

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, given: Any) -> Any:
        return {"path": given} if isinstance(given, str) and given.lower() not in ("", "none") else given


class Recipe(Settings):
    """One training run. `with_({"training.steps": 100_000})` gives a sibling; nothing here is built or loaded yet."""

    name: str = Field("", description="how the registry found it")
    title: str
    source: str = Field("", description="paper and table, or 'ours'")
    model: AnyModel
    data: DataSettings
    codec: CodecSettings
    text: TextSettings | None = Field(
        None, description="what reads the captions: text models need it, others have none"
    )
    objective: AnyObjective
    align: AlignSettings | None = Field(None, description="REPA; needs teachers")
    teachers: tuple[TeacherSettings, ...] = ()
    start: Start | None = Field(None, description="weights to begin from; none: random ones")
    adapter: AdapterSettings | None = Field(None, description="LoRA: it alone is trained; needs start")
    training: TrainSettings
    sampling: SamplerSettings = Field(description="how to sample by default")
    evaluation: EvaluationSettings | None = Field(None, description="scores while it trains; none: not then")
    unpublished: tuple[str, ...] = Field((), description="dotted keys whose values are ours: the paper gave none")
    notes: tuple[str, ...] = Field((), description="where this differs from the published run, and why")
    published: tuple[Published, ...] = Field((), description="what the paper measured on these weights")

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        return complete(given)

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if (self.align is None) != (not self.teachers):
            raise ValueError("align and teachers go together: give both, or neither")
        if self.align is not None and (
            wrong := [d for d in self.align.depths(len(self.teachers)) if d > self.model.depth]
        ):
            raise ValueError(f"align.depth {wrong[0]} is beyond the model's {self.model.depth} blocks")
        if reads_text(self.model) != (self.text is not None):
            if self.text is None:
                raise ValueError(f"model {self.model.kind!r} reads text: name its encoders by text (text.kind=toy)")
            raise ValueError(f"model {self.model.kind!r} knows classes and no text: leave text out (text=none)")
        dpo = self.objective.kind == "dpo"
        if dpo != (self.data.pairs == "both"):
            raise ValueError("objective.kind=dpo and data.pairs=both go together: give both, or neither")
        if dpo and self.align is not None:
            raise ValueError(
                "objective.kind=dpo trains on pairs, which have no alignment: leave out align and teachers"
            )
        learned = self.objective.kind == "improved_ddpm" and self.objective.variance == "learned_range"
        if not dpo and learned != (self.model.variance == "learned"):
            needs = "needs model.variance=learned" if learned else "has no use for model.variance=learned"
            raise ValueError(f"objective {self.objective.kind!r} {needs}, got {self.model.variance!r}")
        return self
