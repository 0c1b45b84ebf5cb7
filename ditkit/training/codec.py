"""Train a small KL autoencoder on one's own images: the second half of latent diffusion (arXiv 2112.10752).

While it trains, the folder holds checkpoints; the same call goes on from the newest whole one and ends with the same
bits as an unbroken run. Draws are keyed by (seed, step, row) and the order of the images by the seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditkit.data import Loader, to_float
from ditkit.diffusion import BatchNoise
from ditkit.pretrained.missing import optional
from ditkit.protocols import BadImage, Source
from ditkit.training import checkpoint
from ditkit.training.codec_loss import SeeingTeacher, feature_distance, kl_divergence, reconstruction
from ditkit.training.codec_settings import CodecTraining
from ditkit.training.ema import Ema
from ditkit.training.files import prepare
from ditkit.training.guard import Interrupted, Stop
from ditkit.training.log import Log, Meter
from ditkit.training.optim import gradient_norm, learning_rate, set_rate
from ditkit.training.settings import TrainSettings

Progress = Callable[[int, dict[str, float]], None]
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's


@dataclass
class CodecState:
    """A training at one moment: the network, its average, the optimizer, sums of the next row, steps done."""

    settings: CodecTraining
    vae: Any  # AutoencoderKL
    average: Ema
    optimizer: torch.optim.AdamW
    meter: Meter
    step: int = 0

    @classmethod
    def fresh(cls, settings: CodecTraining, device: torch.device) -> CodecState:
        """Before the first step."""
        vae = new_network(settings).to(device).train()
        optimizer = torch.optim.AdamW(vae.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
        return cls(settings, vae, Ema(vae, settings.ema), optimizer, Meter())

    def save(self, folder: Path) -> None:
        """Write a checkpoint and remove the ones before. SaveError on a full disk."""
        moments = {
            f"{key}.{name}": self.optimizer.state[parameter][key]
            for name, parameter in self.vae.named_parameters()
            for key in MOMENTS
        }
        files = {"model": self.vae.state_dict(), "ema": self.average.model.state_dict(), "optimizer": moments}
        checkpoint.write(folder, self.step, files, {"meter": {"steps": self.meter.steps, "sums": self.meter.sums}})
        checkpoint.prune(folder, 1)

    def restore(self, folder: Path, say: Callable[[str], None]) -> None:
        """Become the state of the newest whole checkpoint, if there is one. CheckpointError if all are damaged."""
        found = checkpoint.latest(folder, say)
        if found is None:
            return
        self.step, numbers = found
        self.vae.load_state_dict(checkpoint.read_tensors(folder, self.step, "model"))
        self.average.model.load_state_dict(checkpoint.read_tensors(folder, self.step, "ema"))
        moments = checkpoint.read_tensors(folder, self.step, "optimizer")
        for name, parameter in self.vae.named_parameters():
            own = {key: moments[f"{key}.{name}"].clone() for key in MOMENTS}
            self.optimizer.state[parameter] = {k: v if k == "step" else v.to(parameter.device) for k, v in own.items()}
        self.meter = Meter(**numbers["meter"])


def new_network(settings: CodecTraining) -> Any:
    """diffusers' AutoencoderKL of these settings, its weights drawn from the seed; PretrainedMissing without it."""
    cls = optional("diffusers", "codec of your own").AutoencoderKL
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return cls(**settings.network())


def train_codec(
    source: Source, settings: CodecTraining, folder: Path, *, teacher: SeeingTeacher | None = None,
    device: torch.device | str = "cpu", progress: Progress | None = None, say: Callable[[str], None] | None = None,
) -> Any:  # fmt: skip
    """Train on all images of `source` (RGB) in `folder` and return the AutoencoderKL with averaged weights.

    progress(step, {"loss", "loss_pixels", "loss_kl", ...}) after each step; say gets lines for a user. Ctrl-C and
    SIGTERM save and raise Interrupted; the same call goes on. FloatingPointError where the loss is no number.
    """
    device, say = torch.device(device), say or (lambda text: None)
    prepare(folder)
    state = CodecState.fresh(settings, device)
    state.restore(folder, say)
    log = Log(folder)
    log.rewind(state.step)
    if state.step:
        say(f"going on from step {state.step}")
    warmup = min(settings.warmup, settings.steps // 10)
    rates = TrainSettings(steps=settings.steps, lr=settings.lr, warmup=warmup, schedule="cosine")
    loader = Loader(
        source, settings.batch, settings.seed, start_step=state.step, workers=settings.workers, flip=settings.flip,
        rejects=folder / "rejects.jsonl",
    )  # fmt: skip
    with Stop() as stop:
        batches = iter(loader)
        while state.step < settings.steps:
            set_rate(state.optimizer, learning_rate(rates, state.step))
            values = one_step(state, next(batches).images, teacher, device)
            state.meter.add(values)
            if state.step % settings.log_every == 0 or state.step == settings.steps:
                log.row({"step": state.step, **state.meter.take()})
            if progress:
                progress(state.step, values)
            if stop.signal or state.step % settings.save_every == 0 or state.step == settings.steps:
                state.save(folder)
            if stop.signal:
                raise Interrupted(f"saved at step {state.step}; the same command goes on", 128 + stop.signal)
    return state.average.model.eval()


def one_step(
    state: CodecState, images: Tensor, teacher: SeeingTeacher | None, device: torch.device
) -> dict[str, float]:
    """One update on uint8 images (B, 3, H, W); the values of its loss, each before its weight."""
    s = state.settings
    x = to_float(images.to(device, non_blocking=True))
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=s.precision == "bf16"):
        posterior = state.vae.encode(x).latent_dist
        noise = BatchNoise(s.seed, state.step, len(x), device=device).normal("posterior", tuple(posterior.mean.shape))
        decoded = state.vae.decode(posterior.mean + posterior.std * noise).sample
    terms = {
        "pixels": (1.0, reconstruction(x, decoded, s.loss)),
        "kl": (s.kl_weight, kl_divergence(posterior.mean, posterior.logvar, x.numel())),
    }
    if teacher is not None and s.feature_weight:
        terms["features"] = (s.feature_weight, feature_distance(teacher, x, decoded))
    loss = sum(weight * value for weight, value in terms.values())
    assert isinstance(loss, Tensor)
    values = torch.stack([loss, *(value for _, value in terms.values())]).tolist()
    if not math.isfinite(values[0]):
        raise FloatingPointError(f"codec: the loss is {values[0]} at step {state.step + 1}; lower lr")
    loss.backward()
    gradient_norm(state.vae.parameters(), s.clip)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    state.average.decay = min(s.ema, state.step / (state.step + 9))  # early on an average of what there was so far
    state.average.update(state.vae)
    return dict(zip(("loss", *(f"loss_{name}" for name in terms)), values, strict=True))


@torch.no_grad()
def measure(
    vae: Any, source: Source, settings: CodecTraining, bar: Callable[[int, int], None] | None = None
) -> tuple[Tensor, Tensor]:
    """(mean, standard deviation) a channel, float64 (channels,), of the latents of up to `statistics` images.

    Of draws of the posterior, in closed form: their variance is that of the means plus the mean variance. The images
    are spread evenly over the source; bar(done, total).
    """
    total = min(settings.statistics, len(source))
    sums, count = torch.zeros(3, settings.channels, dtype=torch.float64), 0
    device = next(vae.parameters()).device
    for start in range(0, total, settings.batch):
        found = (_image(source, i * len(source) // total) for i in range(start, min(start + settings.batch, total)))
        images = [image for image in found if image is not None]
        if images:
            posterior = vae.encode(to_float(torch.stack(images).to(device))).latent_dist
            moments = posterior.mean.double(), posterior.mean.double().square(), posterior.var.double()
            sums += torch.stack([m.sum((0, 2, 3)).cpu() for m in moments])
            count += posterior.mean[:, 0].numel()
        if bar:
            bar(min(start + settings.batch, total), total)
    if not count:
        raise ValueError(f"codec: none of the {total} images can be used")
    mean, square, noise = sums / count
    return mean, (square - mean.square() + noise).clamp(min=1e-12).sqrt()


def pooled(mean: Tensor, std: Tensor) -> tuple[float, float]:
    """(mean, standard deviation) of all channels together, from each channel's."""
    together = mean.mean()
    return together.item(), ((std.square() + mean.square()).mean() - together.square()).sqrt().item()


def _image(source: Source, index: int) -> Tensor | None:
    try:
        return source[index].image
    except BadImage:
        return None
