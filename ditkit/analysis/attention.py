"""What attention does, block by block: entropy, largest logit, and the size of the residual stream.

Without a norm on queries and keys, logits grow over a long training and rows of attention collapse to few tokens (SD3:
Esser et al., arXiv 2403.03206, section 5.3.2 and figure 5, after Dehghani et al. 2023 and Wortsman et al. 2023).
Shapes: B batch, H heads, N queries, K keys, h head width, L text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ditkit.models.mmdit import JointBlock
from ditkit.nn.attention import Attention

AT_ONCE = 1 << 24  # attention weights that are held together


@dataclass(frozen=True)
class Rows:
    """Sums over samples of attention rows, float64 on the CPU. entropy (H, N): each over the log of its keys;
    text (H, N): weight on the first `text` keys; logit: the largest q k / sqrt h; count (N,): samples in each row.
    """

    entropy: Tensor
    text: Tensor
    logit: float
    count: Tensor


def attention_rows(
    q: Tensor, k: Tensor, mask: Tensor | None = None, text: int = 0, queries: Tensor | None = None
) -> Rows:
    """q (B, H, N, h), k (B, H, K, h), mask (B, K) bool: keys that are attended (None: all) -> Rows.

    queries (B, N) bool: rows that count (None: all); what padding asks for does not. In float32 (float64 for float64).
    text: keys, the first ones, whose weight is summed apart.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    entropy = torch.zeros(q.shape[1:3], dtype=torch.float64)
    on_text, logit = torch.zeros_like(entropy), -torch.inf
    for rows in torch.arange(len(q)).split(max(1, AT_ONCE // max(1, q[0, ..., 0].numel() * k.shape[2]))):
        logits = (q[rows].to(wide) @ k[rows].to(wide).mT) * q.shape[3] ** -0.5
        keys = torch.full((len(rows), 1, 1), float(k.shape[2]), device=q.device)
        if mask is not None:
            logits = logits.masked_fill(~mask[rows][:, None, None], -torch.inf)
            keys = mask[rows].sum(1, dtype=torch.float32)[:, None, None]
        weights = logits.softmax(-1)
        if queries is not None:
            asks = queries[rows][:, None, :, None]
            weights, logits = weights * asks, logits.masked_fill(~asks, -torch.inf)  # without weights no entropy
        evenness = torch.special.entr(weights).sum(-1) / keys.clamp(min=2).log()  # a single key: 0 over log 2
        entropy += evenness.double().sum(0).cpu()
        on_text += weights[..., :text].sum(-1).double().sum(0).cpu()
        logit = max(logit, float(logits.max()))
    count = torch.full(q.shape[2:3], len(q)) if queries is None else queries.sum(0).cpu()
    return Rows(entropy, on_text, logit, count)


@dataclass
class Trace:
    """What was seen in one block so far; tokens are image tokens unless it says text."""

    entropy: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))  # (H, N) sums
    text: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))
    count: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))  # (N,) samples
    largest_logit: float = -torch.inf
    squares: float = 0.0
    numbers: int = 0
    largest_activation: float = 0.0
    images: slice = field(default_factory=lambda: slice(None))  # of the rows

    def add_rows(self, rows: Rows, images: slice) -> None:
        """Attention of one batch; every batch has the same number of tokens."""
        first = not len(self.count)
        self.entropy = rows.entropy if first else self.entropy + rows.entropy
        self.text = rows.text if first else self.text + rows.text
        self.count = rows.count if first else self.count + rows.count
        self.largest_logit = max(self.largest_logit, rows.logit)
        self.images = images

    def add_stream(self, h: Tensor) -> None:
        """The residual stream (B, N, D) as it enters the block."""
        self.squares += float(h.double().square().sum())
        self.numbers += h.numel()
        self.largest_activation = max(self.largest_activation, float(h.abs().max()))

    @property
    def heads(self) -> Tensor:
        """(H,): mean entropy of the image tokens' rows over the log of the keys, 0 (one token) to 1 (all alike)."""
        return self.entropy[:, self.images].sum(1) / self.count[self.images].sum()

    @property
    def text_entropy(self) -> float | None:
        """The same of the text tokens' rows, padding left out, mean over heads; None without any."""
        rest = torch.ones(self.entropy.shape[1], dtype=torch.bool)
        rest[self.images] = False
        counted = int(self.count[rest].sum())
        return float(self.entropy[:, rest].sum(1).mean() / counted) if counted else None

    @property
    def weight_on_text(self) -> float:
        """Mean weight that image tokens put on text tokens."""
        return float(self.text[:, self.images].sum(1).mean() / self.count[self.images].sum())

    @property
    def rms(self) -> float:
        """Root mean square of the residual stream before the block."""
        return (self.squares / max(1, self.numbers)) ** 0.5


def recordable(model: nn.Module) -> bool:
    """Whether every block of the model has an attention that `recording` knows."""
    blocks = getattr(model, "blocks", ())
    return bool(len(blocks)) and all(
        isinstance(b, JointBlock) or isinstance(getattr(b, "attention", None), Attention) for b in blocks
    )


@contextmanager
def recording(model: nn.Module, tokens: int, text_first: bool = False) -> Iterator[list[Trace]]:
    """Traces of model.blocks, filled by every forward pass inside the `with`; its numbers stay as they are, bit by bit.

    tokens: N of the image. text_first: a single stream of [text, image] (JointDiT); other tokens beside the image's
    stand behind them. MMDiT's joint attention is of [texts, image]; the second attention of MMDiT-X and
    cross-attention are not recorded. Hooks read what the blocks are given, and project queries and keys again.
    """
    traces = [Trace() for _ in model.blocks]  # type: ignore[union-attr, arg-type]
    handles = []
    for block, trace in zip(model.blocks, traces, strict=True):  # type: ignore[arg-type]
        if isinstance(block, JointBlock):
            seen: list[tuple[Tensor, Tensor, Tensor]] = []
            streams = [stream.attention for stream in (*block.text, block.image)]  # type: ignore[union-attr]
            handles += [part.register_forward_hook(partial(_keep, seen)) for part in streams]  # type: ignore[union-attr, arg-type]
            handles.append(block.register_forward_hook(partial(_joint, trace, seen)))
        else:
            one = partial(_single, trace, tokens, text_first)
            handles.append(block.attention.register_forward_hook(one, with_kwargs=True))  # type: ignore[union-attr]
        handles.append(block.register_forward_pre_hook(partial(_stream, trace, tokens, text_first)))
    try:
        yield traces
    finally:
        for handle in handles:
            handle.remove()


def _images(total: int, tokens: int, text_first: bool) -> slice:
    return slice(total - tokens, total) if text_first else slice(0, tokens)


@torch.no_grad()
def _stream(trace: Trace, tokens: int, text_first: bool, block: nn.Module, args: tuple[Any, ...]) -> None:
    h = args[0]
    trace.add_stream(h[:, _images(h.shape[1], tokens, text_first)])


@torch.no_grad()
def _single(
    trace: Trace, tokens: int, text_first: bool, module: Attention, args: tuple[Any, ...], kwargs: dict, out: Tensor
) -> None:
    x, rotation, mask = (*args, None, None)[:3]
    q, k, _ = module.project(x, kwargs.get("rotation", rotation))
    images = _images(x.shape[1], tokens, text_first)
    mask = kwargs.get("mask", mask)  # of the tokens, which are keys and queries both
    trace.add_rows(attention_rows(q, k, mask, images.start, mask), images)


def _keep(seen: list[Any], module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
    seen.append(out)


@torch.no_grad()
def _joint(trace: Trace, seen: list[Any], block: nn.Module, args: tuple[Any, ...], out: Any) -> None:
    h, _, _, mask = args
    q, k = (torch.cat(parts, dim=2) for parts in list(zip(*seen, strict=True))[:2])
    seen.clear()
    images = _images(q.shape[2], h.shape[1], text_first=True)
    trace.add_rows(attention_rows(q, k, mask, images.start, mask), images)
