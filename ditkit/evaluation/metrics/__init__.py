"""Scores of samples, one per file: arrays or tensors in, floats out."""

from ditkit.evaluation.metrics.agreement import agreement, agreement_by_class
from ditkit.evaluation.metrics.by_class import by_class, kernel_by_class
from ditkit.evaluation.metrics.cmmd import cmmd, cmmd_terms
from ditkit.evaluation.metrics.frechet import FrechetTo, frechet_distance
from ditkit.evaluation.metrics.inception_score import inception_score, inception_scores, inception_terms
from ditkit.evaluation.metrics.kernel import kernel_distance, kernel_distances, kernel_influences, mmd2
from ditkit.evaluation.metrics.mind import mind, mind_without_groups
from ditkit.evaluation.metrics.precision_recall import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    precision_recall,
)
from ditkit.evaluation.metrics.recall_groups import recall_without_groups
from ditkit.evaluation.metrics.reconstruction import psnr, ssim

__all__ = [
    "DensityCoverage",
    "FrechetTo",
    "PrecisionRecall",
    "agreement",
    "agreement_by_class",
    "by_class",
    "cmmd",
    "cmmd_terms",
    "density_coverage",
    "frechet_distance",
    "inception_score",
    "inception_scores",
    "inception_terms",
    "kernel_by_class",
    "kernel_distance",
    "kernel_distances",
    "kernel_influences",
    "mind",
    "mind_without_groups",
    "mmd2",
    "precision_recall",
    "psnr",
    "recall_without_groups",
    "ssim",
]
