"""VAEs in the keys of the original latent diffusion code: inside Stability's single files, or alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from ditkit.pretrained.missing import PretrainedMissing, first_line

PREFIX = "first_stage_model."  # of the VAE in a whole model's file
PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
MARK = "decoder.conv_in.weight"
# (scale, shift) that published models of these latent channels use, where the file tells whose it is
SD, SD3 = (0.18215, 0.0), (1.5305, 0.0609)
NAMES = (
    (r"\.mid\.block_([12])\.", lambda m: f".mid_block.resnets.{int(m[1]) - 1}."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.(down|up)\.(\d+)\.block\.(\d+)\.", r".\1_blocks.\2.resnets.\3."),
    (r"\.(down|up)\.(\d+)\.(down|up)sample\.conv\.", r".\1_blocks.\2.\3samplers.0.conv."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
)


def read_kl_file(path: str | Path, what: str) -> tuple[dict, dict[str, Tensor]]:
    """(arguments of AutoencoderKL, state in its keys) of a .safetensors file; tensors outside the VAE are not read.

    16 channels under "first_stage_model." are SD3's and get its scale and shift, 4 channels SD's; of others the file
    does not tell, and the arguments lack scaling_factor.
    """
    path = Path(path).expanduser()
    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
            prefix = PREFIX if PREFIX + MARK in keys else ""
            wanted = [
                key for key in keys if key.startswith((prefix + "encoder.", prefix + "decoder.")) or "quant" in key
            ]
            state = {key.removeprefix(prefix): file.get_tensor(key) for key in wanted}
    except Exception as error:  # safetensors names damage in many ways
        raise PretrainedMissing(what, f"{path.name} is no readable .safetensors file: {first_line(error)}") from error
    if MARK not in state:
        raise PretrainedMissing(what, f"{path.name} holds no VAE: neither {PREFIX}{MARK} nor {MARK} is there")
    try:
        config = _config(state)
    except KeyError as error:
        raise PretrainedMissing(what, f"{path.name}: {first_line(error)} is missing from its VAE") from error
    known = {4: SD, 16: SD3 if prefix else None}.get(config["latent_channels"])
    if known:
        config |= dict(zip(("scaling_factor", "shift_factor"), known, strict=True))
    return config, convert_kl(state)


def convert_kl(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Original keys -> diffusers'. The decoder's levels are counted from the other end; 1x1 kernels become linear."""
    levels = 1 + max(int(m[1]) for key in state if (m := re.match(r"decoder\.up\.(\d+)\.", key)))
    converted = {}
    for key, value in state.items():
        name = re.sub(r"(?<=decoder\.up\.)\d+", lambda m: str(levels - 1 - int(m[0])), key)
        for pattern, new in NAMES:
            name = re.sub(pattern, new, name)
        converted[name] = value.flatten(1) if re.search(r"\.to_(q|k|v|out\.0)\.weight", name) else value
    return converted


def _config(state: Mapping[str, Tensor]) -> dict:
    levels = len({m[1] for key in state if (m := re.match(r"encoder\.down\.(\d+)\.", key))})
    blocks = len({m[1] for key in state if (m := re.match(r"encoder\.down\.0\.block\.(\d+)\.", key))})
    return {
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "out_channels": state["decoder.conv_out.weight"].shape[0],
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": tuple(state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)),
        "layers_per_block": blocks,
        "latent_channels": state[MARK].shape[1],
        "use_quant_conv": "quant_conv.weight" in state,
        "use_post_quant_conv": "post_quant_conv.weight" in state,
    }
