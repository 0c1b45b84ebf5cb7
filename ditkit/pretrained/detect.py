"""GenEval's networks through transformers: Mask2Former finds COCO objects, CLIP names their colours.

The published evaluation used mmdet's Mask2Former (Swin-S, 50 epochs on COCO) and open_clip's ViT-L/14; the weights
here are the same architectures' as their authors put them on the hub, with tensors in and tensors out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ditkit.pretrained.coco import CLASSES, COLOURS
from ditkit.pretrained.hub import check_there, fetch, quiet
from ditkit.pretrained.identity import weight_hash
from ditkit.pretrained.missing import optional
from ditkit.pretrained.preprocess import IMAGENET, OPENAI
from ditkit.protocols import Detection

MASK2FORMER = "facebook/mask2former-swin-small-coco-instance"
CLIP = "openai/clip-vit-large-patch14"
SIDES = (800, 1333)  # the short side becomes the first, unless the long one would exceed the second
STEP = 32  # sides are padded to multiples of it
FLOOR = 0.05  # confidence below which nothing is kept: far below every threshold of GenEval
MOST = 100  # objects of an image, as published
GREY = 0x99  # around an object whose colour is asked for
TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")


class MaskDetector:
    """A protocols.Detector around a Mask2FormerForUniversalSegmentation trained for instances.

    classes: names in the order of the network's labels; None: GenEval's words for COCO if it has 80, else its own.
    sides: (short, long) in pixels to which images are scaled.
    """

    def __init__(self, model: nn.Module, classes: Sequence[str] | None = None, sides: tuple[int, int] = SIDES):
        config: Any = model.config
        own = [config.id2label[i] for i in range(config.num_labels)]
        self.classes = tuple(classes or (CLASSES if len(own) == len(CLASSES) else own))
        if len(self.classes) != len(own):
            raise ValueError(f"{len(self.classes)} class names for a detector of {len(own)} classes")
        self.id = f"mask2former-{weight_hash(model.state_dict())}"
        self.model, self.sides = model.eval().requires_grad_(False), sides

    def to(self, device: torch.device | str) -> MaskDetector:
        """Move the network; images are moved to it when called."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[list[Detection]]:
        """uint8 (B, 3, H, W) -> the objects of each image with masks (H, W) on the CPU, the most confident first."""
        device = next(self.model.parameters()).device
        pixels, scaled = prepare(images.to(device), self.sides)
        out = self.model(pixel_values=pixels)
        shapes = pixels.shape[2:], scaled, images.shape[2:]
        pairs = zip(out.class_queries_logits.float(), out.masks_queries_logits.float(), strict=True)
        return [self._objects(logits, masks, *shapes) for logits, masks in pairs]

    def _objects(
        self, logits: Tensor, masks: Tensor, padded: Sequence[int], scaled: Sequence[int], size: Sequence[int]
    ) -> list[Detection]:
        """Logits (Q, classes + 1) and masks (Q, h, w) of one image -> objects.

        Confidence = class probability x mean mask probability inside the mask (Cheng et al. 2022, arXiv 2112.01527);
        a query may stand for several classes, and the MOST best pairs are kept.
        """
        chances = logits.softmax(-1)[:, :-1]
        best = chances.flatten().topk(min(MOST, chances.numel()))
        kept = best.indices[best.values > FLOOR]
        found = []
        for index in kept.tolist():
            query, number = divmod(index, chances.shape[1])
            mask = _resize(masks[query], padded)[: scaled[0], : scaled[1]]
            mask = _resize(mask, size)
            inside = mask > 0
            if inside.any():
                score = chances[query, number] * mask[inside].sigmoid().mean()
                found.append(Detection(self.classes[number], float(score), box_of(inside), inside.cpu()))
        return sorted((d for d in found if d.score > FLOOR), key=lambda d: -d.score)


def prepare(images: Tensor, sides: tuple[int, int] = SIDES) -> tuple[Tensor, tuple[int, int]]:
    """uint8 (B, 3, H, W) -> (ImageNet-normalised pixels, padded at the right and bottom; (h, w) before padding)."""
    if images.shape[1] != 3:
        raise ValueError(f"objects are detected in colour images (B, 3, H, W), got {tuple(images.shape)}")
    height, width = images.shape[2:]
    scale = min(sides[0] / min(height, width), sides[1] / max(height, width))
    size = round(height * scale), round(width * scale)
    x = F.interpolate(images.float(), size=size, mode="bilinear", antialias=True) / 255
    x = _normalise(x, IMAGENET)
    return F.pad(x, (0, -size[1] % STEP, 0, -size[0] % STEP)), size


def box_of(mask: Tensor) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1) around the pixels of a non-empty mask (H, W); the last edges lie behind the last pixels."""
    rows, columns = (mask.any(axis).nonzero().flatten() for axis in (1, 0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x[None, None], size=tuple(size), mode="bilinear", align_corners=False)[0, 0]


def _normalise(x: Tensor, statistics: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in statistics)
    return (x - mean) / std


class ClipColours:
    """A protocols.Colours: CLIP's zero-shot choice among GenEval's ten colours, seeing the object alone on grey.

    The text vector of a colour is the mean over TEMPLATES of unit vectors, made once for each class name.
    """

    def __init__(self, model: nn.Module, tokenizer: Callable[..., Any], colours: Sequence[str] = COLOURS):
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        self.names = tuple(colours)
        self.id = f"clip-{weight_hash(model.state_dict())}"
        config: Any = model.config
        self.side: int = config.vision_config.image_size
        self._known: dict[str, Tensor] = {}

    def to(self, device: torch.device | str) -> ClipColours:
        """Move the network; images are moved to it when called."""
        self.model.to(device)
        self._known.clear()
        return self

    @torch.no_grad()
    def __call__(self, image: Tensor, found: Sequence[Detection]) -> list[str]:
        """One image (3, H, W) uint8 and objects found in it -> the colour of each."""
        if not found:
            return []
        network: Any = self.model
        device = next(network.parameters()).device
        pixels = torch.cat([_square(cut_out(image, d).to(device), self.side) for d in found])
        vision = network.vision_model(pixel_values=pixels).pooler_output
        seen = F.normalize(network.visual_projection(vision), dim=-1)
        said = torch.stack([self._words(d.label) for d in found])  # (n, colours, D)
        return [self.names[i] for i in torch.einsum("nd,ncd->nc", seen, said).argmax(1).tolist()]

    def _words(self, name: str) -> Tensor:
        """Unit vectors (colours, D) for objects of this class."""
        if name not in self._known:
            network: Any = self.model
            prompts = [t.format(colour=colour, name=name) for colour in self.names for t in TEMPLATES]
            tokens = self.tokenizer(prompts, padding=True, truncation=True, return_tensors="pt")
            tokens = {key: tokens[key].to(next(network.parameters()).device) for key in ("input_ids", "attention_mask")}
            text = F.normalize(network.text_projection(network.text_model(**tokens).pooler_output), dim=-1)
            self._known[name] = F.normalize(text.view(len(self.names), len(TEMPLATES), -1).mean(1), dim=-1)
        return self._known[name]


def cut_out(image: Tensor, detection: Detection) -> Tensor:
    """The object's box (3, h, w) uint8, everything outside its mask grey (#999); at least one pixel."""
    if detection.mask is not None:
        image = torch.where(detection.mask.to(image.device), image, torch.full_like(image, GREY))
    height, width = image.shape[1:]
    x0, y0, x1, y1 = (round(v) for v in detection.box)
    x0, y0 = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
    return image[:, y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]


def _square(crop: Tensor, side: int) -> Tensor:
    """CLIP's preprocessing: short side to `side` (bicubic, antialiased), centre crop, normalised -> (1, 3, side, side).

    The far ends of a long crop are cut off first: they would be cut off anyway, after growing to gigabytes.
    """
    reach = 4 * min(crop.shape[1:])
    top, left = (max(0, (length - reach) // 2) for length in crop.shape[1:])
    crop = crop[:, top : top + reach, left : left + reach]
    height, width = crop.shape[1:]
    scale = side / min(height, width)
    size = max(side, round(height * scale)), max(side, round(width * scale))
    x = F.interpolate(crop[None].float(), size=size, mode="bicubic", antialias=True).clamp(0, 255) / 255
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    return _normalise(x[:, :, top : top + side, left : left + side], OPENAI)


def load_detector(source: str = MASK2FORMER, device: torch.device | str = "cpu") -> MaskDetector:
    """GenEval's detector from a hub id or a folder; PretrainedMissing, one line, where it cannot be had."""
    what = f"detector Mask2Former ({source})"
    check_there(source, what)
    transformers = optional("transformers", what, source)
    optional("scipy", what)  # transformers' Mask2Former does not start without

    def load(place: str, local_files_only: bool) -> MaskDetector:
        kind = transformers.Mask2FormerForUniversalSegmentation
        return MaskDetector(_complete(kind, place, local_files_only, "mask2former"))

    with quiet():
        return fetch(load, source, what).to(device)


def load_colours(source: str = CLIP, device: torch.device | str = "cpu") -> ClipColours:
    """GenEval's colour classifier from a hub id or a folder; PretrainedMissing, one line, where it cannot be had."""
    what = f"detector CLIP ({source})"
    check_there(source, what)
    transformers = optional("transformers", what, source)

    def load(place: str, local_files_only: bool) -> ClipColours:
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, local_files_only=local_files_only)
        return ClipColours(_complete(transformers.CLIPModel, place, local_files_only, "clip"), tokenizer)

    with quiet():
        return fetch(load, source, what).to(device)


def _complete(kind: Any, place: str, local_files_only: bool, expected: str) -> nn.Module:
    """The model with all of its weights; ValueError for another kind of model or tensors that stayed random."""
    config = kind.config_class.from_pretrained(place, local_files_only=local_files_only)
    if config.model_type != expected:
        raise ValueError(f"it is a {config.model_type} model, not {expected}")
    model, info = kind.from_pretrained(place, local_files_only=local_files_only, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(f"weights are missing: {', '.join(sorted(info['missing_keys'])[:3])} ...")
    return model
