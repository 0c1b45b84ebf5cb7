"""scikit-learn's handwritten digits: 1,797 real 8x8 images that need no download."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from PIL import Image

from ditkit.data.source import ImageSource, stratified_split


class Digits(ImageSource):
    """The UCI optical digits test set as shipped with scikit-learn (E. Alpaydin and C. Kaynak, 1998).

    split: "all" (1,797), or the fixed stratified "train" (1,437) and "test" (360). size: side or (H, W); other than 8,
    the pictures are resized (bicubic). Grey levels 0..16 become uint8 0..255. channels 3 repeats them.
    """

    def __init__(self, split: str = "all", size: int | tuple[int, int] = 8, channels: int = 1):
        from sklearn.datasets import load_digits

        data = load_digits()
        rows = stratified_split(data.target, split)
        super().__init__(data.target[rows].astype(np.int64), [str(d) for d in range(10)], channels)
        self.rows = rows
        self.pixels = np.rint(data.images[rows] * (255 / 16)).astype(np.uint8)  # (n, 8, 8)
        self.size = (size, size) if isinstance(size, int) else size

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def name(self, index: int) -> str:
        return f"digits/{self.rows[index]}"

    def content(self) -> Iterable[str]:
        return ("digits", hashlib.sha256(self.pixels.tobytes()).hexdigest(), str(self.labels.tolist()))
