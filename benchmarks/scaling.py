"""What to expect of 8, 64 and 512 GPUs: a model of compute, communication, input and failures, played step by step.

`python benchmarks/scaling.py sit.xl_2_256 --gpus 1 8 64 512 --batch-per-gpu 32`; docs/scale.md explains.
Nothing here is measured. Every assumption is a field of `Cluster` or `Training`; put in numbers of your own machines.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ditkit.analysis.cost import cost
from ditkit.recipes import recipe as find_recipe

MODES = ("ddp", "fsdp", "hybrid")


@dataclass(frozen=True)
class Cluster:
    """Machines. Bandwidths are bytes a second that a GPU reaches in practice, one direction."""

    peak: float = 989.5e12  # FLOP/s, dense bf16, H100 / H200 data sheet
    utilisation: float = 0.40  # of the peak, forward and backward on one GPU; `ditkit bench train` measures it
    node: int = 8  # GPUs a machine
    inside: float = 350e9  # between GPUs of a machine (NVLink, of 450e9)
    between: float = 40e9  # a GPU's share of the network (one 400 Gbit/s adapter each, of 50e9)
    latency: float = 20e-6  # seconds a collective inside a machine; each doubling of machines adds as much
    memory: float = 3.3e12  # bytes a second of GPU memory reached by optimiser and averages (of 4.8e12)
    jitter: float = 0.02  # deviation of a GPU's compute time from step to step; all wait for the slowest
    disk: float = 3e9  # bytes a second that a machine reads from its own disk
    storage: float = 20e9  # bytes a second of shared storage, all machines together, and of checkpoints
    writer: float = 1.5e9  # bytes a second that one process writes
    staging: float = 20e9  # bytes a second from a GPU into the host's memory
    failure: float = 50_000.0  # GPU hours between interruptions: 419 unexpected in 54 days of 16,384 (arXiv 2407.21783)
    restart: float = 300.0  # seconds from an interruption to the next step


@dataclass(frozen=True)
class Training:
    """One training: `gmacs` of a forward pass of one image, parameters, blocks, bytes that are read for an image."""

    gmacs: float
    parameters: float
    blocks: int
    image_bytes: float
    batch: int  # images a GPU and step
    averages: int = 1
    local: bool = True  # every machine has a copy of the cache on its own disk
    asynchronous: bool = True  # checkpoints are written while training goes on, each process its part

    @property
    def flops(self) -> float:
        """Of forward and backward of one image: 6 a multiply-accumulate (no credit for recomputation)."""
        return 6e9 * self.gmacs

    @property
    def checkpoint(self) -> float:
        """Bytes of a checkpoint: weights, two moments and the averages, float32."""
        return 4 * self.parameters * (3 + self.averages)


@dataclass(frozen=True)
class Step:
    """Seconds of a mean step, and what it is made of."""

    total: float
    compute: float
    exposed: float  # communication that nothing hides
    waiting: float  # for the slowest GPU
    input: float  # for data
    update: float  # optimiser and averages


def all_gather(size: float, gpus: int, c: Cluster) -> float:
    """Seconds until each of `gpus` has all of `size` bytes, of which each held an equal part."""
    if gpus == 1:
        return 0.0
    near, nodes = min(gpus, c.node), max(1, gpus // c.node)
    inside = size * (near - 1) / near / c.inside
    between = size / near * (nodes - 1) / nodes / c.between
    return inside + between + c.latency * (1 + math.log2(nodes))


def all_reduce(size: float, gpus: int, c: Cluster) -> float:
    """Seconds to add `size` bytes over `gpus`: scattered sums, then gathered, each over machines and inside them."""
    return 2 * all_gather(size, gpus, c)  # a reduce-scatter moves what an all-gather moves


def communication(t: Training, gpus: int, mode: str, c: Cluster) -> tuple[float, float]:
    """(seconds to gather a block's weights, to exchange its gradients) as the modes of training.parallel do it."""
    weights = t.parameters / t.blocks
    if mode == "ddp":
        return 0.0, all_reduce(4 * weights, gpus, c)
    if mode == "fsdp":
        return all_gather(2 * weights, gpus, c), all_gather(4 * weights, gpus, c)
    near, nodes = min(gpus, c.node), max(1, gpus // c.node)  # hybrid: shards inside a machine, copies between
    across = replace(c, node=1)
    return all_gather(2 * weights, near, c), all_gather(4 * weights, near, c) + all_reduce(
        4 * weights / near, nodes, across
    )


def timeline(compute: float, t: Training, gather: float, exchange: float) -> float:
    """Seconds of forward and backward over equal blocks, one queue of kernels and one of communication.

    A block waits for its weights, which are asked for one block ahead; gradients are exchanged from the block's end on.
    Backward is twice forward.
    """
    forward, now, channel = compute / 3 / t.blocks, 0.0, 0.0
    work = [forward] * t.blocks + [2 * forward] * t.blocks
    channel += gather  # of the first block
    ready = channel
    for i, seconds in enumerate(work):
        began = max(now, ready)
        if i + 1 < len(work):  # the next one's weights
            channel = max(channel, began) + gather
            ready = channel
        now = began + seconds
        if i >= t.blocks:
            channel = max(channel, now) + exchange
    return max(now, channel)


def simulate(t: Training, gpus: int, mode: str, c: Cluster, steps: int = 400, seed: int = 0) -> Step:
    """Play `steps` steps: each GPU's compute time is drawn, all wait for the slowest, data are read two steps ahead."""
    compute = t.batch * t.flops / (c.peak * c.utilisation)
    gather, exchange = communication(t, gpus, mode, c)
    shares = {"ddp": 1, "fsdp": gpus, "hybrid": min(gpus, c.node)}[mode]
    update = 4 * t.parameters * (7 + 3 * t.averages) / shares / c.memory  # reads and writes of AdamW and averages
    near = min(gpus, c.node)
    reading = near * t.batch * t.image_bytes / c.disk if t.local else gpus * t.batch * t.image_bytes / c.storage
    slowest = 1 + c.jitter * np.random.default_rng(seed).standard_normal((steps, gpus)).max(1)
    alone = timeline(compute, t, gather, exchange)
    clock, read, spent = 0.0, 2 * reading, []
    for factor in slowest:  # the reader may be two batches ahead
        began = max(clock, read)
        spent.append(began - clock)
        clock = began + timeline(compute * factor, t, gather, exchange) + update
        read = max(read, began - reading) + reading
    played = float(np.mean([timeline(compute * f, t, gather, exchange) for f in slowest]))
    stalled = float(np.mean(spent[2:])) if steps > 2 else 0.0
    exposed, waiting = max(0.0, alone - compute), max(0.0, played - alone)
    return Step(played + stalled + update, compute, exposed, waiting, stalled, update)


def saving(t: Training, gpus: int, c: Cluster) -> tuple[float, float]:
    """(seconds that training waits for a checkpoint, seconds until it is on the disk)."""
    size = t.checkpoint
    if not t.asynchronous:
        written = size / c.writer
        return written, written
    writers = max(1, gpus // c.node) * c.writer * min(gpus, c.node)
    return size / gpus / c.staging, size / min(c.storage, writers)


def goodput(t: Training, gpus: int, c: Cluster) -> tuple[float, float]:
    """(best seconds between checkpoints, share of time that trains): Young's rule (1974) on the time that is lost.

    lost = wait / interval + interval / (2 M) + restart / M with M seconds between interruptions of the whole job.
    """
    wait, written = saving(t, gpus, c)
    between = 3600 * c.failure / gpus
    interval = max(math.sqrt(2 * wait * between), written)
    lost = wait / interval + (interval / 2 + c.restart) / between
    return interval, max(0.0, 1 - lost)


def row(t: Training, gpus: int, mode: str, c: Cluster, steps: int, images: float) -> dict:
    """One line of the table; hours are those of `images` images."""
    step, (interval, share) = simulate(t, gpus, mode, c, steps), goodput(t, gpus, c)
    rate = gpus * t.batch / step.total
    ideal = gpus * c.peak * c.utilisation / t.flops
    return {
        "gpus": gpus,
        "mode": mode,
        "global_batch": gpus * t.batch,
        "images_per_s": rate,
        "efficiency": rate / ideal,
        "seconds": asdict(step),
        "read_gb_per_s": rate * t.image_bytes / 1e9,
        "checkpoint_gb": t.checkpoint / 1e9,
        "checkpoint_every_s": interval,
        "goodput": share,
        "hours": images / rate / share / 3600,
    }


def show(rows: Sequence[dict]) -> Table:
    """The rows for people."""
    table = Table(title="predicted, not measured", title_justify="left")
    for name in (
        "GPUs",
        "mode",
        "batch",
        "images/s",
        "efficiency",
        "step ms",
        "compute",
        "exposed",
        "waiting",
        "input",
    ):
        table.add_column(name, justify="left" if name == "mode" else "right")
    for name in ("update", "read GB/s", "save every", "goodput", "hours"):
        table.add_column(name, justify="right")
    for r in rows:
        s = {key: f"{1000 * value:.1f}" for key, value in r["seconds"].items()}
        table.add_row(
            str(r["gpus"]), r["mode"], f"{r['global_batch']:,}", f"{r['images_per_s']:,.0f}", f"{r['efficiency']:.1%}",
            s["total"], s["compute"], s["exposed"], s["waiting"], s["input"], s["update"], f"{r['read_gb_per_s']:.2f}",
            f"{r['checkpoint_every_s']:.0f} s", f"{r['goodput']:.2%}", f"{r['hours']:.1f}",
        )  # fmt: skip
    return table


def picture(rows: Sequence[dict], file: Path) -> None:
    """Where a step's time goes, a bar for each row."""
    import matplotlib.pyplot as plt

    names = [f"{r['gpus']} {r['mode']}" for r in rows]
    figure, axes = plt.subplots(figsize=(9, 0.45 * len(rows) + 1.6), layout="constrained")
    left = np.zeros(len(rows))
    colours = {
        "compute": "#2d7dd2", "exposed": "#f45d01", "waiting": "#eeb902", "input": "#97cc04", "update": "#474647"
    }  # fmt: skip
    words = {"exposed": "communication not hidden", "waiting": "waiting for the slowest", "input": "waiting for data"}
    for part, colour in colours.items():
        values = 1000 * np.array([r["seconds"][part] for r in rows])
        axes.barh(names, values, left=left, color=colour, label=words.get(part, part))
        left += values
    for i, r in enumerate(rows):
        axes.text(left[i], i, f"  {r['efficiency']:.0%} of linear", va="center", fontsize=9)
    axes.invert_yaxis()
    axes.set(xlabel="ms a step (predicted, not measured)", xlim=(0, 1.22 * left.max()))
    figure.legend(loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.savefig(file, dpi=130)


def parser() -> argparse.ArgumentParser:
    """The command line; every field of Cluster is an option."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("recipe", nargs="?", default="sit.xl_2_256", help="its network is trained (default sit.xl_2_256)")
    p.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64, 512])
    p.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    batch = p.add_mutually_exclusive_group()
    batch.add_argument("--batch-per-gpu", type=int, default=32)
    batch.add_argument("--batch", type=int, help="global batch instead: the published 256 on ever more GPUs")
    read = "read for an image: fp16 moments of SD's VAE, and DINOv2-B's 256 tokens in fp16 (default)"
    p.add_argument("--image-bytes", type=float, default=16_384 + 256 * 768 * 2, help=read)
    p.add_argument("--images", type=float, default=400_000 * 256, help="of the whole training, for the hours")
    p.add_argument("--averages", type=int, default=1)
    p.add_argument("--shared-storage", action="store_true", help="all machines read one shared storage")
    p.add_argument("--save-waits", action="store_true", help="whole checkpoints, written while training waits")
    p.add_argument("--steps", type=int, default=400, help="steps that are played")
    for name, value in asdict(Cluster()).items():
        p.add_argument(f"--{name}", type=type(value), default=value, help=f"default {value:g}")
    p.add_argument("--out", type=Path, help="new .json file")
    p.add_argument("--plot", type=Path, help="PNG of where a step's time goes")
    return p


def main(words: Sequence[str] | None = None) -> list[dict]:
    """Print the table; write what is asked for."""
    p = parser()
    a = p.parse_args(words)
    if a.out and a.out.exists():
        p.error(f"{a.out} exists already: another --out")
    cluster = Cluster(**{name: getattr(a, name) for name in asdict(Cluster())})
    if bad := [n for n in a.gpus if n < 1 or (n > cluster.node and n % cluster.node)]:
        p.error(f"{bad[0]} GPUs are no whole machines of {cluster.node}")
    model = find_recipe(a.recipe).model
    counted = cost(model)
    rows = []
    for gpus in a.gpus:
        if a.batch and a.batch % gpus:
            Console(stderr=True).print(f"{gpus} GPUs cannot share a batch of {a.batch}: left out")
            continue
        rows_of_one = a.batch // gpus if a.batch else a.batch_per_gpu
        training = Training(
            counted.gmacs, counted.trainable, model.depth, a.image_bytes, rows_of_one,
            a.averages, not a.shared_storage, not a.save_waits,
        )  # fmt: skip
        modes = a.modes if gpus > 1 else a.modes[:1]
        if gpus <= cluster.node:
            modes = [m for m in modes if m != "hybrid"] or modes[:1]
        rows += [row(training, gpus, mode, cluster, a.steps, a.images) for mode in modes]
    Console(width=170).print(show(rows))
    if a.out:
        facts = {"date": datetime.now(UTC).date().isoformat(), "recipe": a.recipe, "cluster": asdict(cluster)}
        a.out.write_text(json.dumps({**facts, "predicted": rows}, indent=1) + "\n", encoding="utf-8")
    if a.plot:
        picture(rows, a.plot)
    return rows


if __name__ == "__main__":
    main()
