"""From a recipe to live objects: devices, images and codec, encoding, alignment, validation."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ditkit.data import open_source
from ditkit.diffusion import BatchNoise
from ditkit.pretrained import PretrainedMissing
from ditkit.recipes import recipe
from ditkit.recipes.build import build_job, encoder, open_images, pick_device, prepare
from ditkit.recipes.choose import choose, parse_size

CPU = torch.device("cpu")
TINY = {
    "model.depth": 2, "model.width": 32, "model.heads": 2, "training.batch": 4, "align.depth": 1,
    "align.projector_width": 16, "teachers": ({"kind": "toy"},), "training.steps": 2,
}  # fmt: skip


def folder(path, size, n=3):
    for i in range(n):
        (path / "a").mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / "a" / f"{i}.png")
    return str(path)


def test_devices():
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type in ("cpu", "cuda", "mps", "xpu")
    for name in ("toaster", "cuda:99"):
        with pytest.raises(ValueError, match=f"device '{name}' cannot be used") as caught:
            pick_device(name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size, chosen", [((34, 34), (33, 33)), ((34, 50), (33, 48)), ((24, 40), (24, 40))])
def test_in_pixels_a_free_size_is_one_that_patches_cut(tmp_path, size, chosen):
    ours = choose("repa.sit_s_2", data=folder(tmp_path, size), codec="pixels", teachers=["none"])
    parts = prepare(ours, CPU)
    assert parts.source.size == parts.recipe.model.size == chosen
    assert parts.source.notes[-1].startswith(f"size {chosen[0]}x{chosen[1]}") and len(parts.source.notes) == 1


def test_a_patch_of_ones_own_decides_the_size(tmp_path):
    ours = choose("repa.sit_s_2", ["model.patch=5"], data=folder(tmp_path, (34, 34)), codec="pixels", teachers=["none"])
    assert open_images(ours, CPU, {"model.patch"})[1].size == (30, 30)


def test_autoencoders_get_colour_and_whole_patches(tmp_path):
    ours = choose("repa.sit_s_2", data=folder(tmp_path, (27, 41)), codec="toy", teachers=["none"])
    codec, source = open_images(ours, CPU)
    assert (source.channels, source.size) == (3, (24, 40)), "multiples of the codec's 2 times the patch's 2"
    assert prepare(ours, CPU).recipe.model.size == (12, 20)
    assert codec.channels == 12


def test_encoding_in_parts_draws_the_posterior_of_the_whole_batch():
    from ditkit.pretrained import ToyCodec

    codec = ToyCodec(3)
    seen = []
    spy = SimpleNamespace(
        channels=codec.channels,
        encode=lambda images: seen.append(len(images)) or codec.encode(images),
        sample=codec.sample,
    )
    images = torch.arange(70 * 3 * 4 * 4).remainder(251).view(70, 3, 4, 4).to(torch.uint8)
    latents = encoder(spy)(images, BatchNoise(0, 5, 70))
    assert seen == [32, 32, 6] and latents.shape == (70, 12, 2, 2)
    noise = BatchNoise(0, 5, 70).normal("posterior", (70, 12, 2, 2))
    want = codec.sample(codec.encode(images.float() / 127.5 - 1), noise)
    assert torch.allclose(latents, want, atol=1e-6)


def test_a_job_aligns_at_the_students_grid_and_is_the_same_for_a_seed(tmp_path):
    ours = recipe("digits.repa").with_({**TINY, "training.validate_every": None})
    parts = prepare(ours, CPU)
    jobs = [build_job(parts, tmp_path) for _ in range(2)]
    batch = next(jobs[0].batches(0))
    features = jobs[0].targets(batch.images)
    assert [f.grid for f in features] == [parts.recipe.model.grid] == [(4, 4)]
    for a, b in zip(jobs[0].modules, jobs[1].modules, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    other = build_job(prepare(ours.with_({"training.seed": 1}), CPU), tmp_path)
    assert not torch.equal(next(other.model.parameters()), next(jobs[0].model.parameters()))
    assert jobs[0].identity["teachers"] == [parts.teachers[0].id]
    assert not jobs[0].check_latents, "pixels need no look at their scale"


def test_validation_is_of_the_held_out_part_where_there_is_one(tmp_path):
    ours = recipe("digits.sit").with_({"data.split": "train", "model.depth": 1, "model.width": 32, "model.heads": 2})
    job = build_job(prepare(ours, CPU), tmp_path)
    held_out = open_source("digits").fingerprint
    assert len(job.validate.images) == 360 and held_out
    test = open_source(ours.data.model_copy(update={"split": "test"}))
    assert torch.equal(job.validate.images[0], test[0].image)


def test_unlabelled_batches_have_no_condition(tmp_path):
    for i in range(3):
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    ours = choose("digits.sit", ["training.batch=2", "model.patch=2"], data=str(tmp_path))
    job = build_job(prepare(ours, CPU, {"model.patch"}), tmp_path / "run")
    batch = next(job.batches(0))
    assert len(job.condition(batch)) == 0 and job.condition(batch).label is None


def test_choices():
    assert parse_size("256") == 256 and parse_size("256x384") == (256, 384)
    chosen = choose("repa.sit_s_2", ["training.steps=5"], data="digits", size="16", codec="pixels", teachers=["toy"])
    assert (chosen.data.source, chosen.data.size, chosen.codec.kind, chosen.teachers[0].kind) == (
        "digits", 16, "pixels", "toy"
    )  # fmt: skip
    assert chosen.training.steps == 5 and chosen.name == "repa.sit_s_2"
    plain = choose("repa.sit_s_2", ["model.depth=2"], teachers=["none"])
    assert plain.align is None and plain.teachers == () and plain.model.depth == 2
    with pytest.raises(PretrainedMissing, match="--teacher RUN"):
        choose("repa.sit_s_2", teachers=["./no/such/folder"])
