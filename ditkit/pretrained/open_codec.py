"""From settings, or the short text of a command line, to a codec."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator

from ditkit.config import Settings
from ditkit.pretrained.autoencoder import kind_of_source
from ditkit.pretrained.codec import Affine, PixelCodec
from ditkit.pretrained.deep import load_deep
from ditkit.pretrained.kl import Posterior, load_kl
from ditkit.pretrained.rae import load_rae
from ditkit.pretrained.tiny import load_tiny
from ditkit.pretrained.toy import ToyCodec
from ditkit.protocols import Codec

Kind = Literal["pixels", "kl", "tiny", "dc", "rae", "toy"]

# Short names -> (kind, published weights)
NAMES: dict[str, tuple[Kind, str]] = {
    "ft-ema": ("kl", "stabilityai/sd-vae-ft-ema"),
    "ft-mse": ("kl", "stabilityai/sd-vae-ft-mse"),
    "sd3": ("kl", "stabilityai/stable-diffusion-3-medium-diffusers"),
    "flux": ("kl", "black-forest-labs/FLUX.1-schnell"),
    "taesd": ("tiny", "madebyollin/taesd"),
    "taesdxl": ("tiny", "madebyollin/taesdxl"),
    "taesd3": ("tiny", "madebyollin/taesd3"),
    "taef1": ("tiny", "madebyollin/taef1"),
    "dc-ae-f32c32": ("dc", "mit-han-lab/dc-ae-f32c32-in-1.0-diffusers"),
    "dc-ae-f32c32-sana": ("dc", "mit-han-lab/dc-ae-f32c32-sana-1.0-diffusers"),
    "dc-ae-f64c128": ("dc", "mit-han-lab/dc-ae-f64c128-in-1.0-diffusers"),
    "dc-ae-f128c512": ("dc", "mit-han-lab/dc-ae-f128c512-in-1.0-diffusers"),
    "rae-dinov2-b": ("rae", "nyu-visionx/RAE-dinov2-wReg-base-ViTXL-n08"),
}
VAES = {name: source for name, (_, source) in NAMES.items()}
DEFAULTS = {"kl": "ft-ema", "tiny": "taesd", "dc": "dc-ae-f32c32", "rae": "rae-dinov2-b"}
NETWORKS = tuple(DEFAULTS)  # kinds with weights
LOADERS = {"tiny": load_tiny, "dc": load_deep, "rae": load_rae}


class CodecSettings(Settings):
    """Which latents a model works in."""

    kind: Kind = Field(
        "pixels",
        description="pixels, or an autoencoder: kl (AutoencoderKL), tiny (AutoencoderTiny), dc (DC-AE), rae; toy.",
    )
    source: str = Field(
        "",
        description="Hub id or folder (also a pipeline's); kl: or Stability's file. Empty: SD's ft-ema; taesd; "
        "DC-AE f32c32; RAE of DINOv2-B.",
    )
    scale: Affine | None = Field(
        None, description="Latents are multiplied by this; None: the file's own (SD 0.18215, SD3 1.5305)."
    )
    shift: Affine | None = Field(None, description="Subtracted before scaling; None: the file's own.")
    posterior: Posterior = Field(
        "sample", description="kl: a fresh draw of the latents at every visit of an image, or always their mean."
    )

    @model_validator(mode="after")
    def _check(self) -> CodecSettings:
        if self.kind not in NETWORKS and (self.source or self.scale is not None or self.shift is not None):
            raise ValueError(f"codec.kind {self.kind!r} takes no source, scale or shift; for a VAE set kind to 'kl'")
        if self.posterior == "mean" and self.kind != "kl":
            raise ValueError(
                f"codec.kind {self.kind!r} takes no posterior 'mean': "
                + ("it is for a VAE" if self.kind == "toy" else "its latents are not drawn, there is nothing to choose")
            )
        return self

    @property
    def place(self) -> str:
        """The hub id, folder or file of its weights; empty where it has none."""
        return self.source or (VAES[DEFAULTS[self.kind]] if self.kind in NETWORKS else "")

    @classmethod
    def parse(cls, text: str) -> CodecSettings:
        """'pixels', 'toy', a short name of NAMES, KIND:SOURCE, a hub id, a folder or a .safetensors file.

        Of a folder, or a hub id on this machine, config.json tells the kind; of others it is kl.
        """
        if text in ("pixels", "toy"):
            return cls(kind=text)
        if text in NAMES:
            kind, source = NAMES[text]
            return cls(kind=kind, source=source)
        named, colon, source = text.partition(":")
        if colon and named in NETWORKS:
            return cls(kind=named, source=VAES.get(source, source))  # type: ignore[arg-type]
        return cls(kind=kind_of_source(text) or "kl", source=text)  # type: ignore[arg-type]


def load_codec(spec: CodecSettings | str = "pixels", device: torch.device | str = "cpu", *, channels: int = 3) -> Codec:
    """The codec; `channels` are the images' (for pixels and toy). PretrainedMissing if it cannot be had."""
    settings = CodecSettings.parse(spec) if isinstance(spec, str) else spec
    if settings.kind == "pixels":
        return PixelCodec(channels)
    if settings.kind == "toy":
        return ToyCodec(channels)
    if settings.kind == "kl":
        return load_kl(settings.place, settings.scale, settings.shift, settings.posterior).to(device)
    return LOADERS[settings.kind](settings.place, settings.scale, settings.shift).to(device)
