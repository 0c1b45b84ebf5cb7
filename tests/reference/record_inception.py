"""Record torch-fidelity's Inception with fixed random weights, TensorFlow's resize and the one of CMMD's CLIP.

    python tests/reference/record_inception.py inception          needs torch-fidelity and torchvision
    python tests/reference/record_inception.py tensorflow         needs TensorFlow
    python tests/reference/record_inception.py clip               needs jax

Run once, in an environment of its own; the test suite only reads what it wrote. The 24 million weights are not stored:
load_fixture.py makes them again from `state_base` and `state_layout`, and the images from the same vector.
"""

from __future__ import annotations

import io
import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from load_fixture import load_fixture
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).parent
BASE = 131_071  # a prime, so that rows of a matrix never repeat each other
SIZES = {
    "small": (3, 32, 32),
    "tall": (1, 64, 48),
    "wide": (1, 320, 400),
    "exact": (1, 299, 299),
    "usual": (1, 256, 256),
}
RESIZES = {
    "up": ((5, 7), (13, 29)),
    "down": ((31, 40), (11, 17)),
    "mixed": ((9, 64), (23, 20)),
    "same": ((6, 6), (6, 6)),
}


def load_base() -> np.ndarray:
    """The vector that weights and images of the recording are cut from."""
    return load_file(HERE / "inception_torch_fidelity.safetensors")["state_base"]


def images(base: np.ndarray) -> dict[str, np.ndarray]:
    """uint8 (B, 3, H, W): base + 128, read one after the other from offset 1000 on."""
    made, at = {}, 1000
    for name, (count, height, width) in SIZES.items():
        shape = (count, 3, height, width)
        index = (at + np.arange(np.prod(shape))) % base.size
        made[name] = (base[index].astype(np.int16) + 128).astype(np.uint8).reshape(shape)
        at += int(np.prod(shape))
    return made


def layout(shapes: dict[str, tuple[int, ...]]) -> dict[str, dict]:
    """How each tensor is cut from the base (standard deviation 40): kernels keep the size of what flows through."""
    found, offset = {}, 0
    for key, shape in shapes.items():
        scale, add = 0.1 / 40, 0.0
        if key.endswith(("conv.weight", "fc.weight")):
            scale = (2 / np.prod(shape[1:])) ** 0.5 / 40
        elif key.endswith("bn.weight"):
            scale, add = 0.0, 1.0  # the graph has no scale
        elif key.endswith("running_var"):
            scale, add = 0.2 / 40, 1.0
        elif key.endswith("num_batches_tracked"):
            scale = 0.0
        found[key] = {"shape": list(shape), "offset": offset, "scale": float(scale), "add": add}
        offset = (offset + int(np.prod(shape)) + 17) % BASE
    return found


def write(name: str, meta: dict, arrays: dict[str, np.ndarray]) -> None:
    """NAME.json and NAME.safetensors beside this file."""
    meta["tensors"] = {key: {"shape": list(value.shape), "dtype": str(value.dtype)} for key, value in arrays.items()}
    fields = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in meta.items())
    (HERE / f"{name}.json").write_text(f"{{\n{fields}\n}}\n")
    save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, HERE / f"{name}.safetensors")


def record_inception() -> None:
    """torch-fidelity's features, logits without bias, and what goes on from Mixed_6d.branch1x1."""
    import torch

    library = torch.library.Library("torchvision", "DEF")  # its wheel does not load beside a CPU build of torch
    for missing in ("nms", "qnms"):
        library.define(f"{missing}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torch_fidelity import feature_extractor_inceptionv3 as published

    kind = published.FeatureExtractorInceptionV3
    load, kind.load_state_dict = kind.load_state_dict, lambda self, state: None
    published.load_state_dict_from_url = lambda *_, **__: {}
    names = ["2048", "logits_unbiased", "logits"]
    network = kind("inception-v3-compat", names)
    kind.load_state_dict = load

    base = np.clip(np.random.default_rng(20151205).normal(0, 40, BASE).round(), -127, 127).astype(np.int8)
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    meta = {
        "family": "inception",
        "title": "torch-fidelity's FeatureExtractorInceptionV3 with fixed random weights",
        "source": {
            "package": "torch-fidelity (Apache-2.0)",
            "object": "feature_extractor_inceptionv3.FeatureExtractorInceptionV3",
        },
        "constructor": {"features_list": names, "feature_extractor_internal_dtype": "float32"},
        "cases": {name: {"images": [count, 3, *size]} for name, (count, *size) in SIZES.items()},
        "conventions": "images are uint8 (B, 3, H, W), made by record_inception.images from state_base. features: the "
        "mean of the last 8x8 map. logits_unbiased: without the bias of fc. spatial: the output of Mixed_6d.branch1x1 "
        "(after its ReLU), its first 7 channels, 17x17, flattened in the order row, column, channel.",
        "state_layout": layout(shapes),
        "tolerance": {"atol": 1e-4, "rtol": 0.0},
        "info": {"keys": len(shapes), "values": int(sum(np.prod(shape) for shape in shapes.values()))},
        "versions": {name: version(name) for name in ("torch", "torch-fidelity", "torchvision", "numpy")},
    }
    arrays = {"state_base": base}
    write("inception_torch_fidelity", dict(meta), arrays)
    _, state, _, _ = load_fixture(str(HERE), "inception_torch_fidelity")
    network.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    seen = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    for dtype in (torch.float64, torch.float32):
        network.to(dtype).feature_extractor_internal_dtype = dtype
        for name, batch in images(base).items():
            seen.clear()
            with torch.no_grad():
                features, logits, biased = network(torch.from_numpy(batch))
            made = {
                "features": features,
                "logits_unbiased": logits,
                "spatial": seen[0][:, :7].permute(0, 2, 3, 1).flatten(1).float(),
            }
            for what, value in made.items():
                if f"out.{name}.{what}" in arrays:
                    gap = np.abs(arrays[f"out.{name}.{what}"] - value.numpy()).max()
                    meta["info"][f"{name}.{what}"] = {"std": float(value.std()), "from float64": float(gap)}
                arrays[f"out.{name}.{what}"] = value.numpy()
            assert not torch.allclose(logits, biased, atol=1e-2)
    write("inception_torch_fidelity", meta, arrays)


def record_tensorflow() -> None:
    """TensorFlow's own resize_bilinear, and a graph of a few constants as it writes them."""
    import tensorflow as tf

    rng = np.random.default_rng(1)
    arrays = {}
    for name, (before, after) in RESIZES.items():
        picture = rng.integers(0, 256, (1, *before, 2)).astype(np.float32)
        small = tf.compat.v1.image.resize_bilinear(picture, after, align_corners=False, half_pixel_centers=False)
        arrays[f"in.{name}"] = picture.transpose(0, 3, 1, 2)
        arrays[f"out.{name}"] = small.numpy().transpose(0, 3, 1, 2)
    graph = tf.Graph()
    with graph.as_default():
        for name, shape in {"conv/conv2d_params": (3, 2, 4, 5), "conv/batchnorm/beta": (5,)}.items():
            arrays[f"out.graph.{name}"] = rng.normal(size=shape).astype(np.float32)
            tf.constant(arrays[f"out.graph.{name}"], name=name)
        tf.constant(np.ones(300, np.float32), name="conv/batchnorm/gamma")
        tf.constant([299, 299], name="ResizeBilinear/size")
        tf.constant(128.0, name="Sub/y")
        tf.constant("text", name="DecodeJpeg/contents")
        tf.constant(1.5, shape=[2, 3], name="filled")
    file = io.BytesIO(graph.as_graph_def().SerializeToString())
    arrays["in.graph"] = np.frombuffer(file.getvalue(), np.uint8)
    meta = {
        "family": "inception",
        "title": "TensorFlow's resize_bilinear, and a GraphDef that it wrote",
        "source": {"package": "tensorflow (Apache-2.0)", "object": "tf.compat.v1.image.resize_bilinear"},
        "cases": {name: {"from": before, "to": after} for name, (before, after) in RESIZES.items()},
        "conventions": "pictures are float32 (B, C, H, W). in.graph: the bytes of a serialised GraphDef with the "
        "constants out.graph.*, conv/batchnorm/gamma (300 ones), filled (2x3 of 1.5), two integers, a scalar and text.",
        "tolerance": {"atol": 1e-4, "rtol": 0.0},
        "versions": {"tensorflow": tf.__version__, "numpy": np.__version__},
    }
    write("inception_tensorflow", meta, arrays)


def record_clip() -> None:
    """jax.image.resize, which CMMD's code calls before CLIP."""
    import jax

    rng = np.random.default_rng(2)
    arrays = {}
    for name, (before, after) in RESIZES.items():
        picture = rng.integers(0, 256, (1, *before, 2)).astype(np.float32)
        arrays[f"in.{name}"] = picture.transpose(0, 3, 1, 2)
        arrays[f"out.{name}"] = np.asarray(jax.image.resize(picture, (1, *after, 2), "bicubic")).transpose(0, 3, 1, 2)
    meta = {
        "family": "clip",
        "title": "jax.image.resize(method='bicubic'), the resize of CMMD's published code",
        "source": {"package": "jax (Apache-2.0)", "object": "jax.image.resize"},
        "cases": {name: {"from": before, "to": after} for name, (before, after) in RESIZES.items()},
        "conventions": "pictures are float32 (B, C, H, W) of whole numbers in [0, 255]; results may leave that range.",
        "tolerance": {"atol": 1e-3, "rtol": 0.0},
        "versions": {"jax": version("jax"), "numpy": np.__version__},
    }
    write("clip_resize", meta, arrays)


if __name__ == "__main__":
    {"inception": record_inception, "tensorflow": record_tensorflow, "clip": record_clip}[sys.argv[1]]()
