"""GenEval of a text model: its prompts sampled as published, 4 images each, and every image examined."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ditkit.data.scenes import VOCABULARY
from ditkit.diffusion import SamplerSettings
from ditkit.evaluation import Generated, Report, Request, write_report
from ditkit.evaluation.features import Progress
from ditkit.evaluation.geneval import (
    IMAGES,
    TAGS,
    GenEvalResult,
    Prompt,
    SceneColours,
    SceneDetector,
    evaluate_geneval,
    geneval_prompts,
    geneval_section,
    image_prompts,
    read_prompts,
    scene_prompts,
)
from ditkit.evaluation.images import read_png
from ditkit.evaluation.sections import facts, sheets
from ditkit.files import write_text
from ditkit.pretrained.detect import CLIP, MASK2FORMER, load_colours, load_detector
from ditkit.protocols import Colours, Detector
from ditkit.recipes.load import Loaded
from ditkit.recipes.sampling import Choices, check_words, describe_sampler, describe_weights, latent_size

RESULT, PAGE = "geneval.json", "geneval.html"
PER_TASK = 16  # prompts of a task of scenes
SCENES, COCO, AUTO = "scenes", "coco", "auto"


@dataclass
class Exam:
    """What is asked: prompts, the request that draws their images, and who looks at them."""

    prompts: list[Prompt]
    request: Request
    detector: Detector
    colours: Colours
    breakdown: bool


def choose_exam(loaded: Loaded, choices: Choices, prompts: str = AUTO, detector: str = AUTO, clip: str = "") -> Exam:
    """The prompts and the detector by name. ValueError, one line; PretrainedMissing where a network cannot be had.

    prompts: "scenes" (16 a task, of the split that training does not see), "coco" (553 by GenEval's rules) or
    GenEval's own evaluation_metadata.jsonl; auto: scenes for a model of scenes, else coco. choices.n: images
    altogether; None: 4 a prompt. detector: "scenes", or a Mask2Former's hub id or folder (coco: the published kind),
    with `clip` to name colours; auto: scenes for prompts of scenes, else coco.
    """
    check_words(loaded, choices)
    if loaded.recipe.text is None:
        raise ValueError("GenEval is for text models, and this one knows none: leave --geneval out")
    if choices.prompts:
        raise ValueError("GenEval brings its own prompts: leave --prompt and --prompts out")
    scenic = prompts == SCENES or (prompts == AUTO and knows_scenes(loaded))
    n = choices.n
    if scenic:
        asked = scene_prompts(PER_TASK if n is None else max(1, n // (len(TAGS) * IMAGES)))
    else:
        asked = geneval_prompts() if prompts in (AUTO, COCO) else read_prompts(prompts)
    each = IMAGES if n is None else max(1, n // len(asked))
    request = Request(
        n=each * len(asked), prompts=image_prompts(asked, each), mode="prompts", negative=choices.negative,
        seed=choices.seed, chunk=choices.chunk, decode=choices.decode, quantiser=choices.uint8,
        size=latent_size(loaded, choices.size),
    )  # fmt: skip
    if detector == SCENES or (detector == AUTO and scenic):
        return Exam(asked, request, SceneDetector(), SceneColours(), breakdown=True)
    found = load_detector(MASK2FORMER if detector in (AUTO, COCO) else detector, loaded.device)
    return Exam(asked, request, found, load_colours(clip or CLIP, loaded.device), breakdown=False)


def knows_scenes(loaded: Loaded) -> bool:
    """Whether the model was trained on scenes, or tuned on pairs of them: its captions have no words but theirs."""
    words = {word for caption in loaded.captions for word in caption.split()}
    return loaded.recipe.data.source == SCENES or (bool(words) and words <= {*VOCABULARY.words()})


def examine(made: Generated, exam: Exam, progress: Progress | None = None) -> GenEvalResult:
    """Every image of the request examined against its prompt, and against another prompt of its task."""
    return evaluate_geneval(
        made.images, exam.prompts, exam.detector, exam.colours, breakdown=exam.breakdown, progress=progress
    )


def write_exam(
    result: GenEvalResult, loaded: Loaded, sampling: SamplerSettings, made: Generated, sheet: Path
) -> tuple[Path, Path]:
    """geneval.json and geneval.html beside the images' folder; their paths."""
    assert made.folder is not None
    stem = made.folder.with_name(f"{made.folder.name}-")
    values: dict[str, str | int | float | None] = {
        "weights": describe_weights(loaded), "sampler": describe_sampler(sampling), "images": made.request.n,
        "negative prompt": made.request.negative, "seed": made.request.seed,
    }  # fmt: skip
    scores = {"overall": result.overall, "scores": result.scores, "shuffled": result.shuffled}
    data = {**values, **scores, "result": result.model_dump(mode="json")}
    file = write_text(stem.with_name(stem.name + RESULT), json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    sections = [
        geneval_section(result),
        sheets("Images", {"the first": read_png(sheet)[0][None]}, columns=1),
        facts("How", values),
    ]
    title = f"GenEval: {loaded.recipe.title or loaded.recipe.name}"
    page = write_report(Report(title, summary(result), sections), stem.with_name(stem.name + PAGE))
    return file, page


def summary(result: GenEvalResult) -> list[str]:
    """The result in words."""
    chance = result.shuffled
    lines = [f"Overall {result.overall:.2f} over {len(result.tasks)} tasks."]
    if chance:
        lines.append(f"The same images against other prompts: {sum(chance.values()) / len(chance):.2f}.")
    return lines


def describe_exam(exam: Exam) -> Sequence[str]:
    """Lines about what is asked and who looks."""
    each = exam.request.n // len(exam.prompts)
    return [f"{len(exam.prompts)} prompts, {each} images each, detector {exam.detector.id}, colours {exam.colours.id}"]
