"""The scenes of ditkit.data.scenes as GenEval prompts: the same tasks, metadata and verdicts, no network needed."""

from __future__ import annotations

from dataclasses import replace

from ditkit.data.scenes import TASKS, VOCABULARY, Draws, Scene, Split, Vocabulary, describe, make_scene
from ditkit.evaluation.geneval.metadata import Prompt, Requirement
from ditkit.evaluation.geneval.prompts import counting_prompt

ATTEMPTS = 12  # scenes drawn for each prompt asked for, before prompts repeat


def scene_prompts(
    n_per_task: int = 16, seed: int = 0, split: Split = "test", vocabulary: Vocabulary = VOCABULARY
) -> list[Prompt]:
    """`n_per_task` prompts of each task, task by task, in the plain phrase; a function of the other arguments.

    split "test": two-object prompts hold pairs that "train" never shows (`data.scenes.held_out`). Prompts are
    different where the vocabulary has so many (it has 3 of single objects); beyond, they repeat in turn.
    """
    if n_per_task < 1:
        raise ValueError(f"scene_prompts: need at least one prompt a task, got {n_per_task}")
    found: list[Prompt] = []
    for tag in TASKS:
        made: dict[str, Prompt] = {}
        for attempt in range(ATTEMPTS * n_per_task):
            draws = Draws(f"geneval/{tag}/{split}", seed, attempt)
            prompt = scene_prompt(make_scene(tag, split, draws, vocabulary=vocabulary))
            made.setdefault(prompt.text, prompt)
            if len(made) == n_per_task:
                break
        different = list(made.values())
        found += [different[i % len(different)] for i in range(n_per_task)]
    return found


def scene_prompt(scene: Scene) -> Prompt:
    """What the plain caption of a scene asks for."""
    text = describe(replace(scene, phrase=0))
    asked = [Requirement(t.shape, 1, t.colour if scene.named else "") for t in scene.things]
    if scene.task == "counting":
        return counting_prompt(text, replace(asked[0], count=len(asked)))
    if scene.task == "position":
        first, second = asked
        return Prompt(scene.task, text, (second, replace(first, position=(scene.relation, 0))))
    return Prompt(scene.task, text, tuple(asked))
