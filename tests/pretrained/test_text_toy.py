"""The toys in SD3's places: the layout of the real ones, who knows the order of words, and what is left out."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch

from ditkit.config import SettingsError, override
from ditkit.pretrained import TextSettings, load_text
from ditkit.pretrained.text_networks import ROLES
from ditkit.pretrained.text_sd3 import layout
from ditkit.pretrained.text_toy import ToySD3Text
from ditkit.protocols import TextEncoder

PROMPTS = ["a red circle and a blue square", "a blue circle and a red square", ""]


def test_the_layout_is_that_of_sd3():
    encoder = load_text("toy-sd3")
    assert isinstance(encoder, ToySD3Text) and isinstance(encoder, TextEncoder)
    assert encoder.parts == layout({"clip_l": (24, 24), "clip_g": (24, 24), "t5": (48, 0)}, 16, 16)
    cond = encoder(PROMPTS)
    assert cond.text.shape == (3, encoder.length, encoder.width) == (3, 32, 48) and cond.mask is None
    assert cond.pooled.shape == (3, encoder.pooled_width) == (3, 48)
    assert not cond.text[2].any() and not cond.pooled[2].any(), "no words are no text, as when all are dropped"
    assert encoder([]).text.shape == (0, 32, 48)


def test_only_t5_knows_the_order_of_words():
    cond = ToySD3Text(length=8)(PROMPTS)
    clips, t5 = cond.text[:, :8], cond.text[:, 8:]
    assert torch.equal(clips[0], clips[1]) and torch.equal(cond.pooled[0], cond.pooled[1])
    assert not torch.equal(t5[0], t5[1])
    other = ToySD3Text(length=8)(["a red circle and a green square"])
    assert not torch.equal(clips[0], other.text[0, :8]), "which words there are, all know"
    assert not torch.equal(clips[..., :24], clips[..., 24:]), "the CLIPs have vectors of their own"


@pytest.mark.parametrize("left_out", [s for n in range(4) for s in itertools.combinations(ROLES, n)])
def test_any_subset_gives_zeros_in_the_places_of_the_others(left_out):
    whole, found = (
        ToySD3Text(12, 8),
        load_text(TextSettings(kind="toy-sd3", width=12, length=8, **dict.fromkeys(left_out, "none"))),
    )
    drop = torch.tensor([[role in left_out for role in ROLES]]).expand(len(PROMPTS), -1)
    cond, wanted = found(PROMPTS), whole(PROMPTS).without(drop)
    assert torch.equal(cond.text, wanted.text) and torch.equal(cond.pooled, wanted.pooled)
    assert (found.id == whole.id) == (not left_out) and len(found.notes) == len(left_out)


def test_seeds_give_other_vectors_and_none_is_shared():
    rows = [ToySD3Text(12, 4, seed)(["red"]) for seed in (0, 1)]
    vectors = [row.pooled[0, part] for row in rows for part in (slice(0, 6), slice(6, 12))]
    vectors += [row.text[0, 4, :6] for row in rows]
    for a, b in itertools.combinations(vectors, 2):
        assert not torch.allclose(a, b)


def test_what_is_cut_is_told_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        encoder = ToySD3Text(length=3)
        cut, short = encoder(["a red circle here", "a red circle"]).text
        encoder(["a red circle here"])
    assert torch.equal(cut, short)
    assert len(caught) == 1 and "does not see: 'here'" in str(caught[0].message)


def test_settings():
    parsed = TextSettings.parse("toy-sd3")
    assert parsed.kind == "toy-sd3" and parsed.places() == [] and parsed.roles == ROLES
    assert TextSettings(kind="toy").roles == ()
    assert override(parsed, ["t5=none", "clip_g=none"]).left_out == ["clip_g", "t5"]
    with pytest.raises(SettingsError, match="the toy comes from nowhere"):
        override(parsed, ["t5=google/t5"])
    with pytest.raises(SettingsError, match="takes no source"):
        override(parsed, ["source=x"])
