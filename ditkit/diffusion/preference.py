"""Diffusion-DPO (Wallace et al. 2023, arXiv 2311.12908): fine-tuning on pairs of images of which one is preferred.

A pair x (B, 2C, H, W) is the winner's C channels and then the loser's. Both get the same noise and the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import logsigmoid

from ditkit.config import Settings
from ditkit.diffusion.broadcast import mean_per_sample
from ditkit.diffusion.objective import Auxiliary, Flow, ImprovedDDPM, Loss, drop_labels, drop_parts
from ditkit.diffusion.path import AnyPath, Linear, Path, interpolate
from ditkit.diffusion.prediction import Kind, network_input, target
from ditkit.diffusion.times import AnyDensity, Discrete, Uniform
from ditkit.protocols import Condition, Denoiser, Noise, Output

Reference = Callable[[Tensor, Tensor, Condition], Output]


class DPO(Settings):
    """-log sigmoid(-beta / 2 ((m_w - m_l) - (r_w - r_l))), m and r the mean squared errors of model and reference.

    w is the winner, l the loser; means run over C, H, W (the paper's formula has sums, its released code means: beta
    belongs to means here). form "noise" measures every prediction's error as that of the noise it implies, which is the
    paper's loss; with a velocity prediction on the linear path beta is then beta (1 - t)^2 on the velocity's error.
    "velocity" has a constant beta on the velocity's error (Flow-DPO, arXiv 2501.13918). beta: 2000 for SD1.5 and 5000
    for SDXL in the paper (form noise); 100 is usual for rectified flows (form velocity); SD3's is unpublished.
    """

    kind: Literal["dpo"] = "dpo"
    path: AnyPath = Linear()
    prediction: Kind = Field("velocity", description="what the network returns")
    density: AnyDensity = Uniform()
    form: Literal["noise", "velocity"] = Field("noise", description="whose error beta multiplies")
    beta: float = Field(2000.0, gt=0, description="how dear it is to leave the reference; see above")
    drop: float = Field(0.0, ge=0, le=1, description="probability of training a pair without its text (paper: .2)")
    drop_each: float = Field(0.0, ge=0, le=1, description="probability of zeroing each text encoder's part")

    @model_validator(mode="after")
    def _finite(self) -> DPO:
        if isinstance(self.density, (Uniform, Discrete)):
            low, high = (self.density.low, self.density.high) if isinstance(self.density, Uniform) else (0.0, 1.0)
            ends = torch.tensor([low, high], dtype=torch.float64)
            factor = squared_ratio(self.path, ends, self.prediction, self.form)
            if not bool(factor.isfinite().all()):
                end = float(ends[~factor.isfinite()][0])
                raise ValueError(f"the loss is infinite at t = {end:g}: keep the density off it, as Uniform(low, high)")
        return self

    def __call__(
        self,
        model: Denoiser,
        x: Tensor,
        cond: Condition,
        noise: Noise,
        auxiliary: Sequence[Auxiliary] = (),
        *,
        reference: Reference | None = None,
    ) -> Loss:
        """The loss of pairs x (B, 2C, H, W); reference(x_t, t, cond) answers as the model did before the tuning.

        Terms (B,): "denoise" is the loss, "accuracy" 1 where the winner's implicit reward is the larger, 1/2 where
        they are equal, "margin" their difference, "winner" and "loser" the model's errors. ValueError without a
        reference, for an odd number of channels, or with auxiliary terms, which a pair has no images for.
        """
        if reference is None:
            raise ValueError("DPO: needs the reference that it compares with: see ditkit.training.Preference")
        if auxiliary:
            raise ValueError("DPO: an alignment is for single images; leave out align and teachers")
        if x.shape[1] % 2:
            raise ValueError(f"DPO: a pair has an even number of channels, got {tuple(x.shape)}")
        winner, loser = x.chunk(2, dim=1)
        eps = noise.normal("eps", tuple(winner.shape)).to(x)
        t = self.density.sample(len(x), noise).to(x.device)
        cond = drop_labels(model, drop_parts(cond, noise, self.drop_each), noise, self.drop)
        both, eps2, t2 = torch.cat([winner, loser]), torch.cat([eps, eps]), torch.cat([t, t])
        conds = Condition.concat([cond, cond]) if cond.tensors else cond
        x_t = network_input(self.path, interpolate(self.path, both, eps2, t2), t2)
        wrong = self.per_sample(model(x_t, t2, conds).sample, both, eps2, t2)
        before = self.per_sample(reference(x_t, t2, conds).sample, both, eps2, t2)
        return self.compare(wrong, before, t)

    def per_sample(self, value: Tensor, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The mean squared error (B,) of the network output `value`, in `form`; a learned variance is left out."""
        value = value[:, : x.shape[1]].to(x.dtype)
        error = mean_per_sample((value - target(self.prediction, self.path, x, eps, t)) ** 2)
        return squared_ratio(self.path, t, self.prediction, self.form) * error

    def compare(self, wrong: Tensor, before: Tensor, t: Tensor) -> Loss:
        """The loss from the errors (2B,) of model and reference, winners first."""
        (m_w, m_l), (r_w, r_l) = wrong.chunk(2), before.chunk(2)
        margin = -0.5 * self.beta * ((m_w - m_l) - (r_w - r_l))
        loss = -logsigmoid(margin)
        accuracy = (margin > 0).to(loss) + 0.5 * (margin == 0).to(loss)
        terms = {"denoise": loss, "accuracy": accuracy, "margin": margin, "winner": m_w, "loser": m_l}
        return Loss(loss.mean(), {name: value.detach() for name, value in terms.items()}, t)


def squared_ratio(path: Path, t: Tensor, kind: Kind, other: Kind) -> Tensor:
    """(B,): by how much the squared error of prediction `other` is larger than that of `kind`, at the same x_t.

    With x_t fixed, errors of data and noise are bound by alpha dx + sigma deps = 0; every target is linear in them.
    """
    if kind == other:
        return torch.ones_like(t)
    dx, deps = -path.sigma(t), path.alpha(t)
    return (target(other, path, dx, deps, t) / target(kind, path, dx, deps, t)) ** 2


AnyObjective = Annotated[Flow | ImprovedDDPM | DPO, Field(discriminator="kind")]
