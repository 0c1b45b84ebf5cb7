"""Prompts of `ditkit sample`: typed, from files, from the data; and encoders by name."""

from __future__ import annotations

import json

import pytest
import torch

from ditkit.data import Digits
from ditkit.diffusion import CFG, SkipLayer
from ditkit.pretrained import TextSettings
from ditkit.protocols import Captions
from ditkit.recipes.load import load
from ditkit.recipes.prompts import EACH, data_prompts, prompt_request, read_prompts, remembered
from ditkit.recipes.sampling import (
    Choices,
    check_codec,
    choose_request,
    choose_sampler,
    choose_text,
    guide,
    open_model,
    read_choices,
)
from ditkit.recipes.sampling_words import describe_doubts, describe_guidance

CPU = torch.device("cpu")


def captioned_digits(split="all"):
    source = Digits(split)
    source.caption_classes("a photo of a {class}")
    return source


def test_files_of_prompts(tmp_path):
    text = tmp_path / "prompts.txt"
    text.write_text('\ufefftwo red circles\n\n  a dog, "quoted" \nñandú 🙂\n', encoding="utf-8")
    assert read_prompts(text) == ("two red circles", 'a dog, "quoted"', "ñandú 🙂")
    rows = tmp_path / "prompts.jsonl"
    rows.write_text('{"prompt": "a", "tag": 1}\n"b"\n\n{"caption": ""}\n', encoding="utf-8")
    assert read_prompts(rows) == ("a", "b", "")


@pytest.mark.parametrize(
    ("name", "content", "wrong"),
    [
        ("p.txt", b"\n \n", "no prompts in it"),
        ("p.txt", b"\xff\xfe", "not UTF-8 text"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt"', "line 2: not JSON"),
        ("p.jsonl", b'{"words": "a"}', "line 1: no text under any of prompt, text, caption"),
        ("p.jsonl", b'{"prompt": 3}', "line 1: no text"),
    ],
)
def test_wrong_files_are_one_line(tmp_path, name, content, wrong):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=wrong) as caught:
        read_prompts(tmp_path / name)
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        read_prompts(tmp_path / "none.txt")


def test_choices_of_a_command_line(tmp_path):
    chosen = read_choices(["prompt=two = three, four", "prompt=", "negative=grey", "seed=3"])
    assert (chosen.prompts, chosen.negative, chosen.seed) == (("two = three, four", ""), "grey", 3)
    assert read_choices(["seed=1"]) == Choices(seed=1)
    (tmp_path / "p.txt").write_text("a\nb\n")
    assert read_choices([f"prompts={tmp_path / 'p.txt'}"]).prompts == ("a", "b")
    with pytest.raises(ValueError, match="one by one or in a file, not both"):
        read_choices([f"prompts={tmp_path / 'p.txt'}", "prompt=c"])


def test_prompts_take_turns(tiny_text):
    loaded = load(tiny_text)
    request = choose_request(loaded, Choices(prompts=("a", "b"), negative="c", size="16x8"), 64)
    assert request.n == 2 * EACH and request.prompts == ("a", "b") * EACH and request.mode == "prompts"
    assert (request.negative, request.size, request.labels) == ("c", (16, 8), ())
    assert choose_request(loaded, Choices(prompts=("a", "b"), n=3), 64).prompts == ("a", "b", "a")
    of_data = choose_request(loaded, Choices(), 64)
    assert of_data.n == 10 and set(of_data.prompts) == set(loaded.captions)
    assert choose_request(loaded, Choices(n=12), 64).prompts[10:] == loaded.captions[:2]


def test_captions_of_the_data_carry_their_labels(tiny_text):
    source = captioned_digits("test")
    texts, labels = data_prompts(source, 40)
    assert texts == tuple(f"a photo of a {y}" for y in labels) and len(texts) == 40
    request = choose_request(load(tiny_text), Choices(n=50), 1000, source)
    assert request.labels == tuple(int(p[-1]) for p in request.prompts) and request.n == 50
    assert choose_request(load(tiny_text), Choices(), 1000, source).n == 1000, "360 captions take turns"
    assert sorted(remembered(captioned_digits())) == [f"a photo of a {i}" for i in range(10)]


def test_captions_are_read_without_their_images(monkeypatch):
    source = captioned_digits("test")
    want = data_prompts(source, 5)
    assert want == data_prompts(source, 5) and want[1] == tuple(source[i * 360 // 5].label for i in range(5))

    def decoded(*_):
        raise AssertionError("an image was decoded")

    for name in ("picture", "image", "read"):
        monkeypatch.setattr(Digits, name, decoded)
    assert data_prompts(captioned_digits("test"), 5) == want


def test_images_without_a_usable_caption_are_left_out(monkeypatch):
    source = captioned_digits("test")
    source.captioned = True
    every = source.all_captions

    def captions(index):
        if index == 0:
            raise ValueError("not UTF-8")
        return Captions() if index == 1 else every(index)

    monkeypatch.setattr(source, "all_captions", captions)
    assert len(data_prompts(source, 360)[0]) == 358
    source.captioned = False
    texts, labels = data_prompts(source, 360)
    assert len(texts) == len(labels) == 359 and texts[0] == ""
    monkeypatch.setattr(source, "all_captions", lambda index: captions(0))
    with pytest.raises(ValueError, match="none of the 360 images has a caption that can be used"):
        data_prompts(source, 3)


def test_what_does_not_belong_is_one_line(tiny_text, tiny_run):
    with pytest.raises(ValueError, match=r"the model reads text and knows no classes: give --prompt TEXT"):
        choose_request(load(tiny_text), Choices(classes="3"), 64)
    for words in ({"prompts": ("a",)}, {"negative": "a"}):
        with pytest.raises(ValueError, match="the model reads no text, it knows classes: name them with --classes"):
            choose_request(load(tiny_run), Choices(**words), 64)
    forgotten = load(tiny_text)
    forgotten.captions = ()
    with pytest.raises(ValueError, match="give --prompt TEXT"):
        prompt_request(forgotten, (), 3)
    with pytest.raises(ValueError, match="the model reads no text: leave --text and --without out"):
        open_model(tiny_run, None, Choices(text="toy"), CPU)


def test_encoders_by_name(tiny_text):
    loaded = open_model(tiny_text, None, Choices(text="toy"), CPU)
    assert loaded.recipe.text == TextSettings(kind="toy")
    loaded.recipe = loaded.recipe.with_({"text": TextSettings(kind="sd3", source="x")})
    left_out = choose_text(loaded, Choices(without="t5, clip_g"))
    assert (left_out.clip_l, left_out.clip_g, left_out.t5, left_out.source) == ("", "none", "none", "x")
    with pytest.raises(ValueError, match="without 'bert': it has clip_l, clip_g, t5"):
        choose_text(loaded, Choices(without="bert"))
    with pytest.raises(ValueError, match="without 't5': text encoder 'toy' is a single one"):
        choose_text(load(tiny_text), Choices(without="t5"))


def test_an_encoder_of_other_widths_is_refused_and_another_one_is_told(tiny_text):
    loaded = load(tiny_text)
    check_codec(loaded)
    assert describe_doubts(loaded) == []
    loaded = load(tiny_text)
    loaded.recipe = loaded.recipe.with_({"text.seed": 5})
    check_codec(loaded)
    assert describe_doubts(loaded) == [
        "the prompts are read by toy-text-48-12-5, the model was trained with toy-text-48-12-0"
    ]
    loaded = load(tiny_text)
    loaded.recipe = loaded.recipe.with_({"text.width": 12})
    with pytest.raises(ValueError, match=r"reads text of width 48, toy-text-12-12-0 gives 12: name its own by --text"):
        check_codec(loaded)


def test_guidance_of_text_models(tiny_text):
    sampling, notes = choose_sampler(load(tiny_text), Choices(guidance=4.0))
    assert sampling.guidance.scale == 4 and notes == []
    skip, _ = choose_sampler(
        load(tiny_text), Choices(), ["sampling.guidance.kind=skip_layer", "sampling.guidance.blocks=[1, 2]"]
    )
    assert isinstance(skip.guidance, SkipLayer)
    assert guide(skip, 3.0, None).guidance == SkipLayer(scale=3.0, blocks=(1, 2))
    with pytest.raises(ValueError, match="guidance 'skip_layer' has no interval"):
        guide(skip, None, (0.1, 0.5))
    assert describe_guidance(SkipLayer()) == "guidance 5 and 2.5 away from blocks 8, 9, 10 skipped"
    assert describe_guidance(CFG(scale=2, high=0.5)) == "guidance 2 for 0 <= t <= 0.5"


def test_a_run_folder_keeps_what_was_asked(tiny_text):
    told = json.loads((tiny_text / "recipe.json").read_text())
    assert told["text"]["kind"] == "toy" and told["data"]["caption"] == "a photo of a {class}"
