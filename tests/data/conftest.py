"""Small picture files of every kind, written where a test wants them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def save():
    """save(path, seed=0, size=(W, H), mode="RGB") writes a picture of random pixels and returns its path."""

    def write(path: Path, seed: int = 0, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)
        return path

    return write


@pytest.fixture
def pets(tmp_path, save):
    """Class folders: 5 cats, 7 dogs, two of them deeper; hidden files beside them."""
    root = tmp_path / "pets"
    for i in range(5):
        save(root / "cat" / f"{i}.png", i)
    for i in range(5):
        save(root / "dog" / f"{i}.png", 10 + i)
    save(root / "dog" / "small" / "a.PNG", 20)
    save(root / "dog" / "small" / "er" / "b.png", 21)
    (root / ".DS_Store").write_bytes(b"junk")
    (root / "cat" / "._0.png").write_bytes(b"junk")
    save(root / ".trash" / "x.png", 30)
    return root
