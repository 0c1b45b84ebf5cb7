"""What a training run can be told. The defaults are DiT's and SiT's published recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ditkit.config import Settings

Fraction = Annotated[float, Field(ge=0, lt=1)]


class TrainSettings(Settings):
    """Everything that a run's numbers depend on beside model, data and objective."""

    steps: int = Field(400_000, ge=1, description="optimizer steps of the whole run")
    batch: int = Field(256, ge=1, description="global batch: images per optimizer step over all devices")
    accumulate: int | None = Field(None, ge=1, description="cut a device's rows into this many forward passes")
    micro_batch: int | None = Field(None, ge=1, description="or: at most this many rows per forward pass")

    lr: float = Field(1e-4, gt=0, description="peak learning rate")
    warmup: int = Field(0, ge=0, description="steps of linear warm-up from lr/warmup to lr")
    schedule: Literal["constant", "cosine"] = Field("constant", description="what follows the warm-up")
    final_lr: float = Field(0.0, ge=0, description="where the cosine ends, at the last step")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.999), description="AdamW's two decays")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay")
    clip: float | None = Field(None, gt=0, description="largest gradient norm, over network and projectors together")
    ema: Fraction = Field(0.9999, description="decay of the averaged weights, which start as a copy")
    ema_every: int = Field(1, ge=1, description="steps between averagings (SD3's study: 0.99 every 100)")

    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast with float32 islands")
    tf32: bool = Field(False, description="TensorFloat-32 in float32 matrix products (GPU only)")
    compile: bool = Field(False, description="torch.compile each block in place")
    backend: str = Field("inductor", description="torch.compile's backend")

    seed: int = Field(0, ge=0, description="of every draw of the training: noise, times, label drops")
    log_every: int = Field(100, ge=1, description="steps per row of metrics.jsonl")
    validate_every: int | None = Field(None, ge=1, description="steps between validation losses; none: at the end only")
    validate_on: Literal["ema", "raw", "both"] = Field("ema", description="the weights that are validated")
    save_every: int = Field(50_000, ge=1, description="steps between checkpoints; the end is always saved")
    keep_last: int = Field(3, ge=1, description="newest checkpoints that stay on disk")
    keep_every: int | None = Field(None, ge=1, description="checkpoints at multiples of this are never removed")
    max_nonfinite: int = Field(10, ge=1, description="skipped steps in a row that end the run")

    @model_validator(mode="after")
    def _consistent(self) -> TrainSettings:
        if self.accumulate is not None and self.micro_batch is not None:
            raise ValueError("give accumulate or micro_batch, not both")
        if (self.accumulate or 1) > self.batch:
            raise ValueError(f"accumulate={self.accumulate} is more than batch={self.batch}")
        if self.warmup >= self.steps and self.schedule == "cosine":
            raise ValueError(f"warmup={self.warmup} leaves no steps of {self.steps} for the cosine")
        return self
