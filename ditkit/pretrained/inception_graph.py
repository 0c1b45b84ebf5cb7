"""Constants of a frozen TensorFlow graph (classify_image_graph_def.pb), read without TensorFlow.

A file of this kind is one GraphDef message in the wire format of protocol buffers. Of its fields only these are read:
GraphDef.node = 1; NodeDef.name = 1, op = 2, attr = 5 (a map: key = 1, value = 2); AttrValue.b = 5, tensor = 8;
TensorProto.dtype = 1, tensor_shape = 2 (dim = 2, size = 1), tensor_content = 4, float_val = 5.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

DT_FLOAT = 1
NORMALISE = "BatchNormWithGlobalNormalization"  # the operation of TensorFlow's graphs of 2015


def read_graph(data: bytes) -> dict[str, Tensor]:
    """Every float constant of rank 1 or more, by node name, in TensorFlow's layout.

    The `gamma` of a batch normalisation is left out where all of the graph's say that they do not scale by it.
    ValueError where the bytes are no whole GraphDef.
    """
    constants: dict[str, Tensor] = {}
    scales: list[bool] = []
    for node in _parts(memoryview(data), 1):
        name, operation = _text(node, 1), _text(node, 2)
        attributes = {_text(entry, 1): b"".join(_parts(entry, 2)) for entry in _parts(node, 5)}
        if operation == "Const" and (value := _tensor(attributes.get("value", b""), name)) is not None:
            constants[name] = value
        elif operation == NORMALISE:
            scales.append(bool(_number(memoryview(attributes.get("scale_after_normalization", b"")), 5)))
    unused = bool(scales) and not any(scales)
    return {name: value for name, value in constants.items() if not (unused and name.endswith("/gamma"))}


def _tensor(attribute: bytes, name: str) -> Tensor | None:
    """The tensor of an AttrValue; None for what is no float tensor of rank 1 or more."""
    proto = memoryview(b"".join(_parts(memoryview(attribute), 8)))
    shape = [_number(size, 1) for sizes in _parts(proto, 2) for size in _parts(sizes, 2)]
    if _number(proto, 1) != DT_FLOAT or not shape:
        return None
    listed = b"".join(_parts(proto, 5))
    values = np.frombuffer(b"".join(_parts(proto, 4)) or listed, "<f4").astype(np.float32)
    count = math.prod(shape)
    if listed and len(values) < count:  # TensorFlow writes a run of equal last values once
        values = np.concatenate([values, np.full(count - len(values), values[-1], np.float32)])
    if len(values) != count:
        raise ValueError(f"constant {name} has {len(values)} values where its shape {shape} asks for {count}")
    return torch.from_numpy(values.reshape(shape))


def _parts(message: memoryview, number: int) -> list[memoryview]:
    """The messages, texts or floats in all fields of that number, in the order written."""
    return [value for found, value in _fields(message) if found == number and isinstance(value, memoryview)]


def _number(message: memoryview, number: int) -> int:
    """The last integer field of that number; 0, protocol buffers' default, where there is none."""
    return next((v for n, v in reversed([*_fields(message)]) if n == number and isinstance(v, int)), 0)


def _text(message: memoryview, number: int) -> str:
    return b"".join(_parts(message, number)).decode()


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) in the order written: an int of a varint field, the bytes of any other."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, at = _varint(message, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"no GraphDef: there is no wire type {kind}")
        if at + length > len(message):
            raise ValueError("the file ends in the middle of a message")
        yield tag >> 3, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, lowest first, and the place after it."""
    number = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError("the file ends in the middle of a number")
        byte = message[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
