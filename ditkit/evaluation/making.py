"""Who and what made images: the facts of a model and a request that decide them, as protocols and folders keep them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

from ditkit.diffusion import Autoguidance, SamplerSettings
from ditkit.evaluation.request import Request


def making(request: Request, sampler: SamplerSettings, codec: str) -> dict[str, Any]:
    """The part of a Protocol that request and sampler decide; `planned` has the model's part too."""
    guidance = sampler.guidance
    words = json.dumps([request.prompts, request.negative])
    return {
        "n": request.n,
        "labels": request.mode,
        "prompts": hashlib.sha256(words.encode()).hexdigest()[:16] if request.prompts else "",
        "sampler": sampler.model_dump(mode="json", exclude={"guidance"}),
        "guidance": None if guidance is None else guidance.model_dump(mode="json"),
        "codec": codec,
        "quantiser": request.quantiser,
        "seed": request.seed,
    }


def helpers(source: object, sampler: SamplerSettings, request: Request) -> dict[str, str]:
    """Who else decides a Sampleable's images: text encoder (id), autoguide (fingerprint of weights); "" where none."""
    text = getattr(source, "text", None) if request.prompts else None  # not loaded for nothing
    weaker = getattr(source, "autoguide", None) if isinstance(sampler.guidance, Autoguidance) else None
    guide = weights_fingerprint(weaker) if isinstance(weaker, nn.Module) else ""
    return {"text": "" if text is None else text.id, "autoguide": guide}


def weights_fingerprint(model: nn.Module) -> str:
    """16 hex digits of the SHA-256 of all parameters and buffers, names included."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
    return digest.hexdigest()[:16]
