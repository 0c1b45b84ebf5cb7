"""What each block knows at each time: linear probing and likeness to teachers (REPA, figures 2 and 3)."""

from __future__ import annotations

from pydantic import Field

from ditkit.analysis.cost import cost
from ditkit.analysis.linear import PaperProbe
from ditkit.config import Settings
from ditkit.evaluation.uncertainty import Interval
from ditkit.recipes.analyses.analysis import Analysis, Bar, Floats, Found, Ints
from ditkit.recipes.analyses.layers_found import LayersResult, TeacherFound
from ditkit.recipes.analyses.layers_shown import show
from ditkit.recipes.analyses.representation import (
    Bench,
    How,
    Kind,
    Peak,
    Preparation,
    TeacherLook,
    no_null,
)
from ditkit.recipes.analyses.subject import Subject, chosen_blocks
from ditkit.recipes.analyses.words import check_times


class LayersSettings(Settings):
    """Where to look, and how."""

    t: Floats = Field((0.1, 0.3, 0.5, 0.7, 0.9), description="times, 0 = data, 1 = noise")
    blocks: Ints = Field((), description="1-based; none: all. DDT's decoder counts on from its encoder")
    probe: Kind = Field("ridge", description="ridge and logistic: for small machines; paper: REPA's; none")
    epochs: int = Field(90, ge=1, description="probe=paper: passes over the training images")
    probe_batch: int = Field(16384, ge=2, description="probe=paper: images a step (all, where there are fewer)")
    lr: float = Field(1e-3, gt=0, description="probe=paper: Adam's, falling along a cosine")
    k: int = Field(10, ge=2, description="nearest neighbours of CKNNA and mutual k-NN (the papers: 10)")
    prepare: Preparation = Field("normalise", description="platonic: outliers clamped at their 0.95 quantile before")


def measure(subject: Subject, settings: LayersSettings, bar: Bar) -> Found:
    """Every block at every time. ValueError for blocks or times that there are not, and where k is too large."""
    check_times(settings.t)
    loaded = subject.loaded
    blocks = chosen_blocks(settings.blocks, loaded.settings.depth)
    paper = PaperProbe(epochs=settings.epochs, batch=settings.probe_batch, lr=settings.lr)
    bench = Bench(subject, How(probe=settings.probe, paper=paper, k=settings.k, prepare=settings.prepare), bar)
    teachers = bench.teacher_looks()
    looks = [look for t in settings.t for look in bench.look(loaded.model, t, blocks, f"layers at t = {t:g}")]
    best = bench.probe_peak()
    found = {name: teacher_found(bench, best, name, own) for name, own in teachers.items()}
    trained, scored = bench.probed
    return Found(
        LayersResult(
            blocks=blocks, times=settings.t, depth=loaded.settings.depth, align_depth=loaded.align_depth,
            encoder_blocks=getattr(loaded.settings, "encoder_blocks", None),
            parameters=cost(loaded.settings).trainable, images=len(bench.test), train_images=trained,
            test_images=scored, classes=bench.classes, how=bench.how, watched=subject.watched,
            unprobed=bench.unprobed, missing=bench.missing,
            looks=tuple(looks), teachers=found, best=best,
        )
    )  # fmt: skip


def teacher_found(bench: Bench, best: Peak | None, teacher: str, own: TeacherLook) -> TeacherFound:
    """With the semantic gap, a teacher's accuracy less the best block's, and its limits on the same images."""
    gap: float | None = None
    limits: Interval | None = None
    if best is not None:
        gap, limits = bench.gap(teacher, best)
    return TeacherFound(own=own, best=bench.cknna_peak(teacher), gap=gap, limits=limits)


ANALYSIS = Analysis(
    "layers", "What each layer knows", LayersSettings, LayersResult, measure, show, no_null, uses=("images", "teachers")
)
