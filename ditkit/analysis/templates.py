"""Template latents: the sampling runs along which encoder sharing is measured (DDT, section 4.3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ditkit.diffusion.guidance import CFG
from ditkit.diffusion.noise import SampleNoise, philox_uniform, stream_id
from ditkit.diffusion.path import Path
from ditkit.diffusion.prediction import Kind
from ditkit.diffusion.sample import SamplerSettings, parameters_of
from ditkit.diffusion.sharing import SharedEncoder, Sharing
from ditkit.protocols import Condition, Decoupled

STORED = 1 << 30  # bytes of s that a measurement holds at once, unless one template alone needs more


@dataclass(frozen=True)
class Templates:
    """Where measured runs begin: noise (B, C, H, W) and a condition each.

    SDE solvers draw with `seed` and the templates' numbers, which count from `first`.
    """

    noise: Tensor
    cond: Condition
    seed: int = 0
    first: int = 0

    def __post_init__(self):
        if len(self.noise) < 1 or len(self.cond) not in (0, len(self.noise)):
            raise ValueError(f"sharing: {len(self.noise)} template latents with {len(self.cond)} conditions")

    def __len__(self) -> int:
        return len(self.noise)

    def draws(self) -> SampleNoise:
        """The noise source of these templates."""
        numbers = range(self.first, self.first + len(self))
        return SampleNoise(self.seed, numbers, self.noise.shape[1:], device=self.noise.device)


def draw_templates(model: Decoupled, count: int = 8, seed: int = 0, size: tuple[int, int] | None = None) -> Templates:
    """Template latents as the paper takes them: unit Gaussian noise and random labels, at latent `size` (H, W).

    model: with `.settings` (channels, size, num_classes), as ours have; its device is used.
    """
    settings = model.settings  # type: ignore[attr-defined]
    device = next((p.device for p in parameters_of(model)), None)
    noise = SampleNoise(seed, range(count), (settings.channels, *(size or settings.size)), device=device).initial()
    if not settings.num_classes:
        return Templates(noise, Condition(), seed)
    draws = philox_uniform(seed, (stream_id("template labels"),), (count,)).double()
    return Templates(noise, Condition(label=(draws * settings.num_classes).long().to(device)), seed)


def unshared(
    model: Decoupled, sampler: SamplerSettings, path: Path, prediction: Kind
) -> tuple[SamplerSettings, Sharing]:
    """(The sampler without sharing, both branches at every evaluation; the schedule with the encoder at all of them).

    ValueError for a model without an encoder to share, or an adaptive solver.
    """
    guidance = sampler.guidance
    if isinstance(guidance, CFG):
        guidance = guidance.model_copy(update={"skip_outside": False})
    count = sampler.evaluations(path, prediction)
    everywhere = Sharing(rule="every:1", evaluations=count, encode=tuple(range(count)), keep=False)
    SharedEncoder(model, everywhere)  # refuses what cannot share
    return sampler.model_copy(update={"sharing": None, "guidance": guidance}), everywhere


def branches_of(sampler: SamplerSettings) -> int:
    """Rows of a network batch for each sample."""
    return 2 if isinstance(sampler.guidance, CFG) and sampler.guidance.scale != 1 else 1


def parts(model: Decoupled, templates: Templates, states: int, at_once: int | None) -> Iterator[Templates]:
    """The templates, `at_once` at a time; None: as many, of which `states` s each are kept, as fit `STORED` bytes."""
    if at_once is None:
        dtype = next((p.dtype for p in parameters_of(model)), torch.float32)
        x = templates.noise[:1].to(dtype)
        s = model.encode(x, torch.ones(1, device=x.device), templates.cond.index(slice(0, 1)))
        at_once = max(1, STORED // (4 * s.numel() * states))
    if at_once < 1:
        raise ValueError(f"sharing: {at_once} templates at once: give 1 or more")
    for start in range(0, len(templates), at_once):
        rows = slice(start, start + at_once)
        yield Templates(templates.noise[rows], templates.cond.index(rows), templates.seed, templates.first + start)
