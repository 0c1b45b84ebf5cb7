"""Tiny random stand-ins of every frozen network: no download, no training, the same for the same seed."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ditkit.pretrained.codec import denormalise, sample_posterior
from ditkit.pretrained.preprocess import in_unit_range
from ditkit.pretrained.tokens import quoted
from ditkit.protocols import Condition, Features, Part


def _normal(shape: tuple[int, ...], *key: int) -> Tensor:
    seed = zlib.crc32(repr(key).encode())
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class ToyCodec:
    """Each 2x2 patch turned by a fixed rotation: invertible, so decode(sample(encode(x), None)) == x; std 0.05."""

    factor = 2
    scale = 0.8
    shift = 0.1
    std = 0.05

    def __init__(self, image_channels: int = 3, seed: int = 0):
        self.channels = 4 * image_channels
        self.id = f"toy-codec-{image_channels}-{seed}"
        self._turn = torch.linalg.qr(_normal((self.channels, self.channels), seed, 1))[0]

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> mean and std (B, 8C, H/2, W/2)."""
        turn = self._turn.to(images)
        mean = torch.einsum("dc,bchw->bdhw", turn, F.pixel_unshuffle(images, 2))
        return torch.cat((mean, torch.full_like(mean, self.std)), dim=1)

    def sample(self, moments: Tensor, noise: Tensor | None) -> Tensor:
        """Moments -> normalised latents (B, 4C, H/2, W/2)."""
        return sample_posterior(moments, noise, self.scale, self.shift)

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents -> images (B, C, H, W)."""
        mean = denormalise(latents, self.scale, self.shift)
        return F.pixel_shuffle(torch.einsum("dc,bdhw->bchw", self._turn.to(latents), mean), 2)


class ToyExtractor:
    """The mean colour of each cell of a grid through a fixed random linear map and a sine."""

    def __init__(self, width: int = 16, grid: tuple[int, int] = (4, 4), seed: int = 0):
        self.width, self.grid = width, grid
        self.id = f"toy-extractor-{width}-{grid[0]}x{grid[1]}-{seed}"
        self._map = _normal((3, width), seed, 2)

    @torch.no_grad()
    def __call__(self, images: Tensor, *, grid: tuple[int, int] | None = None) -> Features:
        """(B, 1 or 3, H, W) uint8 -> Features on `grid` (its own by default)."""
        return self.see(images, grid=grid)

    def see(self, images: Tensor, *, grid: tuple[int, int] | None = None) -> Features:
        """The same, and of float images in [0, 1] with a gradient to the images."""
        grid = grid or self.grid
        colours = in_unit_range(images).expand(-1, 3, -1, -1)
        cells = F.adaptive_avg_pool2d(colours, grid).flatten(2).transpose(1, 2)
        tokens = torch.sin(3 * cells @ self._map.to(cells))
        return Features(tokens, tokens.mean(1), grid)


class ToyTextEncoder:
    """A frozen random vector for each word plus sinusoid positions; pooled = sum / sqrt(words).

    Two encoders in one, as far as dropping goes: "words" makes the tokens, "bag" the pooled vector.
    ordered False: words in alphabetical order without positions, so that only which words there are is known.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, width: int = 48, length: int = 16, seed: int = 0, *, ordered: bool = True):
        self.width, self.pooled_width, self.length, self.seed, self.ordered = width, width, length, seed, ordered
        self.parts = (Part("words", (0, length), (0, width)), Part("bag", pooled=(0, width)))
        self.id = f"toy-text-{width}-{length}-{seed}{'' if ordered else '-unordered'}"
        steps = torch.arange(length)[:, None] / 100.0 ** (torch.arange(width // 2) / (width // 2))
        self._positions = torch.cat((steps.sin(), steps.cos()), dim=1) if ordered else torch.zeros(length, width)
        self.device = torch.device("cpu")
        self._told: set[str] = set()

    def to(self, device: torch.device | str) -> ToyTextEncoder:
        """Conditions come out on `device`."""
        self.device = torch.device(device)
        return self

    def _word(self, word: str) -> Tensor:
        return _normal((self.width,), self.seed, 3, zlib.crc32(word.lower().encode("utf-8", "surrogatepass")))

    def read(self, prompt: str) -> list[str]:
        """The words of a prompt that are read, in their order; a UserWarning, once a prompt, tells what is not."""
        words = prompt.split()
        if (cut := " ".join(words[self.length :])) and prompt not in self._told:
            self._told.add(prompt)
            text = (
                f"a prompt is longer than the {self.length} words of the toy encoder, which does not see: {quoted(cut)}"
            )
            warnings.warn(text, stacklevel=3)
        return words[: self.length]

    def __call__(self, prompts: Sequence[str]) -> Condition:
        """Prompts -> text (B, length, width), mask (B, length) True on words, pooled (B, width); no words: zeros."""
        text = torch.zeros(len(prompts), self.length, self.width)
        mask = torch.zeros(len(prompts), self.length, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            words = self.read(prompt)
            for column, word in enumerate(words if self.ordered else sorted(words)):
                text[row, column] = self._word(word)
                mask[row, column] = True
        pooled = text.sum(1) / mask.sum(1, keepdim=True).clamp(min=1).sqrt()
        text = (text + self._positions) * mask[..., None]
        return Condition(text=text, mask=mask, pooled=pooled, parts=self.parts).to(self.device)
