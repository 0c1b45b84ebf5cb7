"""GenEval (arXiv 2310.11513): does an image show what its prompt asks for? Of photographs, and of scenes."""

from ditkit.evaluation.geneval.metadata import (
    IMAGES,
    TAGS,
    Prompt,
    PromptError,
    Requirement,
    image_prompts,
    read_prompts,
    write_prompts,
)
from ditkit.evaluation.geneval.prompts import geneval_prompts
from ditkit.evaluation.geneval.result import GenEvalResult, ImageRecord, Share, TaskScore
from ditkit.evaluation.geneval.run import evaluate_geneval, evaluate_scenes, judge_scenes
from ditkit.evaluation.geneval.scene_detector import SceneColours, SceneDetector
from ditkit.evaluation.geneval.scenes import scene_prompt, scene_prompts
from ditkit.evaluation.geneval.scoring import Examined, Rules, judge
from ditkit.evaluation.geneval.section import geneval_lines, geneval_rows, geneval_section

__all__ = [
    "IMAGES",
    "TAGS",
    "Examined",
    "GenEvalResult",
    "ImageRecord",
    "Prompt",
    "PromptError",
    "Requirement",
    "Rules",
    "SceneColours",
    "SceneDetector",
    "Share",
    "TaskScore",
    "evaluate_geneval",
    "evaluate_scenes",
    "geneval_lines",
    "geneval_prompts",
    "geneval_rows",
    "geneval_section",
    "image_prompts",
    "judge",
    "judge_scenes",
    "read_prompts",
    "scene_prompt",
    "scene_prompts",
    "write_prompts",
]
