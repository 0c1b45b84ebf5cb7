"""Generating images, scoring them, and reporting what was found."""

from ditkit.evaluation.classifier import (
    Classifier,
    ClassifierSettings,
    classifier_id,
    read_classifier,
    train_classifier,
)
from ditkit.evaluation.features import FewSamples, Moments, extract, frechet, read_images, read_items, spread
from ditkit.evaluation.folder import FolderError, SampleFolder
from ditkit.evaluation.generate import Generated, Sampleable, ToSample, generate
from ditkit.evaluation.images import grid, quantise, save_png
from ditkit.evaluation.plots import Panel, Series, read_rows, series_of
from ditkit.evaluation.protocols import Protocol, ProtocolMismatch, Score, compare, in_words
from ditkit.evaluation.reference import Reference, make_reference
from ditkit.evaluation.report import Report, render, write_report
from ditkit.evaluation.request import Request, balanced_labels, make_request, random_labels
from ditkit.evaluation.samples import given_protocol, open_generated, open_images
from ditkit.evaluation.score import score_images
from ditkit.evaluation.score_table import Space, score_table
from ditkit.evaluation.sections import Section

__all__ = [
    "Classifier",
    "ClassifierSettings",
    "FewSamples",
    "FolderError",
    "Generated",
    "Moments",
    "Panel",
    "Protocol",
    "ProtocolMismatch",
    "Reference",
    "Report",
    "Request",
    "SampleFolder",
    "Sampleable",
    "Score",
    "Section",
    "Series",
    "Space",
    "ToSample",
    "balanced_labels",
    "classifier_id",
    "compare",
    "extract",
    "frechet",
    "generate",
    "given_protocol",
    "grid",
    "in_words",
    "make_reference",
    "make_request",
    "open_generated",
    "open_images",
    "quantise",
    "random_labels",
    "read_classifier",
    "read_images",
    "read_items",
    "read_rows",
    "render",
    "save_png",
    "score_images",
    "score_table",
    "series_of",
    "spread",
    "train_classifier",
    "write_report",
]
