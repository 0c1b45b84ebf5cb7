"""What a run was made with: versions, machine, git state of the working folder, fingerprints, seed."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

ENVIRONMENT = "environment.json"
PACKAGES = ("ditkit", "torch", "numpy", "safetensors", "pydantic", "transformers", "diffusers", "scikit-learn")


def environment(device: torch.device, **facts: object) -> dict:
    """Versions of Python and packages, the device, threads and git state, plus `facts` (JSON values).

    Nothing personal: no host name, no user name, no absolute path.
    """
    return {
        "python": sys.version.split()[0],
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "git": git_state(Path.cwd()),
        **facts,
    }


def data_facts(folder: Path) -> dict:
    """What a run's environment.json tells of its images (fingerprint, images, classes, captions); {} without one.

    Of a text model also "text", its encoder.
    """
    try:
        told = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
        return {**told.get("data", {}), **({"text": told["text"]} if told.get("text") else {})}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def git_state(folder: Path) -> dict | None:
    """{"commit", "dirty"} of the repository around `folder`; None outside one or without git."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=5, check=True)
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
