"""`ditkit convert RUN FOLDER --to diffusers`: a folder that diffusers' StableDiffusion3Pipeline opens.

Transformer and scheduler are always in it; VAE, text encoders and tokenizers where the recipe names such. What is
missing is None, and the notes say how to open such a folder and what to give to its call instead.
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ditkit.checkpoints import CheckpointError, export_published
from ditkit.checkpoints.diffusers_sd3 import transformer_config
from ditkit.diffusion import SamplerSettings
from ditkit.files import new_folder
from ditkit.models import MMDiT
from ditkit.pretrained import KLCodec, SD3Text
from ditkit.pretrained.text_networks import FOLDERS, CLIPText, Role, T5Text
from ditkit.protocols import Codec
from ditkit.recipes.load import Loaded, contiguous

PIPELINE = "diffusers"  # what --to calls it
SCHEDULER = "FlowMatchEulerDiscreteScheduler"
NONE = [None, None]
OPTIONAL = ("image_encoder", "feature_extractor")  # of the pipeline; None in SD3's own folders
Index = dict[str, Any]  # model_index.json: part -> [library, class]


def to_pipeline(loaded: Loaded, folder: Path) -> list[str]:
    """Write the pipeline's folder, all or nothing; what the user should know, a line each.

    CheckpointError for a model that diffusers' class cannot be (another network, time map or prediction),
    PretrainedMissing where the recipe's VAE or text encoders cannot be had, FileExistsError if the folder is filled.
    """
    state = contiguous(export_published(loaded.model, "diffusers-sd3", prediction=loaded.prediction))
    if loaded.path.kind != "linear":
        raise CheckpointError(f"this model was trained on the {loaded.path.kind} path, the pipeline samples on linear")
    assert isinstance(loaded.model, MMDiT)
    codec, encoder = loaded.codec, getattr(loaded.text, "encoder", loaded.text)
    index: Index = {"_class_name": "StableDiffusion3Pipeline", **dict.fromkeys(OPTIONAL, NONE)}
    with new_folder(folder) as draft:
        _write(draft / "transformer" / "config.json", transformer_config(loaded.model.settings))
        save_file(state, draft / "transformer" / "diffusion_pytorch_model.safetensors")
        index["transformer"] = ["diffusers", "SD3Transformer2DModel"]
        shift = {"_class_name": SCHEDULER, "num_train_timesteps": 1000, "shift": loaded.recipe.sampling.shift}
        _write(draft / "scheduler" / "scheduler_config.json", shift)
        index["scheduler"] = ["diffusers", SCHEDULER]
        index |= _save_vae(codec, draft)
        index |= _save_text(encoder, draft)
        _write(draft / "model_index.json", index)
    tokens = encoder.parts[-1].tokens if isinstance(encoder, SD3Text) else None
    call = describe_call(loaded.recipe.sampling, index, None if tokens is None else tokens[1] - tokens[0])
    return [*_missing(loaded, index), describe_opening(index, folder), f"call it with {call}"]


def describe_opening(index: Index, folder: Path) -> str:
    """How it is opened: diffusers wants to be told what is None, though the folder says so too."""
    lacking = [name for name, part in index.items() if part == NONE and name not in OPTIONAL]
    words = "".join(f", {name}=None" for name in lacking)
    return f"open it with StableDiffusion3Pipeline.from_pretrained({str(folder)!r}{words})"


def describe_call(sampling: SamplerSettings, index: Index, length: int | None) -> str:
    """The arguments with which the pipeline does what this sampler does, and what it cannot do.

    length: T5's tokens; None where there are no text encoders. Its grid is the doubly shifted one (spacing "sd3");
    other grids are given as levels before the shift, which for an even one gives exactly ours.
    """
    words = [f"num_inference_steps={sampling.steps}"]
    if sampling.spacing != "sd3":
        words = [f"sigmas=[1 - i / {sampling.steps} for i in range({sampling.steps})]"]
    guidance = sampling.guidance
    words.append(f"guidance_scale={1 if guidance is None else guidance.scale:g}")
    if length is not None:
        words.append(f"max_sequence_length={length}")
    if index["vae"] == NONE:
        words.append("output_type='latent'")
    call = ", ".join(words)
    return call if sampling.solver == "euler" else f"{call}; it takes Euler steps, the recipe's are {sampling.solver}"


def _missing(loaded: Loaded, index: Index) -> list[str]:
    """A line for every kind of part that is None."""
    notes = []
    if index["vae"] == NONE:
        notes.append(f"no vae in it: the codec is {loaded.recipe.codec.kind}, so that it gives latents only")
    lacking = [name for name in FOLDERS.values() if index[name] == NONE]
    if FOLDERS["clip_l"] in lacking or FOLDERS["clip_g"] in lacking:
        kind = "none" if loaded.recipe.text is None else loaded.recipe.text.kind
        notes.append(
            f"no {', '.join(lacking)} in it (text encoder: {kind}): give prompt_embeds, pooled_prompt_embeds and "
            "negative ones in place of a prompt"
        )
        if loaded.text is not None and loaded.text([""]).mask is not None:
            notes.append("padding is masked here and would be attended there: give embeddings without it")
    elif lacking:
        notes.append(f"no {lacking[0]} in it: zeros stand for T5, there and here")
    return notes


def _save_vae(codec: Codec, folder: Path) -> Index:
    """The KL autoencoder with the codec's own scale and shift."""
    if not isinstance(codec, KLCodec):
        return {"vae": NONE}
    if isinstance(codec.scale, tuple) or isinstance(codec.shift, tuple):
        raise CheckpointError("export: the codec has a scale or shift for each channel; diffusers' VAE has one for all")
    codec.vae.save_pretrained(folder / "vae")
    config = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
    _write(folder / "vae" / "config.json", config | {"scaling_factor": codec.scale, "shift_factor": codec.shift})
    return {"vae": ["diffusers", "AutoencoderKL"]}


def _save_text(encoder: object, folder: Path) -> Index:
    """Text encoders and tokenizers of an SD3 text stack; of any other encoder nothing."""
    networks = encoder.networks if isinstance(encoder, SD3Text) else {}
    index: Index = {}
    for role, name in FOLDERS.items():
        parts = (name, name.replace("text_encoder", "tokenizer"))
        network = networks.get(role)  # type: ignore[call-overload]
        found = (None, None) if network is None else _save_network(network, role, folder, parts)  # type: ignore[arg-type]
        index |= {
            part: NONE if kind is None else ["transformers", kind] for part, kind in zip(parts, found, strict=True)
        }
    return index


def _save_network(network: CLIPText | T5Text, role: Role, folder: Path, parts: tuple[str, str]) -> tuple[str, str]:
    """One encoder and its tokenizer; the names of their classes.

    The pipeline reads CLIP-L's projected vector where SD3 has the plain one: its projection is written as identity.
    """
    state = network.model.state_dict()
    if isinstance(network, CLIPText) and not network.projected:
        if network.model.config.projection_dim != network.width:
            raise CheckpointError(f"export: {role} projects {network.width} channels to another number; use SD3's")
        state = {**state, "text_projection.weight": torch.eye(network.width, dtype=network.model.dtype)}
    network.model.save_pretrained(folder / parts[0], state_dict=contiguous(state))
    words, pad = network.tokenizer.tokenizer, network.tokenizer.frame.pad
    if words.pad_token_id != pad:
        words = deepcopy(words)
        words.pad_token = words.convert_ids_to_tokens(pad)
    words.save_pretrained(folder / parts[1])
    return type(network.model).__name__, type(words).__name__


def _write(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
