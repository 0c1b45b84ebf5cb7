"""Finding the objects of ditkit.data.scenes in pixels: their shapes, colours and places, with no network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ditkit.data.scenes import VOCABULARY, Vocabulary
from ditkit.protocols import Detection

# shape -> (area over widest row x highest column, share of the area in the lower half), typical of 8 to 12 pixels
FEATURES = {"circle": (0.79, 0.5), "square": (1.0, 0.5), "triangle": (0.6, 0.72)}
WEIGHTS = np.array((1.0, 2.0))  # the lower half tells triangles however blurred they are
FAR = 0.25  # distance from every shape's features at which confidence begins to fall
SIZES = (1 / 64, 1 / 4)  # share of the image outside which it falls: half the smallest triangle, twice a full cell
STRANGE = 50  # mean distance from that line, in grey levels, at which it falls: noise of standard deviation 40
THIN = 0.25  # share of a pixel from which on it counts for the box: a blurred triangle's apex does
STRONG_AXES = ndimage.generate_binary_structure(2, 1)  # diagonal neighbours do not hang together


class SceneDetector:
    """A protocols.Detector for scenes of one vocabulary.

    Each pixel goes to the nearest colour, and what hangs together in one object colour is an object if a small square
    fits in (edges of other objects are thinner). Its shape is the nearest in FEATURES, measured on soft pixels: how far
    each lies on the line from the background to the colour. Confidence is 1 for what looks like an object of a
    scene, less for other sizes (SIZES), other shapes (FAR) and other colours in it or around it (STRANGE).
    """

    id = "scenes"

    def __init__(self, vocabulary: Vocabulary = VOCABULARY):
        self.palette = np.array([*vocabulary.colours.values(), *vocabulary.backgrounds.values()], dtype=np.float32)
        self.colours = len(vocabulary.colours)  # the first rows of the palette
        self.shapes = [s for s in FEATURES if s in vocabulary.shapes]
        self.features = np.array([FEATURES[s] for s in self.shapes]) * WEIGHTS

    def __call__(self, images: Tensor) -> list[list[Detection]]:
        """uint8 (B, 3, H, W) -> the objects of each image, the most confident first, then the largest."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"scenes are found in colour images (B, 3, H, W), got {tuple(images.shape)}")
        return [self._find(image) for image in images.permute(0, 2, 3, 1).to("cpu", torch.float32).numpy()]

    def _find(self, image: np.ndarray) -> list[Detection]:
        nearest = _nearest(image, self.palette)
        ground = image[nearest >= self.colours]
        background = np.median(ground, axis=0) if len(ground) else self.palette[self.colours]
        block = max(2, min(image.shape[:2]) // 16)
        found = []
        for colour in range(self.colours):
            labels, count = ndimage.label(nearest == colour, STRONG_AXES)
            for number, box in enumerate(ndimage.find_objects(labels, count), 1):
                if ndimage.binary_erosion(labels[box] == number, np.ones((block, block))).any():
                    found.append(self._detection(image, labels == number, background, self.palette[colour]))
        kept = [detection for detection in found if detection is not None]
        return sorted(kept, key=lambda d: (-d.score, -int(d.mask.sum())))  # type: ignore[union-attr]

    def _detection(
        self, image: np.ndarray, mask: np.ndarray, background: np.ndarray, colour: np.ndarray
    ) -> Detection | None:
        soft, strange = _soften(image, mask, background, colour)
        if soft.max() <= THIN:  # the background's own grey, nearest to an object's colour
            return None
        distances = np.linalg.norm(self.features - _features(soft) * WEIGHTS, axis=1)
        best = int(distances.argmin())
        size = float(soft.sum() / mask.size)
        score = min(1.0, size / SIZES[0], SIZES[1] / size)
        score *= min(1.0, FAR / max(distances[best], 1e-9)) ** 2 * min(1.0, STRANGE / max(strange, 1e-9)) ** 2
        rows, columns = (np.flatnonzero(soft.max(axis) > THIN) for axis in (1, 0))
        box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
        return Detection(self.shapes[best], float(score), box, torch.from_numpy(mask))


def _nearest(pixels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Number of the nearest colour of each pixel; (..., 3), (K, 3) -> (...)."""
    return ((palette**2).sum(1) - 2 * pixels @ palette.T).argmin(-1)


def _soften(
    image: np.ndarray, mask: np.ndarray, background: np.ndarray, colour: np.ndarray
) -> tuple[np.ndarray, float]:
    """How much of each pixel (H, W) is object, in [0, 1], of its own pixels and of those around; STRANGE's distance."""
    way = colour - background
    share = np.clip((image - background) @ way / max(float(way @ way), 1.0), 0, 1)
    around = max(1, min(mask.shape) // 32)
    region = ndimage.binary_dilation(mask, np.ones((3, 3)), iterations=around)
    off = np.linalg.norm(image[region] - background - share[region, None] * way, axis=-1)
    return share * region, float(off.mean())


def _features(soft: np.ndarray) -> np.ndarray:
    """Fill and lower half (see FEATURES) of an object's soft pixels (H, W)."""
    rows, columns, filled = soft.sum(1), soft.sum(0), soft.max(1)
    area = rows.sum()
    y = np.arange(len(rows))
    middle = (y * filled).sum() / filled.sum()
    lower = (rows * np.clip(y - middle + 0.5, 0, 1)).sum() / area
    return np.array((area / (rows.max() * columns.max()), lower))


class SceneColours:
    """A protocols.Colours for scenes: the vocabulary's colour that is nearest to the median pixel of the object."""

    id = "scenes"

    def __init__(self, vocabulary: Vocabulary = VOCABULARY):
        self.names = tuple(vocabulary.colours)
        self.palette = np.array(list(vocabulary.colours.values()), dtype=np.float32)

    def __call__(self, image: Tensor, found: Sequence[Detection]) -> list[str]:
        """One image (3, H, W) uint8 and its objects -> the colour of each."""
        pixels = image.permute(1, 2, 0).to("cpu", torch.float32).numpy()
        middles = [np.median(pixels[_inside(d, pixels.shape[:2])], axis=0) for d in found]
        return [self.names[int(_nearest(middle, self.palette))] for middle in middles]


def _inside(detection: Detection, size: tuple[int, ...]) -> np.ndarray:
    """The object's pixels (H, W) bool: its mask, or its box."""
    if detection.mask is not None:
        return detection.mask.cpu().numpy()
    x0, y0, x1, y1 = (round(v) for v in detection.box)
    inside = np.zeros(size, dtype=bool)
    inside[max(0, y0) : max(y1, y0 + 1), max(0, x0) : max(x1, x0 + 1)] = True
    return inside
