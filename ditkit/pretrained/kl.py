"""diffusers' AutoencoderKL as a Codec: Stable Diffusion's VAE (4 channels, factor 8), SD3's (16) and relatives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ditkit.pretrained.autoencoder import check_complete, fitted, read_autoencoder
from ditkit.pretrained.codec import Affine, denormalise, normalise, sample_posterior
from ditkit.pretrained.hub import check_there
from ditkit.pretrained.identity import weight_hash
from ditkit.pretrained.kl_file import SD, read_kl_file
from ditkit.pretrained.missing import PretrainedMissing, optional

Posterior = Literal["sample", "mean"]


class KLCodec:
    """A frozen AutoencoderKL. Moments are mean and standard deviation; sampling applies shift and scale, once.

    scale and shift: None takes the file's own (SD's ft-mse and ft-ema: 0.18215 and 0, as DiT, SiT and REPA use;
    SD3's: 1.5305 and 0.0609; FLUX's: 0.3611 and 0.1159). posterior "mean": there is nothing to draw: moments are the
    means alone, (B, channels, h, w), and the id says so.
    """

    def __init__(
        self, vae: Any, scale: Affine | None = None, shift: Affine | None = None, posterior: Posterior = "sample"
    ):
        self.vae = vae.eval().requires_grad_(False)
        config = vae.config
        self.channels: int = config.latent_channels
        self.factor: int = 2 ** (len(config.block_out_channels) - 1)
        own = affine_of(config)
        self.scale = own[0] if scale is None else scale
        self.shift = own[1] if shift is None else shift
        self.posterior = posterior
        self.id = f"kl-{weight_hash(vae.state_dict())}{'-mean' if posterior == 'mean' else ''}"

    def to(self, device: torch.device | str) -> KLCodec:
        """Move the network; inputs are moved to it when called."""
        self.vae.to(device)
        return self

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3 or 1, H, W) in [-1, 1], H and W multiples of `factor` -> mean and std (B, 2 channels, h, w)."""
        images = fitted(images, self.vae, self.vae.config.in_channels, self.factor)
        posterior = self.vae.encode(images).latent_dist  # clamps log-variance to [-30, 20]
        if self.posterior == "mean":
            return posterior.mean
        return torch.cat((posterior.mean, posterior.std), dim=1)

    def sample(self, moments: Tensor, noise: Tensor | None) -> Tensor:
        """Moments -> normalised latents (B, channels, h, w): posterior sample for given noise, else its mean."""
        if self.posterior == "mean":
            return normalise(moments, self.scale, self.shift)
        return sample_posterior(moments, noise, self.scale, self.shift)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents -> images (B, 3, H, W), about [-1, 1], not clipped."""
        latents = denormalise(latents, self.scale, self.shift)
        return self.vae.decode(latents.to(self.vae.device, self.vae.dtype)).sample


def affine_of(config: Mapping[str, Any]) -> tuple[Affine, Affine]:
    """(scale, shift) of a diffusers config: one number each, or a tuple per channel where it holds latents_mean and
    latents_std.

    Those mean (z - mean) / std, times scaling_factor (diffusers' SDXL pipeline on Playground's VAE); where that is
    AutoencoderKL's default 0.18215, nobody set it (its GLM-Image pipeline does not look at it).
    """
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        return config["scaling_factor"], config.get("shift_factor") or 0.0
    scale = 1.0 if config["scaling_factor"] == SD[0] else config["scaling_factor"]
    return tuple(scale / value for value in std), tuple(mean)


def load_kl(
    source: str, scale: Affine | None = None, shift: Affine | None = None, posterior: Posterior = "sample"
) -> KLCodec:
    """From a hub id, a local folder or a .safetensors file; of a whole pipeline or SD3 file the VAE is taken.

    A file whose VAE cannot be told from its channels (16 are SD3's and others') needs scale and shift.
    """
    what = f"codec {source!r}"
    check_there(source, what)
    path = Path(source).expanduser()
    if path.is_file():
        vae = _read_file(optional("diffusers", what, source).AutoencoderKL, path, what, None in (scale, shift))
    else:
        vae = read_autoencoder("AutoencoderKL", source, what)
    return KLCodec(vae, scale, shift, posterior)


def _read_file(cls: Any, path: Path, what: str, open_affine: bool) -> Any:
    config, state = read_kl_file(path, what)
    if "scaling_factor" not in config and open_affine:
        reason = f"{path.name} does not say whose VAE of {config['latent_channels']} channels it is: set codec.scale "
        reason += "and codec.shift (SD3's are 1.5305 and 0.0609, FLUX's 0.3611 and 0.1159)"
        raise PretrainedMissing(what, reason)
    vae = cls(**config)
    try:
        found = vae.load_state_dict(state, strict=False)
    except RuntimeError as error:  # sizes that do not fit each other
        raise PretrainedMissing(what, f"{path.name}: {str(error).splitlines()[-1].strip()[:200]}") from error
    check_complete(found.missing_keys, what)
    if found.unexpected_keys:
        raise PretrainedMissing(what, f"unknown tensors in its VAE: {', '.join(sorted(found.unexpected_keys)[:3])} ...")
    return vae
