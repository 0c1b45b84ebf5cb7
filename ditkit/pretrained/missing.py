"""What to say when a pretrained network cannot be had."""

from __future__ import annotations

import importlib
from types import ModuleType


class PretrainedMissing(RuntimeError):
    """A pretrained network that cannot be had; the message is one line and names every way on."""

    def __init__(self, what: str, reason: str):
        super().__init__(
            f"cannot load {what}: {reason}; ways on: train a teacher on your own images with `ditkit teacher`, "
            "pass `--teacher RUN|none`, and work without a VAE with `--codec pixels`"
        )
        self.what, self.reason = what, reason

    def __reduce__(self):
        return PretrainedMissing, (self.what, self.reason)


def optional(package: str, what: str) -> ModuleType:
    """Import transformers or diffusers, or say which extra brings it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise PretrainedMissing(what, f"it needs {package} (pip install 'ditkit[hf]'): {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's text, short enough for one line."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]
