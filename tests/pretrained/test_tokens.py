"""Token ids: as the published code makes them, as diffusers makes them, and what is said of long prompts."""

from __future__ import annotations

import warnings

import pytest
import torch

from ditkit.pretrained.tokens import Frame, Tokenizer, parse_emphasis, stability_tokens, warn_of_cuts

FRAMES = {"l": Frame(49406, 49407, 49407, 77), "g": Frame(49406, 49407, 0, 77), "t5": Frame(None, 1, 0, 77)}
PROMPTS = ["a red circle", "", "Grüße an 日本 🙂 (very:1.2) red", "a\nb\tc", "word " * 60]


def triples(word: str) -> list[int]:
    """The recording's made-up tokenizer: one id for every three characters."""
    return [100 + sum(map(ord, word[i : i + 3])) for i in range(0, len(word), 3)]


def test_every_recorded_prompt(reference):
    """Ids and weights of the published tokenisation, all prompts, all three encoders."""
    found = reference("sd35_textcond")
    compared = set()
    for n, prompt in enumerate(found.meta["prompts"]):
        for name, frame in FRAMES.items():
            tokens = stability_tokens(prompt, triples, frame, whole=name == "t5")
            found.close(f"tokens.{n}.{name}", tokens.ids)
            found.close(f"weights.{n}.{name}", torch.tensor(tokens.weights))
            compared |= {f"tokens.{n}.{name}", f"weights.{n}.{name}"}
            length = 77 if found.meta["info"][f"chunks.{n}.{name}"] != [79] else 79
            assert len(tokens.ids) == length and bool(tokens.cut) == (n > 2)
    assert found.outputs.keys() - compared == {"a.context", "a.pooled"}  # test_text_sd3.py compares these


def test_emphasis():
    assert parse_emphasis("a (b) (c:1.5)") == [("a ", 1.0), ("b", 1.1), (" ", 1.0), ("c", 1.5)]
    assert parse_emphasis("((b))")[0] == ("b", pytest.approx(1.21))
    assert parse_emphasis(r"\(a\) \b") == [(r"(a) \b", 1.0)]
    assert parse_emphasis("a) b (c") == [("a", 1.0), (")", 1.0), (" b (c", 1.0)]
    assert parse_emphasis("(a:b) (c:1.2.3)") == [("a:b", 1.1), (" ", 1.0), ("c:1.2.3", 1.1)]
    assert parse_emphasis("") == []


@pytest.mark.parametrize("name", ["clip_l", "clip_g", "t5"])
def test_as_diffusers_does(tiny, name):
    """Equal to transformers' own padding and truncation to 77."""
    own = tiny.t5_tokenizer() if name == "t5" else tiny.clip_tokenizer(pad="!" if name == "clip_g" else tiny.END)
    ids, cuts = Tokenizer(own, name, 77)(PROMPTS)
    wanted = own(PROMPTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    assert torch.equal(ids, wanted) and ids.shape == (5, 77)
    assert [bool(cut) for cut in cuts] == [False] * 4 + [True]
    assert set("word ") >= set(cuts[4])
    filled = ids[1, 2 if name != "t5" else 1 :].unique().tolist()
    assert filled == [{"clip_l": 513, "clip_g": 0, "t5": 0}[name]]


@pytest.mark.parametrize("name", ["clip_l", "t5"])
def test_stability_style_with_a_real_tokenizer(tiny, name):
    """Brackets and weights vanish; the length is fixed; T5 loses what lies behind 226 characters."""
    own = tiny.t5_tokenizer() if name == "t5" else tiny.clip_tokenizer()
    tokenizer = Tokenizer(own, name, 77, style="stability")
    ids, cuts = tokenizer(["a (red:1.3) circle", "a red circle", "é " * 200, "x" * 300])
    assert torch.equal(ids[0], ids[1]) and ids.shape == (4, 77) and not any(cuts[:2])
    assert ids[2, -1] == own.eos_token_id and ids[3, -1] == own.eos_token_id and cuts[2] and "xxx" in cuts[3]
    with_text, _ = Tokenizer(own, name, 77)(["a (red:1.3) circle"])
    assert not torch.equal(with_text[0], ids[0])  # diffusers reads brackets as text


@pytest.mark.parametrize("style", ["diffusers", "stability"])
@pytest.mark.parametrize("name", ["clip_l", "t5"])
def test_bytes_that_are_no_text(tiny, name, style):
    """A shell hands over undecodable bytes as lone surrogates, which tokenizers refuse."""
    tokenizer = Tokenizer(tiny.t5_tokenizer() if name == "t5" else tiny.clip_tokenizer(), name, 77, style=style)
    ids, _ = tokenizer(["red \udcff", "red ?"])
    assert torch.equal(ids[0], ids[1])


def test_one_warning_for_each_long_prompt():
    told: set[str] = set()
    cuts = {"clip_l": ["", "end"], "clip_g": ["", "end"], "t5": ["", "nd"]}
    with pytest.warns(UserWarning, match="clip_l, clip_g without 'end'; t5 without 'nd'") as caught:
        warn_of_cuts(["short", "long"], cuts, told)
    assert len(caught) == 1 and "'long'" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_cuts(["short", "long"], cuts, told)


def test_of_a_long_cut_the_beginning_is_shown():
    with pytest.warns(UserWarning, match=r"without 'word word [word ]+'\.\.\. \(400 words\)") as caught:
        warn_of_cuts(["long"], {"t5": [" ".join(["word"] * 400)]}, set())
    assert len(str(caught[0].message)) < 200


def test_ids_tell_vocabularies_apart(tiny):
    clip, t5 = (Tokenizer(own, "t5", 77) for own in (tiny.clip_tokenizer(), tiny.t5_tokenizer()))
    assert clip.id != t5.id and clip.id == Tokenizer(tiny.clip_tokenizer(), "t5", 77).id
