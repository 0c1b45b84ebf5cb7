"""Scores of samples, one per file: arrays or tensors in, floats out."""

from ditkit.evaluation.metrics.agreement import agreement, agreement_by_class
from ditkit.evaluation.metrics.frechet import frechet_distance
from ditkit.evaluation.metrics.inception_score import inception_score, inception_scores
from ditkit.evaluation.metrics.kernel import kernel_distance, kernel_distances, mmd2
from ditkit.evaluation.metrics.precision_recall import PrecisionRecall, precision_recall

__all__ = [
    "PrecisionRecall",
    "agreement",
    "agreement_by_class",
    "frechet_distance",
    "inception_score",
    "inception_scores",
    "kernel_distance",
    "kernel_distances",
    "mmd2",
    "precision_recall",
]
