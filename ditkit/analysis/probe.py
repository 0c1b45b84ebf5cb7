"""How much a frozen representation knows about classes: k nearest neighbours and a linear classifier.

Everything is deterministic for a seed. Features are standardised with the training part's statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ditkit.analysis.linear import predict_logistic, standardised
from ditkit.protocols import BadImage, Extractor, Source

Numbers = dict[str, float]
THUMBNAIL = 16  # largest side of the pictures that stand for raw pixels


def knn_accuracy(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, k: int = 5) -> float:
    """Share of `test` (m, D) whose k most cosine-similar rows of `train` (n, D) vote for its label.

    Votes weigh exp(cosine / 0.07) (as in DINO's evaluation), so that ties do not occur and k may exceed a class.
    """
    train, test = (F.normalize(part, dim=1) for part in standardised(train, test))
    similarity, index = (test @ train.T).topk(min(k, len(train)), dim=1)
    votes = torch.zeros(len(test), int(max(labels.max(), test_labels.max())) + 1, dtype=similarity.dtype)
    votes.scatter_add_(1, labels[index], (similarity / 0.07).exp())
    return (votes.argmax(1) == test_labels).double().mean().item()


def linear_probe(
    train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, penalty: float = 1.0, iterations: int = 200
) -> float:
    """Test accuracy of `predict_logistic`."""
    classes = int(max(labels.max(), test_labels.max())) + 1
    predicted = predict_logistic(train, labels, test, classes, penalty, iterations)
    return (predicted == test_labels).double().mean().item()


def draw_rows(labels: Tensor, per_class: int | None, share: float, generator: torch.Generator) -> Tensor:
    """Random rows: `per_class` of each class (all of a smaller class), or with None a `share` of each class."""
    rows = []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        count = max(1, round(share * len(members))) if per_class is None else min(per_class, len(members))
        rows.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(rows).sort().values


def mean_and_error(values: Sequence[float]) -> Numbers:
    """Mean and standard error of the mean over draws."""
    numbers = torch.tensor(values, dtype=torch.float64)
    error = numbers.std().item() / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return {"mean": numbers.mean().item(), "error": error}


def probe_features(
    train: dict[str, Tensor],
    labels: Tensor,
    test: dict[str, Tensor],
    test_labels: Tensor,
    draws: int = 5,
    seed: int = 0,
) -> dict:
    """Score several feature sets (name -> (n, D)) on the same label draws.

    Returns {"knn" | "linear" | "knn_10" | "linear_10": {name: {"mean", "error"}}} plus "values", each draw's number.
    A draw without suffix keeps a random nine tenths of the labels, with _10 ten labels of each class.
    """
    generator = torch.Generator().manual_seed(seed)
    values: dict[str, dict[str, list[float]]] = {}
    for _ in range(draws):
        for suffix, per_class in (("", None), ("_10", 10)):
            rows = draw_rows(labels, per_class, 0.9, generator)
            for name, features in train.items():
                part = features[rows], labels[rows], test[name], test_labels
                for probe, score in (("knn", knn_accuracy(*part)), ("linear", linear_probe(*part))):
                    values.setdefault(probe + suffix, {}).setdefault(name, []).append(score)
    scores = {probe: {name: mean_and_error(v) for name, v in sets.items()} for probe, sets in values.items()}
    return {"scores": scores, "values": values}


def gains(values: dict[str, dict[str, list[float]]], better: str, baseline: str) -> dict[str, Numbers]:
    """For each probe: mean gain of `better` over `baseline` on the same draws, its error, and gain / error."""
    table = {}
    for probe, sets in values.items():
        numbers = mean_and_error([a - b for a, b in zip(sets[better], sets[baseline], strict=True)])
        numbers["standard_errors"] = numbers["mean"] / max(numbers["error"], 1e-9)
        table[probe] = numbers
    return table


def gather(source: Source, rows: Sequence[int], embed: dict[str, Callable[[Tensor], Tensor]], batch: int = 128):
    """Labels (n,) and features {name: (n, D)} of the readable, labelled images among `rows`, in order."""
    labels: list[int] = []
    parts: dict[str, list[Tensor]] = {name: [] for name in embed}
    for start in range(0, len(rows), batch):
        items = []
        for row in rows[start : start + batch]:
            try:
                items.append(source[row])
            except BadImage:  # whoever trains on the source lists it; a score is of what can be read
                continue
        items = [item for item in items if item.label >= 0]
        if items:
            labels += [item.label for item in items]
            images = torch.stack([item.image for item in items])
            for name, function in embed.items():
                parts[name].append(function(images).float().cpu())
    return torch.tensor(labels), {name: torch.cat(list_) for name, list_ in parts.items()}


def thumbnail(images: Tensor) -> Tensor:
    """(B, C, H, W) uint8 -> (B, D) raw pixels; sides beyond 16 are averaged down to it, or a fit would take hours."""
    size = min(images.shape[2], THUMBNAIL), min(images.shape[3], THUMBNAIL)
    return F.adaptive_avg_pool2d(images.float(), size).flatten(1)


def spread(count: int, limit: int) -> list[int]:
    """At most `limit` evenly spaced indices of `count`."""
    return torch.linspace(0, count - 1, min(count, limit)).round().long().unique().tolist()


def probe_report(
    extractor: Extractor,
    random_init: Extractor,
    train: Source,
    test: Source,
    *,
    draws: int = 5,
    seed: int = 0,
    limit: int = 5000,
) -> dict:
    """What a teacher learned: teacher, its random initialisation and raw pixels, scored on held-out images.

    `train` and `test` must be labelled and disjoint; the teacher must not have seen `test`. Returns
    {"scores": {"knn" | "linear" | "knn_10" | "linear_10": {"teacher" | "random_init" | "pixels": {"mean", "error"}}},
    "gains": the same probes with {"mean", "error", "standard_errors"} of teacher over random_init,
    "gains_over_pixels": likewise, "protocol": how it was measured}; numbers are accuracies in [0, 1].
    Of each part at most `limit` evenly spaced images are used. ValueError for unlabelled images.
    """
    if not train.classes or not test.classes:
        raise ValueError("a probe needs labelled images: sort them into one folder a class")
    embed: dict[str, Callable[[Tensor], Tensor]] = {
        "teacher": lambda images: extractor(images).pooled,
        "random_init": lambda images: random_init(images).pooled,
        "pixels": thumbnail,
    }
    labels, features = gather(train, spread(len(train), limit), embed)
    test_labels, test_features = gather(test, spread(len(test), limit), embed)
    result = probe_features(features, labels, test_features, test_labels, draws, seed)
    return {
        "scores": result["scores"],
        "gains": gains(result["values"], "teacher", "random_init"),
        "gains_over_pixels": gains(result["values"], "teacher", "pixels"),
        "protocol": {
            "teacher": extractor.id,
            "random_init": random_init.id,
            "train": len(labels),
            "test": len(test_labels),
            "classes": len(train.classes),
            "draws": draws,
            "seed": seed,
            "features": "pooled, standardised by the training part",
            "pixels": f"at most {THUMBNAIL}x{THUMBNAIL}",
            "knn": "cosine, k = 5, votes weigh exp(cosine / 0.07)",
            "linear": "multinomial logistic regression, L2 penalty 1, L-BFGS",
            "labels": "nine tenths of each class a draw; _10: ten of each class",
        },
    }
