"""Benchmarks of training: laps by a clock that moves as the test says, the real loop's numbers, ceilings and peaks."""

from __future__ import annotations

import json
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from ditkit.analysis.cost import cost
from ditkit.diffusion import BatchNoise
from ditkit.protocols import Features
from ditkit.recipes import recipe
from ditkit.recipes.benches.bench import Bench, BenchSettings
from ditkit.recipes.benches.laps import PARTS, Laps, TimedNoise
from ditkit.recipes.benches.peaks import PEAKS, device_peak, stated_peak
from ditkit.recipes.benches.products import Product, products, products_seconds, square_rate, training_flops
from ditkit.recipes.benches.random_job import random_job, teacher_width, teacher_widths
from ditkit.recipes.benches.registry import measure
from ditkit.recipes.benches.train import Side, make_job
from ditkit.recipes.build import build_job, prepare
from ditkit.training.loop import fit

CPU = torch.device("cpu")
TINY = {"model.depth": 2, "model.width": 16, "model.heads": 2, "training.batch": 4}
SIT = recipe("digits.sit").with_(TINY)
REPA = recipe("repa.sit_s_2").with_(
    {**TINY, "align.depth": 1, "align.projector_width": 8, "model.size": (8, 8), "training.precision": "fp32"}
)


def bench(which, **settings) -> Bench:
    return Bench(which, BenchSettings(**{"repeats": 2, "steps": 2, "threads": 1, **settings}), CPU)


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("ditkit.recipes.stopwatch.time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def test_a_lap_inside_another_counts_there_alone(clock):
    laps = Laps(CPU)

    def pass_time(seconds):
        clock.now += seconds

    def inner():
        pass_time(2.0)
        laps.lap("noise", lambda: pass_time(0.5))

    def outer():
        laps.lap("forward", inner)
        pass_time(4.0)
        laps.lap("forward", inner)

    laps.lap("backward", outer)
    assert dict(laps.seconds) == {}, "off: nothing is booked"
    laps.on = True
    laps.lap("backward", outer)
    assert dict(laps.seconds) == {"noise": 1.0, "forward": 4.0, "backward": 4.0}
    assert laps.around("data", lambda a, b=1: a + b)(1, b=2) == 3


def test_timed_noise_draws_what_the_noise_draws():
    noise = BatchNoise(0, 1, 4)
    timed = TimedNoise(noise, Laps(CPU))
    assert torch.equal(timed.normal("eps", (4, 2)), noise.normal("eps", (4, 2)))
    assert torch.equal(timed.uniform("t", (4,)), noise.uniform("t", (4,)))


def test_the_steps_are_those_of_fit(tmp_path):
    """The same losses as `fit` gives on the same data, so that what is timed is what trains."""
    small = SIT.with_({"data.source": "digits", "training.steps": 3, "training.validate_every": None})
    parts = prepare(small, CPU)
    values = []
    fit(build_job(parts, tmp_path / "run"), on_step=lambda step, row: values.append(row["loss"]))
    (tmp_path / "bench").mkdir()
    side = Side(build_job(parts, tmp_path / "bench"), CPU)  # its first step is done
    found = [side.loss]
    for _ in range(2):
        side.step()
        found.append(side.loss)
    assert found == values


def test_a_training_result(tmp_path):
    found = measure("train", bench(REPA, compare=True, peak=0.5))
    results = found["results"]
    json.dumps(found, allow_nan=False)
    assert found["settings"]["batch"] == 4 and found["settings"]["precision"] == "fp32"
    chosen, plain = results["arms"]["chosen"], results["arms"]["plain fp32"]
    assert chosen["loss"] == plain["loss"] and math.isfinite(chosen["loss"]), "the same steps on the same numbers"
    seconds = chosen["seconds_a_step"]
    assert seconds["n"] == 2
    assert chosen["images_a_second"]["most"] == pytest.approx(4 / seconds["least"])
    parts = {name: spent["median"] for name, spent in chosen["parts"].items()}
    assert set(parts) == set(PARTS)
    assert all(parts[name] > 0 for name in ("data", "noise", "encode", "forward", "backward", "optimizer", "ema"))
    each = [sum(spent[which] for spent in chosen["parts"].values()) for which in ("least", "most")]
    assert each[0] <= seconds["most"] and each[1] >= 0.8 * seconds["least"], "the parts are the step"
    assert results["flops_a_step"] == pytest.approx(4 * training_flops(REPA.model, REPA.align, (768,)))
    assert chosen["tflops_a_second"] == pytest.approx(results["flops_a_step"] / seconds["median"] / 1e12)
    assert results["peak"]["percent"] == pytest.approx(100 * chosen["tflops_a_second"] / 0.5)
    alone = results["products"]
    assert alone["percent"] == pytest.approx(100 * alone["seconds_a_step"]["median"] / seconds["median"])
    gain = results["speedup"]
    assert gain["median"] == pytest.approx(plain["seconds_a_step"]["median"] / seconds["median"])
    assert gain["turns"]["n"] == 2


def test_what_is_switched_on_is_on_in_one_side_alone():
    chosen = SIT.with_({"training.compile": True, "training.backend": "eager", "training.accumulate": 2})
    found = measure("train", bench(chosen, compare=True, ceiling=False, repeats=1))["results"]
    assert found["arms"]["chosen"]["said"] == ["compiling 2 blocks with eager"]
    assert found["arms"]["plain fp32"]["said"] == [] and found["arms"]["plain fp32"]["settings"]["compile"] is False
    assert found["products"] is None and "speedup" in found


def test_no_weight_of_a_trained_side_is_zero(tmp_path):
    job = make_job(SIT, SIT.training, None, tmp_path / "a", bench(SIT))
    assert all(parameter.any() for parameter in job.model.parameters())
    assert job.settings.steps > SIT.training.steps and job.settings.validate_every is None


def test_random_data_are_what_a_cache_hands_out(tmp_path):
    job = random_job(REPA, tmp_path, CPU)
    first, second = (next(job.batches(start)) for start in (0, 1))
    assert first.images.shape == (4, 8, 8, 8) and first.images.dtype == torch.float16, "mean and deviation"
    assert not torch.equal(first.images, second.images)
    features = first.features[0]
    assert isinstance(features, Features) and features.tokens.shape == (4, 16, 768)
    latents = job.encode(first.images, BatchNoise(0, 0, 4))
    assert latents.shape == (4, 4, 8, 8) and latents.dtype == torch.float32
    pixels = random_job(SIT, tmp_path, CPU)
    batch = next(pixels.batches(0))
    assert batch.images.dtype == torch.uint8 and pixels.encode(batch.images, BatchNoise(0, 0, 4)).abs().max() <= 1


def test_widths_of_published_teachers_need_no_download():
    named = {
        "dinov2-vit-s": 384, "dinov2-vit-b": 768, "dinov2-vit-l": 1024, "dinov2reg-vit-g": 1536, "dinov1-vit-b": 768,
        "mae-vit-l": 1024, "clip-vit-L": 1024, "jepa-vit-h": 1280, "toy": 16,
    }  # fmt: skip
    from ditkit.pretrained import TeacherSettings, ToyExtractor

    named["toy"] = ToyExtractor().width
    for name, width in named.items():
        assert teacher_width(TeacherSettings.parse(name), REPA) == width, name
    assert teacher_widths(recipe("digits.repa")) == (64,), "what `ditkit teacher` makes of 8x8 images"


# ---------------------------------------------------------------------------------------------------- ceilings


def test_products_are_the_network_s():
    found = products(SIT.model, 3)
    tokens = 3 * SIT.model.grid[0] * SIT.model.grid[1]
    assert found[Product(tokens, 16, 48)] == 2, "qkv of two blocks"
    assert found[Product(tokens, 16, 64)] == found[Product(tokens, 64, 16)] == 2
    assert found[Product(3, 16, 96)] == 2, "modulations: one row a sample"
    linear = sum(count * product.flops for product, count in found.items()) / 2e9 / 3
    attention = 2 * 2 * SIT.model.grid[0] ** 4 * 16 / 1e9
    embedding = 16 * SIT.model.grid[0] ** 2 * SIT.model.patch**2 * SIT.model.channels / 1e9  # a convolution
    assert linear + attention + embedding == pytest.approx(cost(SIT.model).gmacs, rel=1e-6)


def test_each_product_is_timed_three_ways_and_as_often_as_it_occurs(monkeypatch):
    seen = []

    def least(a, b, device):
        seen.append((tuple(a.shape), tuple(b.shape)))
        return 1.0

    monkeypatch.setattr("ditkit.recipes.benches.products._least", least)
    found = products_seconds(Counter({Product(5, 2, 3): 4}), CPU, torch.float32)
    assert found == 4 * 3.0 and seen == [((5, 2), (2, 3)), ((5, 3), (3, 2)), ((3, 5), (5, 2))]


def test_the_square_rate_counts_two_operations(monkeypatch):
    monkeypatch.setattr("ditkit.recipes.benches.products._least", lambda a, b, device: 0.5)
    monkeypatch.setattr("ditkit.recipes.benches.products.SQUARE", {"cpu": 10})
    assert square_rate(CPU, torch.float32) == (10, pytest.approx(2 * 1000 / 0.5 / 1e12))


@pytest.mark.parametrize(("name", "tflop"), [("sit.s_2", 0.036), ("sit.xl_2_256", 0.712)])
def test_training_flops_are_the_published_count(name, tflop):
    assert training_flops(recipe(name).model) / 1e12 == pytest.approx(tflop, rel=0.02)


def test_projectors_are_part_of_the_work():
    model, align = recipe("repa.xl_2_256").model, recipe("repa.xl_2_256").align
    extra = training_flops(model, align, (768,)) - training_flops(model)
    assert extra == pytest.approx(6 * 256 * (1152 * 2048 + 2048 * 2048 + 2048 * 768))


@pytest.mark.parametrize(
    ("device", "dtype", "peak"),
    [
        ("NVIDIA H200", "bf16", 989.5),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.5),
        ("NVIDIA H100 PCIe", "bf16", 756.5),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312.0),
        ("NVIDIA A100-SXM4-80GB", "tf32", 156.0),
        ("NVIDIA H20", "bf16", 148.0),
        ("NVIDIA A10G", "bf16", 70.0),
        ("NVIDIA L40S", "bf16", 362.0),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
    ],
)
def test_peaks_by_name(device, dtype, peak):
    found = stated_peak(device, dtype)
    assert found is not None and found[0] == peak and found[1]


def test_a_peak_that_nobody_states_is_none():
    assert stated_peak("Some card", "bf16") is None and device_peak(CPU, "bf16") is None
    assert device_peak(CPU, "bf16", 2.5) == (2.5, "given")
    for i, (name, _) in enumerate(PEAKS):
        assert not [other for other, _ in PEAKS[:i] if other.lower() in name.lower()], f"{name} is never reached"
