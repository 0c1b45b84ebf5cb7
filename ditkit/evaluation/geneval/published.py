"""Published GenEval scores as data; for reports, and as a check of the arithmetic.

Source: Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis" (SD3),
arXiv 2403.03206, Tables 4 and 5. All are of GenEval's own prompts (80 COCO classes), 4 images each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ditkit.evaluation.geneval.metadata import TAGS


class Row(NamedTuple):
    """Overall score and the score of each task, in the order of TAGS; shares with two digits, as printed."""

    overall: float
    tasks: tuple[float, float, float, float, float, float]


TABLE_5: dict[str, Row] = {
    "minDALL-E": Row(0.23, (0.73, 0.11, 0.12, 0.37, 0.02, 0.01)),
    "SD v1.5": Row(0.43, (0.97, 0.38, 0.35, 0.76, 0.04, 0.06)),
    "PixArt-alpha": Row(0.48, (0.98, 0.50, 0.44, 0.80, 0.08, 0.07)),
    "SD v2.1": Row(0.50, (0.98, 0.51, 0.44, 0.85, 0.07, 0.17)),
    "DALL-E 2": Row(0.52, (0.94, 0.66, 0.49, 0.77, 0.10, 0.19)),
    "SDXL": Row(0.55, (0.98, 0.74, 0.39, 0.85, 0.15, 0.23)),
    "SDXL Turbo": Row(0.55, (1.00, 0.72, 0.49, 0.80, 0.10, 0.18)),
    "IF-XL": Row(0.61, (0.97, 0.74, 0.66, 0.81, 0.13, 0.35)),
    "DALL-E 3": Row(0.67, (0.96, 0.87, 0.47, 0.83, 0.43, 0.45)),
    "SD3 depth 18, 512 px": Row(0.58, (0.97, 0.72, 0.52, 0.78, 0.16, 0.34)),
    "SD3 depth 24, 512 px": Row(0.62, (0.98, 0.74, 0.63, 0.67, 0.34, 0.36)),
    "SD3 depth 30, 512 px": Row(0.64, (0.96, 0.80, 0.65, 0.73, 0.33, 0.37)),
    "SD3 depth 38, 512 px": Row(0.68, (0.98, 0.84, 0.66, 0.74, 0.40, 0.43)),
    "SD3 depth 38, 512 px, DPO": Row(0.71, (0.98, 0.89, 0.73, 0.83, 0.34, 0.47)),
    "SD3 depth 38, 1024 px, DPO": Row(0.74, (0.99, 0.94, 0.72, 0.89, 0.33, 0.60)),
}

# Table 4, what synthetic captions are worth, as the counts of correct images that its percentages stand for
IMAGES = {"single_object": 320, "two_object": 396, "counting": 320, "colors": 376, "position": 400, "color_attr": 400}
TABLE_4: dict[str, tuple[float, dict[str, int]]] = {
    "original captions": (
        43.27,
        {"single_object": 304, "two_object": 164, "counting": 107, "colors": 269, "position": 26, "color_attr": 47},
    ),
    "50 % synthetic captions": (
        49.78,
        {"single_object": 300, "two_object": 208, "counting": 133, "colors": 256, "position": 72, "color_attr": 99},
    ),
}


def overall(scores: Mapping[str, float]) -> float:
    """GenEval's overall score: the unweighted mean over tasks, not over images. ValueError for no or unknown tasks."""
    if not scores or set(scores) - set(TAGS):
        raise ValueError(f"overall needs scores of tasks ({', '.join(TAGS)}), got {', '.join(scores) or 'none'}")
    return sum(scores.values()) / len(scores)
