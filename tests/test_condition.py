"""Condition: what the diffusion layer may do with labels and texts without knowing a model."""

from __future__ import annotations

import pytest
import torch

from ditkit.protocols import Condition

LABELS = Condition(label=torch.tensor([3, 1, 2]))
TEXTS = Condition(
    text=torch.arange(24.0).view(3, 2, 4), mask=torch.tensor([[1, 0], [1, 1], [0, 0]]).bool(), pooled=torch.ones(3, 5)
)


def test_length_index_and_concat():
    assert (len(LABELS), len(TEXTS), len(Condition())) == (3, 3, 0)
    assert LABELS.index([2, 2]).label.tolist() == [2, 2]
    assert torch.equal(TEXTS.index(slice(1, 3)).text, TEXTS.text[1:])
    both = Condition.concat([TEXTS.index([0]), TEXTS.index([1, 2])])
    assert all(torch.equal(getattr(both, name), getattr(TEXTS, name)) for name in ("text", "mask", "pooled"))
    assert both.label is None and len(Condition.concat([Condition(), Condition()])) == 0
    with pytest.raises(ValueError, match="some parts have 'label'"):
        Condition.concat([LABELS, TEXTS])


def test_where_is_per_sample_and_over_every_field():
    other = Condition(text=-TEXTS.text, mask=~TEXTS.mask, pooled=-TEXTS.pooled)
    mixed = TEXTS.where(torch.tensor([True, False, True]), other)
    for name in ("text", "mask", "pooled"):
        mine, theirs, got = (getattr(cond, name) for cond in (TEXTS, other, mixed))
        assert torch.equal(got[[0, 2]], mine[[0, 2]]) and torch.equal(got[1], theirs[1])
    with pytest.raises(ValueError, match="'label'"):
        LABELS.where(torch.ones(3).bool(), TEXTS)


@pytest.mark.parametrize(
    "arguments",
    [
        (("meta",), {}),
        ((torch.device("meta"), torch.float16), {}),
        ((), {"device": "meta", "non_blocking": True}),
        ((torch.zeros(1, device="meta"),), {}),
        ((), {"tensor": torch.zeros(1, device="meta")}),
    ],
)
def test_every_field_moves_and_only_floats_change_type(arguments):
    """A label that stayed behind, or became a float, would be another label or a crash."""
    positional, named = arguments
    label, text = LABELS.to(*positional, **named), TEXTS.to(*positional, **named)
    assert label.label.device.type == text.text.device.type == text.mask.device.type == "meta"
    assert label.label.dtype == torch.int64 and text.mask.dtype == torch.bool
    assert text.pooled.dtype == (torch.float16 if torch.float16 in positional else torch.float32)


def test_a_type_alone_moves_nothing():
    half = TEXTS.to(torch.bfloat16)
    assert (half.text.dtype, half.mask.dtype, half.text.device.type) == (torch.bfloat16, torch.bool, "cpu")
    assert torch.equal(LABELS.to(torch.bfloat16).label, LABELS.label)


@pytest.mark.gpu
def test_a_device_number_moves_labels_too():
    assert LABELS.to(0).label.device == TEXTS.to(0).text.device == torch.device("cuda", 0)
