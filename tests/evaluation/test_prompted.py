"""Images of prompts: what guidance moves away from, what a folder tells, and the sheet with captions."""

from __future__ import annotations

import json

import pytest
import torch

from ditkit.diffusion import CFG, Autoguidance, Linear, SamplerSettings, SkipLayer
from ditkit.evaluation import Request, ToSample, generate, make_reference, open_generated
from ditkit.evaluation.generate import guided_against
from ditkit.evaluation.images import read_png
from ditkit.evaluation.sheet import caption_font, captioned, contact_sheet, wrapped, writable
from ditkit.models import MMDiTSettings, build_model
from ditkit.pretrained import PixelCodec, ToyExtractor, ToyTextEncoder

CPU = torch.device("cpu")
EULER = SamplerSettings(solver="euler", steps=3)
TEXT = {"text_width": 48, "pooled_width": 48, "text_length": 16}
TINY = MMDiTSettings(depth=2, width=32, heads=2, patch=2, channels=1, size=(4, 4), **TEXT)


class Spy(ToyTextEncoder):
    """Remembers what it was asked."""

    def __init__(self):
        super().__init__()
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, prompts):
        self.asked.append(tuple(prompts))
        return super().__call__(prompts)


def source(text=None):
    generator = torch.Generator().manual_seed(0)
    model = build_model(TINY, generator=generator)
    for p in model.parameters():
        p.data.normal_(std=0.2, generator=generator)
    return ToSample(model.eval(), Linear(), "velocity", PixelCodec(1), text or ToyTextEncoder())


def prompts(*texts, **changes):
    return Request(n=len(texts), prompts=texts, mode="prompts", chunk=2, **changes)


def guided(scale=3.0):
    return EULER.model_copy(update={"guidance": CFG(scale=scale)})


def test_guidance_moves_away_from_the_encoded_empty_or_negative_prompt():
    spy = Spy()
    generate(source(spy), guided(), prompts("a cat", "a dog", "a cat"))
    assert spy.asked == [("a cat",), ("a dog",), ("",), ("a cat",), ("",)], "one by one: rounding knows no neighbours"
    spy.asked.clear()
    generate(source(spy), guided(), prompts("a cat", negative="a blurred dog"))
    assert spy.asked == [("a cat",), ("a blurred dog",)]
    spy.asked.clear()
    generate(source(spy), EULER, prompts("a cat"))
    assert spy.asked == [("a cat",)], "nothing to move away from without guidance"


@pytest.mark.parametrize("guidance", [CFG(scale=3.0), SkipLayer(scale=3.0, blocks=(1,))], ids=["cfg", "skip_layer"])
def test_the_negative_prompt_is_the_guidances_own(guidance):
    sampler = EULER.model_copy(update={"guidance": guidance})
    negative = guided_against(sampler, prompts("x", negative="a dog"), ToyTextEncoder(), CPU).guidance._negative
    assert torch.equal(negative.text, ToyTextEncoder()(["a dog"]).text)
    assert sampler.guidance._negative is None, "the settings themselves stay as they are"
    plain = generate(source(), sampler, prompts("a cat", "a dog")).images
    told = generate(source(), sampler, prompts("a cat", "a dog", negative="a fox")).images
    assert not torch.equal(plain, told)


def test_a_hand_made_negative_condition_gives_the_same_images():
    model = source()
    negative = model.text([""])
    by_hand = EULER.model_copy(update={"guidance": CFG(scale=3.0).against(negative)})
    model_text, model.text = model.text, None
    cond = model_text(["a cat", "a dog"])
    from ditkit.diffusion import SampleNoise
    from ditkit.evaluation import quantise

    noise = SampleNoise(0, [0, 1], (1, 4, 4))
    latents, _ = by_hand.run(model.model, noise.initial(), cond, path=Linear(), prediction="velocity")
    assert torch.equal(quantise(latents), generate(source(), guided(), prompts("a cat", "a dog")).images)


def test_autoguidance_keeps_its_weaker_model():
    sampler = EULER.model_copy(update={"guidance": Autoguidance(scale=2.0)})
    assert guided_against(sampler, prompts("a cat"), ToyTextEncoder(), CPU) is sampler


def test_class_models_do_not_wake_the_text_encoder():
    class Asleep:
        @property
        def text(self):
            raise AssertionError("the text encoder was loaded")

    asleep = Asleep()
    asleep.model, asleep.path, asleep.prediction, asleep.codec = torch.nn.Identity(), Linear(), "velocity", None
    bare = Request(n=1, size=(4, 4))
    with pytest.raises(AttributeError, match="channels"):  # gets as far as the codec
        generate(asleep, EULER, bare)


def test_the_folder_tells_prompts_and_encoder(tmp_path):
    request = prompts("a cat", "ein Hündchen 🐕", "a cat", negative="grey")
    made = generate(source(), guided(), request, folder=tmp_path / "out")
    told = json.loads((tmp_path / "out" / "request.json").read_text())
    assert told["request"]["prompts"] == list(request.prompts) and told["request"]["negative"] == "grey"
    assert told["text"] == ToyTextEncoder().id
    assert read_png(tmp_path / "out" / "000001.png")[1]["prompt"] == "ein Hündchen 🐕"
    assert open_generated(tmp_path / "out").request == request
    other = generate(source(), guided(), request).images
    assert torch.equal(made.images[0:3], other)
    with pytest.raises(ValueError, match="made for another request"):
        generate(source(ToyTextEncoder(seed=1)), guided(), request, folder=tmp_path / "out")


def test_scores_of_other_prompts_have_other_protocols():
    reference = make_reference(ToyExtractor(), torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
    cats = generate(source(), EULER, prompts("a cat")).protocol(reference)
    dogs = generate(source(), EULER, prompts("a dog")).protocol(reference)
    again = generate(source(), EULER, prompts("a cat")).protocol(reference)
    assert cats.text == ToyTextEncoder().id
    assert cats.fingerprint == again.fingerprint != dogs.fingerprint
    assert f"prompts {cats.prompts}" in cats.sentence()
    skipped = EULER.model_copy(update={"guidance": SkipLayer(scale=3.0, blocks=(1,))})
    told = generate(source(), skipped, prompts("a cat")).protocol(reference).sentence()
    assert "skip_layer guidance 3.0" in told


# ------------------------------------------------------------------------------------------------------ the sheet


def test_captions_stand_under_their_images():
    images = torch.full((3, 1, 8, 8), 7, dtype=torch.uint8)
    sheet = captioned(images, ["a", "two words", "漢字 🙂 é"], columns=2)
    assert sheet.dtype == torch.uint8 and sheet.shape[0] == 3
    assert sheet.shape[2] == 2 * 128 + 8, "8 pixels are enlarged 16 times"
    height = (sheet.shape[1] - 8) // 2
    assert bool((sheet[:, :128, :128] == 7).all()), "the image"
    assert bool((sheet[:, 128:height, :128] < 100).any()), "dark letters below it"
    with pytest.raises(ValueError, match="2 captions for 3 images"):
        captioned(images, ["a", "b"], columns=2)


def test_long_captions_are_cut_with_a_mark_and_empty_ones_are_shown():
    lines = wrapped("word " * 60, 128)
    assert len(lines) == 3 and lines[-1].endswith("...")
    assert wrapped("", 128) == ['""'] and wrapped("x" * 200, 128)[-1].endswith("...")


def test_captions_are_written_as_far_as_the_font_goes():
    assert writable("naïve — cafe\u0301, красный") == "naïve — café, красный"
    assert writable("漢字 on a mat\0 🪿🪿") == "? on a mat? ?", "one mark for what is missing"
    assert all(caption_font().getlength(line) < 128 for line in wrapped("W" * 9 + " " + "WIDE LETTERS " * 9, 128))


def test_prompts_keep_to_their_columns():
    images = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1).expand(8, 1, 16, 16).contiguous()
    request = Request(n=8, prompts=("a", "b") * 4, mode="prompts")
    sheet = contact_sheet(images, request)
    assert sheet.shape[2] == 2 * 128 + 8
    labelled = contact_sheet(images, Request(n=8, labels=(0, 1) * 4, mode="balanced"), classes=2)
    assert labelled.shape[0] == 1 and labelled[0, 0, 0] == 0
