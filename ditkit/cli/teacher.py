"""`ditkit teacher`: train a small self-supervised network on your own images, for `ditkit train --teacher`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ditkit.cli.train import Device, Size

PROBES = {
    "knn": "k-NN",
    "linear": "linear probe",
    "knn_10": "k-NN, 10 labels a class",
    "linear_10": "linear probe, 10 labels a class",
}
WHO = {"teacher": "teacher", "random_init": "untrained", "pixels": "raw pixels"}


def teacher(
    data: Annotated[str, typer.Argument(help="A folder of images, a .parquet file, or 'digits'.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="batch=64 network.width=128 augment.flip=0 ...", metavar="[KEY=VALUE]...")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="New folder for the teacher.")] = Path("runs/teacher"),
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimizer steps; default 500.")] = None,
    size: Size = None,
    hold_out: Annotated[
        bool, typer.Option("--hold-out", help="Train on four fifths, so that the report is of images never seen.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of weights, views and order.")] = 0,
    device: Device = "auto",
) -> None:
    """Train a compact self-supervised ViT on your own images; labels are not looked at.

    Labelled images are then probed: how much of the classes the features hold, beside the untrained network's and raw
    pixels. Labels of one fifth are held out; the teacher has seen those pictures unless you say --hold-out.

    Example: ditkit teacher ./my_images --out runs/teacher
    """
    from ditkit.cli.progress import bars
    from ditkit.recipes.build import pick_device
    from ditkit.recipes.place import check_new
    from ditkit.recipes.teach import no_probe, probe, teach
    from ditkit.training.teacher import TeacherTraining

    check_new(out)
    source, where = open_images(data, size), pick_device(device)
    training = with_overrides(TeacherTraining(), overrides or [], steps, source)
    with bars() as bar:
        for note in source.notes:
            bar.say(note)
        bar.say(f"training a teacher on {len(source):,} images of {source.size[0]}x{source.size[1]}, on {where}")

        def on_step(step: int, values: dict[str, float]) -> None:
            bar("teacher", step, training.steps, f"loss {values['loss']:.3f}")

        made = teach(source, training, out, hold_out=hold_out, seed=seed, device=where, progress=on_step)
        for path, reason in made.facts["rejects"]:
            bar.say(f"unusable image, left out: {path}: {reason}")
        reason = no_probe(source)
        if reason is None:
            bar.say("probing what it learned")
            found = probe(made, source, out, hold_out=hold_out, seed=seed)
    typer.echo(f"no probe: {reason}" if reason else table(found))
    better = reason is not None or learned(found)
    typer.echo(f"teacher: {out}   next: {way_on(data, size, out, training.steps, better)}")


def way_on(data: str, size: str | None, out: Path, steps: int, better: bool) -> str:
    """The next command: train with the teacher, or train it longer where it learned nothing."""
    sized = "" if size is None else f" --size {size}"
    if better:
        return f"ditkit train repa.sit_s_2 --data {data}{sized} --codec pixels --teacher {out}"
    more = 4 * steps or 500
    return f"train it longer: ditkit teacher {data}{sized} --steps {more} --out {out}-longer, else as before"


def open_images(data: str, size: str | None):
    """The images of DATA, at a size of one's own where given."""
    from ditkit.data import DataSettings, open_source
    from ditkit.data.cache import Cache
    from ditkit.recipes.choose import parse_size

    source = open_source(DataSettings(source=data, size=None if size is None else parse_size(size)))
    if isinstance(source, Cache):
        raise source.no_pictures()
    return source


def with_overrides(training, overrides: list[str], steps: int | None, source):
    """The settings with --steps and KEY=VALUE; network.* and augment.* start from what the images ask for."""
    from ditkit.config import override
    from ditkit.pretrained import default_augment, vit_settings
    from ditkit.recipes.choose import agreeing

    changes: dict[str, object] = {} if steps is None else {"steps": steps}
    if any(text.startswith("network.") for text in overrides):
        changes["network"] = vit_settings(source.size, source.channels)
    if any(text.startswith("augment.") for text in overrides):
        changes["augment"] = default_augment(source.channels)
    before = training.model_copy(update=changes)
    return agreeing(before, override(before, overrides), overrides, {"--steps": steps})


def table(found: dict) -> str:
    """Accuracies on held-out labels, mean ± standard error over label draws, and the gain over the untrained one."""
    protocol, scores = found["protocol"], found["scores"]
    lines = [f"{'accuracy':34}" + "".join(f"{title:>18}" for title in WHO.values()) + "   gain over untrained"]
    for key, title in PROBES.items():
        cells = [f"{scores[key][who]['mean']:.1%} ± {scores[key][who]['error']:.1%}" for who in WHO]
        gain = found["gains"][key]
        lines.append(f"{title:34}" + "".join(f"{cell:>18}" for cell in cells) + f"   {in_errors(gain)}")
    lines.append(
        f"{protocol['test']} images of {protocol['classes']} classes tested, {protocol['train']} labelled, "
        f"{protocol['draws']} label draws; {protocol['seen']}"
    )
    if not learned(found):
        lines.append("it is not clearly better than untrained: more --steps or more images may help")
    return "\n".join(lines)


def learned(found: dict) -> bool:
    """Whether any probe finds the teacher better than the untrained network by more than three standard errors."""
    return any(found["gains"][key]["mean"] > 3 * found["gains"][key]["error"] for key in PROBES)


def in_errors(gain: dict[str, float]) -> str:
    """ "+12.3%, 9.9 standard errors"; without the second part where all draws agree."""
    errors = f", {gain['standard_errors']:.1f} standard errors" if gain["error"] > 1e-6 else ""
    return f"{gain['mean']:+.1%}{errors}"
