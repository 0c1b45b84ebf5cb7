"""Attention over blocks, times and training: entropy, largest logits, and the size of the residual stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import nn

from ditkit.analysis.attention import Trace, recordable, recording
from ditkit.config import Settings
from ditkit.evaluation import Panel, Series
from ditkit.evaluation.sections import Cell, number
from ditkit.nn.norm import RMSNorm
from ditkit.recipes.analyses.analysis import Analysis, Bar, Floats, Found, Shown, Table
from ditkit.recipes.analyses.noised import Noised, noised, picked, token_grid
from ditkit.recipes.analyses.subject import Subject
from ditkit.recipes.analyses.verdicts import ONE_EACH
from ditkit.recipes.analyses.words import check_times, middle, of
from ditkit.recipes.load import load
from ditkit.training import list_steps

NOTE = (
    "Entropy: of the rows of image tokens, over the logarithm of the attended tokens: 1 all alike, 0 a single one. "
    "Logit: q k / sqrt(h), the largest of all images, heads and tokens, those of text among them; padding neither asks "
    "nor is asked. Residual stream: root mean square before each block. Without a norm of queries and keys, logits "
    "grow and entropy collapses in long training (SD3, arXiv 2403.03206, section 5.3.2)."
)


class AttentionSettings(Settings):
    """Where attention is looked at."""

    t: Floats = Field((0.1, 0.5, 0.9), description="times, 0 = data")
    images: int = Field(64, ge=1, description="held-out images")
    history: int = Field(6, ge=0, description="checkpoints of a run, evenly spread, that are looked at too")


class BlockAttention(Settings):
    """One block. entropy: mean over heads, of the head where it is lowest, and of text tokens' rows."""

    entropy: float
    lowest_head: float
    largest_logit: float
    rms: float
    largest_activation: float
    text_entropy: float | None = None
    weight_on_text: float | None = None


class Moment(Settings):
    """A checkpoint of the run: every block at the time nearest to 0.5."""

    step: int
    blocks: list[BlockAttention]


class AttentionResult(Settings):
    """blocks[i][j]: at time i in block j + 1."""

    images: int
    watched: str
    conditioned: str
    t: list[float]
    blocks: list[list[BlockAttention]]
    qk_norm: str
    history: list[Moment]


def qk_norm(model: nn.Module) -> str:
    """Which norms queries and keys have, read off the network: "rms", "layer", "none", or another's class."""
    known: dict[type, str] = {RMSNorm: "rms", nn.LayerNorm: "layer", nn.Identity: "none"}
    norms = [part.q_norm for part in model.modules() if hasattr(part, "q_norm")]
    return " and ".join(sorted({known.get(type(norm), type(norm).__name__) for norm in norms})) or "none"


def numbers(trace: Trace) -> BlockAttention:
    """What was recorded in a block."""
    has_text = trace.text_entropy is not None and trace.images.start > 0
    return BlockAttention(
        entropy=float(trace.heads.mean()),
        lowest_head=float(trace.heads.min()),
        largest_logit=trace.largest_logit,
        rms=trace.rms,
        largest_activation=trace.largest_activation,
        text_entropy=trace.text_entropy if has_text else None,
        weight_on_text=trace.weight_on_text if has_text else None,
    )


@torch.no_grad()
def look(subject: Subject, model: nn.Module, parts: Sequence[Noised]) -> list[BlockAttention]:
    """Every block of a model on these batches."""
    rows, columns = token_grid(subject)
    joint = getattr(subject.loaded.settings, "kind", "") == "joint_dit"
    with recording(model, rows * columns, text_first=joint) as traces:
        for part in parts:
            model(part.seen, part.t, part.cond)
    return [numbers(trace) for trace in traces]


def measure(subject: Subject, settings: AttentionSettings, bar: Bar) -> Found:
    """Every time, then the run's earlier checkpoints at the middle time."""
    check_times(settings.t)
    blocks, n = [], len(picked(subject, settings.images))
    for done, t in enumerate(settings.t, start=1):
        parts = list(noised(subject, t, n, null=False))
        blocks.append(look(subject, subject.loaded.model, parts))
        bar("attention", done, len(settings.t))
    history = remembered(subject, settings, n, bar)
    return Found(
        AttentionResult(
            images=n, watched=subject.watched, conditioned=subject.test.conditioned, t=list(settings.t), blocks=blocks,
            qk_norm=qk_norm(subject.loaded.model), history=history,
        )
    )  # fmt: skip


def remembered(subject: Subject, settings: AttentionSettings, n: int, bar: Bar) -> list[Moment]:
    """The checkpoints of the run up to the one that is looked at; none without a run or with a single one."""
    loaded, folder = subject.loaded, subject.folder
    if folder is None or not settings.history or loaded.step is None:
        return []
    steps = [step for step in list_steps(folder) if step <= loaded.step]
    count = min(settings.history, len(steps))
    if count < 2:
        return []
    chosen = [steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)]
    parts = list(noised(subject, settings.t[middle(settings.t)], n, null=False))
    moments = []
    for done, step in enumerate(chosen, start=1):
        earlier = load(folder, loaded.weights, step=step).to(loaded.device)
        moments.append(Moment(step=step, blocks=look(subject, earlier.model, parts)))
        bar("attention over training", done, count)
    return moments


def show(found: Mapping[str, Found]) -> Shown:
    """Over blocks: one model's times, or several models at the middle time; over training where it was kept."""
    results: dict[str, AttentionResult] = {name: f.result for name, f in found.items()}  # type: ignore[misc]
    alone = len(results) == 1
    lines = [
        (f"t = {t:g}" if alone else name, at)
        for name, r in results.items()
        for i, (t, at) in enumerate(zip(r.t, r.blocks, strict=True))
        if alone or i == middle(r.t)
    ]
    panels = [
        Panel(
            title, [Series(n, range(1, len(at) + 1), [getattr(b, key) for b in at]) for n, at in lines], "block", unit
        )
        for key, title, unit in (
            ("entropy", "Entropy of attention", "entropy / log tokens"),
            ("lowest_head", "Entropy, lowest head", "entropy / log tokens"),
            ("largest_logit", "Largest logit", "q k / sqrt h"),
            ("rms", "Residual stream before the block", "root mean square"),
        )
    ]
    panels += history_panels(results)
    said = [line for name, r in results.items() for line in said_of(name, r)]
    if not alone:
        said.append(f"What of this differs by more than noise is not known here. {ONE_EACH}")
    first = next(iter(results.values()))
    of_what = f"Of {first.images} {first.watched}, with {first.conditioned}. "
    columns = ("model", "t", "block", "entropy", "lowest head", "largest logit", "RMS before", "largest activation")
    texts = any(b.weight_on_text is not None for r in results.values() for b in r.blocks[0])
    rows: list[list[Cell]] = []
    for name, r in results.items():
        for t, at in zip(r.t, r.blocks, strict=True):
            for j, b in enumerate(at, start=1):
                row: list[Cell] = [name or "model", t, j, b.entropy, b.lowest_head, b.largest_logit, b.rms]
                rows.append([*row, b.largest_activation, *([b.text_entropy, b.weight_on_text] if texts else [])])
    more = ("entropy of text tokens", "weight on text") if texts else ()
    return Shown(said, panels, {"Attention": Table((*columns, *more), rows)}, note=of_what + NOTE)


def history_panels(results: Mapping[str, AttentionResult]) -> list[Panel]:
    """Over training steps: the block of lowest entropy, and the largest logit of any block."""
    kept = {name: r.history for name, r in results.items() if r.history}
    if not kept:
        return []
    entropy = [
        Series(name or "lowest block", [m.step for m in h], [min(b.entropy for b in m.blocks) for m in h])
        for name, h in kept.items()
    ]
    logits = [
        Series(name or "any block", [m.step for m in h], [max(b.largest_logit for b in m.blocks) for m in h])
        for name, h in kept.items()
    ]
    return [
        Panel("Over training: entropy, lowest block", entropy, "step", "entropy / log tokens"),
        Panel("Over training: largest logit", logits, "step", "q k / sqrt h"),
    ]


def said_of(name: str, r: AttentionResult) -> list[str]:
    """Where attention is sharpest and logits are largest, and how both moved in training."""
    i = middle(r.t)
    at = r.blocks[i]
    low = min(range(len(at)), key=lambda j: at[j].entropy)
    high = max(range(len(at)), key=lambda j: at[j].largest_logit)
    norm = "no norm" if r.qk_norm == "none" else f"{r.qk_norm} norm"
    said = [
        f"{of(name)}at t = {r.t[i]:g}, with {norm} of queries and keys, attention is sharpest in block {low + 1} "
        f"(entropy {at[low].entropy:.3f} of log tokens; its sharpest head {at[low].lowest_head:.3f}); the largest "
        f"logit is {number(at[high].largest_logit, 3)}, in block {high + 1}; the residual stream goes from "
        f"{number(at[0].rms, 3)} before block 1 to {number(at[-1].rms, 3)} before block {len(at)}."
    ]
    if r.history:
        first, last = r.history[0], r.history[-1]
        logits = [number(max(b.largest_logit for b in m.blocks), 3) for m in (first, last)]
        entropies = [f"{min(b.entropy for b in m.blocks):.3f}" for m in (first, last)]
        said.append(
            f"{of(name)}from step {first.step:,} to {last.step:,} the largest logit went from {logits[0]} to "
            f"{logits[1]}, and the lowest entropy of a block from {entropies[0]} to {entropies[1]}; limits of these "
            f"changes are not known."
        )
    return said


def unknown(subject: Subject) -> str:
    """Why attention cannot be recorded, "" where it can."""
    return "" if recordable(subject.loaded.model) else "its blocks have no attention that is known here"


ANALYSIS = Analysis(
    "attention", "Attention", AttentionSettings, AttentionResult, measure, show, unknown, uses=("images", "checkpoints")
)
