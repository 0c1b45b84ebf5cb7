"""What to say when a pretrained network cannot be had."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

# What is missing -> what can be done; in training the other kind may be missing too, so its ways follow
WAYS = {
    "codec": "name its folder with `--codec FOLDER`, train one on your own images with `ditkit codec`, or work without "
    "a VAE with `--codec pixels` (a teacher: `ditkit teacher`, `--teacher RUN|none`)",
    "teacher": "train one on your own images with `ditkit teacher`, pass `--teacher RUN|none` "
    "(and for a VAE `--codec pixels`)",
    "extractor": "name a file, folder, hub id or URL#sha256=HEX with `--extractor inception:SOURCE` (CLIP: a folder or "
    "hub id with `clip:SOURCE`), train one on your own images with `ditkit teacher` and pass `--extractor FOLDER`, or "
    "leave it out",
    "captioner": "name the folder or hub id of an image-to-text model with `--model`, such as "
    "Salesforce/blip-image-captioning-base, or write captions into NAME.synthetic.txt beside NAME.jpg",
    "detector": "name its folder, or score scenes, whose detector needs no weights",
    "text": "name a pipeline's folder or an encoder's folder, file or hub id with `--text sd3:SOURCE` or "
    "`--text clip:SOURCE` (in training each alone, too: text.clip_l, text.clip_g, text.t5), leave one out (to sample: "
    "`--without t5`; in training: text.t5=none), or work without published encoders with `--text toy`",
}


class PretrainedMissing(RuntimeError):
    """A pretrained network that cannot be had; the message is one line and names every way on.

    what: begins with a kind in WAYS, "codec 'ft-ema'".
    """

    def __init__(self, what: str, reason: str):
        ways = WAYS.get(what.partition(" ")[0], WAYS["teacher"])
        super().__init__(f"cannot load {what}: {reason}; ways on: {ways}")
        self.what, self.reason = what, reason

    def __reduce__(self):
        return PretrainedMissing, (self.what, self.reason)


def optional(package: str, what: str, source: str = "") -> ModuleType:
    """Import transformers or diffusers, or say which extra brings it; source: the folder or hub id that needs it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        hub = (
            f"no folder {source!r} here, and from the hub " if source and not Path(source).expanduser().exists() else ""
        )
        reason = f"{hub}it needs {package} (pip install 'ditkit[hf]'): {first_line(error)}"
        raise PretrainedMissing(what, reason) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's text, short enough for one line."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]
