"""Seconds and memory of the metrics: `python benchmarks/metrics.py frechet` and `... scale`; --help says more.

frechet: our distance against scipy.linalg.sqrtm's, on moments of the same features, of full rank and not.
scale: Frechet distance, precision and recall, and kernel distance on random features of full size.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import Progress
from scipy.linalg import sqrtm

from ditkit.evaluation.features import Moments, frechet
from ditkit.evaluation.metrics import frechet_distance, kernel_distances, precision_recall
from ditkit.evaluation.uncertainty import frechet_interval, kernel_interval, recall_interval, share_interval
from ditkit.recipes.environment import environment


def peak_mib() -> float:
    """Largest resident memory of this process so far, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def features(samples: int, width: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    """Random features (N, D) float32 with spectra that decay as real ones do, made a few thousand rows at a time."""
    scale = torch.arange(1, width + 1, dtype=torch.float32).rsqrt()
    out = torch.empty(samples, width)
    for i, part in enumerate(out.split(4096)):
        part.normal_(generator=torch.Generator().manual_seed(1000 * seed + i)).mul_(scale).add_(shift * scale)
    return out


class Timed(NamedTuple):
    """What some work returned, its seconds by the clock, and its seconds of processor time."""

    value: Any
    seconds: float
    processor: float


def timed(work: Callable[[], object]) -> Timed:
    """Do the work once."""
    clock, processor = time.perf_counter(), time.process_time()
    value = work()
    return Timed(value, time.perf_counter() - clock, time.process_time() - processor)


def by_sqrtm(mu1: np.ndarray, cov1: np.ndarray, mu2: np.ndarray, cov2: np.ndarray) -> float:
    """The distance as it is usually computed; nan or complex parts are left as they come."""
    root = sqrtm(cov1 @ cov2)
    return float(np.square(mu1 - mu2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * np.trace(root).real)


def compare_roots(width: int) -> dict:
    """Both ways at `width` dimensions, taking turns, in one process."""
    frechet_distance(torch.zeros(600), torch.eye(600), torch.ones(600), torch.eye(600))  # loads the libraries
    found = {}
    for name, samples in (("well_conditioned", 4 * width), ("rank_deficient", width // 2)):
        sides = [Moments.of(features(samples, width, seed)) for seed in (1, 2)]
        tensors = [x for side in sides for x in (side.mean, side.covariance)]
        arrays = [x.numpy() for x in tensors]
        ours = timed(lambda tensors=tensors: frechet_distance(*tensors))
        theirs = timed(lambda arrays=arrays: by_sqrtm(*arrays))
        found[name] = {
            "samples": samples,
            "ours": ours._asdict(),
            "sqrtm": theirs._asdict() | {"value": theirs.value if np.isfinite(theirs.value) else None},
            "ratio": theirs.seconds / ours.seconds,
            "ratio_of_processor_time": theirs.processor / ours.processor,
        }
        print(name, found[name], flush=True)
    return found


def full_size(samples: int, width: int, rule: str, limits: bool) -> dict:
    """Scores of two sets of features, with the seconds of each step and the peak memory after it.

    limits: and those 95 % limits that take as long as the scores.
    """
    found: dict = {"samples": samples, "width": width, "rule": rule, "imported_mib": peak_mib()}
    real, fake = features(samples, width, 1), features(samples, width, 2, shift=0.05)
    found["features_mib"] = 2 * real.numel() * 4 / 2**20
    with Progress() as bar:

        def step(name: str, work: Callable) -> object:
            task = bar.add_task(name)
            done = timed(lambda: work(lambda done, total: bar.update(task, completed=done, total=total)))
            found[name] = done._asdict() | {"peak_mib": round(peak_mib())}
            bar.console.print(name, {k: v for k, v in found[name].items() if k != "value"})
            return done.value

        moments = [Moments.of(x) for x in (real, fake)]
        fid = step("frechet", lambda told: frechet(moments[1], moments[0]))
        if limits:
            step("frechet limits", lambda told: frechet_interval(fid, fake, moments[0], progress=told))
        covered = step("precision_recall", lambda told: precision_recall(real, fake, rule=rule, progress=told))
        if limits:
            step("recall limits", lambda told: recall_interval(covered.recall, real, fake, rule=rule, progress=told))
        found["precision limits"] = share_interval(covered.precision, samples)
        distances = step("kernel", lambda told: kernel_distances(real, fake, progress=told))
        found["kernel"]["value"] = distances.mean().item()
        step("kernel limits", lambda told: kernel_interval(distances, real, fake, progress=told))
    found["peak_mib"] = round(peak_mib())
    found["all_distances_mib"] = round(samples * samples * (8 if rule == "float64" else 4) / 2**20)
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("frechet", "scale"))
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--rule", default="float32", choices=("float64", "float32", "adm"))
    parser.add_argument("--limits", action="store_true", help="of Frechet distance and recall too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.what == "frechet":
        results = compare_roots(given.width)
    else:
        results = full_size(given.samples, given.width, given.rule, given.limits)
    command = f"python benchmarks/metrics.py {given.what} --width {given.width} --threads {given.threads}"
    if given.what == "scale":
        command += f" --samples {given.samples} --rule {given.rule}{' --limits' if given.limits else ''}"
    record = {
        "what": f"metrics {given.what}", "command": command, "date": datetime.now(UTC).date().isoformat(),
        "environment": environment(torch.device("cpu")), "results": results,
    }  # fmt: skip
    text = json.dumps(record, indent=1) + "\n"
    print(text)
    if given.out:
        given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
