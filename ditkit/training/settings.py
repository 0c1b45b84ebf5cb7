"""What a training run can be told. The defaults are DiT's and SiT's published recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ditkit.config import Settings

Fraction = Annotated[float, Field(ge=0, lt=1)]
Width = Annotated[float, Field(gt=0, lt=0.28)]  # of power-function averages: gamma >= 0 means sigma_rel <= 12^-0.5


class MuonSettings(Settings):
    """Muon for the matrices inside blocks; AdamW keeps embeddings, the output layer, norms, biases and projectors."""

    lr: float = Field(0.02, gt=0, description="of the orthogonalised updates; follows the schedule of training.lr")
    momentum: Fraction = Field(0.95, description="decay of the gradient's running sum")
    nesterov: bool = Field(True, description="look ahead by one momentum step")
    weight_decay: float = Field(0.0, ge=0, description="decoupled, of these matrices")
    iterations: int = Field(5, ge=1, description="Newton-Schulz iterations of an update")
    match: Literal["spectral", "adamw"] = Field(
        "spectral", description="size of an update: max(1, rows / columns)^0.5, or 0.2 max(rows, columns)^0.5 (AdamW's)"
    )


class ParallelSettings(Settings):
    """How several processes (torchrun) train one model; a single process takes no notice."""

    kind: Literal["ddp", "fsdp"] = Field("ddp", description="ddp: a copy a process; fsdp: weights and state in shards")
    shards: int | None = Field(
        None, ge=1, description="fsdp: processes that share one copy, so that copies are few (hybrid); none: all"
    )
    reshard: bool = Field(True, description="fsdp: free a block's weights after its forward; false: faster, larger")
    reduce: Literal["fp32", "bf16"] = Field("fp32", description="fsdp, bf16: precision in which gradients are summed")

    @model_validator(mode="after")
    def _of_fsdp(self) -> ParallelSettings:
        idle = self.shards is not None, not self.reshard, self.reduce != "fp32"
        if self.kind == "ddp" and any(idle):
            told = [name for name, given in zip(("shards", "reshard", "reduce"), idle, strict=True) if given]
            raise ValueError(f"{', '.join(told)}: of parallel.kind=fsdp, not of ddp")
        return self


class TrainSettings(Settings):
    """Everything that a run's numbers depend on beside model, data and objective."""

    steps: int = Field(400_000, ge=1, description="optimizer steps of the whole run")
    batch: int = Field(256, ge=1, description="global batch: images per optimizer step over all devices")
    accumulate: int | None = Field(None, ge=1, description="cut a device's rows into this many forward passes")
    micro_batch: int | None = Field(None, ge=1, description="or: at most this many rows per forward pass")

    lr: float = Field(1e-4, gt=0, description="peak learning rate")
    warmup: int = Field(0, ge=0, description="steps of linear warm-up from lr/warmup to lr")
    schedule: Literal["constant", "cosine", "stable_decay"] = Field(
        "constant",
        description="what follows the warm-up; stable_decay: constant, then linear over decay_steps",
    )
    final_lr: float = Field(0.0, ge=0, description="where cosine and stable_decay end, at the last step")
    decay_steps: int | None = Field(None, ge=1, description="stable_decay: steps of the descent; none: a fifth of all")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.999), description="AdamW's two decays")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay")
    muon: MuonSettings | None = Field(None, description="Muon for the blocks' matrices; none: AdamW for everything")
    clip: float | None = Field(None, gt=0, description="largest gradient norm, over network and projectors together")
    ema: Fraction = Field(0.9999, description="decay of the averaged weights, which start as a copy")
    ema_every: int = Field(1, ge=1, description="steps between averagings (SD3's study: 0.99 every 100)")

    ema_also: tuple[Fraction, ...] = Field((), description="decays of further averages, kept and saved beside `ema`")
    ema_power: tuple[Width, ...] = Field((), description="widths sigma_rel of power-function averages: EDM2's")
    ema_snapshots: int | None = Field(
        None, ge=1, description="steps between stored power-function averages; none: with each checkpoint"
    )

    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast with float32 islands")
    tf32: bool = Field(False, description="TensorFloat-32 in float32 matrix products (GPU only)")
    compile: bool = Field(False, description="torch.compile each block in place")
    backend: str = Field("inductor", description="torch.compile's backend")
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = Field(
        "default", description="of the inductor: reduce-overhead replays CUDA graphs, max-autotune tries more kernels"
    )
    float8: bool = Field(False, description="matrix products of the blocks in float8 (needs torchao and such a GPU)")
    parallel: ParallelSettings = Field(ParallelSettings(), description="several processes under torchrun")

    seed: int = Field(0, ge=0, description="of every draw of the training: noise, times, label drops")
    log_every: int = Field(100, ge=1, description="steps per row of metrics.jsonl")
    validate_every: int | None = Field(None, ge=1, description="steps between validation losses; none: at the end only")
    validate_on: Literal["ema", "raw", "both"] = Field("ema", description="the weights that are validated")
    save_every: int = Field(50_000, ge=1, description="steps between checkpoints; the end is always saved")
    keep_last: int = Field(3, ge=1, description="newest checkpoints that stay on disk")
    keep_every: int | None = Field(None, ge=1, description="checkpoints at multiples of this are never removed")
    checkpoint: Literal["whole", "sharded"] = Field(
        "whole", description="whole: one file of each kind; sharded: each process writes its part (torch DCP)"
    )
    save_async: bool = Field(False, description="write checkpoints in the background from a copy in memory")
    on_save_error: Literal["stop", "continue"] = Field("stop", description="when a checkpoint cannot be written")
    max_nonfinite: int = Field(10, ge=1, description="skipped steps in a row that roll the run back, or end it")
    max_rollbacks: int = Field(2, ge=0, description="returns to the last checkpoint, with other draws, before it ends")
    spike: float | None = Field(6.0, gt=0, description="alarm: a loss so many deviations above its running mean; none")
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(
        (), description="who is told every row of metrics.jsonl too (pip install 'ditkit[track]')"
    )

    @field_validator("ema_also", "ema_power", "trackers", mode="before")
    @classmethod
    def _by_commas(cls, given: Any) -> Any:
        if isinstance(given, float):
            return (given,)
        return [part.strip() for part in given.split(",") if part.strip()] if isinstance(given, str) else given

    @model_validator(mode="after")
    def _consistent(self) -> TrainSettings:
        if self.accumulate is not None and self.micro_batch is not None:
            raise ValueError("give accumulate or micro_batch, not both")
        if (self.accumulate or 1) > self.batch:
            raise ValueError(f"accumulate={self.accumulate} is more than batch={self.batch}")
        if self.warmup >= self.steps and self.schedule != "constant":
            raise ValueError(f"warmup={self.warmup} leaves no steps of {self.steps} for {self.schedule}")
        if self.decay_steps is not None and self.schedule != "stable_decay":
            raise ValueError(f"decay_steps={self.decay_steps} is of schedule=stable_decay, not of {self.schedule}")
        if self.decay_steps is not None and self.warmup + self.decay_steps > self.steps:
            raise ValueError(f"warmup={self.warmup} and decay_steps={self.decay_steps}: more than steps={self.steps}")
        if self.parallel.reduce == "bf16" and self.precision == "fp32":
            raise ValueError("parallel.reduce=bf16 needs precision=bf16")
        if self.ema_snapshots is not None and not self.ema_power:
            raise ValueError(f"ema_snapshots={self.ema_snapshots} stores averages of ema_power, and there are none")
        if len(set(self.averages)) < len(self.averages) or len(set(self.ema_power)) < len(self.ema_power):
            raise ValueError("ema, ema_also and ema_power: one of the averages is asked for twice")
        return self

    @property
    def averages(self) -> tuple[float, ...]:
        """The decays of all exponential averages; the first is the one that is sampled."""
        return (self.ema, *self.ema_also)
