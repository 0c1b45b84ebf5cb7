"""Extractors by name: what images are scored with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ditkit.pretrained.download import download, is_url
from ditkit.pretrained.hub import check_there, fetch, quiet
from ditkit.pretrained.identity import weight_hash
from ditkit.pretrained.inception import Inception
from ditkit.pretrained.inception_file import convert_inception, read_inception_file
from ditkit.pretrained.load import load_teacher
from ditkit.pretrained.missing import optional
from ditkit.pretrained.preprocess import OPENAI, Preprocess
from ditkit.protocols import Extractor, Features

# torch-fidelity's conversion of the graph, which pytorch-fid publishes too
INCEPTION = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
    "#sha256=6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
)
CLIP = "openai/clip-vit-large-patch14-336"
SUFFIXES = (".pth", ".pt", ".safetensors", ".pb", ".tgz")  # of files that may hold Inception


def load_extractor(text: str, device: torch.device | str = "cpu") -> Extractor:
    """The extractor of that name, on `device`. PretrainedMissing if it cannot be had.

    "inception": ADM's Inception, torch-fidelity's published weights, downloaded once. "inception:SOURCE": the same
    network from what `load_inception` takes. "clip" or "clip:SOURCE" (hub id, folder): CMMD's embedding, ClipEmbedding.
    Anything else: what `load_teacher` takes ("dinov2-vit-l", a `ditkit teacher` folder, "toy", KIND:SOURCE).
    """
    kind, _, source = text.partition(":")
    if kind == "inception":
        return load_inception(source, device)
    if kind == "clip":
        return load_clip(source, device)
    return load_teacher(text, device)


def load_inception(
    source: str | Path | Mapping[str, Tensor] | nn.Module = "", device: torch.device | str = "cpu"
) -> Inception:
    """ADM's Inception with the weights of `source`, in any layout of inception_file.py.

    source: a file; URL#sha256=HEX; a hub id or a folder, "org/name" where it holds one file of weights, else
    "org/name:FILE"; a state dict, or a module that has one; empty: torch-fidelity's published file.
    """
    if isinstance(source, nn.Module):
        source = source.state_dict()
    if isinstance(source, Mapping):
        return Inception(convert_inception(source)).to(device)
    text = str(source) or INCEPTION
    what = f"extractor inception ({text.partition('#')[0]})"
    return Inception(read_inception_file(_file(text, what), what)).to(device)


def _file(source: str, what: str) -> Path:
    """The file that a source names, on this machine."""
    if is_url(source):
        return download(source, what)
    path = Path(source).expanduser()
    if path.is_file():
        return path
    place, _, name = source.partition(":")

    def find(where: str, local_files_only: bool) -> Path:
        folder = where
        if not Path(where).is_dir():
            hub = optional("huggingface_hub", what, source)
            patterns = [name] if name else [f"*{suffix}" for suffix in SUFFIXES]
            folder = hub.snapshot_download(where, allow_patterns=patterns, local_files_only=local_files_only)
        found = [Path(folder) / name] if name else sorted(f for f in Path(folder).iterdir() if f.suffix in SUFFIXES)
        if len(found) > 1:
            raise ValueError(f"it holds {', '.join(f.name for f in found)}: say which, {place}:{found[0].name}")
        if not found or not found[0].is_file():
            raise FileNotFoundError(f"no {name or 'file of weights'} in {place}")
        return found[0]

    return fetch(find, place, what)


class ClipEmbedding:
    """Extractor of CMMD (Jayasumana et al. 2024): pooled is CLIP's image embedding (B, P), of length 1.

    Images are resized to the network's size (336 x 336) by `cubic`, as in the paper's code; a later port to torch
    resizes without antialias, which gives other numbers. tokens are the patches of the last block.
    """

    preprocess = Preprocess(*OPENAI, normalise_first=False)

    def __init__(self, model: Any):
        self.model = model.eval().requires_grad_(False)
        self.id = f"clip-embedding-{weight_hash(model.state_dict())}"
        self.width: int = model.config.projection_dim

    def to(self, device: torch.device | str) -> ClipEmbedding:
        """Move the network; images are moved to it when called."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """(B, 1 or 3, H, W) uint8 -> Features; grey images are repeated."""
        side, patch = self.model.config.image_size, self.model.config.patch_size
        scaled = cubic(images.to(self.model.device).float(), (side, side)).div(255)
        out = self.model(pixel_values=self.preprocess(scaled, (side, side)))
        tokens = out.last_hidden_state[:, 1:].float()
        return Features(tokens, F.normalize(out.image_embeds.float(), dim=-1), (side // patch, side // patch))


def cubic(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) float -> (B, C, *size) as jax.image.resize(method="bicubic"): Keys, with antialias; not clipped."""
    return F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)


def load_clip(source: str = "", device: torch.device | str = "cpu") -> ClipEmbedding:
    """CMMD's embedding from a hub id or a folder; empty: OpenAI's ViT-L/14 at 336 pixels, the paper's."""
    source = source or CLIP
    what = f"extractor clip ({source})"
    check_there(source, what)
    loader = optional("transformers", what, source).CLIPVisionModelWithProjection

    def load(place: str, local_files_only: bool) -> ClipEmbedding:
        model, info = loader.from_pretrained(place, local_files_only=local_files_only, output_loading_info=True)
        if info["missing_keys"]:
            raise ValueError(f"weights are missing: {', '.join(sorted(info['missing_keys'])[:3])} ...")
        return ClipEmbedding(model)

    with quiet():
        return fetch(load, source, what).to(device)
