"""Extractors by name: where each comes from, and one line where it cannot."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from ditkit.pretrained import ClipEmbedding, PretrainedMissing, ToyExtractor, load_extractor, load_inception
from ditkit.pretrained.extractors import INCEPTION, cubic
from ditkit.pretrained.inception import WIDTH, Inception, Network
from ditkit.protocols import Extractor

REFERENCE = Path(__file__).parents[1] / "reference"
_spec = importlib.util.spec_from_file_location("load_fixture", REFERENCE / "load_fixture.py")
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)


@pytest.fixture(autouse=True)
def nothing_from_the_network(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("DITKIT_CACHE", str(tmp_path / "cache"))


def refused(text: str) -> str:
    with pytest.raises(PretrainedMissing) as error:
        load_extractor(text)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A file of Inception's weights in the graph's names: every tensor there, most of them zero."""
    state = {}
    for key, value in Network().state_dict().items():
        unit, _, role = key.rpartition(".")
        if unit == "softmax":
            state["softmax/weights"] = torch.zeros(value.shape)
        elif role == "weight":
            state[f"{unit}.conv2d_params"] = torch.zeros(value.shape)
        else:
            state[f"{unit}.batchnorm.beta"] = torch.arange(len(value)) / len(value)
            state[f"{unit}.batchnorm.moving_mean"] = torch.zeros(value.shape)
            state[f"{unit}.batchnorm.moving_variance"] = torch.ones(value.shape)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(state, path)
    return path


def test_inception_from_a_file_a_folder_and_a_name_in_it(weights):
    by_file = load_extractor(f"inception:{weights}")
    assert isinstance(by_file, Inception) and isinstance(by_file, Extractor) and by_file.width == WIDTH
    assert load_extractor(f"inception:{weights.parent}").id == by_file.id
    assert load_extractor(f"inception:{weights.parent}:weights.pth").id == by_file.id
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    views = by_file.views(image)  # biases alone: mixed_10's, and 1/1008 for every class
    assert torch.allclose(views.pooled[0, :320], torch.arange(320) / 320)
    assert torch.allclose(views.probabilities, torch.full((1, 1008), 1 / 1008))
    assert torch.allclose(views.spatial[0, :7], torch.arange(7) / 192)


def test_inception_from_the_hub(weights, monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def snapshot(repo, *, allow_patterns, local_files_only):
        asked.append((repo, tuple(allow_patterns), local_files_only))
        return str(weights.parent)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    assert isinstance(load_inception("someone/inception"), Inception)
    assert isinstance(load_inception("someone/inception:weights.pth"), Inception)
    assert [(repo, local) for repo, _, local in asked] == [("someone/inception", True)] * 2
    assert "*.pth" in asked[0][1] and asked[1][1] == ("weights.pth",)


def test_a_folder_with_two_files_asks_which(weights, tmp_path):
    for name in ("a.pth", "b.pb"):
        (tmp_path / name).write_bytes(b"x")
    assert f"it holds a.pth, b.pb: say which, {tmp_path}:a.pth" in refused(f"inception:{tmp_path}")
    assert "no c.pth in" in refused(f"inception:{tmp_path}:c.pth")
    assert "a.pth is damaged" in refused(f"inception:{tmp_path}:a.pth")


def test_what_cannot_be_had_says_how_to_mend_it():
    assert INCEPTION.endswith("#sha256=6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2")
    ways = ("inception:SOURCE", "URL#sha256=HEX", "ditkit teacher")
    for text, reason in (
        ("inception", "HF_HUB_OFFLINE forbids the network"),
        ("inception:https://example.org/w.pth", "it has no checksum"),
        ("inception:./nowhere.pth", "no folder of that name here"),
        ("inception:someone/nothing", "HF_HUB_OFFLINE forbids the network"),
        ("clip", "HF_HUB_OFFLINE forbids the network"),
        ("clip:./nowhere", "no folder of that name here"),
    ):
        said = refused(text)
        assert reason in said and all(way in said for way in ways), said


def test_every_teacher_is_an_extractor():
    assert isinstance(load_extractor("toy"), ToyExtractor)
    assert "teacher 'runs/none'" in refused("runs/none")


# ------------------------------------------------------------------------------------------- CMMD's embedding


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory) -> Path:
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=7,
        projection_dim=24,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip") / "tiny"
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def test_clip_is_the_normalised_image_embedding(tiny_clip):
    transformers = pytest.importorskip("transformers")
    extractor = load_extractor(f"clip:{tiny_clip}")
    assert isinstance(extractor, ClipEmbedding) and isinstance(extractor, Extractor)
    images = torch.randint(0, 256, (3, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    features = extractor(images)
    assert features.pooled.shape == (3, extractor.width) == (3, 24)
    assert features.tokens.shape == (3, 16, 32) and features.grid == (4, 4)
    mean, std = torch.tensor([[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]])[
        ..., None, None
    ]
    network = transformers.CLIPVisionModelWithProjection.from_pretrained(tiny_clip)
    with torch.no_grad():
        embeds = network((images / 255 - mean) / std).image_embeds
    torch.testing.assert_close(features.pooled, F.normalize(embeds, dim=1), atol=1e-5, rtol=0)
    torch.testing.assert_close(features.pooled.norm(dim=1), torch.ones(3))
    grey = images[:1, :1]
    assert torch.equal(extractor(grey).pooled, extractor(grey.repeat(1, 3, 1, 1)).pooled)
    assert extractor(torch.zeros(2, 3, 40, 20, dtype=torch.uint8)).pooled.shape == (2, 24)
    assert extractor.id == load_extractor(f"clip:{tiny_clip}").id


@pytest.mark.parametrize("case", ["up", "down", "mixed", "same"])
def test_clips_resize_equals_jax(case):
    meta, _, inputs, outputs = _module.load_fixture(str(REFERENCE), "clip_resize")
    resized = cubic(torch.from_numpy(inputs[case]), tuple(meta["cases"][case]["to"]))
    assert (resized - torch.from_numpy(outputs[case])).abs().max() < 1e-3
