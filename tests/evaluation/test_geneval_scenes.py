"""The scene detector on scenes, clean and spoilt, and the whole evaluation with its control and its report."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy import ndimage

from ditkit.config import read_settings
from ditkit.data.scenes import TASKS, Draws, Scenes, draw, make_scene
from ditkit.evaluation import Report, render
from ditkit.evaluation.geneval import (
    GenEvalResult,
    SceneColours,
    SceneDetector,
    evaluate_geneval,
    evaluate_scenes,
    geneval_lines,
    geneval_section,
    judge_scenes,
    scene_prompt,
)
from ditkit.evaluation.geneval.result import Share, mean_interval
from ditkit.evaluation.geneval.run import shuffle
from ditkit.evaluation.uncertainty import share_interval
from ditkit.protocols import Colours, Detection, Detector

CLEAN = 0.995  # of clean images everything must be right in at least so many


def spoil(image, blur=0.0, noise=0.0, seed=0):
    """Blur in 32nds of the side, noise in grey levels."""
    sigma = blur * image.shape[0] / 32
    image = ndimage.gaussian_filter(image.astype(np.float32), (sigma, sigma, 0))
    image = image + np.random.default_rng(seed).normal(0, noise, image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def tensor(image):
    return torch.from_numpy(image).permute(2, 0, 1)


def all_right(scene, image, slack):
    """Exactly the scene's objects, each in its shape, its colour and its place, all with confidence for counting."""
    found = [d for d in SceneDetector()(tensor(image)[None])[0] if d.score > 0.9]
    colours = SceneColours()(tensor(image), found)
    left = list(scene.things)
    for detection, colour in zip(found, colours, strict=True):
        for thing in left:
            near = np.abs(np.array(detection.box) - thing.box).max() <= slack * min(scene.size) / 32
            if near and (detection.label, colour) == (thing.shape, thing.colour):
                left.remove(thing)
                break
        else:
            return False
    return not left


def right_share(n, size, slack=1.5, **spoilt):
    source = Scenes("all", size, seed=5)
    scenes = [source.scene(i) for i in range(n)]
    assert n < 100 or {s.task for s in scenes} == set(TASKS)
    return sum(all_right(s, spoil(draw(s), seed=i, **spoilt), slack) for i, s in enumerate(scenes)) / n


def test_clean_images():
    assert right_share(400, 32) >= CLEAN


@pytest.mark.long
@pytest.mark.parametrize("size", [32, 64, (48, 80)])
def test_many_clean_images(size):
    assert right_share(2400, size) >= CLEAN


@pytest.mark.parametrize("size", [16, 64, 128, (32, 64)])
def test_other_sizes(size):
    assert right_share(40, size) >= (0.9 if size == 16 else 1)


@pytest.mark.parametrize(
    ("spoilt", "least"),
    [({"noise": 16}, 0.98), ({"noise": 30}, 0.96), ({"blur": 0.7}, 0.96), ({"blur": 0.7, "noise": 16}, 0.95)],
)
def test_noise_and_blur_of_generated_images(spoilt, least):
    assert right_share(200, 32, slack=2.5, **spoilt) >= least


def test_nothing_is_seen_in_nothing():
    plain = torch.full((2, 3, 32, 32), 255, dtype=torch.uint8)
    plain[1] = 205
    assert SceneDetector()(plain) == [[], []]
    noise = torch.randint(0, 256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    assert not [d for found in SceneDetector()(noise) for d in found if d.score > 0.3]


def test_confidence_falls_with_strange_sizes_and_shapes():
    def scores(paint):
        image = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
        paint(image[0], torch.tensor([220, 40, 40], dtype=torch.uint8)[:, None, None])
        return [(d.label, round(d.score, 2)) for d in SceneDetector()(image)[0]]

    def square(side):
        return lambda image, red: image[:, 4 : 4 + side, 4 : 4 + side].copy_(red.expand(3, side, side))

    assert scores(square(10)) == [("square", 1.0)]
    assert scores(square(3)) == [("square", pytest.approx(9 / 16, abs=0.01))]
    assert scores(square(26))[0][1] < 0.5, "most of the image is no object"
    whole = scores(lambda image, red: image.copy_(red.expand(3, 32, 32)))
    assert whole[0][1] == 0.25

    def cross(image, red):
        image[:, 14:17, 6:26] = red
        image[:, 6:26, 14:17] = red

    assert scores(cross)[0][1] < 0.3, "no shape of ours"


def test_detector_protocol():
    detector, colours = SceneDetector(), SceneColours()
    assert isinstance(detector, Detector) and isinstance(colours, Colours)
    source = Scenes(tasks=("color_attr",))
    images = torch.stack([source[i].image for i in range(6)])
    together = detector(images)
    for image, found in zip(images, together, strict=True):
        (alone,) = detector(image[None])
        assert [d[:3] for d in alone] == [d[:3] for d in found] and len(found) == 2
        assert all(d.mask.shape == (32, 32) and d.mask.dtype == torch.bool and d.mask.sum() > 16 for d in found)
        assert colours(image, [d._replace(mask=None) for d in found]) == colours(image, found), "boxes do as well"
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        detector(images[:, :1])


def oracle(each=2, n=6, split="test"):
    """(images, prompts): `each` perfect images of n prompts a task."""
    prompts, images = [], []
    for tag in TASKS:
        for k in range(n):
            scene = make_scene(tag, split, Draws(f"oracle/{tag}", 0, k))
            prompts.append(scene_prompt(scene))
            images += [tensor(draw(scene))] * each
    return torch.stack(images), prompts


def test_perfect_images_and_their_control():
    images, prompts = oracle()
    calls = []
    result = evaluate_scenes(images, prompts, progress=lambda done, total: calls.append((done, total)))
    assert result.overall == 1 and set(result.scores) == set(TASKS) and result.each == 2
    assert result.mean(("single_object", "colors", "counting")) == 1
    assert result.mean(TASKS, shuffled=True) <= 0.1, "images do not fit each other's prompts"
    assert calls[-1] == (72, 72) and len(result.images) == 72
    assert [r.prompt for r in result.images[:4]] == [prompts[0].text] * 2 + [prompts[1].text] * 2
    for task in result.tasks:
        assert task.correct == Share(right=12, of=12) and task.prompts == 6
        assert task.correct.interval == share_interval(1.0, 12)
        assert all(s.right == s.of and (s.of == 12 or task.tag == "counting") for s in task.aspects.values())
        assert ("relation" in task.aspects) == (task.tag == "position")
        assert ("pairs" in task.aspects) == (task.tag not in ("single_object", "two_object"))


def test_wrong_images_are_told_apart():
    images, prompts = oracle(each=1, n=4)
    wrong = images.clone()
    wrong[::2] = 255
    result = evaluate_scenes(wrong, prompts)
    assert result.overall == 0.5 and [r.correct for r in result.images] == [False, True] * 12
    assert result.images[0].reasons and not result.images[1].reasons and not result.images[0].found
    assert {t.correct.right for t in result.tasks} == {2}
    low, high = result.interval
    assert 0 < low < 0.5 < high < 1
    verdicts = judge_scenes(wrong, prompts)
    assert [v.correct for v in verdicts] == [False, True] * 12 and verdicts[1].aspects == result.images[1].aspects


def test_folders_cut_like_tensors_will_do():
    images, prompts = oracle(each=1, n=2)

    class Folder:
        def __len__(self):
            return len(images)

        def __getitem__(self, rows):
            return images[rows]

    assert evaluate_scenes(Folder(), prompts) == evaluate_scenes(images, prompts)
    with pytest.raises(ValueError, match="12 images for 5 prompts"):
        evaluate_scenes(images, prompts[:5])
    with pytest.raises(ValueError, match="12 images for 0 prompts"):
        evaluate_scenes(images, [])


def test_shuffle_asks_for_something_else_of_the_same_task():
    _, prompts = oracle(n=5)
    others = shuffle(prompts)
    for prompt, other in zip(prompts, others, strict=True):
        assert other.tag == prompt.tag and {*other.include} != {*prompt.include}
    assert shuffle(prompts[:1]) == [None] and shuffle([prompts[0]] * 3) == [None] * 3
    images, _ = oracle(each=1, n=5)
    lone = evaluate_scenes(images[:1], prompts[:1])
    assert lone.shuffled == {} and "prompts shuffled" not in "".join(geneval_lines(lone))
    assert "were not shuffled: no task has two" in geneval_lines(lone)[-1]
    assert "were not shuffled: no task has two" in geneval_section(lone).note


def test_foreign_detectors_serve_too():
    """Two classes and the protocol's own rules; colours are asked for only where a prompt names one."""
    images, prompts = oracle(each=1, n=1)

    class Blind:
        id = "blind"

        def __call__(self, batch):
            return [[Detection("circle", 0.5, (0.0, 0.0, 9.0, 9.0))] for _ in batch]

    def asked(image, found):
        raise AssertionError("no prompt names a colour")

    asked.id = "none"
    single = [p for p in prompts if p.tag == "single_object"]
    result = evaluate_geneval(images[:1], single, Blind(), asked)
    assert result.detector == "blind" and result.tasks[0].aspects == {}
    assert result.scores["single_object"] == (single[0].include[0].name == "circle")


def test_result_is_json_and_a_section():
    images, prompts = oracle(n=2)
    result = evaluate_scenes(images, prompts)
    stored = json.loads(json.dumps(result.model_dump(mode="json")))
    assert read_settings(GenEvalResult, stored) == result
    assert stored["images"][0]["found"][0]["label"] in ("circle", "square", "triangle")
    lines = geneval_lines(result)
    assert len(lines) == 7 and lines[-1].startswith("overall") and "4 of 4 images, 2 prompts" in lines[0]
    page = render(Report("GenEval", "", [geneval_section(result)]))
    for words in (
        "SD3 depth 38, 1024 px, DPO",
        "SD3, original captions",
        "prompts shuffled",
        "95 % limits",
        "relation",
    ):
        assert words in page
    assert "DALL-E" not in geneval_section(result, published=False).body
    plain = evaluate_geneval(images, prompts, SceneDetector(), SceneColours())
    assert "What was right" not in geneval_section(plain).body


def test_limits_of_a_mean():
    one = Share(right=30, of=40)
    assert mean_interval([one]) == pytest.approx(one.interval)
    low, high = mean_interval([one] * 4)
    assert (high - low) == pytest.approx((one.interval[1] - one.interval[0]) / 2), "four times the images"
    assert mean_interval([Share(right=0, of=9), Share(right=9, of=9)])[0] > 0.2
    assert Share(right=0, of=0).value is None and Share(right=0, of=0).interval is None


def test_a_grey_nearest_to_green_is_no_object():
    """What an untrained model paints: nearest to an object's colour, and still almost the background's."""
    picture = torch.full((1, 3, 32, 32), 131, dtype=torch.uint8)
    picture[0, :, :4, :4] = torch.tensor([150, 140, 150], dtype=torch.uint8)[:, None, None]
    assert SceneDetector()(picture) == [[]]
