"""Published weights of the Inception network of 2015-12-05 in the keys of ours.

Layouts: (1) torch-fidelity's and pytorch-fid's file, torchvision's names ("Mixed_6d.branch1x1.bn.bias"); (2) the frozen
graph itself, classify_image_graph_def.pb or the .tgz that it was published in; (3) a state dict that keeps the graph's
names ("mixed_6/conv/batchnorm/beta", "." or "/" between them, kernels in either order of axes), flat, under
"state_dict", or inside TorchScript.

What was never seen here: a published file of any of them. (1) follows the installed torch-fidelity, (2) and (3) the
names in its converter. Of OpenAI's port (inception-2015-12-05.pt) it is only reported, by people, that the parts of a
unit's name in the last two blocks are joined by "_" ("layers.mixed_9.tower_1_mixed_conv_1.beta") and that its head is
"output"; these spellings are accepted beside the graph's. Every shape is checked, and whatever else is in a file, or is
not, is an error that lists it.
"""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ditkit.pretrained.inception import CLASSES, WIDTH, Network, Unit
from ditkit.pretrained.inception_graph import read_graph
from ditkit.pretrained.missing import PretrainedMissing, first_line

EPSILON = 1e-3  # of every batch normalisation
GRAPH = "classify_image_graph_def.pb"
CONTAINERS = ("state_dict", "model")  # what a file may keep its tensors under
PREFIXES = ("module.", "model.", "layers.")  # what may stand before every key

_STEM = {
    "conv": "Conv2d_1a_3x3",
    "conv_1": "Conv2d_2a_3x3",
    "conv_2": "Conv2d_2b_3x3",
    "conv_3": "Conv2d_3b_1x1",
    "conv_4": "Conv2d_4a_3x3",
}
_COARSE = {"conv": "1x1", "tower": "5x5", "tower_1": "3x3dbl", "tower_2": "_pool"}
_MIDDLE = {"conv": "1x1", "tower": "7x7", "tower_1": "7x7dbl", "tower_2": "_pool"}
_FINE = {"conv": "1x1", "tower": "3x3", "tower_1": "3x3dbl", "tower_2": "_pool"}
# The graph's block -> torchvision's, and the branch that each of its towers is there
BLOCKS = {
    "mixed": ("Mixed_5b", _COARSE),
    "mixed_1": ("Mixed_5c", _COARSE),
    "mixed_2": ("Mixed_5d", _COARSE),
    "mixed_3": ("Mixed_6a", {"conv": "3x3", "tower": "3x3dbl"}),
    "mixed_4": ("Mixed_6b", _MIDDLE),
    "mixed_5": ("Mixed_6c", _MIDDLE),
    "mixed_6": ("Mixed_6d", _MIDDLE),
    "mixed_7": ("Mixed_6e", _MIDDLE),
    "mixed_8": ("Mixed_7a", {"tower": "3x3", "tower_1": "7x7x3"}),
    "mixed_9": ("Mixed_7b", _FINE),
    "mixed_10": ("Mixed_7c", _FINE),
}
# What follows a unit's name -> which of its tensors that is
ROLES = {
    **dict.fromkeys(("conv2d_params", "conv.weight", "weight"), "kernel"),
    **dict.fromkeys(("batchnorm.beta", "bn.bias", "beta", "bias"), "beta"),
    **dict.fromkeys(("batchnorm.moving_mean", "bn.running_mean", "moving_mean", "mean"), "mean"),
    **dict.fromkeys(("batchnorm.moving_variance", "bn.running_var", "moving_variance", "var", "variance"), "variance"),
    **dict.fromkeys(("batchnorm.gamma", "bn.weight", "gamma"), "scale"),
    "bn.num_batches_tracked": "count",
}
HEADS = {
    **dict.fromkeys(("softmax.weights", "softmax.weight", "fc.weight", "output.weight"), "weights"),
    **dict.fromkeys(("softmax.biases", "softmax.bias", "fc.bias", "output.bias"), "biases"),
}
NEEDED = ("kernel", "beta", "mean", "variance")


def torchvision_name(unit: str) -> str:
    """Our (and the graph's) name of a unit, "mixed_6.tower.conv_1", as torchvision has it, "Mixed_6d.branch7x7_2"."""
    if unit in _STEM:
        return _STEM[unit]
    block, *path = unit.split(".")
    name, branches = BLOCKS[block]
    tower = path[0]
    if tower == "conv" or branches[tower] == "_pool":
        return f"{name}.branch{branches[tower]}"
    if "mixed" in path:  # the forks of the last two blocks, after one unit or two
        return (
            f"{name}.branch{branches[tower]}_{'2' if tower == 'tower' else '3'}{'b' if path[-1] == 'conv_1' else 'a'}"
        )
    return f"{name}.branch{branches[tower]}_{1 + int(path[-1].removeprefix('conv').removeprefix('_') or 0)}"


def joined_name(unit: str) -> str:
    """The same name with "_" inside the last two blocks: "mixed_9.tower_1.mixed.conv" -> "mixed_9.tower_1_mixed_conv".

    Names of other blocks stay as they are.
    """
    block, _, path = unit.partition(".")
    return f"{block}.{path.replace('.', '_')}" if block in ("mixed_9", "mixed_10") else unit


def convert_inception(found: Mapping[str, Any]) -> dict[str, Tensor]:
    """A state dict in torchvision's or the graph's names -> one in ours, batch normalisation folded (in float64).

    ValueError lists unknown, doubled and missing keys, wrong shapes and scales other than 1 (the graph has none).
    """
    with torch.device("meta"):
        network = Network()
    units = {name: module for name, module in network.named_modules() if isinstance(module, Unit)}
    names = {spelled(name): name for spelled in (str, joined_name, torchvision_name) for name in units}
    tensors: dict[tuple[str, str], Tensor] = {}
    unknown, doubled = [], []
    for key, value in found.items():
        place = _place(key, names)
        if place is None:
            unknown.append(key)
        elif place in tensors:
            doubled.append(key)
        else:
            tensors[place] = torch.as_tensor(value)
    places = [(name, role) for name in units for role in NEEDED] + [("softmax", "weights")]
    missing = [_said(name, role) for name, role in places if (name, role) not in tensors]
    _refuse({"unknown": unknown, "twice there": doubled, "missing": missing})
    state, wrong, scaled = {}, [], []
    for (name, role), value in tensors.items():
        shape = _shape(units.get(name), role)
        if tuple(value.shape) != shape and tuple(value.shape) != _elsewhere(shape):
            wrong.append(f"{_said(name, role)} {tuple(value.shape)} for {shape}")
        elif role == "scale" and not bool((value == 1).all()):
            scaled.append(_said(name, role))
    _refuse({"of a wrong shape": wrong, "other than 1, where this network has none": scaled})
    for name, unit in units.items():
        kernel, beta, mean, variance = (tensors[name, role].double() for role in NEEDED)
        factor = (variance + EPSILON).rsqrt()
        kernel = kernel if kernel.shape == unit.weight.shape else kernel.permute(3, 2, 0, 1)
        state[f"{name}.weight"] = (kernel * factor.view(-1, 1, 1, 1)).float().contiguous()
        state[f"{name}.bias"] = (beta - mean * factor).float()
    weights = tensors["softmax", "weights"].float()
    state["softmax.weight"] = (weights if weights.shape == (CLASSES, WIDTH) else weights.mT).contiguous()
    return state


def _place(key: str, names: Mapping[str, str]) -> tuple[str, str] | None:
    """(unit, role) of a key in any of the layouts; None if it is in none."""
    plain = key.replace("/", ".")
    for prefix in PREFIXES:
        plain = plain.removeprefix(prefix)
    if plain in HEADS:
        return "softmax", HEADS[plain]
    parts = plain.split(".")
    for length in range(len(parts) - 1, 0, -1):
        name, role = ".".join(parts[:length]), ".".join(parts[length:])
        if name in names and role in ROLES:
            return names[name], ROLES[role]
    return None


def _said(unit: str, role: str) -> str:
    return f"{unit.replace('.', '/')}/{role}"


def _shape(unit: Unit | None, role: str) -> tuple[int, ...]:
    """What a tensor's shape must be in torch's order of axes."""
    if unit is None:
        return (CLASSES, WIDTH) if role == "weights" else (CLASSES,)
    return {"kernel": tuple(unit.weight.shape), "count": ()}.get(role, (unit.out_channels,))


def _elsewhere(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The same in TensorFlow's order: kernels (rows, columns, in, out), matrices (in, out)."""
    return (shape[2], shape[3], shape[1], shape[0]) if len(shape) == 4 else shape[::-1]


def _refuse(faults: Mapping[str, list[str]]) -> None:
    """ValueError in one line if there is any fault: how many of each kind, and the first of them."""
    said = [
        f"{len(keys)} {fault}: {', '.join(sorted(keys)[:8])}{' ...' if len(keys) > 8 else ''}"
        for fault, keys in faults.items()
        if keys
    ]
    if said:
        raise ValueError("; ".join(said))


def read_inception_file(path: str | Path, what: str) -> dict[str, Tensor]:
    """State in our keys of a published file; its layout follows from what is in it, not from its name.

    PretrainedMissing where it is damaged or something else. Pickles are read as tensors only; TorchScript, which is a
    program, is loaded but never called.
    """
    path = Path(path).expanduser()
    try:
        found = _contents(path)
    except Exception as error:  # torch, tarfile and safetensors name damage in many ways
        raise PretrainedMissing(
            what, f"{path.name} is damaged or holds more than tensors: {first_line(error)}"
        ) from error
    try:
        return convert_inception(found)
    except ValueError as error:
        raise PretrainedMissing(what, f"{path.name} is not the Inception of 2015-12-05: {error}") from error


def _contents(path: Path) -> Mapping[str, Any]:
    """The named tensors of a file, whatever it is."""
    with open(path, "rb") as file:
        head = file.read(9)
    if head[8:] == b"{":
        return load_file(path)
    if head[:2] == b"\x1f\x8b":
        with tarfile.open(path, "r:gz") as archive:
            return _weights(read_graph(_member(archive, GRAPH)))
    if head[:1] == b"\n":  # a GraphDef begins with its first node
        return _weights(read_graph(path.read_bytes()))
    if head[:2] == b"PK" and any(name.endswith("/constants.pkl") for name in zipfile.ZipFile(path).namelist()):
        found: Any = torch.jit.load(path, map_location="cpu").state_dict()
    elif head[:2] == b"PK" or head[:1] == b"\x80":
        found = torch.load(path, map_location="cpu", weights_only=True)
    else:
        raise ValueError("it begins like none of .pth, .pt, .safetensors, .pb and .tgz")
    for name in CONTAINERS:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping):
        raise ValueError(f"it holds a {type(found).__name__}, where named tensors are expected")
    return found


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    for member in archive:
        if Path(member.name).name == name and (file := archive.extractfile(member)) is not None:
            return file.read()
    raise ValueError(f"no {name} in it")


def _weights(constants: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The graph's weights; its other constants (sizes, means) are no part of the network's state."""
    ends = ("conv2d_params", "beta", "gamma", "moving_mean", "moving_variance", "weights", "biases")
    return {name: value for name, value in constants.items() if name.rpartition("/")[2] in ends}
