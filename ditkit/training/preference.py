"""A preference objective bound to the reference that it compares with, so that the training loop can call it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ditkit.diffusion import DPO, Auxiliary, Loss
from ditkit.protocols import Condition, Denoiser, Noise, Output
from ditkit.training.adapters import adapter_off


def frozen_copy(model: nn.Module) -> nn.Module:
    """The model as it is now, to be a reference while it trains on.

    Its weights keep their requires_grad flags, though nothing ever updates them: PyTorch chooses matrix products by the
    flag, and only equal ones make model and reference agree to the bit at step 0.
    """
    return deepcopy(model).eval()


@dataclass(frozen=True)
class Preference:
    """A `DPO` with its reference; callable as every objective.

    frozen: the reference network of a full fine-tuning; None: the trained network itself with its adapter off.
    """

    objective: DPO
    frozen: nn.Module | None = None

    def __call__(
        self, model: Denoiser, x: Tensor, cond: Condition, noise: Noise, auxiliary: Sequence[Auxiliary] = ()
    ) -> Loss:
        """The loss of pairs x (B, 2C, H, W), winner first."""
        return self.objective(model, x, cond, noise, auxiliary, reference=self.reference(model))

    def reference(self, model: Denoiser) -> Callable[[Tensor, Tensor, Condition], Output]:
        """(x_t, t, cond) -> what the reference answers, without gradients."""

        @torch.no_grad()
        def answer(x_t: Tensor, t: Tensor, cond: Condition) -> Output:
            if self.frozen is not None:
                return self.frozen(x_t, t, cond)
            assert isinstance(model, nn.Module)
            with adapter_off(model):
                return model(x_t, t, cond)

        return answer
