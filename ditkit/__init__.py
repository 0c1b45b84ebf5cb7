"""ditkit: train, sample, evaluate and understand diffusion transformers.

Public names are resolved on first use (PEP 562), so that `import ditkit` and `ditkit --help` load no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# name -> module that defines it
_PUBLIC = {
    "load": "ditkit.recipes.load",
    "recipe": "ditkit.recipes.registry",
    "load_published": "ditkit.checkpoints",
    "export_published": "ditkit.checkpoints",
    "sample": "ditkit.diffusion",
    "Condition": "ditkit.protocols",
    "Output": "ditkit.protocols",
}
_ROOMS = (
    "align",
    "analysis",
    "checkpoints",
    "config",
    "data",
    "diffusion",
    "evaluation",
    "models",
    "nn",
    "pretrained",
    "protocols",
    "recipes",
    "training",
)

if TYPE_CHECKING:
    from ditkit.checkpoints import export_published, load_published
    from ditkit.diffusion import sample
    from ditkit.protocols import Condition, Output
    from ditkit.recipes.load import load
    from ditkit.recipes.registry import recipe

__all__ = ["Condition", "Output", "__version__", "export_published", "load", "load_published", "recipe", "sample"]


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"ditkit.{name}")
    raise AttributeError(f"module 'ditkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_ROOMS})
