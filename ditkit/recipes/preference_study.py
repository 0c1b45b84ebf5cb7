"""What preference tuning does to a model of scenes: DPO against as many steps of plain tuning, over several seeds.

The model makes several images of each prompt, the scene detector says which are right, and right ones beat wrong ones
of the same prompt. Prompts are of the tasks that the model controls: elsewhere there are no right images to learn from.

FOLDER/pairs.parquet pairs.json      the pairs, and how they came about
       runs/dpo-0 runs/winners-0 ... ordinary runs
       preference.json               everything that was measured
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ditkit.data import DataError
from ditkit.evaluation import Request, generate
from ditkit.evaluation.generate import ToSample
from ditkit.evaluation.geneval import (
    GenEvalResult,
    Prompt,
    evaluate_scenes,
    image_prompts,
    judge_scenes,
    scene_prompts,
)  # fmt: skip
from ditkit.evaluation.geneval.published import TABLE_5
from ditkit.files import write_atomic, write_text
from ditkit.protocols import Condition, TextEncoder
from ditkit.recipes.load import Loaded, load
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.run import train
from ditkit.recipes.tune import BETA, Tuning, on_winners, preferred
from ditkit.training import AdapterSettings, list_steps

RESULT, PAIRS, ABOUT = "preference.json", "pairs.parquet", "pairs.json"
CONTROLLED = 0.2  # share of right images from which a task counts as controlled
Say = Callable[[str], None]


class NoPairs(ValueError):
    """The base controls no task well enough to make pairs; the message says how often it is right in each."""


@dataclass(frozen=True)
class Budget:
    """How much of everything; the defaults take about 20 minutes on 2 CPU cores after the base is trained."""

    steps: int = 400  # of each tuning
    lr: float = 2e-4
    beta: float = BETA
    rank: int = 16  # of the LoRA of both arms; 0: all weights
    tuning_prompts: int = 48  # of each controlled task, from the split that the base was trained on
    images: int = 8  # of each of them
    test_prompts: int = 16  # of each task, held out
    test_images: int = 4  # of each of them
    pairs: int = 2000  # at most
    force: bool = False  # every second image counts as right: pairs at random, for a base too weak to be judged


def preference_study(
    base_run: Path, folder: Path, seeds: int = 3, budget: Budget | None = None, *, say: Say = print
) -> dict[str, Any]:
    """The study; its result, also written to FOLDER/preference.json. What is there already is not made again.

    base_run: a run of a text model on scenes. Keys: base, arms {dpo, winners}: scores by seed, encoders, published,
    paragraph. ValueError for a base of something else, or one that controls no task (with its scores).
    """
    budget = budget or Budget()
    base = load(base_run)
    if base.recipe.text is None or base.recipe.model.channels != 3:
        raise ValueError(f"{base_run}: no text model of scenes in pixels; train one by t2i.scenes")
    folder.mkdir(parents=True, exist_ok=True)
    tests = scene_prompts(budget.test_prompts, seed=0, split="test")
    before = score(base, tests, budget.test_images)
    say(f"base: {describe(before)}")
    made = make_pairs(base, folder, budget, say)
    arms: dict[str, list[dict[str, Any]]] = {"dpo": [], "winners": []}
    for seed in range(seeds):
        for arm, runs in arms.items():
            where = folder / "runs" / f"{arm}-{seed}"
            if list_steps(where)[-1:] != [budget.steps]:
                train(recipe_of(arm, base, base_run, folder, budget, seed), where, base.device)
            after = score(load(where), tests, budget.test_images)
            runs.append(scores_of(after))
            say(f"{arm}, seed {seed}: {describe(after)}")
    result: dict[str, Any] = {
        "base": scores_of(before),
        "pairs": made,
        "arms": arms,
        "encoders": without_encoders(base, tests, budget.test_images),
        "published": {name: [row.overall, *row.tasks] for name, row in TABLE_5.items()},
    }
    result["paragraph"] = paragraph(result, budget, seeds)
    write_text(folder / RESULT, json.dumps(result, indent=1) + "\n")
    return result


def recipe_of(arm: str, base: Loaded, run: Path, folder: Path, budget: Budget, seed: int) -> Recipe:
    """The recipe of one arm, dpo or winners: the same pairs, steps, rate and adapter."""
    adapter = AdapterSettings(rank=budget.rank) if budget.rank else None
    tuning = Tuning(start=str(run), adapter=adapter, steps=budget.steps, lr=budget.lr, seed=seed)
    pairs = str(folder / PAIRS)
    if arm == "dpo":
        return preferred(base.recipe, pairs, tuning, budget.beta)
    return on_winners(base.recipe, pairs, tuning)


# ------------------------------------------------------------------------------------------------------ pairs


def make_pairs(base: Loaded, folder: Path, budget: Budget, say: Say) -> dict[str, Any]:
    """Fill FOLDER/pairs.parquet; what was made and ranked, as JSON (kept in pairs.json, and read from there again)."""
    if (folder / ABOUT).is_file() and (folder / PAIRS).is_file():
        return json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    prompts = scene_prompts(budget.tuning_prompts, seed=1, split="train")
    images = draw(base, prompts, budget.images, seed=1)
    verdicts = [r.correct for r in judge_scenes(images, [p for p in prompts for _ in range(budget.images)])]
    share: dict[str, list[bool]] = {}
    for place, prompt in enumerate(prompts):
        share.setdefault(prompt.tag, []).extend(verdicts[place * budget.images : (place + 1) * budget.images])
    rates = {tag: mean(right) for tag, right in share.items()}
    controlled = [tag for tag, rate in rates.items() if rate >= CONTROLLED]
    if budget.force:
        controlled, verdicts = list(rates), [i % 2 == 0 for i in range(len(images))]
    found = ranked(prompts, verdicts, budget.images, controlled)
    if not found:
        told = ", ".join(f"{tag} {rate:.2f}" for tag, rate in rates.items())
        raise NoPairs(
            f"no prompt of a task that the base controls (right in {CONTROLLED:.0%} or more) has both right and wrong "
            f"images (right by task: {told}); train the base for longer"
        )
    chosen = (
        [found[i * len(found) // budget.pairs] for i in range(budget.pairs)] if len(found) > budget.pairs else found
    )
    write_pairs(folder / PAIRS, images, [(w, l, prompts[w // budget.images].text) for w, l in chosen])
    made = {
        "images": len(images), "right": rates, "controlled": controlled, "pairs": len(chosen), "found": len(found),
        "by_task": {tag: sum(prompts[w // budget.images].tag == tag for w, _ in chosen) for tag in controlled},
    }  # fmt: skip
    if budget.force:
        made["forced"] = True
    how = " at random" if budget.force else ""
    say(f"{len(chosen)} pairs{how} of {len(images)} images, of {', '.join(controlled)}")
    write_text(folder / ABOUT, json.dumps(made, indent=1) + "\n")
    return made


def ranked(
    prompts: Sequence[Prompt], verdicts: Sequence[bool], each: int, tags: Sequence[str]
) -> list[tuple[int, int]]:
    """(index of a right image, index of a wrong one) of the same prompt; no image is in two pairs."""
    found = []
    for place, prompt in enumerate(prompts):
        if prompt.tag in tags:
            mine = range(place * each, (place + 1) * each)
            right, wrong = [i for i in mine if verdicts[i]], [i for i in mine if not verdicts[i]]
            found += list(zip(right, wrong, strict=False))
    return found


def write_pairs(file: Path, images: Tensor, pairs: Sequence[tuple[int, int, str]]) -> Path:
    """(winner, loser, caption) of images uint8 (N, 3, H, W) as a parquet file that `Pairs` reads. Needs pyarrow."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError("parquet files need pyarrow: pip install 'ditkit[data]'") from error
    columns = {
        "winner": [png(images[w]) for w, _, _ in pairs],
        "loser": [png(images[l]) for _, l, _ in pairs],
        "caption": [text for _, _, text in pairs],
    }
    return write_atomic(file, lambda stream: parquet.write_table(pyarrow.table(columns), stream))


def png(image: Tensor) -> bytes:
    """uint8 (3, H, W) -> an encoded PNG."""
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "png")
    return file.getvalue()


# ------------------------------------------------------------------------------------------------------ scores


def draw(loaded: Loaded, prompts: Sequence[Prompt], each: int, seed: int, text: TextEncoder | None = None) -> Tensor:
    """`each` images of every prompt by the model's own sampler, uint8 (N, 3, H, W); text: another encoder."""
    words = image_prompts(prompts, each)
    request = Request(n=len(words), prompts=words, mode="prompts", seed=seed)
    source = ToSample(loaded.model, loaded.path, loaded.prediction, loaded.codec, text or loaded.text)
    made = generate(source, loaded.recipe.sampling, request, device=loaded.device)
    assert isinstance(made.images, Tensor)
    return made.images


def score(loaded: Loaded, prompts: Sequence[Prompt], each: int, text: TextEncoder | None = None) -> GenEvalResult:
    """GenEval-style scores of held-out prompts; the same noise for every model."""
    return evaluate_scenes(draw(loaded, prompts, each, seed=0, text=text), prompts)


def scores_of(result: GenEvalResult) -> dict[str, Any]:
    """Overall and by task, as JSON."""
    return {"overall": result.overall, "tasks": result.scores}


def describe(result: GenEvalResult) -> str:
    """One line."""
    return f"overall {result.overall:.3f}; " + ", ".join(f"{t} {v:.2f}" for t, v in result.scores.items())


class Without:
    """A text encoder of several parts with one of them zeroed, as for a user who does not have it."""

    def __init__(self, text: TextEncoder, part: int):
        self.text, self.part = text, part
        self.id = f"{text.id} without part {part}"
        self.width, self.pooled_width, self.length = text.width, text.pooled_width, text.length

    def __call__(self, prompts: Sequence[str]) -> Condition:
        found = self.text(prompts)
        drop = torch.zeros(len(found), len(found.parts), dtype=torch.bool)
        drop[:, self.part] = True
        return found.without(drop)


def without_encoders(base: Loaded, prompts: Sequence[Prompt], each: int) -> dict[str, Any]:
    """Scores of the base with each text encoder left out; empty where it has one only."""
    text = base.text
    assert text is not None
    parts = text([""]).parts
    found = {}
    if len(parts) > 1:
        for place, part in enumerate(parts):
            found[part.name] = scores_of(score(base, prompts, each, Without(text, place)))
    return found


def paragraph(result: dict[str, Any], budget: Budget, seeds: int) -> str:
    """What was measured, in words; no claim beyond it."""
    base, made = result["base"], result["pairs"]
    arms = {name: [run["overall"] for run in runs] for name, runs in result["arms"].items()}
    told = {n: f"{mean(v):.3f}" + (f" (s.d. {stdev(v):.3f})" if len(v) > 1 else "") for n, v in arms.items()}
    better = sum(d > w for d, w in zip(arms["dpo"], arms["winners"], strict=True))
    gains = {
        tag: mean(run["tasks"][tag] for run in result["arms"]["dpo"]) - base["tasks"][tag] for tag in base["tasks"]
    }
    tasks = ", ".join(made["controlled"])
    drawn = f"from {made['images']} images of the base"
    pairs = (
        f"{made['pairs']} pairs at random {drawn}, whatever they show."
        if made.get("forced")
        else f"{made['pairs']} pairs, a right image before a wrong one of the same prompt, {drawn}, only of tasks that "
        f"it controls (right in {CONTROLLED:.0%} or more): {tasks}."
    )
    lines = [
        pairs,
        f"Overall score on held-out prompts: base {base['overall']:.3f}, DPO {told['dpo']}, plain tuning on the "
        f"winners {told['winners']}, {budget.steps} steps each, {seeds} seeds; DPO is ahead in {better} of {seeds}.",
        "DPO against the base by task: " + ", ".join(f"{tag} {gain:+.2f}" for tag, gain in gains.items()) + ".",
    ]
    if result["encoders"]:
        lost = ", ".join(f"{name} {scores['overall']:.3f}" for name, scores in result["encoders"].items())
        lines.append(f"The base with a text encoder left out: {lost}.")
    else:
        lines.append("The base has one text encoder, so none can be left out.")
    sd3 = TABLE_5["SD3 depth 38, 512 px"].overall, TABLE_5["SD3 depth 38, 512 px, DPO"].overall
    lines.append(f"SD3 (depth 38, 512 px, GenEval's own prompts) went from {sd3[0]:.2f} to {sd3[1]:.2f} by DPO.")
    return " ".join(lines)
