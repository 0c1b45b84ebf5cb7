"""Generation: draws by index, fixed chunks, exact counts, resumption after a kill, several processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ditkit.diffusion import CFG, Autoguidance, Linear, SampleNoise, SamplerSettings, sample
from ditkit.evaluation.folder import FolderError, SampleFolder
from ditkit.evaluation.generate import ToSample, describe, fill, generate, planned, sample_chunk, weights_fingerprint
from ditkit.evaluation.images import quantise, read_png, save_png
from ditkit.evaluation.reference import make_reference
from ditkit.evaluation.request import Request, balanced_labels, make_request, random_labels
from ditkit.evaluation.samples import given_protocol, open_generated, open_images
from ditkit.models import DiT, DiTSettings
from ditkit.pretrained.codec import PixelCodec
from ditkit.pretrained.toy import ToyCodec, ToyExtractor, ToyTextEncoder
from ditkit.protocols import Condition, Output

EULER = SamplerSettings(solver="euler", steps=3)
SDE = SamplerSettings(solver="euler_maruyama", steps=4, last=0.04)


class Plain(nn.Module):
    """Elementwise, so that its results do not depend on the batch in any bit; the label shifts the picture."""

    def __init__(self, channels: int = 1):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.0, channels))
        self.batches: list[int] = []

    def forward(self, x, t, cond, *, capture=()):
        self.batches.append(len(x))
        label = torch.zeros(len(x)) if cond.label is None else cond.label
        if cond.pooled is not None:
            label = cond.pooled.mean(1)
        scale = self.scale.view(1, -1, 1, 1)
        return Output(x * scale * (1 + t.view(-1, 1, 1, 1)) - 0.1 * label.view(-1, 1, 1, 1))

    def null(self, cond):
        return Condition(label=torch.full_like(cond.label, 10))


def plain(channels: int = 1) -> ToSample:
    return ToSample(Plain(channels), Linear(), "velocity", PixelCodec(channels))


def request(n: int = 10, **changes) -> Request:
    base = make_request(n, 10, "balanced", seed=3, chunk=4)
    return base.model_copy(update={"size": (4, 6), **changes})


def dit() -> ToSample:
    settings = DiTSettings(depth=2, width=16, heads=2, patch=2, channels=1, size=(4, 4), num_classes=3)
    model = DiT(settings, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.data.add_(0.1 * torch.randn(p.shape, generator=generator))
    return ToSample(model, Linear(), "velocity", PixelCodec(1))


# ---- labels and requests ----------------------------------------------------------------------------------------


def test_balanced_labels():
    assert balanced_labels(7, 3).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert balanced_labels(50_000, 1000, in_order=True).tolist() == [i // 50 for i in range(50_000)]


def test_random_labels_are_uniform_and_a_prefix():
    labels = random_labels(20_000, 7, seed=5)
    counts = torch.bincount(labels, minlength=7).double()
    assert ((counts - 20_000 / 7) ** 2 / (20_000 / 7)).sum() < 22.5, "chi-square, 6 degrees of freedom, p = 0.001"
    assert torch.equal(random_labels(50, 7, 5), labels[:50])
    assert not torch.equal(random_labels(50, 7, 6), labels[:50])


def test_request_says_what_is_wrong():
    with pytest.raises(ValueError, match="3 labels for 4 images"):
        Request(n=4, labels=(1, 2, 3))
    with pytest.raises(ValueError, match="unknown uint8 rule"):
        Request(n=4, quantiser="ceil")
    with pytest.raises(ValueError, match="2 prompts for 1 images"):
        Request(n=1, labels=(1,), prompts=("a", "b"))
    with pytest.raises(ValueError, match="a negative prompt has no use without prompts"):
        Request(n=1, negative="grey")
    assert Request(n=1, labels=(1,), prompts=("a photo of a 1",)).labels == (1,), "what a prompt names, to score"
    with pytest.raises(ValueError, match="cannot be chosen here"):
        make_request(4, 2, "given")
    assert make_request(4, 0).labels == () and make_request(4, 0).mode == "none"
    assert [list(request(10).indices(c)) for c in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


# ---- what is drawn ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [EULER, SDE], ids=["ode", "sde"])
def test_images_depend_on_seed_and_index_only(sampler):
    """Any chunk size and any total give image i the same bytes."""
    source = plain()
    whole = generate(source, sampler, request(10, chunk=10)).images
    assert whole.shape == (10, 1, 4, 6) and whole.dtype == torch.uint8
    for chunk in (1, 3, 4):
        assert torch.equal(generate(source, sampler, request(10, chunk=chunk)).images, whole)
    assert torch.equal(generate(source, sampler, request(7, chunk=5)).images, whole[:7])
    assert not torch.equal(generate(source, sampler, request(10, seed=4)).images, whole)
    assert len({tuple(x.flatten().tolist()) for x in whole}) == 10, "no two images are equal"


def test_a_network_gives_equal_images_up_to_one_level_for_other_chunks():
    made = [generate(dit(), EULER, make_request(9, 3, seed=1, chunk=c)).images.int() for c in (9, 4, 2)]
    assert (made[0] - made[1]).abs().max() <= 1 and (made[0] - made[2]).abs().max() <= 1
    assert torch.equal(generate(dit(), EULER, make_request(9, 3, seed=1, chunk=4)).images.int(), made[1])


def test_equals_a_hand_written_loop():
    source, r = dit(), make_request(5, 3, "balanced", seed=2, chunk=5)
    noise = SampleNoise(2, range(5), (1, 4, 4))
    cond = Condition(label=torch.tensor([0, 1, 2, 0, 1]))
    times = torch.linspace(1, 0, 4, dtype=torch.float64)
    latents = sample(source.model, noise.initial(), cond, path=Linear(), prediction="velocity", solver="euler",
                     times=times)  # fmt: skip
    assert torch.equal(generate(source, EULER, r).images, quantise(latents))


def test_evaluations_are_counted_per_image_and_guidance_is_in_the_protocol():
    guided = EULER.model_copy(update={"guidance": CFG(scale=2.0)})
    assert generate(plain(), EULER, request()).evaluations == 3
    result = generate(plain(), guided, request())
    assert result.evaluations == 6
    reference = make_reference(ToyExtractor(), torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
    protocol = result.protocol(reference)
    assert protocol.guidance["scale"] == 2.0 and protocol.evaluations == 6 and protocol.labels == "balanced"
    assert protocol.sampler["steps"] == 3 and "guidance" not in protocol.sampler
    assert (protocol.n, protocol.seed, protocol.reference) == (10, 3, reference.fingerprint)


def test_codec_sets_latent_channels_and_decodes_in_parts():
    source = ToSample(Plain(12), Linear(), "velocity", ToyCodec(3))
    images = generate(source, EULER, request(6, decode=1)).images
    assert images.shape == (6, 3, 8, 12)
    assert torch.equal(images, generate(source, EULER, request(6, decode=4)).images)


def test_unconditional_and_prompts():
    bare = Request(n=3, size=(4, 4))
    assert generate(plain(), EULER, bare).labels is None
    told = Request(n=3, size=(4, 4), prompts=("a cat", "a dog", "a cat"), mode="prompts")
    with pytest.raises(ValueError, match="without a text encoder"):
        generate(plain(), EULER, told)
    source = plain()
    source.text = ToyTextEncoder()
    spoken = generate(source, EULER, told).images
    assert not torch.equal(spoken, generate(plain(), EULER, bare).images)


def test_no_native_size_and_diverged_weights_are_said():
    with pytest.raises(ValueError, match="give the request a size"):
        generate(plain(), EULER, Request(n=2))
    source = plain()
    source.model.scale.data.fill_(float("inf"))
    with pytest.raises(ValueError, match=r"images 0\.\.3: .*NaN"):
        generate(source, EULER, request())


def test_global_randomness_and_training_mode_are_left_alone():
    source = dit()
    source.model.train()
    state = torch.get_rng_state()
    generate(source, SDE, make_request(3, 3, chunk=2))
    assert torch.equal(torch.get_rng_state(), state) and source.model.training


def test_progress_ends_at_the_total_and_never_goes_back():
    seen = []
    generate(plain(), EULER, request(10), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (10, 10) and all(t == 10 for _, t in seen)
    assert [d for d, _ in seen] == sorted(d for d, _ in seen)


# ---- folders ----------------------------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_folder_and_memory_agree(tmp_path):
    result = generate(plain(3), EULER, request(), folder=tmp_path / "out")
    memory = generate(plain(3), EULER, request())
    assert len(result.images) == 10 and torch.equal(result.images[0:10], memory.images)
    assert torch.equal(result.images[2:7:2], memory.images[2:7:2])
    assert result.evaluations == memory.evaluations and result.made == 10
    names = {f"{i:06d}.png" for i in range(10)}
    assert set(files(tmp_path / "out")) == names | {"request.json", "samples.npz"}
    with np.load(tmp_path / "out" / "samples.npz") as data:
        assert data["arr_0"].shape == (10, 4, 6, 3) and data["arr_0"].dtype == np.uint8
        assert np.array_equal(data["arr_0"], memory.images.permute(0, 2, 3, 1).numpy())
        assert data["label"].tolist() == [i % 10 for i in range(10)]
    _, text = read_png(tmp_path / "out" / "000004.png")
    assert text == {"index": "4", "seed": "3", "label": "4", "evaluations": "3"}


def test_resuming_makes_what_is_missing_and_nothing_else(tmp_path):
    source = dit()
    r = make_request(11, 3, seed=1, chunk=4)
    whole = generate(source, EULER, r, folder=tmp_path / "whole")
    part = tmp_path / "part"
    generate(source, EULER, r, folder=part)
    for name in ("000005.png", "000010.png", "samples.npz"):
        (part / name).unlink()
    (part / ".000005.png.part").write_bytes(b"torn")
    touched = {p.name: p.stat().st_mtime_ns for p in part.glob("0*.png")}
    result = generate(source, EULER, r, folder=part)
    assert result.made == 2 and whole.made == 11
    assert files(part) == files(tmp_path / "whole")
    assert all((part / name).stat().st_mtime_ns == when for name, when in touched.items())
    assert generate(source, EULER, r, folder=part).made == 0


def _forever(folder: str) -> None:
    class Slow(Plain):
        def forward(self, x, t, cond, *, capture=()):
            time.sleep(0.02)
            return super().forward(x, t, cond, capture=capture)

    source = ToSample(Slow(), Linear(), "velocity", PixelCodec(1))
    generate(source, EULER, request(200, chunk=2, labels=tuple([1] * 200)), folder=folder)


def test_killed_and_resumed_equals_unbroken(tmp_path):
    """SIGKILL in the middle: whatever is there under a final name is whole, and the second run completes it."""
    folder = tmp_path / "killed"
    process = multiprocessing.get_context("fork").Process(target=_forever, args=(str(folder),))
    process.start()
    deadline = time.monotonic() + 60
    while len(list(folder.glob("0*.png"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    there = sorted(folder.glob("0*.png"))
    assert 5 <= len(there) < 200 and not (folder / "samples.npz").exists()
    assert all(read_png(p)[0].shape == (1, 4, 6) for p in there)
    r = request(200, chunk=2, labels=tuple([1] * 200))
    made = generate(plain(), EULER, r, folder=folder).made
    assert made == 200 - len(there)
    generate(plain(), EULER, r, folder=tmp_path / "unbroken")
    assert files(folder) == files(tmp_path / "unbroken")


def test_two_processes_fill_one_folder_like_one(tmp_path):
    source, r = dit(), make_request(10, 3, seed=1, chunk=3)
    generate(source, EULER, r, folder=tmp_path / "one")
    place = SampleFolder(tmp_path / "two", r.n)
    place.claim(describe(source, EULER, r), torch.get_num_threads())
    made = [fill(place, source, EULER, r, chunks=range(rank, r.chunks, 2)) for rank in (1, 0)]
    assert made == [4, 6]
    place.collect(torch.tensor(r.labels))
    assert files(tmp_path / "two") == files(tmp_path / "one")


def test_one_chunk_alone_is_the_same_chunk():
    source, r = dit(), make_request(10, 3, seed=1, chunk=4)
    images, evaluations = sample_chunk(source, EULER, r, 2)
    assert torch.equal(images, generate(source, EULER, r).images[8:10]) and evaluations == 3


def test_a_folder_of_another_request_is_refused_with_every_difference(tmp_path):
    generate(plain(), EULER, request(), folder=tmp_path)
    with pytest.raises(FolderError, match=r"request\.seed: 3 there, 9 now"):
        generate(plain(), EULER, request(seed=9), folder=tmp_path)
    with pytest.raises(FolderError, match=r"sampler\.solver: 'euler' there, 'heun' now"):
        generate(plain(), SamplerSettings(solver="heun", steps=3), request(), folder=tmp_path)
    other = plain()
    other.model.scale.data.add_(1e-6)
    with pytest.raises(FolderError, match="weights: "):
        generate(other, EULER, request(), folder=tmp_path)
    (tmp_path / "000010.png").write_bytes(b"")
    with pytest.raises(FolderError, match=r"000010\.png is not one of the 10 images"):
        generate(plain(), EULER, request(), folder=tmp_path)


@pytest.mark.parametrize("name", ["cat.png", "cats/cat.png"])
def test_a_folder_that_holds_other_things_is_refused(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(FolderError, match=r"holds other things \(cat"):
        generate(plain(), EULER, request(), folder=tmp_path)
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()] == [name]


def test_incomplete_folder_is_not_collected(tmp_path):
    result = generate(plain(), EULER, request(), folder=tmp_path)
    (tmp_path / "000003.png").unlink()
    with pytest.raises(FolderError, match="1 of 10 images are missing, the first is 3"):
        result.images.collect(None)
    with pytest.raises(FolderError, match="1 of 10 images are missing"):
        open_generated(tmp_path)


def test_opening_what_was_generated(tmp_path):
    made = generate(plain(), SDE, request(), folder=tmp_path)
    back = open_generated(tmp_path)
    reference = make_reference(ToyExtractor(), torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
    assert back.protocol(reference) == made.protocol(reference)
    assert torch.equal(back.images[:], made.images[:]) and torch.equal(back.labels, made.labels)
    images, labels = open_images(tmp_path / "samples.npz")
    assert torch.equal(images[:], made.images[:]) and torch.equal(labels, made.labels)
    images, labels = open_images(tmp_path)
    assert torch.equal(images[3:5], made.images[3:5]) and labels is None
    assert given_protocol(10, reference) != made.protocol(reference)


def test_images_of_two_sizes_are_refused_wherever_they_lie(tmp_path):
    for i in range(4):
        save_png(torch.zeros(1, 4 + 2 * (i > 1), 4, dtype=torch.uint8), tmp_path / f"{i}.png")
    images, _ = open_images(tmp_path)
    assert images[0:2].shape == (2, 1, 4, 4)
    with pytest.raises(FolderError, match=r"2\.png: \(1, 6, 4\), the others are \(1, 4, 4\)"):
        images[2:4]


def test_who_helped_is_part_of_the_protocol_and_of_the_folder(tmp_path):
    """The weaker model of an autoguidance, and the encoder of the prompts, decide the images as the weights do."""
    reference = make_reference(ToyExtractor(), torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
    sampler = EULER.model_copy(update={"guidance": Autoguidance(scale=2.0)})
    one, other = plain(), plain()
    one.autoguide, other.autoguide = Plain(), Plain()
    other.autoguide.scale.data += 0.1
    made = generate(one, sampler, request(), folder=tmp_path)
    told = made.protocol(reference)
    assert told.autoguide == weights_fingerprint(one.autoguide) and told.size == (4, 6)
    assert open_generated(tmp_path).protocol(reference) == told
    assert generate(other, sampler, request()).protocol(reference).autoguide != told.autoguide
    with pytest.raises(FolderError, match="autoguide"):
        generate(other, sampler, request(), folder=tmp_path)
    assert "autoguide" not in describe(one, EULER, request()), "it has no say without an autoguidance"
    known = planned(one, sampler, request())
    assert known == {key: getattr(told, key) for key in known} and known["size"] == (4, 6)


def test_opening_nonsense_is_one_line(tmp_path):
    np.savez(tmp_path / "floats.npz", arr_0=np.zeros((2, 3)))
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "0.png").write_bytes(b"\x89PNG")
    for name, message in {
        "floats.npz": "expected uint8",
        "text.npz": "not an .npz",
        "empty": "no PNG files",
        "none": "no such file",
    }.items():
        with pytest.raises(FolderError, match=message):
            open_images(tmp_path / name)
    with pytest.raises(FolderError, match="not a readable image"):
        open_images(tmp_path / "torn")[0][0:1]
    with pytest.raises(FolderError, match=r"no request\.json"):
        open_generated(tmp_path / "empty")


def test_weights_fingerprint_sees_one_bit():
    a, b = Plain(), Plain()
    assert weights_fingerprint(a) == weights_fingerprint(b)
    b.scale.data[0] = torch.nextafter(b.scale.data[0], torch.tensor(9.0))
    assert weights_fingerprint(a) != weights_fingerprint(b)
    assert weights_fingerprint(a.to(torch.bfloat16)) != weights_fingerprint(b)


def test_request_file_reads_as_json(tmp_path):
    generate(plain(), EULER, request(), folder=tmp_path)
    told = json.loads((tmp_path / "request.json").read_text())
    assert told["prediction"] == "velocity" and told["codec"] == "pixels-1" and told["request"]["chunk"] == 4
