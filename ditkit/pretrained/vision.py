"""Published vision teachers through transformers, with REPA's preprocessing, features and position tables.

The blocks are transformers'; the embedding in front of them is ours, because what transformers does there is not what
REPA did: positions are resampled with antialias (position.py), and MAE masks (and shuffles!) nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ditkit.pretrained.hub import check_there, fetch, is_local, quiet
from ditkit.pretrained.identity import weight_hash
from ditkit.pretrained.missing import PretrainedMissing, optional
from ditkit.pretrained.position import resample_positions
from ditkit.pretrained.preprocess import HALF, IMAGENET, OPENAI, Preprocess, published_grid
from ditkit.pretrained.vit_file import read_vit_file
from ditkit.protocols import Features

FIRST_NORMALISED = Preprocess(*IMAGENET)


@dataclass(frozen=True)
class Family:
    """What is particular to one kind of teacher."""

    loader: str  # transformers class
    types: tuple[str, ...]  # model_type of config.json
    source: str  # published weights: a hub id, or "" where only a file exists
    preprocess: Preprocess = FIRST_NORMALISED
    final_norm: bool = True  # whether the features come after the last LayerNorm
    epsilon: float | None = None  # of all LayerNorms where the hub's config differs from the published code
    arguments: tuple[tuple[str, Any], ...] = ()  # of the loader


FAMILIES = {
    "dinov2": Family("Dinov2Model", ("dinov2",), "facebook/dinov2-base"),
    "dinov2_reg": Family("Dinov2WithRegistersModel", ("dinov2_with_registers",), "facebook/dinov2-with-registers-base"),
    "dinov1": Family(
        "ViTModel", ("vit",), "facebook/dino-vitb16", epsilon=1e-6, arguments=(("add_pooling_layer", False),)
    ),
    "mocov3": Family("ViTModel", ("vit",), "", epsilon=1e-6, arguments=(("add_pooling_layer", False),)),
    "mae": Family("ViTMAEModel", ("vit_mae",), "facebook/vit-mae-large", final_norm=False, epsilon=1e-6),
    "clip": Family(
        "CLIPVisionModel",
        ("clip", "clip_vision_model"),
        "openai/clip-vit-large-patch14",
        preprocess=Preprocess(*OPENAI, normalise_first=False),
        final_norm=False,  # the last block's output: no ln_post, no projection
    ),
    # SigLIP is in the paper only: its preprocessing (scaled, then to [-1, 1]) and the final norm are ours.
    "siglip": Family(
        "SiglipVisionModel",
        ("siglip", "siglip_vision_model"),
        "google/siglip-large-patch16-256",
        preprocess=Preprocess(*HALF, normalise_first=False),
        arguments=(("vision_use_head", False),),
    ),
    "ijepa": Family("IJepaModel", ("ijepa",), "facebook/ijepa_vith14_1k", epsilon=1e-6),
}


class Embedding(nn.Module):
    """Patches, class token, registers and resampled positions, in place of a transformers embedding module.

    (B, 3, rows * patch, columns * patch) -> (B, prefix + rows * columns, D). Attributes keep their foreign names
    where the foreign model reads them.
    """

    def __init__(self, original: nn.Module):
        super().__init__()
        patches = _first(original, "patch_embeddings", "patch_embedding")
        self.patch_embeddings = patches
        self.project = getattr(patches, "projection", patches)  # the convolution
        self.class_token = _first(original, "cls_token", "class_embedding")
        self.registers = _first(original, "register_tokens")
        table = _first(original, "position_embeddings", "position_embedding")
        self.table = table if isinstance(table, Tensor) else table.weight
        self.masks = hasattr(original, "random_masking")  # MAE's returns (tokens, mask, order)
        self.patch: int = self.project.kernel_size[0]

    @property
    def prefix(self) -> int:
        """Tokens in front of the patches."""
        return (self.class_token is not None) + (self.registers.shape[1] if self.registers is not None else 0)

    def forward(self, pixel_values: Tensor, *_, **__) -> Tensor | tuple[Tensor, None, None]:
        patches = self.project(pixel_values)
        grid = patches.shape[2], patches.shape[3]
        width = patches.shape[1]
        classes = 0 if self.class_token is None else 1
        table = resample_positions(self.table.reshape(1, -1, width), grid, prefix=classes)
        tokens = patches.flatten(2).transpose(1, 2) + table[:, classes:]
        parts = [tokens]
        if self.registers is not None:  # registers have no position
            parts.insert(0, self.registers)
        if self.class_token is not None:
            parts.insert(0, self.class_token.reshape(1, 1, width) + table[:, :1])
        tokens = torch.cat([part.to(tokens.dtype).expand(len(tokens), -1, -1) for part in parts], dim=1)
        return (tokens, None, None) if self.masks else tokens


def _first(module: nn.Module, *names: str) -> Any:
    """The first of these attributes that the module has, else None."""
    return next((getattr(module, name) for name in names if getattr(module, name, None) is not None), None)


class VisionTeacher:
    """Extractor around a published network. Tokens are REPA's targets; pooled is the class token, else the mean."""

    def __init__(self, model: nn.Module, kind: str):
        self.family, self.kind = FAMILIES[kind], kind
        self.id = f"{kind}-{weight_hash(model.state_dict())}"
        inner: Any = getattr(model, "vision_model", model)  # CLIP and SigLIP in older transformers
        inner.embeddings = self.embedding = Embedding(inner.embeddings)
        if not self.family.final_norm and hasattr(inner, "layernorm"):
            inner.layernorm = nn.Identity()
        for module in model.modules():
            if isinstance(module, nn.LayerNorm) and self.family.epsilon is not None:
                module.eps = self.family.epsilon
        self.model = model.eval().requires_grad_(False)
        self.width: int = self.embedding.project.out_channels

    def to(self, device: torch.device | str) -> VisionTeacher:
        """Move the network; images are moved to it when called."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor, *, grid: tuple[int, int] | None = None) -> Features:
        """(B, 1 or 3, H, W) uint8 -> Features on `grid` (rows, columns); None: 16x16, and 32x32 from 512 pixels on."""
        return self.see(images, grid=grid)

    def see(self, images: Tensor, *, grid: tuple[int, int] | None = None) -> Features:
        """The same, and of float images in [0, 1] with a gradient to the images."""
        rows, columns = grid or published_grid((images.shape[2], images.shape[3]))
        patch, prefix = self.embedding.patch, self.embedding.prefix
        pixels = self.family.preprocess(images.to(self.embedding.table.device), (rows * patch, columns * patch))
        out = self.model(pixel_values=pixels).last_hidden_state.float()
        tokens = out[:, prefix:]
        pooled = tokens.mean(1) if self.embedding.class_token is None else out[:, 0]
        return Features(tokens, pooled, (rows, columns))


def load_vision(kind: str, source: str = "") -> VisionTeacher:
    """From a hub id, a local folder, or (MoCo-v3, DINOv1, MAE, I-JEPA) the published .pth file."""
    family = FAMILIES[kind]
    source = source or family.source
    what = f"teacher {kind} ({source})" if source else f"teacher {kind}"
    if not source:
        raise PretrainedMissing(what, "it was published as a file: give its path, --teacher mocov3:FILE")
    check_there(source, what)
    transformers = optional("transformers", what, source)
    loader = getattr(transformers, family.loader)
    arguments = dict(family.arguments)
    head = arguments.pop("vision_use_head", None)

    def load(place: str, local_files_only: bool) -> VisionTeacher:
        config = transformers.AutoConfig.from_pretrained(place, local_files_only=local_files_only)
        if config.model_type not in family.types:
            raise ValueError(f"it is a {config.model_type} model, not {kind}")
        config = getattr(config, "vision_config", config)
        if head is not None:
            config.vision_use_head = head  # the pooling head is not used
        model, info = loader.from_pretrained(
            place, config=config, local_files_only=local_files_only, output_loading_info=True, **arguments
        )
        return VisionTeacher(_complete(model, info), kind)

    with quiet():
        if is_local(source) and Path(source).expanduser().is_file():
            config, state = read_vit_file(source, kind, what)
            model, info = loader.from_pretrained(
                None, config=loader.config_class(**config), state_dict=state, output_loading_info=True, **arguments
            )
            return VisionTeacher(_complete(model, info), kind)
        return fetch(load, source, what)


def _complete(model: nn.Module, info: dict) -> nn.Module:
    """A tensor that the file lacks would stay random, silently: refuse."""
    if info["missing_keys"]:
        raise ValueError(f"weights are missing: {', '.join(sorted(info['missing_keys'])[:3])} ...")
    return model
