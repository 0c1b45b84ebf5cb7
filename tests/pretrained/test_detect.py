"""GenEval's networks in the small, with random weights: what goes in, what comes out, and what cannot be had."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ditkit.evaluation.geneval import Examined, Prompt, Requirement, evaluate_geneval, judge
from ditkit.pretrained import PretrainedMissing
from ditkit.pretrained.coco import CLASSES, COLOURS
from ditkit.pretrained.detect import (
    FLOOR,
    TEMPLATES,
    MaskDetector,
    box_of,
    cut_out,
    load_colours,
    load_detector,
    prepare,
)
from ditkit.protocols import Colours, Detection, Detector

transformers = pytest.importorskip("transformers")


def images(n=2, height=48, width=40):
    return torch.randint(0, 256, (n, 3, height, width), generator=torch.Generator().manual_seed(1)).byte()


@pytest.fixture(scope="module")
def mask2former(tmp_path_factory):
    """A folder with a tiny Mask2Former of the 80 classes."""
    backbone = transformers.SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=4, image_size=64,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        dim_feedforward=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=7, num_labels=80,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    folder = tmp_path_factory.mktemp("mask2former")
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def clip(tiny, tmp_path_factory):
    """A folder with a tiny CLIP and its tokenizer."""
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**small, "vocab_size": 514, "max_position_embeddings": 77, "eos_token_id": 513},
        vision_config={**small, "image_size": 28, "patch_size": 7},
        projection_dim=12,
    )
    torch.manual_seed(3)
    model = transformers.CLIPModel(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape) * 0.2)
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    tiny.clip_tokenizer().save_pretrained(folder)
    return str(folder)


def test_detector_of_a_folder(mask2former, monkeypatch):
    monkeypatch.setattr("ditkit.pretrained.detect.FLOOR", 0.001)  # random weights are never sure
    detector = load_detector(mask2former)
    assert isinstance(detector, Detector) and detector.classes == CLASSES and detector.sides == (800, 1333)
    assert detector.id.startswith("mask2former-") and not detector.model.training
    detector.sides = (64, 128)
    batch = images()
    found = detector(batch)
    assert len(found) == 2 and all(found), "something in each image"
    for objects in found:
        scores = [d.score for d in objects]
        assert scores == sorted(scores, reverse=True) and min(scores) > 0 and max(scores) < 1
        for d in objects:
            assert d.label in CLASSES and d.mask.shape == (48, 40) and d.mask.dtype == torch.bool
            assert d.box == box_of(d.mask) and 0 <= d.box[0] < d.box[2] <= 40 and 0 <= d.box[1] < d.box[3] <= 48
    (alone,) = detector(batch[1:])
    assert [d.label for d in alone] == [d.label for d in found[1]]
    assert np.allclose([d.score for d in alone], [d.score for d in found[1]], atol=1e-5)
    monkeypatch.setattr("ditkit.pretrained.detect.FLOOR", 0.5)
    assert detector(batch) == [[], []]


class Known(torch.nn.Module):
    """Answers what it was told to: class logits (Q, K + 1) and mask logits (Q, h, w) for every image."""

    def __init__(self, logits, masks, names):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.logits, self.masks = logits, masks
        self.config = transformers.PretrainedConfig(id2label=dict(enumerate(names)), label2id={})

    def forward(self, pixel_values):
        n = len(pixel_values)
        out = {"class_queries_logits": self.logits, "masks_queries_logits": self.masks}
        return transformers.utils.ModelOutput({k: v.expand(n, *v.shape) for k, v in out.items()})


def test_confidence_box_and_padding():
    """40 x 48 is scaled to 40 x 48 and padded to 64 x 64: the masks' part in the padding must not count."""
    masks = torch.full((3, 16, 16), -9.0)
    masks[0, 2:6, 3:9] = 4.0  # a quarter of the padded size: rows 8..24, columns 12..36
    masks[1, 12:, 13:] = 9.0  # wholly in the padding
    logits = torch.tensor([[2.0, 1.0, 0.0], [5.0, 0.0, 0.0], [0.0, 0.0, 12.0]])
    model = Known(logits, masks, ["cat", "dog"])
    found = MaskDetector(model, sides=(40, 48))(images(1, 48, 40))[0]
    chances = logits[0].softmax(-1)
    assert [d.label for d in found] == ["cat", "dog"], "one query may stand for two classes"
    inside = F.interpolate(masks[:1, None], (64, 64), mode="bilinear")[0, 0, :48, :40]
    sure = inside[inside > 0].sigmoid().mean()
    assert [d.score for d in found] == pytest.approx([float(chances[0] * sure), float(chances[1] * sure)])
    x0, y0, x1, y1 = found[0].box
    assert (abs(x0 - 12), abs(y0 - 8), abs(x1 - 36), abs(y1 - 24)) <= (1, 1, 1, 1) and found[0].score > FLOOR
    assert found[0].mask.float().mean() == pytest.approx(16 * 24 / (40 * 48), rel=0.2)


def test_names_of_the_classes():
    model = Known(torch.zeros(1, 3), torch.zeros(1, 4, 4), ["cat", "dog"])
    assert MaskDetector(model).classes == ("cat", "dog") and MaskDetector(model, ["a", "b"]).classes == ("a", "b")
    with pytest.raises(ValueError, match="3 class names for a detector of 2"):
        MaskDetector(model, ["a", "b", "c"])
    with pytest.raises(ValueError, match="colour images"):
        prepare(images()[:, :1])


def test_preparation_is_the_published_one():
    """As transformers' processor (which resizes in uint8) where it pads nothing; padding is ours, as in mmdet."""
    from transformers.models.mask2former import Mask2FormerImageProcessorPil

    smooth = F.interpolate(torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 255, (96, 96))
    smooth = smooth.round().byte()
    processor = Mask2FormerImageProcessorPil(size={"shortest_edge": 128, "longest_edge": 1333}, size_divisor=32)
    want = processor([smooth[0].permute(1, 2, 0).numpy()], return_tensors="pt")["pixel_values"]
    pixels, size = prepare(smooth, (128, 1333))
    assert size == (128, 128) and pixels.shape == want.shape
    assert (pixels - want).abs().max() < 1.01 / 255 / 0.224
    assert prepare(images(1, 100, 400), (800, 1333))[1] == (333, 1333), "the long side decides"
    padded, size = prepare(images(1, 48, 40), (40, 48))
    assert size == (48, 40) and padded.shape == (1, 3, 64, 64)
    assert padded[:, :, 48:].abs().sum() == padded[..., 40:].abs().sum() == 0


def test_colours_of_a_folder(clip):
    colours = load_colours(clip)
    assert isinstance(colours, Colours) and colours.names == COLOURS and colours.side == 28
    image = images(1)[0]
    found = [Detection("cat", 1.0, (3.0, 4.0, 20.0, 30.0)), Detection("bus", 1.0, (0.0, 0.0, 40.0, 48.0))]
    said = colours(image, found)
    assert len(said) == 2 and set(said) <= set(COLOURS) and colours(image, []) == []
    assert [colours(image, [d])[0] for d in found] == said, "each object for itself"


def test_colours_by_hand(clip):
    """The zero-shot rule written out with transformers' own features."""
    colours = load_colours(clip)
    model, tokenizer = transformers.CLIPModel.from_pretrained(clip).eval(), colours.tokenizer
    image = images(1)[0]
    mask = torch.zeros(48, 40, dtype=torch.bool)
    mask[6:34, 5:33] = True
    d = Detection("cat", 1.0, (5.0, 6.0, 33.0, 34.0), mask)
    mean = torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(3, 1, 1)
    std = torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(3, 1, 1)
    pixels = (image[:, 6:34, 5:33] / 255 - mean) / std  # 28 x 28 already
    with torch.no_grad():
        seen = model.get_image_features(pixel_values=pixels[None])
        vectors = []
        for colour in COLOURS:
            prompts = [t.format(colour=colour, name="cat") for t in TEMPLATES]
            tokens = tokenizer(prompts, padding=True, return_tensors="pt")
            text = model.get_text_features(tokens["input_ids"], tokens["attention_mask"])
            vectors.append(F.normalize(getattr(text, "pooler_output", text), dim=-1).mean(0))
        seen = getattr(seen, "pooler_output", seen)[0]
        scores = F.cosine_similarity(torch.stack(vectors), seen[None], dim=-1)
    assert TEMPLATES[1].format(colour="red", name="cat") == "a photo of a red-colored cat"
    assert scores.std() > 1e-4 and colours(image, [d]) == [COLOURS[int(scores.argmax())]]


def test_cut_out_is_grey_around_the_mask():
    image = images(1)[0]
    mask = torch.zeros(48, 40, dtype=torch.bool)
    mask[10:20, 10:20] = True
    mask[10, 10] = False
    crop = cut_out(image, Detection("cat", 1.0, (9.0, 10.0, 20.0, 20.0), mask))
    assert crop.shape == (3, 10, 11) and (crop[:, :, 0] == 0x99).all() and (crop[:, 0, 1] == 0x99).all()
    assert torch.equal(crop[:, 1:, 1:], image[:, 11:20, 10:20])
    assert cut_out(image, Detection("cat", 1.0, (39.8, 47.9, 40.0, 48.0))).shape == (3, 1, 1)
    assert torch.equal(cut_out(image, Detection("cat", 1.0, (0.0, 0.0, 40.0, 48.0))), image)


def test_thin_objects_stay_small(clip):
    long = torch.zeros(3, 2, 3000, dtype=torch.uint8)
    assert load_colours(clip)(long, [Detection("skis", 1.0, (0.0, 0.0, 3000.0, 2.0))])[0] in COLOURS


def test_both_serve_the_evaluation(mask2former, clip, monkeypatch):
    monkeypatch.setattr("ditkit.pretrained.detect.FLOOR", 0.001)
    detector, colours = load_detector(mask2former), load_colours(clip)
    detector.sides = (64, 128)
    prompts = [Prompt("color_attr", "", (Requirement("cat", 1, "red"), Requirement("dog", 1, "blue")))]
    result = evaluate_geneval(images(4), prompts, detector, colours)
    assert result.scores == {"color_attr": 0.0} and result.detector == detector.id and result.each == 4
    seen = Examined(images(1)[0], [Detection("cat", 0.9, (3.0, 4.0, 20.0, 30.0))], colours)
    (colour,) = colours(seen.image, seen.found)
    assert judge(Prompt("colors", "", (Requirement("cat", 1, colour),)), seen).correct


def test_what_cannot_be_had_is_one_line(clip, tmp_path, monkeypatch):
    with pytest.raises(PretrainedMissing, match=r"detector Mask2Former .*no folder of that name"):
        load_detector("./nowhere")
    with pytest.raises(PretrainedMissing, match="it is a clip model, not mask2former"):
        load_detector(clip)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PretrainedMissing, match="detector CLIP") as caught:
        load_colours("nobody/nothing")
    assert "\n" not in str(caught.value) and "scenes" in str(caught.value)
    monkeypatch.setitem(sys.modules, "transformers", None)
    for load in (load_detector, load_colours):
        with pytest.raises(PretrainedMissing, match=r"pip install 'ditkit\[hf\]'") as caught:
            load()
        assert "\n" not in str(caught.value)
