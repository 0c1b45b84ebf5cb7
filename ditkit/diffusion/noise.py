"""Random draws that depend on names only: never on batch size, process count or device.

Philox4x64 (Salmon et al. 2011) is a function of a 128-bit key and a 256-bit counter. Here key = (seed, k0) and the
counter's upper words = (k1, k2, k3), so that different (seed, names) can never meet: torch's generators, seeded by a
hash of them, would (their seeds collide modulo 2^32).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

WORD = 1 << 64


def stream_id(name: str) -> int:
    """A stream's name as a number (CRC-32), the same in every process."""
    return zlib.crc32(name.encode())


class _Stream:
    """One Philox generator that is set to the start of any (seed, key): far cheaper than a new one for each."""

    def __init__(self) -> None:
        self.bits = np.random.Philox(key=np.zeros(2, dtype=np.uint64))
        self.generator = np.random.Generator(self.bits)
        self.state = self.bits.state | {"buffer_pos": 4, "has_uint32": 0, "uinteger": 0}  # nothing is left over

    def at(self, seed: int, key: tuple[int, ...]) -> np.random.Generator:
        """The generator at the start of the numbers of seed and key."""
        if len(key) > 4:
            raise ValueError(f"philox: at most 4 numbers beside the seed, given {len(key)}")
        words = [k % WORD for k in (*key, *[0] * (4 - len(key)))]
        self.state["state"] = {
            "key": np.array([seed % WORD, words[0]], dtype=np.uint64),
            "counter": np.array([0, *words[1:]], dtype=np.uint64),
        }
        self.bits.state = self.state
        return self.generator


def philox_normal(seed: int, key: tuple[int, ...], shape: Sequence[int]) -> Tensor:
    """Standard normal draws (float32, CPU) named by seed and up to 4 integers."""
    return torch.from_numpy(_Stream().at(seed, key).standard_normal(tuple(shape), dtype=np.float32))


def philox_uniform(seed: int, key: tuple[int, ...], shape: Sequence[int]) -> Tensor:
    """Uniform draws on [0, 1) (float32, CPU) named by seed and up to 4 integers."""
    return torch.from_numpy(_Stream().at(seed, key).random(tuple(shape), dtype=np.float32))


def philox_normals(seed: int, keys: Sequence[tuple[int, ...]], shape: Sequence[int]) -> Tensor:
    """(len(keys), *shape): `philox_normal` of each key."""
    out, stream = np.empty((len(keys), *shape), dtype=np.float32), _Stream()
    for row, key in zip(out, keys, strict=True):
        stream.at(seed, key).standard_normal(dtype=np.float32, out=row)
    return torch.from_numpy(out)


def philox_uniforms(seed: int, keys: Sequence[tuple[int, ...]], shape: Sequence[int]) -> Tensor:
    """(len(keys), *shape): `philox_uniform` of each key."""
    out, stream = np.empty((len(keys), *shape), dtype=np.float32), _Stream()
    for row, key in zip(out, keys, strict=True):
        stream.at(seed, key).random(dtype=np.float32, out=row)
    return torch.from_numpy(out)


class BatchNoise:
    """The draws of one training step (protocols.Noise), for rows [start, stop) of a global batch of `total` rows.

    The same row gets the same draw whichever rank or accumulation part it lands in. One number a row is drawn for the
    whole batch at once; larger rows have a stream each, so that a rank pays for its own rows only.
    """

    def __init__(
        self,
        seed: int,
        step: int,
        total: int,
        start: int = 0,
        stop: int | None = None,
        device: torch.device | str | None = None,
    ):
        self.seed, self.step, self.total, self.device = seed, step, total, device
        self.start, self.stop = start, total if stop is None else stop
        if not 0 <= self.start <= self.stop <= total:
            raise ValueError(f"BatchNoise: rows {self.start}:{self.stop} of a batch of {total}")

    def normal(self, stream: str, shape: tuple[int, ...]) -> Tensor:
        """(rows, ...) standard normal, float32."""
        return self._draw(philox_normal, philox_normals, stream, shape)

    def uniform(self, stream: str, shape: tuple[int, ...]) -> Tensor:
        """(rows, ...) uniform on [0, 1), float32."""
        return self._draw(philox_uniform, philox_uniforms, stream, shape)

    def _draw(self, whole, by_row, stream: str, shape: tuple[int, ...]) -> Tensor:
        if shape[0] != self.stop - self.start:
            raise ValueError(f"BatchNoise: asked for {shape[0]} rows, this part has {self.stop - self.start}")
        name = stream_id(stream)
        if len(shape) == 1:
            return whole(self.seed, (name, self.step), (self.total,))[self.start : self.stop].to(self.device)
        if shape[0] == 0:
            return torch.empty(shape, device=self.device)
        # the row's number counts from 1: row 0 must not share the stream of the whole-batch draw above
        keys = [(name, self.step, row) for row in range(self.start + 1, self.stop + 1)]
        return by_row(self.seed, keys, shape[1:]).to(self.device)


class SampleNoise:
    """The draws of sampling: `initial()` and then `noise(step)`, each (B, C, H, W), keyed by (seed, index, step).

    indices: the global numbers of the B samples; shape: (C, H, W) of one. Bit-equal for any batch cut or device.
    """

    def __init__(
        self,
        seed: int,
        indices: Sequence[int],
        shape: Sequence[int],
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        self.seed, self.indices, self.shape = seed, tuple(int(i) for i in indices), tuple(shape)
        self.device, self.dtype = device, dtype

    def initial(self) -> Tensor:
        """What sampling starts from: standard normal; the sampler scales it by path.prior_scale."""
        return self._draw(philox_normals, "initial", 0)

    def __call__(self, step: int) -> Tensor:
        """The standard normal draws of solver step `step`."""
        return self._draw(philox_normals, "step", step)

    def rademacher(self, step: int) -> Tensor:
        """Draws of -1 or +1 (Hutchinson's trace estimate)."""
        return (self._draw(philox_uniforms, "rademacher", step) < 0.5) * 2.0 - 1.0

    def _draw(self, by_row, stream: str, step: int) -> Tensor:
        if not self.indices:
            return torch.empty((0, *self.shape), device=self.device, dtype=self.dtype)
        name = stream_id(stream)
        keys = [(name, index, step) for index in self.indices]
        return by_row(self.seed, keys, self.shape).to(device=self.device, dtype=self.dtype)
