"""Captions that are made empty for training without a text: REPA's way of dropping them."""

from __future__ import annotations

from ditkit.data import DataSettings, drop_captions

TEXTS = tuple(f"caption {i}" for i in range(4000))


def test_the_share_is_what_was_asked_and_the_rest_stays():
    dropped = drop_captions(TEXTS, 0, 0, 0.1)
    empty = [i for i, text in enumerate(dropped) if text == ""]
    assert 320 < len(empty) < 480, "4,000 draws at 0.1: mean 400, standard deviation 19"
    assert all(a == b for i, (a, b) in enumerate(zip(dropped, TEXTS, strict=True)) if i not in set(empty))
    assert drop_captions(TEXTS, 0, 0, 0.0) == TEXTS and set(drop_captions(TEXTS, 0, 0, 1.0)) == {""}
    assert DataSettings().empty_share == 0


def test_a_draw_belongs_to_its_position():
    whole = drop_captions(TEXTS, 3, 0, 0.5)
    assert drop_captions(TEXTS[1000:1010], 3, 1000, 0.5) == whole[1000:1010]
    assert drop_captions(TEXTS, 4, 0, 0.5) != whole
