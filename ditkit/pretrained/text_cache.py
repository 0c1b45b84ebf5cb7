"""Prompts encoded once: in memory, and in a folder if wanted."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ditkit.protocols import Condition, Part, TextEncoder

Row = dict[str, Tensor]  # the fields of one prompt's Condition, on the CPU


class CachedText:
    """A TextEncoder that asks another one only for prompts it has not seen; the answers are the same.

    limit_bytes: of memory; the prompts asked for longest ago make room (they are encoded, or read, again).
    folder: each prompt is also kept there as ID/xx/HASH.safetensors (ID: the encoder): text in half
    precision, pooled in float32 (as arXiv 2403.03206 stored them), and with a folder every answer is rounded so, the
    first one too. Text that overflows half precision stays float32. Several processes may share a folder.
    """

    def __init__(self, encoder: TextEncoder, limit_bytes: int = 1 << 30, folder: str | Path | None = None):
        self.encoder, self.limit_bytes = encoder, limit_bytes
        self.folder = None if folder is None else Path(folder).expanduser() / encoder.id
        self.id, self.length = encoder.id, encoder.length
        self.width, self.pooled_width = encoder.width, encoder.pooled_width
        self.parts: tuple[Part, ...] = getattr(encoder, "parts", ())
        self.notes: Sequence[str] = getattr(encoder, "notes", ())
        self.bytes = 0  # of memory in use
        self._rows: OrderedDict[str, Row] = OrderedDict()

    @property
    def device(self) -> torch.device:
        """Where conditions come out: the encoder's device."""
        return getattr(self.encoder, "device", torch.device("cpu"))

    def to(self, device: torch.device | str) -> CachedText:
        """Move the encoder; what is remembered stays in main memory."""
        if hasattr(self.encoder, "to"):
            self.encoder.to(device)
        return self

    def __len__(self) -> int:
        return len(self._rows)

    def __call__(self, prompts: Sequence[str]) -> Condition:
        """Prompts -> what the encoder says, rows in the order asked; each unknown prompt is encoded once."""
        if not prompts:
            return self.encoder(prompts)
        asked = list(dict.fromkeys(prompts))
        rows = {prompt: row for prompt in asked if (row := self._known(prompt)) is not None}
        if unknown := [prompt for prompt in asked if prompt not in rows]:
            rows |= zip(unknown, self._encode(unknown), strict=True)
        for prompt in asked:
            self._remember(prompt, rows[prompt])
        fields = {name: torch.stack([rows[prompt][name] for prompt in prompts]) for name in rows[asked[0]]}
        fields = {name: value.float() if value.is_floating_point() else value for name, value in fields.items()}
        return Condition(**fields, parts=self.parts).to(self.device)

    def _known(self, prompt: str) -> Row | None:
        if prompt in self._rows or self.folder is None:
            return self._rows.get(prompt)
        try:
            return load_file(self._file(prompt))
        except Exception:  # not there, or cut short by a killed run in one of safetensors' many ways: encode it
            return None

    def _encode(self, prompts: list[str]) -> Iterable[Row]:
        found = self.encoder(prompts).to("cpu").tensors
        for i, prompt in enumerate(prompts):
            row = {name: value[i].clone() for name, value in found.items()}
            if self.folder is not None:
                row["text"] = _halved(row["text"])
                self._write(prompt, row)
            yield row

    def _write(self, prompt: str, row: Row) -> None:
        file = self._file(prompt)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.{os.getpid()}")  # another process may write the same prompt
        try:
            save_file(row, part, {"prompt": prompt.encode("utf-8", "replace").decode()})  # the folder names the encoder
            os.replace(part, file)
        finally:
            part.unlink(missing_ok=True)

    def _file(self, prompt: str) -> Path:
        assert self.folder is not None
        name = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.safetensors"

    def _remember(self, prompt: str, row: Row) -> None:
        if prompt in self._rows:
            self._rows.move_to_end(prompt)
            return
        self._rows[prompt] = row
        self.bytes += _size(row)
        while self.bytes > self.limit_bytes and self._rows:
            _, old = self._rows.popitem(last=False)
            self.bytes -= _size(old)


def _halved(text: Tensor) -> Tensor:
    half = text.half()
    return half if half.isfinite().all() else text


def _size(row: Row) -> int:
    return sum(value.numel() * value.element_size() for value in row.values())
