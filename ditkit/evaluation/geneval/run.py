"""GenEval of generated images: detect, judge, and judge once more against prompts they were not made for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from torch import Tensor

from ditkit.evaluation.features import Images, Progress
from ditkit.evaluation.geneval.metadata import Prompt
from ditkit.evaluation.geneval.result import Found, GenEvalResult, ImageRecord, collect
from ditkit.evaluation.geneval.scene_detector import SceneColours, SceneDetector
from ditkit.evaluation.geneval.scoring import Examined, Rules, aspects, judge
from ditkit.protocols import Colours, Detection, Detector


def evaluate_geneval(
    images: Images,
    prompts: Sequence[Prompt],
    detector: Detector,
    colours: Colours,
    *,
    rules: Rules | None = None,
    breakdown: bool = False,
    batch: int = 16,
    progress: Progress | None = None,
) -> GenEvalResult:
    """Scores of uint8 images (N, 3, H, W), as many for each prompt, those of a prompt one after the other.

    `image_prompts` gives a Request its prompts in this order. breakdown: what of a prompt was right, for images that
    should hold nothing else (asks for the colour of every object). ValueError where N is no multiple of the prompts.
    """
    rules = rules or Rules()
    if not prompts or not len(images) or len(images) % len(prompts):
        raise ValueError(f"GenEval: {len(images)} images for {len(prompts)} prompts; give as many of each prompt")
    each, others = len(images) // len(prompts), shuffle(prompts)
    records: list[ImageRecord] = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        for image, found in zip(part, detector(part), strict=True):
            index = len(records)
            examined = Examined(image, found, colours, rules)
            records.append(_record(index, prompts[index // each], others[index // each], examined, breakdown))
        if progress is not None:
            progress(len(records), len(images))
    return collect(records, each, detector.id, colours.id, rules)


def evaluate_scenes(images: Images, prompts: Sequence[Prompt], progress: Progress | None = None) -> GenEvalResult:
    """`evaluate_geneval` of scenes (see `scene_prompts`), with the breakdown by aspect."""
    return evaluate_geneval(images, prompts, SceneDetector(), SceneColours(), breakdown=True, progress=progress)


def judge_scenes(images: Tensor, prompts: Sequence[Prompt]) -> list[ImageRecord]:
    """The verdict on each scene, uint8 (N, 3, H, W), by its own prompt: for ranking pairs of images."""
    detector, colours = SceneDetector(), SceneColours()
    cases = zip(images, detector(images), prompts, strict=True)
    return [
        _record(i, prompt, None, Examined(image, found, colours), breakdown=True)
        for i, (image, found, prompt) in enumerate(cases)
    ]


def _record(index: int, prompt: Prompt, other: Prompt | None, examined: Examined, breakdown: bool) -> ImageRecord:
    correct, reasons = judge(prompt, examined)
    return ImageRecord(
        index=index,
        tag=prompt.tag,
        prompt=prompt.text,
        correct=correct,
        reasons=reasons,
        shuffled=None if other is None else judge(other, examined).correct,
        aspects=aspects(prompt, examined) if breakdown else {},
        found=tuple(_found(d, examined) for d in examined.confident(prompt.tag)),
    )


def _found(detection: Detection, examined: Examined) -> Found:
    return Found(
        label=detection.label, score=detection.score, box=detection.box, colour=examined.known_colour(detection)
    )


def shuffle(prompts: Sequence[Prompt]) -> list[Prompt | None]:
    """For each prompt another one of its task that asks for something else, as far down the list as can be.

    None where the task has no other.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        places[prompt.tag].append(i)
    others: list[Prompt | None] = [None] * len(prompts)
    for mine in places.values():
        for place, i in enumerate(mine):
            turned = mine[place + len(mine) // 2 :] + mine[: place + len(mine) // 2]
            candidates = (prompts[j] for j in turned if {*prompts[j].include} != {*prompts[i].include})
            others[i] = next(candidates, None)
    return others
