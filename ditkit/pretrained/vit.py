"""The compact ViT that users train on their own images (`ditkit teacher`), and its Extractor.

A plain pre-norm vision transformer (arXiv 2010.11929) without class token: the mean over tokens is the image.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ditkit.config import Settings
from ditkit.files import new_folder
from ditkit.nn.attention import Attention
from ditkit.nn.mlp import MLP
from ditkit.pretrained.identity import weight_hash
from ditkit.pretrained.missing import PretrainedMissing
from ditkit.pretrained.position import resample_positions
from ditkit.pretrained.preprocess import in_unit_range
from ditkit.protocols import Features

CARD, WEIGHTS = "teacher.json", "model.safetensors"


class ViTSettings(Settings):
    """Shape of the network; images of another size are scaled to grid x patch pixels."""

    channels: int = Field(1, ge=1, description="Image channels.")
    patch: int = Field(2, ge=1, description="Side of a patch in pixels.")
    grid: tuple[int, int] = Field((4, 4), description="Rows and columns of patches.")
    width: int = Field(64, ge=2, description="Token width; also the width of the features.")
    depth: int = Field(3, ge=1, description="Blocks.")
    heads: int = Field(2, ge=1, description="Attention heads.")
    mean: tuple[float, ...] = Field((0.5,), description="Mean of the images in [0, 1], per channel or one for all.")
    std: tuple[float, ...] = Field((0.5,), description="Standard deviation of the images in [0, 1], likewise.")


def vit_settings(size: tuple[int, int], channels: int, *, max_tokens: int = 256, **overrides) -> ViTSettings:
    """Sensible shape for images of `size` (H, W): at most 256 tokens, 64 up to 64 pixels (a CPU has to train it).

    8x8 -> patch 2, width 64, depth 3 (the measured recipe); 32 -> patch 4, 128, 4; 256 -> patch 16, 192, 6.
    """
    side = max(size)
    wanted = min(max_tokens, 64 if side <= 64 else 256)
    patch = next(p for p in range(2 if side <= 16 else 4, side + 1) if _count(size, p) <= wanted)
    grid = (max(1, round(size[0] / patch)), max(1, round(size[1] / patch)))
    shape = {"width": 64, "depth": 3, "heads": 2} if side <= 16 else {"width": 128, "depth": 4, "heads": 4}
    if side > 64:
        shape = {"width": 192, "depth": 6, "heads": 6}
    return ViTSettings(**({"channels": channels, "patch": patch, "grid": grid} | shape | overrides))


def _count(size: tuple[int, int], patch: int) -> int:
    return max(1, round(size[0] / patch)) * max(1, round(size[1] / patch))


class Block(nn.Module):
    """Pre-norm attention and MLP, (B, N, width) -> the same."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = Attention(width, heads), MLP(width, 4 * width)

    def forward(self, h: Tensor) -> Tensor:
        h = h + self.attention(self.norm1(h))
        return h + self.mlp(self.norm2(h))


class ViT(nn.Module):
    """Images (B, C, H, W), already standardised, H and W multiples of the patch -> tokens (B, N, width)."""

    def __init__(self, settings: ViTSettings, generator: torch.Generator | None = None):
        super().__init__()
        s = self.settings = settings
        self.patch = nn.Conv2d(s.channels, s.width, s.patch, s.patch)
        self.position = nn.Parameter(torch.zeros(1, s.grid[0] * s.grid[1], s.width))
        self.blocks = nn.ModuleList(Block(s.width, s.heads) for _ in range(s.depth))
        self.norm = nn.LayerNorm(s.width)
        self.reset(generator)

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Xavier-uniform matrices, zero biases, positions of std 0.5, all drawn from `generator`.

        Positions as strong as that because contrastive learning of small images starts from where things are: with
        the usual 0.02 the same accuracy on digits takes more than twice the steps.
        """
        nn.init.normal_(self.position, std=0.5, generator=generator)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight.flatten(1), generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch(images)
        grid = patches.shape[2], patches.shape[3]
        h = patches.flatten(2).transpose(1, 2) + resample_positions(self.position, grid, old_grid=self.settings.grid)
        for block in self.blocks:
            h = block(h)
        return self.norm(h)


def standardise(images: Tensor, settings: ViTSettings) -> Tensor:
    """(B, 1 or C, H, W) uint8, or float in [0, 1] -> zero mean and unit variance over the training images.

    Grey images are repeated for a colour network; a grey network sees the mean of the colours.
    """
    if images.shape[1] != settings.channels and {images.shape[1], settings.channels} != {1, 3}:
        raise ValueError(f"teacher: images have {images.shape[1]} channels, it was trained on {settings.channels}")
    images = in_unit_range(images)
    if images.shape[1] > settings.channels:
        images = images.mean(1, keepdim=True)
    images = images.expand(-1, settings.channels, -1, -1)
    mean, std = (torch.tensor(v, device=images.device).view(1, -1, 1, 1) for v in (settings.mean, settings.std))
    return (images - mean) / std


class SelfTaught:
    """Extractor around a ViT trained on one's own images. Tokens are those after the final norm, pooled their mean."""

    def __init__(self, network: ViT, facts: dict | None = None):
        self.network = network.eval().requires_grad_(False)
        self.settings = network.settings
        self.width = network.settings.width
        self.facts = facts or {}
        self.id = f"selftaught-{weight_hash(network.state_dict())}"

    @classmethod
    def untrained(cls, settings: ViTSettings, seed: int = 0) -> SelfTaught:
        """The same network before training: what a trained teacher must beat."""
        return cls(ViT(settings, torch.Generator().manual_seed(seed)), {"seed": seed, "steps": 0})

    def to(self, device: torch.device | str) -> SelfTaught:
        """Move the network; images are moved to it when called."""
        self.network.to(device)
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor, *, grid: tuple[int, int] | None = None) -> Features:
        """(B, 1 or C, H, W) uint8 -> Features on `grid` (rows, columns); None: the grid it was trained on."""
        return self.see(images, grid=grid)

    def see(self, images: Tensor, *, grid: tuple[int, int] | None = None) -> Features:
        """The same, and of float images in [0, 1] with a gradient to the images."""
        s = self.settings
        rows, columns = grid or s.grid
        x = standardise(images.to(self.network.position.device), s)
        size = (rows * s.patch, columns * s.patch)
        if x.shape[2:] != size:
            x = F.interpolate(x, size=size, mode="bicubic", antialias=True, align_corners=False)
        tokens = self.network(x).float()  # autocast may have made it half
        return Features(tokens, tokens.mean(1), (rows, columns))

    def save(self, folder: str | Path) -> None:
        """Write teacher.json and model.safetensors: both or, if anything goes wrong, neither (`folder` must be new)."""
        with new_folder(folder) as draft:
            self.write(draft)

    def write(self, folder: Path) -> None:
        """Write the two files into an existing folder."""
        weights = {k: v.detach().cpu().contiguous() for k, v in self.network.state_dict().items()}
        card = {"kind": "selftaught", "id": self.id, "settings": self.settings.model_dump(), "facts": self.facts}
        save_file(weights, folder / WEIGHTS)
        (folder / CARD).write_text(json.dumps(card, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> SelfTaught:
        """Read what `save` wrote; PretrainedMissing names what is wrong."""
        what = f"teacher {str(folder)!r}"
        if not Path(folder).exists():
            raise PretrainedMissing(what, "no folder of that name")
        try:
            card = json.loads((Path(folder) / CARD).read_text())
            network = ViT(ViTSettings(**card["settings"]))
            network.load_state_dict(load_file(Path(folder) / WEIGHTS))
        except FileNotFoundError as error:
            raise PretrainedMissing(what, f"no {Path(error.filename or CARD).name} there") from error
        except Exception as error:  # a damaged file fails in many ways; all mean the same to the user
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise PretrainedMissing(what, f"{CARD} or {WEIGHTS} is damaged ({reason})") from error
        return cls(network, card.get("facts")).to(device)
