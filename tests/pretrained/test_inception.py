"""ADM's Inception: against torch-fidelity's recorded network, and what scores rely on."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from ditkit.pretrained.inception import Inception, most_at_once, prepare, resize_tf1
from ditkit.pretrained.inception_file import convert_inception
from ditkit.protocols import Extractor, ViewingExtractor

REFERENCE = Path(__file__).parents[1] / "reference"


def _module(name: str):
    spec = importlib.util.spec_from_file_location(name, REFERENCE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # record_inception imports load_fixture by name
    spec.loader.exec_module(module)
    return module


load_fixture = _module("load_fixture").load_fixture
recorder = _module("record_inception")


@pytest.fixture(scope="module")
def recorded():
    """(meta, state in torch-fidelity's keys, images, outputs) of the recording."""
    meta, state, _, outputs = load_fixture(str(REFERENCE), "inception_torch_fidelity")
    base = recorder.load_base()
    images = {name: torch.from_numpy(batch) for name, batch in recorder.images(base).items()}
    return (
        meta,
        {k: torch.from_numpy(v) for k, v in state.items()},
        images,
        {k: torch.from_numpy(v) for k, v in outputs.items()},
    )


@pytest.fixture(scope="module")
def network(recorded) -> Inception:
    return Inception(convert_inception(recorded[1]))


@pytest.fixture(scope="module")
def seen(network, recorded):
    """Views of every recorded batch."""
    return {name: network.views(batch) for name, batch in recorded[2].items()}


@pytest.mark.parametrize("size", recorder.SIZES)
def test_features_logits_and_spatial_numbers_equal_torch_fidelity(size, network, seen, recorded):
    views, wanted = seen[size], recorded[3]
    logits = network.network.softmax(views.pooled)
    for ours, name in ((views.pooled, "features"), (views.spatial, "spatial"), (logits, "logits_unbiased")):
        theirs = wanted[f"{size}.{name}"]
        assert ours.shape == theirs.shape and theirs.std() > 0.3
        assert (ours - theirs).abs().max() < 1e-4, name
    torch.testing.assert_close(views.probabilities, wanted[f"{size}.logits_unbiased"].softmax(1), atol=1e-5, rtol=1e-4)


def test_the_recording_is_of_the_published_layout(recorded):
    meta, state, _, _ = recorded
    assert len(state) == meta["info"]["keys"] == 566
    assert sum(value.numel() for value in state.values()) == 23_885_486
    assert sum(key.endswith("conv.weight") for key in state) == 94


def test_what_the_protocols_ask(network, seen, recorded):
    assert isinstance(network, Extractor) and isinstance(network, ViewingExtractor)
    assert network.id.startswith("adm-inception-") and len(network.id) == len("adm-inception-") + 8
    images = recorded[2]["small"]
    features = network(images)
    assert features.tokens.shape == (3, 64, network.width) and features.grid == (8, 8)
    torch.testing.assert_close(features.pooled, seen["small"].pooled, atol=1e-5, rtol=0)
    torch.testing.assert_close(features.tokens.mean(1), features.pooled)
    probabilities = network.probabilities(images)
    assert probabilities.shape == (3, 1008) and torch.equal(probabilities, seen["small"].probabilities)
    assert (probabilities.sum(1) - 1).abs().max() < 1e-5


def test_results_do_not_depend_on_the_batch(network, seen, recorded):
    images = recorded[2]["small"]
    for batch in (1, 2):
        for ours, all_at_once in zip(network.views(images, batch), seen["small"], strict=True):
            assert (ours - all_at_once).abs().max() < 1e-5
    assert [part.shape for part in network.views(images[:0])] == [(0, 2048), (0, 2023), (0, 1008)]


def test_an_accelerator_takes_the_batches_that_callers_give():
    assert most_at_once(torch.device("cpu")) == 32 and most_at_once(torch.device("cuda")) >= 128


def test_spatial_numbers_run_by_row_then_column_then_channel(network, recorded):
    """By the modules themselves: mixed_6.conv on what enters mixed_6."""
    image, inputs = recorded[2]["small"][:1], []
    handle = network.network.mixed_6.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    spatial = network.views(image).spatial
    handle.remove()
    channels = network.network.mixed_6["conv"](inputs[0])
    assert channels.shape == (1, 192, 17, 17) and channels.min() == 0
    for row, column, channel in ((0, 0, 0), (0, 0, 6), (0, 5, 2), (16, 16, 6), (9, 3, 4)):
        value = spatial[0, (row * 17 + column) * 7 + channel]
        assert (value - channels[0, channel, row, column]).abs() < 1e-6


def test_a_bias_of_the_last_layer_changes_nothing(network, recorded):
    _, state, images, _ = recorded
    other = Inception(convert_inception({**state, "fc.bias": state["fc.bias"] + torch.arange(1008)}))
    assert other.id == network.id
    one = images["small"][:1]
    assert torch.equal(other.probabilities(one), network.probabilities(one))


def test_grey_images_are_repeated_and_others_refused(network, recorded):
    grey = recorded[2]["small"][:1, :1]
    assert torch.equal(prepare(grey), prepare(grey.expand(-1, 3, -1, -1)))
    assert torch.equal(network(grey).pooled, network(grey.repeat(1, 3, 1, 1)).pooled)
    for wrong in (grey.repeat(1, 2, 1, 1), grey.float(), grey[0]):
        with pytest.raises(ValueError, match=r"expected uint8 images \(B, 1 or 3, H, W\)"):
            network(wrong)


def test_a_training_run_around_it_does_not_lower_its_precision(network, seen, recorded):
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            views = network.views(recorded[2]["small"][:1])
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert (views.pooled - seen["small"].pooled[:1]).abs().max() < 1e-5


# ------------------------------------------------------------------------------------------------- the resize


def one_value(picture, row: int, column: int, size: tuple[int, int]) -> float:
    """TensorFlow 1's bilinear value at one output pixel, in Python's floats."""
    height, width = len(picture), len(picture[0])
    y, x = row * height / size[0], column * width / size[1]
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    above = picture[top][left] * (1 - (x - left)) + picture[top][right] * (x - left)
    below = picture[bottom][left] * (1 - (x - left)) + picture[bottom][right] * (x - left)
    return above * (1 - (y - top)) + below * (y - top)


@pytest.mark.parametrize("size", [(32, 32), (31, 500), (299, 299), (1, 2)])
def test_resize_equals_the_scalar_formula(size):
    picture = torch.randint(0, 256, (1, 1, *size), generator=torch.Generator().manual_seed(0)).float()
    resized, rows = resize_tf1(picture, (299, 299)), picture[0, 0].tolist()
    assert resized.shape == (1, 1, 299, 299)
    for row, column in ((0, 0), (298, 298), (150, 7), (13, 290), (298, 0), (77, 211)):
        assert abs(resized[0, 0, row, column].item() - one_value(rows, row, column, (299, 299))) < 1e-2
    if size == (299, 299):
        assert torch.equal(resized, picture)


@pytest.mark.parametrize("case", recorder.RESIZES)
def test_resize_equals_tensorflow(case):
    meta, _, inputs, outputs = load_fixture(str(REFERENCE), "inception_tensorflow")
    resized = resize_tf1(torch.from_numpy(inputs[case]), tuple(meta["cases"][case]["to"]))
    assert (resized - torch.from_numpy(outputs[case])).abs().max() < 1e-4


def test_pixels_are_scaled_as_in_the_graph():
    levels = torch.tensor([0, 128, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(-1, 3, 20, 20)
    assert prepare(levels).amax((1, 2, 3)).tolist() == [-1.0, 0.0, 127 / 128]
