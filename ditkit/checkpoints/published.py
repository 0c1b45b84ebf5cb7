"""What loading a published checkpoint answers, and what tensors alone cannot tell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from pydantic import Field, ValidationError
from torch import Tensor, nn

from ditkit.config import Settings
from ditkit.diffusion.path import AnyPath
from ditkit.diffusion.prediction import Kind
from ditkit.models import AnyModel

State = dict[str, Tensor]


class CheckpointError(ValueError):
    """A file or state dict that cannot be loaded or exported; one line: what, where, how to mend."""


@dataclass(frozen=True)
class Published:
    """A published network in our conventions: t = 0 is data, labels in a Condition, projectors apart from the model."""

    model: nn.Module
    path: AnyPath
    prediction: Kind
    projectors: nn.ModuleList | None
    align_depth: int | None
    settings: AnyModel
    source: str
    weights: str = "flat"  # which copy of a training file: "ema", "raw"; "flat" files do not say (publishers ship EMA)
    notes: tuple[str, ...] = ()  # what of the file was left aside


class Shape(Settings):
    """What tensors cannot tell. None takes the published table; an argument that does not apply is an error."""

    heads: int | None = Field(None, gt=0, description="attention heads; published widths and depths have a default")
    patch: int | None = Field(None, gt=0, description="patch side, where tensors do not tell it (DDT)")
    size: tuple[int, int] | None = Field(None, description="native latent (H, W), where no position table tells it")
    encoder_blocks: int | None = Field(None, gt=0, description="DDT: blocks of the encoder")
    align_depth: int | None = Field(None, gt=0, description="REPA, DDT: block that the projectors read, counted from 1")
    null: bool = Field(True, description="the label table's last row is the null label")

    @classmethod
    def read(cls, source: str, allowed: Iterable[str], given: dict, told: dict) -> Shape:
        """The arguments `given` to load_published; only `allowed` ones apply; `told` fills in."""
        if wrong := sorted(set(given) - set(allowed)):
            raise CheckpointError(f"load_published: {', '.join(wrong)} does not apply to source {source!r}; "
                                  f"it takes {', '.join(allowed)}")  # fmt: skip
        try:
            return cls(**{**{k: v for k, v in told.items() if k in allowed}, **given})
        except ValidationError as error:
            first = error.errors()[0]
            raise CheckpointError(f"load_published: {first['loc'][0]}: {first['msg']}") from None


class Converter(Protocol):
    """One published format <-> our model. `SOURCES` lists them; a new family is one file and one line there."""

    @property
    def source(self) -> str: ...

    @property
    def arguments(self) -> tuple[str, ...]:
        """The fields of `Shape` that this source takes."""
        ...

    def load(self, state: State, shape: Shape, path: AnyPath | None, prediction: Kind | None) -> Published:
        """Official tensors -> our model; CheckpointError lists every key that does not fit."""
        ...

    def export(self, model: nn.Module, projectors: nn.ModuleList | None, prediction: Kind | None) -> State:
        """The exact inverse: official keys, equal tensors; CheckpointError says why a model does not fit."""
        ...
