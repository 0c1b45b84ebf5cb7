"""`ditkit evaluate`: scores of a model's samples, or of any images, against real ones."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from ditkit.cli.evaluate_cost import print_cost
from ditkit.cli.evaluate_reference import make, name_of_network
from ditkit.cli.evaluate_words import print_classes, print_comparison, print_published, print_scores
from ditkit.cli.keys import KEYS
from ditkit.cli.sample import Command as SampleCommand
from ditkit.cli.sample import Device, Source

if TYPE_CHECKING:
    from ditkit.cli.progress import Bars
    from ditkit.ranks import Ranks
    from ditkit.recipes.score_files import Scores

DEFAULT_N = 1000
JUDGING = ("data", "classifier", "real", "protocol", "reference")  # keys of the real side; others: `ditkit sample`
EXAM = ("geneval", "detector", "clip")  # keys of --geneval
OWN = ("per-class", "out", "make-reference", "reconstruct", "ignore")  # keys of this verb alone


class Command(SampleCommand):
    """`--protocol NAME` and the like are keys too; `--processes N` starts the verb N times."""

    images: ClassVar = DEFAULT_N
    keys: ClassVar = {**KEYS, **{key: key for key in (*OWN, "protocol", "reference", "posterior")}}


What = Annotated[
    Path | None,
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
    typer.Option(
        "--extractor",
        help="inception, inception:FILE, clip, dinov2-vit-b, a `ditkit teacher` folder, a hub id. May be repeated.",
    ),
]
Against = Annotated[Path | None, typer.Option("--against", help="Another scores.json: compare with it.")]


@dataclass(frozen=True)
class Asked:
    """Everything that a command line asks for but the device, sorted by whom it concerns."""

    what: Path | None
    source: str | None
    model_keys: list[str]
    real_keys: list[str]
    own: dict[str, str]
    data: str | None
    extractors: list[str]

    @property
    def named(self) -> str:
        """The value of --protocol."""
        return next((k.partition("=")[2] for k in reversed(self.real_keys) if k.startswith("protocol=")), "custom")

    @property
    def spaces(self) -> list[str]:
        """The extractors to load: those named, else that of the reference file; Inception where a protocol asks."""
        from ditkit.evaluation.named import INCEPTION, find_protocol

        named = find_protocol(self.named)
        wants = named.extractor == INCEPTION if named else False
        given = any(name.partition(":")[0] == "inception" for name in self.extractors)
        files = [k.partition("=")[2] for k in self.real_keys if k.startswith("reference=")]
        if wants and not given:
            return ["inception", *self.extractors]
        return [name_of_network(files[-1])] if files and not self.extractors else self.extractors

    @property
    def ignored(self) -> list[str]:
        """Keys of the protocol that may differ from --against's."""
        return [key.strip() for key in self.own.get("ignore", "").split(",") if key.strip()]


def evaluate(
    what: What = None,
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

    Every number is stored with its protocol, in scores.json beside the samples (or in --out FILE). `real half/half` is
    what one half of the real images scores against the other: about the best that can be reached. Real images are read
    at the size and channels of the samples.

    Besides the options in the box below, and told here: --protocol NAME, --reference FILE, --per-class, --out FILE,
    --make-reference FOLDER, --reconstruct CODEC, --ignore seed, --processes N, --geneval.

    For papers: --protocol adm-imagenet256-50k, adm-imagenet512-50k, rfid-imagenet-val, coco-30k (else custom) fixes N,
    labels, network and rules, and refuses what is not so; --reference FILE.npz (ADM's, or one's own) takes the place of
    --data. What was published stands beside what was measured, with every difference. --per-class prints scores by
    class. --make-reference FOLDER --out FILE.npz [--size 256] makes a reference of one's own images, by Inception or
    the network of --extractor.

    --against scores.json --ignore seed: the seeds may differ; other differences are refused (--force compares anyway).
    --processes N or torchrun share the sampling; the first process scores.

    --reconstruct CODEC --data FOLDER [--size 256] scores a codec: PSNR, SSIM, and with --extractor inception (or
    --protocol rfid-imagenet-val) rFID.

    Further keys, as KEY=VALUE or --KEY VALUE: those of `ditkit sample` (seed, classes, prompts, guidance, steps,
    solver, sharing, weights, codec, sampling.*, ...), and real (images at most), split=all|train|test, data.*,
    classifier.*. A text model draws captions of the data unless --prompts FILE says otherwise.

    --geneval examines a text model's images by GenEval instead: scenes with the built-in detector, else 553 prompts of
    COCO objects with Mask2Former and CLIP (--geneval=FILE: the published list; --detector, --clip: other networks).

    Example: ditkit evaluate runs/mine --data ./my_images --n 5000 --extractor runs/teacher
    """
    words = [*(keys or []), *([] if n is None else [f"n={n}"])]
    if what is not None and str(what).partition("=")[0] in OWN:  # --make-reference FOLDER comes without a RUN
        what, words = None, [str(what), *words]
    if any(word.startswith("geneval=") for word in words):
        _geneval(_given(what), source, words, device)
        return
    own = dict(w.split("=", 1) for w in words if w.partition("=")[0] in OWN)
    rest = [w for w in words if w.partition("=")[0] not in OWN]
    real_keys = [k for k in rest if k.partition("=")[0].partition(".")[0] in JUDGING]
    if "make-reference" in own or "reconstruct" in own:
        if _speaks():
            _without_samples(own, what, data, extractor or (), rest, device)
        return
    model_keys = [k for k in rest if k not in real_keys]
    asked = Asked(_given(what), source, model_keys, real_keys, own, data, list(extractor or ()))
    _score(asked, (against, force), device)


def _without_samples(
    own: dict[str, str], what: Path | None, data: str | None, extractors: Sequence[str], keys: list[str], device: str
) -> None:
    """--make-reference and --reconstruct."""
    from ditkit.cli.evaluate_reconstruct import reconstruct_by

    if "make-reference" in own:
        if what is not None:
            raise ValueError(f"--make-reference takes the folder alone: leave {what} out")
        make(own["make-reference"], own.get("out"), extractors, keys, device)
        return
    if what is not None or data is None:
        raise ValueError("--reconstruct CODEC takes images by --data FOLDER, and nothing that is sampled")
    reconstruct_by(own["reconstruct"], data, own.get("out"), extractors, keys, device)


def _given(what: Path | None) -> Path:
    if what is None:
        raise ValueError("which samples? name a run, a model, a folder of PNG files or an .npz")
    return what


def _speaks() -> bool:
    """Whether this is the first of torchrun's processes (or the only one): what is not sampled it does alone."""
    from ditkit.ranks import find_ranks

    return find_ranks().first


def _score(asked: Asked, other: tuple[Path | None, bool], device: str) -> None:
    """Sample where needed, score, store, print; other: (scores.json, force)."""
    from ditkit.cli.progress import bars
    from ditkit.ranks import ALONE, find_ranks, together
    from ditkit.recipes.build import pick_device
    from ditkit.recipes.place import check_writable
    from ditkit.recipes.sampling import describe_weights
    from ditkit.recipes.score_files import check_ignored, read_scores, save_scores
    from ditkit.recipes.scoring import is_images, judge, load_extractors, open_real_side

    started, (against, force) = time.monotonic(), other
    what, out = _given(asked.what), Path(asked.own["out"]) if "out" in asked.own else None
    there_already, loaded = is_images(what), None
    if there_already and not _speaks():
        return
    with together(ALONE if there_already else find_ranks()) as ranks:
        with ranks.agreed():
            check_ignored(asked.ignored)
            if out is not None:
                check_writable(out.parent)
            there, where = read_scores(against) if against else None, ranks.device(pick_device(device))
            if there_already:
                samples, judging = _open(asked)
            spaces = load_extractors(asked.spaces, where) if ranks.first else {}
        with bars() if ranks.first else nullcontext() as bar:
            if not there_already:
                samples, loaded, judging = _sample(asked, where, bar, None if force else there, ranks)
            if bar is None:
                return
            weights = loaded and describe_weights(loaded)
            scores = judge(
                samples, open_real_side(judging, samples.images), judging, spaces, where, what=str(what),
                weights=weights, bar=bar, say=bar.say,
            )  # fmt: skip
            save_scores(scores, out or samples.scores)
    print_scores(scores)
    if asked.own.get("per-class", "false") != "false":
        print_classes(scores)
    if loaded:
        print_published(scores, loaded)
    print_cost(started, where)
    typer.echo(f"scores     {out or samples.scores}")
    if there:
        print_comparison(scores, there, force, asked.ignored)


def _open(asked: Asked):
    """Images that are there already: (samples, judging). All is checked."""
    from ditkit.recipes.scoring import check_protocol, choose_judging, open_real_side, open_samples

    what = _given(asked.what)
    if asked.model_keys or asked.source:
        first = (asked.model_keys or ["--source"])[0]
        raise ValueError(f"{what} holds images, nothing is sampled: leave {first} out")
    judging, samples = choose_judging(asked.real_keys, asked.data), open_samples(what)
    if len(samples.images) < 2:
        raise ValueError(f"{what} holds one image: scores are of two samples at least")
    real = open_real_side(judging, samples.images)
    check_protocol(judging, len(samples.images), tuple(samples.images[0:1].shape[2:]), real)
    return samples, judging


def _sample(asked: Asked, device, bar: Bars | None, other: Scores | None, ranks: Ranks):
    """Sample the model (what is there already is kept): (samples, loaded, judging). All is checked before it begins."""
    from functools import partial

    from ditkit.evaluation.generate import planned
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
    from ditkit.recipes.scoring import (
        check_belongs,
        check_request,
        choose_judging,
        of_generated,
        open_captions,
    )

    what = _given(asked.what)
    with ranks.agreed():
        own, sampler_keys = split(asked.model_keys)
        choices = read_choices(own)
        loaded = open_model(what, asked.source, choices, device)
        sampling, notes = choose_sampler(loaded, choices, sampler_keys, what)
        judging = choose_judging(asked.real_keys, asked.data, loaded.recipe)
        request = choose_request(loaded, choices, DEFAULT_N, open_captions(loaded, judging))
        check_codec(loaded)
        check_request(judging, loaded, request)
        if other:
            plan = {"name": judging.protocol, **planned(loaded, sampling, request)}
            check_comparable(other, plan, asked.ignored)
        notes += check_belongs(loaded, judging)
    folder, progress = folder_for(what, loaded, sampling, request), None
    if bar is not None:
        progress = partial(bar, "samples")
        for note in notes:
            bar.say(note)
    made, _ = draw(loaded, sampling, request, folder, progress, ranks)
    return of_generated(made), loaded, judging


def _geneval(what: Path, source: str | None, keys: list[str], device: str) -> None:
    """Sample GenEval's prompts, examine the images, print and store what was found."""
    from functools import partial

    from ditkit.cli.progress import bars
    from ditkit.evaluation.geneval import geneval_lines
    from ditkit.ranks import find_ranks, together
    from ditkit.recipes.build import pick_device
    from ditkit.recipes.geneval import choose_exam, describe_exam, examine, write_exam
    from ditkit.recipes.sampling import check_codec, choose_sampler, draw, folder_for, open_model, read_choices, split

    asked = dict(k.split("=", 1) for k in keys if k.partition("=")[0] in EXAM)
    own, sampler_keys = split([k for k in keys if k.partition("=")[0] not in EXAM])
    choices = read_choices(own)
    with together(find_ranks()) as ranks:
        with ranks.agreed():
            loaded = open_model(what, source, choices, ranks.device(pick_device(device)))
            sampling, notes = choose_sampler(loaded, choices, sampler_keys, what)
            exam = choose_exam(
                loaded, choices, asked["geneval"], asked.get("detector", "auto"), asked.get("clip", "")
            )  # fmt: skip
            check_codec(loaded)
        folder = folder_for(what, loaded, sampling, exam.request)
        with bars() if ranks.first else nullcontext() as bar:
            for note in (*notes, *describe_exam(exam)):
                if bar is not None:
                    bar.say(note)
            progress = None if bar is None else partial(bar, "images")
            made, sheet = draw(loaded, sampling, exam.request, folder, progress, ranks)
            if bar is None:
                return
            result = examine(made, exam, partial(bar, "examined"))
    for line in geneval_lines(result):
        typer.echo(line)
    for path in write_exam(result, loaded, sampling, made, sheet):
        typer.echo(f"written    {path}")
