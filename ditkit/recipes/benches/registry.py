"""All benchmarks by name, what each is told, and the file of numbers that each leaves."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from ditkit.config import nearest
from ditkit.recipes.benches.attention import attending
from ditkit.recipes.benches.bench import Bench, BenchSettings, Progress, public_name
from ditkit.recipes.benches.loader import loading
from ditkit.recipes.benches.networks import encoding, evaluating
from ditkit.recipes.benches.sampling import sampling, sharing
from ditkit.recipes.benches.train import training
from ditkit.recipes.environment import environment
from ditkit.recipes.stopwatch import cpu_name, cpu_threads

BENCHES: dict[str, Callable[[Bench, Progress | None], dict]] = {
    "sampling": sampling,
    "sharing": sharing,
    "train": training,
    "encode": encoding,
    "evaluation": evaluating,
    "loader": loading,
    "attention": attending,
}
ALL = {"batch", "warmup", "threads", "seed"}  # settings that every benchmark looks at
OWN = {
    "sampling": {"steps", "repeats", "precision", "peak"},
    "sharing": {"steps", "repeats", "precision", "every", "against"},
    "train": {"steps", "repeats", "precision", "peak", "compare", "data", "ceiling"},
    "encode": {"repeats", "precision"},
    "evaluation": {"repeats", "precision", "extractor", "samples", "width"},
    "loader": {"seconds", "data"},
    "attention": {"repeats", "precision"},
}  # and those of each


def measure(what: str, bench: Bench, command: str = "", progress: Progress | None = None) -> dict:
    """Everything that the result file of benchmark `what` holds, as JSON values; ValueError for an unknown one."""
    check_known(what)
    check_settings(what, bench.settings)
    bench = resolved(what, bench)
    recipe, settings, device = bench
    with cpu_threads(settings.threads):
        results = BENCHES[what](bench, progress)
        return {
            "what": what,
            "command": command,
            "date": datetime.now(UTC).date().isoformat(),
            "environment": environment(device, cpu=cpu_name()),
            "recipe": public_name(recipe),
            "model": recipe.model.model_dump(mode="json"),
            "settings": settings.model_dump(mode="json"),
            "results": results,
        }


def check_known(what: str) -> None:
    """ValueError for a benchmark that is not there."""
    if what not in BENCHES:
        raise ValueError(f"bench: no benchmark {what!r}{nearest(what, BENCHES)}")


def check_settings(what: str, settings: BenchSettings) -> None:
    """ValueError for a setting that this benchmark does not look at: it would change nothing."""
    for key, field in BenchSettings.model_fields.items():
        if key in ALL | OWN[what] or getattr(settings, key) == field.default:
            continue
        others = " and ".join(sorted(other for other, keys in OWN.items() if key in keys))
        raise ValueError(f"bench {what}: {key} is a setting of bench {others} and has no use here")


def resolved(what: str, bench: Bench) -> Bench:
    """The bench with this benchmark's own defaults in place of what was left open.

    Training takes batch and precision from its recipe, or gives it those of the settings.
    """
    recipe, settings, device = bench
    if what != "train":
        return bench._replace(
            settings=settings.with_({"batch": bench.batch, "precision": settings.precision or "fp32"})
        )
    given = {"training.batch": settings.batch, "training.precision": settings.precision}
    recipe = recipe.with_({key: value for key, value in given.items() if value is not None})
    own = {"batch": recipe.training.batch, "precision": recipe.training.precision}
    return Bench(recipe, settings.with_(own), device)
