"""Dropping text encoders one by one in training (SD3, section 5): each part of the condition on its own."""

import math

import pytest
import torch

from ditkit.config import SettingsError, read_settings
from ditkit.diffusion import BatchNoise, Flow, drop_labels, drop_parts
from ditkit.protocols import Condition, Output, Part

PARTS = (
    Part("clip-l", tokens=(0, 2), channels=(0, 3), pooled=(0, 3)),
    Part("clip-g", tokens=(0, 2), channels=(3, 7), pooled=(3, 7)),
    Part("t5", tokens=(2, 5), channels=(0, 8)),
)


def text(n: int) -> Condition:
    """Two CLIP-like parts side by side on the channels, a longer one after them, all ones; a padding column of 0."""
    tokens = torch.ones(n, 5, 8)
    tokens[:, :2, 7] = 0
    return Condition(text=tokens, pooled=torch.ones(n, 7), parts=PARTS)


def kept(cond: Condition) -> torch.Tensor:
    """(B, 3) bool: which part is there; every number of a part agrees."""
    blocks = [cond.text[:, slice(*p.tokens), slice(*p.channels)].flatten(1) for p in PARTS]
    blocks = [torch.cat([b[:, : 2 * w], cond.pooled[:, slice(*p.pooled)]], 1)
              for b, p, w in zip(blocks, PARTS, (3, 4, 12), strict=True)]  # fmt: skip
    assert all(((b == b[:, :1]).all()) for b in blocks)
    return torch.stack([b[:, 0] > 0 for b in blocks], 1)


class Watching:
    """A network that keeps the condition it was given; its null condition is zeros."""

    def __call__(self, x, t, cond, *, capture=()):
        self.cond = cond
        return Output(torch.zeros_like(x))

    def null(self, cond):
        return Condition(text=torch.zeros_like(cond.text), pooled=torch.zeros_like(cond.pooled), parts=cond.parts)


def seen(flow: Flow, n: int = 4000, seed: int = 0) -> torch.Tensor:
    model = Watching()
    flow(model, torch.zeros(n, 1, 1, 1), text(n), BatchNoise(seed, 0, n))
    return kept(model.cond)


def test_each_part_falls_on_its_own():
    n = 20_000
    there = kept(drop_parts(text(n), BatchNoise(0, 0, n), 0.463)).double()
    deviation = (0.463 * 0.537 / n) ** 0.5
    assert ((there.mean(0) - 0.537).abs() < 4 * deviation).all()
    assert (torch.corrcoef(there.T) - torch.eye(3)).abs().max() < 4 / n**0.5, "independent"
    nothing = float((there.sum(1) == 0).double().mean())
    wanted = 0.463**3  # 0.0993; the other rate that the paper prints, 46.4 %, gives 0.0999
    assert abs(nothing - wanted) < 4 * (wanted * (1 - wanted) / n) ** 0.5


def test_a_tenth_is_unconditional_at_the_published_rate():
    """P(all three zero) = 0.0999, which is the paper's 10 %."""
    n = 40_000
    there = kept(drop_parts(text(n), BatchNoise(1, 0, n), 0.464))
    assert float((~there.any(1)).double().mean()) == pytest.approx(0.0999, abs=4 * (0.09 / n) ** 0.5)


def test_rate_zero_and_one():
    assert seen(Flow(drop=0)).all() and not seen(Flow(drop=0, drop_each=1)).any()
    cond = text(3)
    assert drop_parts(cond, BatchNoise(0, 0, 3), 0) is cond
    assert drop_parts(Condition(), BatchNoise(0, 0, 0), 0.5) == Condition()
    assert torch.equal(cond.text, text(3).text), "the given condition is not changed"


def test_the_whole_condition_still_drops_beside_it():
    """drop replaces everything by the model's null, from its own stream: the parts' draws are those without it."""
    parts, both = seen(Flow(drop=0, drop_each=0.3)), seen(Flow(drop=0.2, drop_each=0.3))
    whole = seen(Flow(drop=0.2))
    assert (whole.all(1) | ~whole.any(1)).all()
    assert torch.equal(both, parts & whole)


def test_a_batch_cut_does_not_change_what_falls():
    whole = kept(drop_parts(text(12), BatchNoise(5, 3, 12), 0.463))
    pieces = [kept(drop_parts(text(4), BatchNoise(5, 3, 12, k, k + 4), 0.463)) for k in (0, 4, 8)]
    assert torch.equal(torch.cat(pieces), whole) and 0 < whole.sum() < 36


def test_what_falls_is_zero_whatever_it_was():
    """An encoder in half precision may answer inf, and inf times 0 is no number."""
    cond = text(2)
    cond.text[:, 2:], cond.pooled[:, :3] = math.inf, math.nan
    out = cond.without(torch.tensor([[True, False, True], [True, True, True]]))
    assert kept(out).tolist() == [[False, True, False], [False, False, False]]


def test_labels_have_no_parts():
    labels = Condition(label=torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="names none: set drop_each to 0"):
        Flow(drop_each=0.1)(Watching(), torch.zeros(2, 1, 1, 1), labels, BatchNoise(0, 0, 2))
    with pytest.raises(SettingsError, match="drop_each"):
        read_settings(Flow, {"drop_each": 1.5})


def test_text_without_a_label_drops_on_its_device():
    out = drop_labels(Watching(), text(64), BatchNoise(0, 0, 64), 0.5)
    assert 0 < kept(out).all(1).sum() < 64 and out.parts == PARTS
