"""Encoder sharing (DDT, Wang et al. 2025, section 4.3): run the condition encoder at some evaluations, reuse s between.

A schedule lists the evaluations of one sampling run (0 ... N - 1, counted in network calls: steps, for Euler and
multistep) at which the encoder runs. Which ones: `uniform_schedule`, `every_schedule`, or the dynamic programme of
`ditkit.analysis.sharing`. `SamplerSettings(sharing=...)` samples so; `SharedEncoder` is the wrapper it uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

from pydantic import Field, model_validator
from torch import Tensor

from ditkit.config import Settings
from ditkit.protocols import Condition, Decoupled, Denoiser, Output, SelfCondition

Observer = Callable[[int, Tensor, Tensor, Tensor], None]


class Sharing(Settings):
    """At which evaluations of a sampling run the encoder runs. Made for one number of evaluations, and only for it."""

    rule: str = Field(description="where the schedule comes from: dp:K, uniform:K, every:r or a file's name")
    evaluations: int = Field(ge=1, description="network evaluations N of the run that the schedule was made for")
    encode: tuple[int, ...] = Field(description="evaluations with the encoder: ascending, from 0, below N")
    keep: bool = Field(True, description="keep the modulations of s with it: faster; False saves memory")

    @model_validator(mode="after")
    def _ordered(self) -> Sharing:
        if not self.encode or self.encode[0] != 0:
            raise ValueError("sharing: the encoder must run at evaluation 0: begin the schedule with 0")
        if any(a >= b for a, b in pairwise(self.encode)):
            raise ValueError(f"sharing: the schedule must ascend without repeats, got {list(self.encode)}")
        if self.encode[-1] >= self.evaluations:
            raise ValueError(
                f"sharing: the schedule ends at evaluation {self.encode[-1]}, of {self.evaluations} counted from 0"
            )
        return self

    @property
    def budget(self) -> int:
        """K, how often the encoder runs."""
        return len(self.encode)


def check_budget(steps: int, budget: int) -> None:
    """Raise ValueError, in one line, for a budget K below 1 or above the evaluations N."""
    if not 1 <= budget <= steps:
        raise ValueError(f"sharing: a budget of {budget} is not between 1 and the {steps} evaluations of a run")


def uniform_schedule(steps: int, budget: int) -> list[int]:
    """The evaluations floor(i N / K), i < K, for N `steps` and `budget` K. ValueError for a budget outside 1 ... N."""
    check_budget(steps, budget)
    return [i * steps // budget for i in range(budget)]


def every_schedule(steps: int, r: int) -> list[int]:
    """The evaluations i < N with i mod r = 0 (DDT's released sampler). ValueError for r outside 1 ... N."""
    if not 1 <= r <= steps:
        raise ValueError(f"sharing: every {r} evaluations is not between 1 and the {steps} evaluations of a run")
    return list(range(0, steps, r))


class SharedEncoder:
    """A `Decoupled` denoiser whose encoder runs at the scheduled evaluations only: itself a `Denoiser`, for one run.

    It counts its calls from 0. Between scheduled ones it decodes the new state with the last s (which holds the time
    and the condition of its own evaluation), both guidance branches' when they come as one batch. evaluated, encoded:
    calls so far, and those with the encoder. observe(index, x (B, C, H, W), t (B,), s (B, N, D)) is told of the latter.
    Raises ValueError for a model without encode and decode, or without an encoder to share.
    """

    def __init__(self, model: Denoiser, sharing: Sharing, observe: Observer | None = None):
        if not isinstance(model, Decoupled):
            raise ValueError(
                f"sharing: {type(model).__name__} has no encode and decode: only a DDT's encoder is shared"
            )
        if getattr(getattr(model, "settings", None), "encoder_blocks", None) == 0:
            raise ValueError("sharing: this model has no encoder blocks (improved DiT), so there is nothing to share")
        self.model, self.sharing, self.observe = model, sharing, observe
        self.evaluated = self.encoded = 0
        self._state: SelfCondition | None = None
        self._scheduled = frozenset(sharing.encode)

    def __call__(self, x: Tensor, t: Tensor, cond: Condition, *, capture: tuple[int, ...] = ()) -> Output:
        """x (B, C, H, W), t (B,), cond -> Output(sample); the next evaluation of the run.

        Raises ValueError for captures, more evaluations than scheduled, a batch other than the one that s is of.
        """
        index, total = self.evaluated, self.sharing.evaluations
        if capture:
            raise ValueError("sharing: encoder blocks do not run at every evaluation: capture without sharing")
        if index >= total:
            raise ValueError(
                f"sharing: evaluation {index + 1} of a schedule made for {total}: one object serves one run"
            )
        if index in self._scheduled:
            self._state = None  # its memory serves the next
            self._state = SelfCondition(self.model.encode(x, t, cond))
            self.encoded += 1
            if self.observe is not None:
                self.observe(index, x, t, self._state.s)
        state = self._state
        assert state is not None  # a schedule begins with 0
        if len(state.s) != len(x):
            raise ValueError(
                f"sharing: the batch changed from {len(state.s)} to {len(x)} rows while s is reused: "
                "let guidance run both branches at every evaluation (skip_outside=False)"
            )
        self.evaluated += 1
        again = index + 1 < total and index + 1 not in self._scheduled
        keeps = self.sharing.keep and (again or bool(state.modulations))
        return Output(self.model.decode(x, state if keeps else state.s))

    def null(self, cond: Condition) -> Condition:
        """The model's unconditional counterpart of `cond`."""
        return self.model.null(cond)

    def parameters(self) -> Iterable[Tensor]:
        """The model's parameters."""
        return getattr(self.model, "parameters", tuple)()

    @property
    def settings(self) -> Any:
        """The model's settings, None for a model without any."""
        return getattr(self.model, "settings", None)
