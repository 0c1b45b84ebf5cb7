"""diffusers' AutoencoderKL as a Codec: Stable Diffusion's VAE (4 channels, factor 8), SD3's (16) and relatives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditkit.pretrained.codec import Affine, denormalise, sample_posterior
from ditkit.pretrained.hub import check_there, fetch, is_local
from ditkit.pretrained.identity import weight_hash
from ditkit.pretrained.kl_file import read_kl_file
from ditkit.pretrained.missing import PretrainedMissing, optional


class KLCodec:
    """A frozen AutoencoderKL. Moments are mean and standard deviation; sampling applies shift and scale, once.

    scale and shift: None takes the file's own (SD's ft-mse and ft-ema: 0.18215 and 0, as DiT, SiT and REPA use;
    SD3's: 1.5305 and 0.0609).
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
    """From a hub id, a local folder or a .safetensors file; of a whole pipeline or SD3 file the VAE is taken.

    A file whose VAE cannot be told from its channels (16 are SD3's and others') needs scale and shift.
    """
    what = f"codec {source!r}"
    check_there(source, what)
    diffusers = optional("diffusers", what, source)
    path = Path(source).expanduser()
    if path.is_file():
        return _load_file(diffusers.AutoencoderKL, path, what, (scale, shift))
    inside = is_local(source) and not (path / "config.json").is_file() and (path / "vae" / "config.json").is_file()

    def read(place: str, local: bool, arguments: dict[str, Any]) -> tuple[Any, dict]:
        return diffusers.AutoencoderKL.from_pretrained(
            place, local_files_only=local, output_loading_info=True, torch_dtype=torch.float32, **arguments
        )

    def load(place: str, local_files_only: bool) -> KLCodec:
        try:
            vae, info = read(place, local_files_only, {"subfolder": "vae"} if inside else {})
        except OSError as error:  # a hub id may be that of a whole pipeline
            if inside or is_local(source):
                raise
            try:
                vae, info = read(place, local_files_only, {"subfolder": "vae"})
            except OSError:
                raise error from None
        _complete(info["missing_keys"], what)
        return KLCodec(vae, scale, shift)

    return fetch(load, source, what)


def _load_file(cls: Any, path: Path, what: str, affine: tuple[Affine | None, Affine | None]) -> KLCodec:
    config, state = read_kl_file(path, what)
    if "scaling_factor" not in config and None in affine:
        reason = f"{path.name} does not say whose VAE of {config['latent_channels']} channels it is: set codec.scale "
        raise PretrainedMissing(what, reason + "and codec.shift (SD3's are 1.5305 and 0.0609)")
    vae = cls(**config)
    try:
        found = vae.load_state_dict(state, strict=False)
    except RuntimeError as error:  # sizes that do not fit each other
        raise PretrainedMissing(what, f"{path.name}: {str(error).splitlines()[-1].strip()[:200]}") from error
    _complete(found.missing_keys, what)
    if found.unexpected_keys:
        raise PretrainedMissing(what, f"unknown tensors in its VAE: {', '.join(sorted(found.unexpected_keys)[:3])} ...")
    return KLCodec(vae, *affine)


def _complete(missing: Sequence[str] | set[str], what: str) -> None:
    if missing:
        raise PretrainedMissing(what, f"weights are missing: {', '.join(sorted(missing)[:3])} ...")
