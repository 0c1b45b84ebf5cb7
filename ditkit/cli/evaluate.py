"""`ditkit evaluate`: scores of a model's samples, or of any images, against real ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ditkit.cli.keys import Keyed
from ditkit.cli.sample import Device, Source
from ditkit.cli.show import print_table

if TYPE_CHECKING:
    from ditkit.recipes.recipe import Recipe
    from ditkit.recipes.score_files import Scores

Command = Keyed
DEFAULT_N = 1000
JUDGING = ("data", "classifier", "real", "protocol")  # keys of the real side; the others are those of `ditkit sample`
EXAM = ("geneval", "detector", "clip")  # keys of --geneval

What = Annotated[
    Path,
    typer.Argument(
        help="A run, model folder or published file (is sampled first); or a folder of PNG files or an .npz.",
        metavar="RUN|FOLDER|FILE",
    ),
]
Keys = Annotated[
    list[str] | None, typer.Argument(help="seed=1 classifier.steps=1000 ...; see below.", metavar="[KEY=VALUE]...")
]
Data = Annotated[
    str | None, typer.Option("--data", help="Real images: digits, a folder, a .parquet file. Default: the run's.")
]
Count = Annotated[int | None, typer.Option("--n", help=f"Samples of a model. Default: {DEFAULT_N:,}.")]
Extractors = Annotated[
    list[str] | None,
    typer.Option("--extractor", help="A `ditkit teacher` folder, dinov2-vit-b, a hub id. May be repeated."),
]
Against = Annotated[Path | None, typer.Option("--against", help="Another scores.json: compare with it.")]


def evaluate(
    what: What,
    keys: Keys = None,
    data: Data = None,
    source: Source = None,
    n: Count = None,
    extractor: Extractors = None,
    against: Against = None,
    force: Annotated[bool, typer.Option("--force", help="Compare although the protocols differ.")] = False,
    device: Device = "auto",
) -> None:
    """Score samples against real images: in pixels, by a classifier trained on the data, in any extractor's features.

    Every number is stored with its protocol, in scores.json beside the samples. `real half/half` is what one half of
    the real images scores against the other: about the best that can be reached. Real images are read at the size and
    channels of the samples.

    Further keys, as KEY=VALUE or --KEY VALUE: those of `ditkit sample` (seed, classes, prompts, guidance, steps,
    solver, sharing, weights, codec, sampling.*, ...), and real (images at most), split=all|train|test, data.*,
    classifier.*, protocol. A text model draws captions of the data unless --prompts FILE says otherwise.

    --geneval examines a text model's images by GenEval instead: scenes with the built-in detector, else 553 prompts of
    COCO objects with Mask2Former and CLIP (--geneval=FILE: the published list; --detector, --clip: other networks).

    Example: ditkit evaluate runs/mine --data ./my_images --n 5000 --extractor runs/teacher
    """
    words = [*(keys or []), *([] if n is None else [f"n={n}"])]
    if any(word.startswith("geneval=") for word in words):
        _geneval(what, source, words, device)
    else:
        _score(what, source, words, data, (extractor or (), device), (against, force))


def _score(
    what: Path, source: str | None, keys: list[str], data: str | None, looking: tuple[Sequence[str], str],
    other: tuple[Path | None, bool],
) -> None:  # fmt: skip
    """Sample where needed, score, store, print; looking: (extractors, device), other: (scores.json, force)."""
    from ditkit.cli.progress import bars
    from ditkit.recipes.build import pick_device
    from ditkit.recipes.sampling import describe_weights
    from ditkit.recipes.score_files import read_scores, save_scores
    from ditkit.recipes.scoring import choose_judging, is_images, judge, load_extractors, open_real, open_samples

    against, force = other
    real_keys = [k for k in keys if k.partition("=")[0].partition(".")[0] in JUDGING]
    model_keys = [k for k in keys if k not in real_keys]
    there, where, loaded = read_scores(against) if against else None, pick_device(looking[1]), None
    spaces = load_extractors(looking[0], where)
    with bars() as bar:
        if not is_images(what):
            samples, loaded, judging = _sample(
                what, source, model_keys, (real_keys, data), where, bar, None if force else there
            )
        elif model_keys or source:
            raise ValueError(f"{what} holds images, nothing is sampled: leave {(model_keys or ['--source'])[0]} out")
        else:
            judging, samples = choose_judging(real_keys, data), open_samples(what)
        real = open_real(judging, samples.images)
        weights = loaded and describe_weights(loaded)
        scores = judge(
            samples, real, judging, spaces, where, what=str(what), weights=weights, bar=bar, say=bar.say
        )  # fmt: skip
        save_scores(scores, samples.scores)
    _print_scores(scores, loaded and loaded.recipe)
    typer.echo(f"scores     {samples.scores}")
    if there:
        _print_comparison(scores, there, force)


def _sample(
    what: Path, source: str | None, keys: list[str], real: tuple[list[str], str | None], device, bar,
    other: Scores | None,
):  # fmt: skip
    """Sample the model (what is there already is kept): (samples, loaded, judging). All is checked before it begins."""
    from ditkit.evaluation.generate import making
    from ditkit.recipes.sampling import (
        check_codec,
        choose_request,
        choose_sampler,
        draw,
        folder_for,
        open_model,
        read_choices,
        split,
    )
    from ditkit.recipes.score_files import check_comparable
    from ditkit.recipes.scoring import check_belongs, choose_judging, of_generated, open_captions

    own, sampler_keys = split(keys)
    choices = read_choices(own)
    loaded = open_model(what, source, choices, device)
    sampling, notes = choose_sampler(loaded, choices, sampler_keys, what)
    judging = choose_judging(*real, loaded.recipe)
    request = choose_request(loaded, choices, DEFAULT_N, open_captions(loaded, judging))
    check_codec(loaded)
    if other:
        check_comparable(other, {"name": judging.protocol, **making(request, sampling, loaded.codec.id)})
    for note in (*notes, *check_belongs(loaded, judging)):
        bar.say(note)
    folder = folder_for(what, loaded, sampling, request)
    made, _ = draw(loaded, sampling, request, folder, lambda done, total: bar("samples", done, total))
    return of_generated(made), loaded, judging


def _geneval(what: Path, source: str | None, keys: list[str], device: str) -> None:
    """Sample GenEval's prompts, examine the images, print and store what was found."""
    from ditkit.cli.progress import bars
    from ditkit.evaluation.geneval import geneval_lines
    from ditkit.recipes.build import pick_device
    from ditkit.recipes.geneval import choose_exam, describe_exam, examine, write_exam
    from ditkit.recipes.sampling import check_codec, choose_sampler, draw, folder_for, open_model, read_choices, split

    asked = dict(k.split("=", 1) for k in keys if k.partition("=")[0] in EXAM)
    own, sampler_keys = split([k for k in keys if k.partition("=")[0] not in EXAM])
    choices = read_choices(own)
    loaded = open_model(what, source, choices, pick_device(device))
    sampling, notes = choose_sampler(loaded, choices, sampler_keys, what)
    exam = choose_exam(loaded, choices, asked["geneval"], asked.get("detector", "auto"), asked.get("clip", ""))
    check_codec(loaded)
    folder = folder_for(what, loaded, sampling, exam.request)
    with bars() as bar:
        for note in (*notes, *describe_exam(exam)):
            bar.say(note)
        made, sheet = draw(loaded, sampling, exam.request, folder, lambda done, total: bar("images", done, total))
        result = examine(made, exam, lambda done, total: bar("examined", done, total))
    for line in geneval_lines(result):
        typer.echo(line)
    for path in write_exam(result, loaded, sampling, made, sheet):
        typer.echo(f"written    {path}")


def _print_scores(scores: Scores, recipe: Recipe | None) -> None:
    """Space, score, value, limits, and what real images reach; the protocol; what was published."""
    from ditkit.recipes.published_scores import published_lines
    from ditkit.recipes.score_files import describe_protocols

    lines: list[tuple] = []
    for name, space in scores.spaces.items():
        for score in space.scores:
            real = scores.classifier_accuracy if score.metric == "agreement" else space.floor.get(score.metric)
            limits = "" if score.interval is None else f"{score.interval[0]:.4g} to {score.interval[1]:.4g}"
            cells = (name, score.metric, f"{score.value:.4g}", limits, "" if real is None else f"{real:.4g}")
            lines.append((*cells, score.better))
    print_table(("space", "score", "value", "95 %", "real half/half", "better"), lines, right=(2, 3, 4))
    if scores.classifier_accuracy is not None:
        typer.echo(f"classifier {scores.classifier_accuracy:.1%} of held-out real images named correctly")
    if scores.unusable:
        more = ", ..." if scores.unusable > len(scores.unusable_paths) else ""
        names = ", ".join(scores.unusable_paths) + more
        typer.echo(f"left out   {scores.unusable} real images that cannot be used: {names}")
    if scores.weights is not None:
        typer.echo(f"weights    {scores.weights}")
    for line in describe_protocols(scores):
        typer.echo(f"protocol   {line}")
    protocol = next(iter(scores.spaces.values())).scores[0].protocol
    for line in published_lines(recipe, protocol) if recipe else ():
        typer.echo(f"published  {line}")


def _print_comparison(scores: Scores, other: Scores, force: bool) -> None:
    """Every score of both, and which is better; ValueError where the protocols differ."""
    from ditkit.recipes.score_files import compare_scores

    lines = compare_scores(scores, other, force)
    cells = [(space, metric, f"{there:.4g}", f"{here:.4g}", verdict) for space, metric, there, here, verdict in lines]
    there, here = (f"{s.what} ({s.weights})" if s.weights else s.what for s in (other, scores))
    typer.echo(f"\nthere: {there}\nhere:  {here}")
    print_table(("space", "score", "there", "here", "here is"), cells, right=(2, 3))
