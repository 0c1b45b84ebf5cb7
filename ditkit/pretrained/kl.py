"""diffusers' AutoencoderKL as a Codec: Stable Diffusion's VAE (4 channels, factor 8) and its relatives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditkit.pretrained.codec import Affine, denormalise, sample_posterior
from ditkit.pretrained.hub import check_there, fetch, is_local
from ditkit.pretrained.identity import weight_hash
from ditkit.pretrained.missing import PretrainedMissing, optional


class KLCodec:
    """A frozen AutoencoderKL. Moments are mean and standard deviation; sampling applies shift and scale, once.

    scale and shift: None takes the file's own (SD's ft-mse and ft-ema: 0.18215 and 0, as DiT, SiT and REPA use).
    """

    def __init__(self, vae: Any, scale: Affine | None = None, shift: Affine | None = None):
        self.vae = vae.eval().requires_grad_(False)
        config = vae.config
        self.channels: int = config.latent_channels
        self.factor: int = 2 ** (len(config.block_out_channels) - 1)
        self.scale = config.scaling_factor if scale is None else scale
        self.shift = (config.shift_factor or 0.0) if shift is None else shift
        self.id = f"kl-{weight_hash(vae.state_dict())}"

    def to(self, device: torch.device | str) -> KLCodec:
        """Move the network; inputs are moved to it when called."""
        self.vae.to(device)
        return self

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3 or 1, H, W) in [-1, 1], H and W multiples of `factor` -> mean and std (B, 2 channels, h, w)."""
        height, width = images.shape[2:]
        if height % self.factor or width % self.factor:
            raise ValueError(f"codec: {height}x{width} images; both sides must be multiples of {self.factor}")
        images = images.to(self.vae.device, self.vae.dtype).expand(-1, self.vae.config.in_channels, -1, -1)
        posterior = self.vae.encode(images).latent_dist  # clamps log-variance to [-30, 20]
        return torch.cat((posterior.mean, posterior.std), dim=1)

    def sample(self, moments: Tensor, noise: Tensor | None) -> Tensor:
        """Moments -> normalised latents (B, channels, h, w): posterior sample for given noise, else its mean."""
        return sample_posterior(moments, noise, self.scale, self.shift)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents -> images (B, 3, H, W), about [-1, 1], not clipped."""
        latents = denormalise(latents, self.scale, self.shift)
        return self.vae.decode(latents.to(self.vae.device, self.vae.dtype)).sample


def load_kl(source: str, scale: Affine | None = None, shift: Affine | None = None) -> KLCodec:
    """From a hub id or a local folder; the folder may be a whole pipeline, whose `vae` part is taken."""
    what = f"codec {source!r}"
    check_there(source, what)
    diffusers = optional("diffusers", what, source)
    folder = Path(source).expanduser()
    if is_local(source) and not (folder / "config.json").is_file() and (folder / "vae" / "config.json").is_file():
        source = str(folder / "vae")

    def load(place: str, local_files_only: bool) -> KLCodec:
        vae, info = diffusers.AutoencoderKL.from_pretrained(
            place, local_files_only=local_files_only, output_loading_info=True, torch_dtype=torch.float32
        )
        if info["missing_keys"]:
            raise PretrainedMissing(what, f"weights are missing: {', '.join(sorted(info['missing_keys'])[:3])} ...")
        return KLCodec(vae, scale, shift)

    return fetch(load, source, what)
