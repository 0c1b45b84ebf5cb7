"""Captions by any image-to-text model of transformers: BLIP, GIT, ViT-GPT2, and models one talks to (LLaVA, ...)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ditkit.pretrained.hub import check_there, fetch, quiet
from ditkit.pretrained.identity import weight_hash
from ditkit.pretrained.missing import optional

ASK = "Describe this image in one or two sentences."  # what a model with a chat template is asked


class Captioner:
    """Pictures -> one caption each. Greedy, or beam search, so that the same pictures give the same captions.

    prompt: the question of a model with a chat template (empty: ASK); else the beginning or the task that the model
    takes beside the picture (empty: none). max_tokens: the caption's length, at most.
    """

    def __init__(self, model: Any, processor: Any, *, prompt: str = "", max_tokens: int = 64, beams: int = 1):
        self.model, self.processor = model.eval().requires_grad_(False), processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.tokenizer.padding_side = "left"  # where a caption follows a padded prompt
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if model.generation_config.pad_token_id is None:
            model.generation_config.pad_token_id = self.tokenizer.pad_token_id
        self.talks = getattr(processor, "chat_template", None) is not None
        self.prompt = prompt or (ASK if self.talks else "")
        self.max_tokens, self.beams = max_tokens, beams
        self.id = f"{model.config.model_type}-{weight_hash(model.state_dict())}"

    def to(self, device: torch.device | str) -> Captioner:
        """Move the network; a CPU computes in float32 whatever the file holds."""
        self.model.to(device)
        if torch.device(device).type == "cpu":
            self.model.float()
        return self

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image]) -> list[str]:
        """One caption a picture, of any sizes and modes, without line breaks. ValueError if one cannot be prepared."""
        with quiet():
            inputs = {name: self._place(value) for name, value in self._inputs([p.convert("RGB") for p in pictures])}
            made = self.model.generate(**inputs, max_new_tokens=self.max_tokens, num_beams=self.beams, do_sample=False)
        asked = inputs.get("input_ids")
        if asked is not None and torch.equal(made[:, : asked.shape[1]], asked):  # decoders repeat the question
            made = made[:, asked.shape[1] :]
        return [" ".join(text.split()) for text in self.tokenizer.batch_decode(made, skip_special_tokens=True)]

    def _inputs(self, pictures: list[Image.Image]) -> Any:
        if self.talks:
            words = {"type": "text", "text": self.prompt}
            talks = [[{"role": "user", "content": [{"type": "image", "image": p}, words]}] for p in pictures]
            return self.processor.apply_chat_template(
                talks, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
            ).items()
        if not self.prompt:
            return self.processor(images=pictures, return_tensors="pt").items()
        return self.processor(
            images=pictures, text=[self.prompt] * len(pictures), return_tensors="pt", padding=True
        ).items()

    def _place(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(self.model.device, self.model.dtype if value.is_floating_point() else None)


class Separate:
    """An image processor and a tokenizer that were published apart (ViT-GPT2), called as one processor."""

    chat_template = None

    def __init__(self, images: Any, tokenizer: Any):
        self.images, self.tokenizer = images, tokenizer

    def __call__(self, *, images: list[Image.Image], return_tensors: str, text: Any = None, padding: bool = False):
        """Pixel values; ValueError for a prompt, which such models do not take."""
        if text is not None:
            raise ValueError("this image-to-text model takes no prompt")
        return self.images(images=images, return_tensors=return_tensors)


def load_captioner(source: str, *, prompt: str = "", max_tokens: int = 64, beams: int = 1) -> Captioner:
    """From a hub id or a local folder. PretrainedMissing, one line, if it cannot be had or is no such model."""
    what = f"captioner {source!r}"
    check_there(source, what)
    transformers = optional("transformers", what, source)

    def load(place: str, local_files_only: bool) -> Captioner:
        model, info = transformers.AutoModelForImageTextToText.from_pretrained(
            place, local_files_only=local_files_only, output_loading_info=True, dtype="auto"
        )
        if missing := sorted(key for key in info["missing_keys"] if "pooler" not in key):  # poolers are not asked
            raise ValueError(f"weights are missing: {', '.join(missing[:3])} ...")
        processor = _processor(transformers, place, local_files_only)
        return Captioner(model, processor, prompt=prompt, max_tokens=max_tokens, beams=beams)

    with quiet():
        return fetch(load, source, what)


def _processor(transformers: Any, place: str, local: bool) -> Any:
    """The processor of pictures and texts together, or one made of both parts."""
    try:
        processor = transformers.AutoProcessor.from_pretrained(place, local_files_only=local)
        if hasattr(processor, "image_processor"):
            return processor
    except ValueError:  # none was published
        pass
    images = transformers.AutoImageProcessor.from_pretrained(place, local_files_only=local)
    return Separate(images, transformers.AutoTokenizer.from_pretrained(place, local_files_only=local))
