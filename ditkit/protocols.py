"""The bottom of the house: what models, codecs, teachers and data sources hand to each other.

Symbols: B batch, C channels, H height, W width, N tokens, D width, L text length, P pooled width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor


class Part(NamedTuple):
    """Where one text encoder's numbers stand in a Condition: half-open ranges, equal ends where it has none there."""

    name: str
    tokens: tuple[int, int] = (0, 0)  # of text (B, L, D): along L
    channels: tuple[int, int] = (0, 0)  # along D
    pooled: tuple[int, int] = (0, 0)  # of pooled (B, P)


@dataclass(frozen=True)
class Condition:
    """What a sample is conditioned on; every tensor is optional and batched along axis 0.

    label: (B,) int64 class ids. text: (B, L, D) token embeddings with mask (B, L) bool (None: all count) and pooled
    (B, P). parts: which encoder made what of text and pooled; not batched.
    The operations live here so that `diffusion` never has to know a model.
    """

    label: Tensor | None = None
    text: Tensor | None = None
    mask: Tensor | None = None
    pooled: Tensor | None = None
    parts: tuple[Part, ...] = ()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        return {name: value for name in _TENSORS if (value := getattr(self, name)) is not None}

    def _map(self, function) -> Condition:
        return replace(self, **{name: function(value) for name, value in self.tensors.items()})

    def index(self, rows) -> Condition:
        """The samples `rows` (slice, list or index tensor)."""
        return self._map(lambda v: v[rows])

    def to(self, *args, **kwargs) -> Condition:
        """Move every field; a floating dtype is applied to floating fields only."""
        plain = {"non_blocking": kwargs.get("non_blocking", False)}
        device = _device_of(args, kwargs)
        return self._map(lambda v: v.to(*args, **kwargs) if v.is_floating_point() else v.to(device, **plain))

    def pin_memory(self) -> Condition:
        """Every field in page-locked memory, from which an accelerator copies without being waited for."""
        return self._map(lambda v: v.pin_memory())

    def where(self, mask: Tensor, other: Condition) -> Condition:
        """Per sample: this condition where mask (B,) is True, `other` elsewhere. Both must have the same fields."""
        mine, others = self.tensors, other.tensors
        if odd := mine.keys() ^ others.keys():
            raise ValueError(f"Condition.where: one side has {min(odd)!r} and the other has not")
        merged = {
            name: torch.where(mask.view(-1, *[1] * (a.ndim - 1)), a, others[name].to(a.dtype))
            for name, a in mine.items()
        }
        return replace(self, **merged, parts=self.parts or other.parts)

    def without(self, drop: Tensor) -> Condition:
        """Zeros where sample i loses part j: drop (B, number of parts) bool. Masks stay: zeros are attended (SD3)."""
        text, pooled = self.text, self.pooled
        for j, part in enumerate(self.parts):
            rows = drop[:, j]
            if text is not None and part.tokens[0] < part.tokens[1]:
                text = text.clone() if text is self.text else text
                text[:, slice(*part.tokens), slice(*part.channels)].masked_fill_(rows[:, None, None], 0)
            if pooled is not None and part.pooled[0] < part.pooled[1]:
                pooled = pooled.clone() if pooled is self.pooled else pooled
                pooled[:, slice(*part.pooled)].masked_fill_(rows[:, None], 0)
        return replace(self, text=text, pooled=pooled)

    def __len__(self) -> int:
        return next((len(value) for value in self.tensors.values()), 0)

    @staticmethod
    def concat(parts: Sequence[Condition]) -> Condition:
        """Join along the batch axis; all parts must have the same fields."""
        found = [p.tensors for p in parts]
        for name in _TENSORS:
            if len({name in tensors for tensors in found}) > 1:
                raise ValueError(f"Condition.concat: some parts have {name!r} and some have not")
        joined = {name: torch.cat([tensors[name] for tensors in found]) for name in (found[0] if found else ())}
        return Condition(**joined, parts=next((p.parts for p in parts if p.parts), ()))

    def with_label(self, label: Tensor) -> Condition:
        """The same condition with another label (B,)."""
        return replace(self, label=label)


_TENSORS = ("label", "text", "mask", "pooled")


def _device_of(args, kwargs):
    """The device among the arguments of Tensor.to: a name, a number or another tensor's; None if there is none."""
    for value in (*args, kwargs.get("device"), kwargs.get("tensor")):
        if isinstance(value, Tensor):
            return value.device
        if isinstance(value, (str, torch.device)) or type(value) is int:
            return value
    return None


class Output(NamedTuple):
    """A denoiser's result: sample (B, C', H, W) and, for each captured block (1-based), its tokens (B, N, D)."""

    sample: Tensor
    hidden: dict[int, Tensor] = {}  # noqa: RUF012  (never mutated; NamedTuple so that DDP and FSDP2 see the tensors)


class Features(NamedTuple):
    """A frozen network's view of images: tokens (B, N, D) row-major on `grid` = (rows, columns), pooled (B, D)."""

    tokens: Tensor
    pooled: Tensor
    grid: tuple[int, int]


class Views(NamedTuple):
    """What scores ask of one look at images: pooled (B, D); spatial (B, S) and probabilities (B, K) where it has any.

    spatial: the numbers of which sFID is the distance. probabilities: of classes, each row sums to 1.
    """

    pooled: Tensor
    spatial: Tensor | None = None
    probabilities: Tensor | None = None


@runtime_checkable
class Denoiser(Protocol):
    """forward(x (B, C, H, W), t (B,) in [0, 1] with 0 = data, cond, capture=blocks) -> Output."""

    def __call__(self, x: Tensor, t: Tensor, cond: Condition, *, capture: tuple[int, ...] = ()) -> Output: ...

    def null(self, cond: Condition) -> Condition:
        """The unconditional counterpart of `cond`, same batch size."""
        ...


@dataclass
class SelfCondition:
    """DDT's s (B, N, D), and the modulation vectors that its decoder made of it.

    They depend on s alone, so a decoder that is handed this object fills `modulations` the first time (a tensor a
    block, then the final layer's) and finds them there while s is reused: same numbers, fewer products, more memory.
    Another s, other weights or another precision need a new object.
    """

    s: Tensor
    modulations: tuple[Tensor, ...] = ()


@runtime_checkable
class Decoupled(Denoiser, Protocol):
    """A denoiser in two halves (DDT): forward(x, t, cond).sample == decode(x, encode(x, t, cond))."""

    def encode(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The self-condition s (B, N, D), which may serve several steps."""
        ...

    def decode(self, x: Tensor, s: Tensor | SelfCondition) -> Tensor:
        """sample (B, C, H, W) at the state x; neither time nor condition reach it but through s."""
        ...


@runtime_checkable
class Codec(Protocol):
    """Images (B, 3 or 1, H, W) float in [-1, 1] <-> normalised latents (B, channels, H/factor, W/factor)."""

    @property
    def id(self) -> str: ...
    @property
    def channels(self) -> int: ...
    @property
    def factor(self) -> int: ...
    @property
    def scale(self) -> float | tuple[float, ...]: ...
    @property
    def shift(self) -> float | tuple[float, ...]: ...

    def encode(self, images: Tensor) -> Tensor:
        """Images -> moments (B, 2 channels, h, w): mean and std; (B, channels, h, w) when deterministic."""
        ...

    def sample(self, moments: Tensor, noise: Tensor | None) -> Tensor:
        """Moments -> normalised latents (posterior - shift) * scale; noise None takes the mean."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents -> images in [-1, 1] (not clipped)."""
        ...


@runtime_checkable
class Extractor(Protocol):
    """Images (B, C, H, W) uint8 -> Features, without gradients. One noun serves REPA, metrics and probing."""

    @property
    def id(self) -> str: ...
    @property
    def width(self) -> int: ...

    def __call__(self, images: Tensor) -> Features: ...


@runtime_checkable
class ViewingExtractor(Extractor, Protocol):
    """An Extractor that gives everything it sees from one pass: Inception."""

    def views(self, images: Tensor) -> Views:
        """uint8 (B, C, H, W) -> Views on the CPU, float32."""
        ...


@runtime_checkable
class TextEncoder(Protocol):
    """Prompts -> Condition with text (B, length, width), pooled (B, pooled_width), mask and parts.

    mask None: every token is attended, padding too (SD3). pooled_width 0: there is no pooled vector.
    """

    @property
    def id(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def pooled_width(self) -> int: ...
    @property
    def length(self) -> int: ...

    def __call__(self, prompts: Sequence[str]) -> Condition: ...


class Captions(NamedTuple):
    """Every caption of one image: those it came with, and those that a model wrote. Either may be empty."""

    original: tuple[str, ...] = ()
    synthetic: tuple[str, ...] = ()

    @property
    def first(self) -> str:
        """The first original caption, else the first synthetic one, else an empty string."""
        return next(iter(self.original + self.synthetic), "")


class Item(NamedTuple):
    """One training example: image (C, H, W) uint8, class id (or -1), caption (or ""), and where it came from.

    captions: where an image has several, of which training draws one a visit; `caption` is the first.
    """

    image: Tensor
    label: int
    caption: str
    path: str
    captions: Captions = Captions()


@runtime_checkable
class Source(Protocol):
    """Indexable images. `classes` is empty for unlabelled data; `size` is (H, W); all images share it."""

    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def channels(self) -> int: ...
    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item: ...


class Detection(NamedTuple):
    """An object in an image: class name, confidence in [0, 1], box (x0, y0, x1, y1) in pixels, mask (H, W) bool."""

    label: str
    score: float
    box: tuple[float, float, float, float]
    mask: Tensor | None = None


@runtime_checkable
class Detector(Protocol):
    """Images (B, 3, H, W) uint8 -> the objects found in each, in any order."""

    @property
    def id(self) -> str: ...

    def __call__(self, images: Tensor) -> list[list[Detection]]: ...


@runtime_checkable
class Colours(Protocol):
    """One image (3, H, W) uint8 and objects found in it -> the colour name of each object."""

    @property
    def id(self) -> str: ...

    def __call__(self, image: Tensor, found: Sequence[Detection]) -> list[str]: ...


class BadImage(ValueError):
    """An image that cannot be used; carries its path, so that it can be listed instead of ending a run."""

    def __init__(self, path: str, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self):
        return BadImage, (self.path, self.reason)


class Noise(Protocol):
    """A source of draws for one training batch; `stream` names the use ("eps", "t", "drop", "flip", "posterior")."""

    def normal(self, stream: str, shape: tuple[int, ...]) -> Tensor: ...

    def uniform(self, stream: str, shape: tuple[int, ...]) -> Tensor: ...
