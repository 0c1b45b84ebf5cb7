"""Reading checkpoint files so that no code from a file ever runs.

.safetensors hold tensors only. .pt and .ckpt are pickles: they go through torch's weights_only unpickler, which builds
tensors and plain containers; argparse.Namespace (the `args` of DiT's, SiT's and REPA's training files) is allowed
because building it runs nothing: its attributes are set, and we never look at them.
"""

from __future__ import annotations

import argparse
import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from ditkit.checkpoints.keys import listed, without_wrappers
from ditkit.checkpoints.published import CheckpointError, State

Weights = Literal["ema", "raw"]
EMA, RAW = "ema_denoiser.", "denoiser."  # the two networks of DDT's Lightning module
FOREIGN = "not a PyTorch or safetensors checkpoint"


def read(path: str | Path) -> dict[str, Any]:
    """The content of a .safetensors file, a pickled checkpoint, or a folder in diffusers' layout; tensors on the CPU.

    Raises FileNotFoundError, or CheckpointError for a file that is unsafe, damaged or holds no dictionary.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            # mmap: of a training file (weights, EMA, optimizer) only the tensors that are used are read
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: {_unsafe(str(error)) if _looks_saved(path) else FOREIGN}") from None
    except Exception as error:  # a damaged file can fail in any way
        damaged = f"not a readable checkpoint (damaged or incomplete?): {_first_line(error)}"
        raise CheckpointError(f"{path}: {damaged if _looks_saved(path) else FOREIGN}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors")
    return content


def select(content: Mapping[str, Any], weights: Weights) -> tuple[State, str]:
    """The state dict inside a checkpoint, and which copy it is: "ema", "raw", or "flat" when the file does not say.

    Training files hold `model` and `ema` (DiT, SiT, REPA) or `state_dict` (Lightning), whose keys say denoiser. and
    ema_denoiser. (DDT); a flat dict is taken as it is. Wrappers' prefixes are dropped.
    Raises CheckpointError when the wanted copy is not there, or something else than tensors is.
    """
    names = {"ema": "ema", "raw": "model"}
    if weights not in names:
        raise CheckpointError(f"weights={weights!r}: choose 'ema' or 'raw'")
    if isinstance(content.get("state_dict"), Mapping):
        state, found = content["state_dict"], "flat"
    elif any(isinstance(content.get(name), Mapping) for name in names.values()):
        state, found = content.get(names[weights]), weights
        if not isinstance(state, Mapping):
            raise CheckpointError(
                f"checkpoint holds {', '.join(content)} but no {names[weights]!r}; try the other weights="
            )
    else:
        state, found = content, "flat"
    if strange := [str(k) for k, v in state.items() if not isinstance(v, Tensor) or not isinstance(k, str)]:
        raise CheckpointError(
            f"checkpoint: not tensors: {', '.join(strange[:8])}; no known container (model, ema, state_dict)"
        )
    state = without_wrappers(state)
    return _denoiser(state, weights) if any(k.startswith((EMA, RAW)) for k in state) else (state, found)


def _denoiser(state: State, weights: Weights) -> tuple[State, str]:
    """The wanted network of a Lightning module, its prefix dropped, beside what is no network (the trainer's keys)."""
    wanted, other = (EMA, RAW) if weights == "ema" else (RAW, EMA)
    network = {k.removeprefix(wanted): v for k, v in state.items() if k.startswith(wanted)}
    if not network:
        raise CheckpointError(f"checkpoint holds keys {other}* but no {wanted}*; try the other weights=")
    rest = {k: v for k, v in state.items() if not k.startswith((EMA, RAW))}
    if twice := network.keys() & rest.keys():
        raise CheckpointError(f"checkpoint: keys are there with and without {wanted}: {listed(twice)}")
    return network | rest, weights


def _read_folder(folder: Path) -> dict[str, Any]:
    """diffusers' layout: FOLDER or FOLDER/transformer with diffusion_pytorch_model*.safetensors (or .bin)."""
    for place in (folder, folder / "transformer"):
        for suffix in ("safetensors", "bin"):
            files = sorted(place.glob(f"diffusion_pytorch_model*.{suffix}"))
            if plain := [f for f in files if f.stem == "diffusion_pytorch_model"]:
                return read(plain[0])
            if files:  # shards
                return {key: value for file in files for key, value in read(file).items()}
    raise FileNotFoundError(f"{folder}: no diffusion_pytorch_model.safetensors or .bin here or in transformer/")


def folder_shape(path: str | Path) -> dict[str, Any]:
    """What a diffusers folder's config.json tells about the shape: heads and size; {} for anything else."""
    for place in (Path(path), Path(path) / "transformer"):
        if (config := place / "config.json").is_file():
            told = json.loads(config.read_text(encoding="utf-8"))
            if told.get("_class_name") in ("DiTTransformer2DModel", "SD3Transformer2DModel"):
                side = told.get("sample_size", 32)
                return {"heads": told["num_attention_heads"], "size": (side, side)}
    return {}


def _looks_saved(path: Path) -> bool:
    """Whether the file begins as a zip or a binary pickle does, or is empty or called .safetensors; text does not."""
    with path.open("rb") as file:
        head = file.read(2)
    return path.suffix == ".safetensors" or head[:1] in (b"\x80", b"") or head == b"PK"


def _unsafe(message: str) -> str:
    """torch's long message (which advises to switch the guard off) -> one line with the reason."""
    reasons = [line.strip() for line in message.splitlines() if "GLOBAL" in line or "Unsupported" in line]
    if not reasons or "Unsupported operand" in reasons[0]:
        return FOREIGN
    return (
        f"refused, it holds more than tensors ({reasons[0][:160]}); nothing of it was run. "
        "Ask for a .safetensors file, or re-save its state dict where you trust it"
    )


def _first_line(error: object) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:160] if text else type(error).__name__
