"""What all of diffusers' autoencoders share: reading one from a folder or the hub, and codecs without a posterior."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditkit.pretrained.codec import Affine, denormalise, normalise
from ditkit.pretrained.hub import check_there, fetch, is_local
from ditkit.pretrained.identity import weight_hash
from ditkit.pretrained.missing import PretrainedMissing, optional

# diffusers' classes -> our kinds of codecs
KINDS = {"AutoencoderKL": "kl", "AutoencoderTiny": "tiny", "AutoencoderDC": "dc", "AutoencoderRAE": "rae"}
CONFIG = "config.json"


class PlainCodec:
    """A frozen autoencoder without posterior: moments are the latents themselves, (B, channels, h, w).

    One class a kind says how its network encodes and decodes; scale and shift are diffusers' (latent - shift) * scale.
    """

    def __init__(self, kind: str, vae: Any, shape: tuple[int, int], scale: Affine, shift: Affine):
        self.vae = vae.eval().requires_grad_(False)
        self.channels, self.factor = shape
        self.scale, self.shift = scale, shift
        self.id = f"{kind}-{weight_hash(vae.state_dict())}"

    def to(self, device: torch.device | str):
        """Move the network; inputs are moved to it when called."""
        self.vae.to(device)
        return self

    def sample(self, moments: Tensor, noise: Tensor | None) -> Tensor:
        """Latents -> normalised latents; there is no posterior, noise is ignored."""
        return normalise(moments, self.scale, self.shift)

    def raw(self, latents: Tensor) -> Tensor:
        """Normalised latents -> the network's own, where it is and in its precision."""
        return denormalise(latents, self.scale, self.shift).to(self.vae.device, self.vae.dtype)


def fitted(images: Tensor, vae: Any, channels: int, factor: int) -> Tensor:
    """Images in [-1, 1] where the network is; grey ones repeated, or colours averaged for a grey network.

    ValueError for sides that are no multiples of `factor`.
    """
    height, width = images.shape[2:]
    if height % factor or width % factor:
        raise ValueError(f"codec: {height}x{width} images; both sides must be multiples of {factor}")
    images = images.to(vae.device, vae.dtype)
    if images.shape[1] > channels == 1:
        images = images.mean(1, keepdim=True)
    return images.expand(-1, channels, -1, -1)


def read_config(folder: Path) -> Mapping[str, Any]:
    """config.json of a folder, or of the "vae" in a pipeline's folder; empty where there is none or it is damaged."""
    for place in (folder / CONFIG, folder / "vae" / CONFIG):
        if place.is_file():
            try:
                found = json.loads(place.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                return {}
            return found if isinstance(found, dict) else {}
    return {}


def kind_of_source(source: str) -> str | None:
    """The kind of codec in a folder, or in a hub id's files on this machine, by their config.json; None: not told."""
    place = Path(source).expanduser()
    if not is_local(source):
        try:
            from huggingface_hub import try_to_load_from_cache
        except ImportError:
            return None
        try:
            found = [try_to_load_from_cache(source, name) for name in (CONFIG, f"vae/{CONFIG}")]
        except ValueError:  # no possible name of a repository
            return None
        place = next((Path(path).parent for path in found if isinstance(path, str)), place)
    name = read_config(place).get("_class_name") if place.is_dir() else None
    return KINDS.get(name) if isinstance(name, str) else None


def read_autoencoder(name: str, source: str, what: str) -> Any:
    """diffusers' class `name`, in float32 and whole, from a folder or hub id; of a pipeline its "vae".

    PretrainedMissing, one line: not there, another class's files, missing weights, or diffusers without that class.
    """
    check_there(source, what)
    diffusers = optional("diffusers", what, source)
    if not hasattr(diffusers, name):
        raise PretrainedMissing(what, f"diffusers {diffusers.__version__} has no {name}; a newer one has")
    cls = getattr(diffusers, name)
    path = Path(source).expanduser()
    if is_local(source):
        _check_class(read_config(path).get("_class_name"), name, source, what)
    inside = is_local(source) and not (path / CONFIG).is_file() and (path / "vae" / CONFIG).is_file()

    def read(place: str, local: bool, arguments: dict[str, Any]) -> Any:
        config = cls.load_config(place, local_files_only=local, **arguments)
        _check_class(config.get("_class_name"), name, source, what)
        vae, info = cls.from_pretrained(
            place, local_files_only=local, output_loading_info=True, torch_dtype=torch.float32, **arguments
        )
        check_complete(info["missing_keys"], what)
        return vae

    def load(place: str, local_files_only: bool) -> Any:
        try:
            return read(place, local_files_only, {"subfolder": "vae"} if inside else {})
        except OSError as error:  # a hub id may be that of a whole pipeline
            if inside or is_local(source):
                raise
            try:
                return read(place, local_files_only, {"subfolder": "vae"})
            except OSError:
                raise error from None

    return fetch(load, source, what)


def check_complete(missing: Sequence[str] | set[str], what: str) -> None:
    """PretrainedMissing where weights are: diffusers would leave them random."""
    if missing:
        raise PretrainedMissing(what, f"weights are missing: {', '.join(sorted(missing)[:3])} ...")


def _check_class(found: object, name: str, source: str, what: str) -> None:
    if found is None or found == name:
        return
    way = f"; write {KINDS[found]}:{source}" if isinstance(found, str) and found in KINDS else ""
    raise PretrainedMissing(what, f"it holds an {found}, not an {name}{way}")
