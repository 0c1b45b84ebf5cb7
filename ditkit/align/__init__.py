"""REPA: projectors, similarity, weight schedule and teacher targets."""

from ditkit.align.aligner import Aligner, Alignment, AlignSettings, Projector, resize_features
from ditkit.align.similarity import AnySimilarity, Cosine, NTXent
from ditkit.align.targets import compute_targets

__all__ = [
    "AlignSettings",
    "Aligner",
    "Alignment",
    "AnySimilarity",
    "Cosine",
    "NTXent",
    "Projector",
    "compute_targets",
    "resize_features",
]
