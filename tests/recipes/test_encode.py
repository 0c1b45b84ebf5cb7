"""Caches: the same bytes however the work is cut, training from one as from images, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditkit.data import DataError, Loader, open_source
from ditkit.data.cache import Cache
from ditkit.data.cache_drafts import machine
from ditkit.data.cache_format import Stored, read_manifest
from ditkit.data.cache_numbers import quantised, restored, rounded
from ditkit.data.cache_write import ranges
from ditkit.pretrained import ToyCodec
from ditkit.ranks import ALONE
from ditkit.recipes import recipe
from ditkit.recipes.build import build_job, prepare
from ditkit.recipes.choose import choose
from ditkit.recipes.encode import default_stored, encode, open_encoding
from ditkit.recipes.encode_shard import Networks
from ditkit.recipes.run import train
from ditkit.training.loop import fit

CPU = torch.device("cpu")
TINY = {
    "model.depth": 2, "model.width": 32, "model.heads": 2, "training.batch": 8, "training.steps": 3,
    "training.save_every": 3, "training.log_every": 1, "training.validate_every": 3, "sampling.steps": 2,
    "training.precision": "fp32",
}  # fmt: skip
ALIGNED = {"align.depth": 1, "align.projector_width": 16, "teachers": ({"kind": "toy"},)}
EXACT = {"dtype": "fp32", "features": "fp32", "texts": "fp32"}


def pictures(folder: Path, n: int = 22, size: tuple[int, int] = (8, 12), broken: tuple[int, ...] = ()) -> Path:
    """Class folders of n small pictures, some of them damaged; each with a caption."""
    for i in range(n):
        path = folder / "ab"[i % 2] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        if i in broken:
            path.write_bytes(path.read_bytes()[:60])
        path.with_suffix(".txt").write_text(f"a picture number {i // 3}\nanother of {i % 5}\n")
    return folder


def toy(data: Path | str, changes=()) -> object:
    """A latent recipe on these pictures: toy codec, toy teacher, no flips."""
    ours = choose("repa.sit_s_2", data=str(data), codec="toy", teachers=["toy"])
    return ours.with_({**TINY, **ALIGNED, "data.flip": False, **dict(changes)})


def write(ours, folder: Path, stored=(), shards: range | None = None):
    """Encode as the verb does."""
    keys = {**default_stored(ours).model_dump(), "shard": 8, "batch": 3, **dict(stored)}
    return encode(open_encoding(ours, folder, CPU, Stored(**keys)), shards)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def losses(ours, folder: Path) -> tuple[list[dict], list[torch.Tensor]]:
    """(rows of metrics, final weights of network and projectors) of a short training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ditkit.recipes.build.VALIDATION_IMAGES", 24)
        job = build_job(prepare(ours, CPU), folder)
    state = fit(job)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if k == "step" or "loss" in k} for row in rows]
    return kept, [p.detach() for module in job.modules for p in module.parameters()] + [torch.tensor(state.step)]


def on(ours, cache: Path, changes=()):
    """The recipe with a cache for data."""
    return ours.with_({"data.source": str(cache), "data.size": None, "data.channels": None, **dict(changes)})


def assert_equal_runs(a, b) -> None:
    assert a[0] == b[0] and len(a[0]) >= 3 and "validation_loss" in a[0][-1], (
        "losses, step by step, and those of the validation"
    )
    assert all(torch.equal(x, y) for x, y in zip(a[1], b[1], strict=True))


# ------------------------------------------------------------------------------------------------ cached == online


def test_pixels_with_a_teacher_train_as_from_images_bit_for_bit(tmp_path):
    ours = recipe("digits.repa").with_({**TINY, **ALIGNED, "data.split": "train", "data.flip": True})
    write(ours, tmp_path / "cache", {"shard": 500, "batch": 64, "features": "fp32"})
    assert read_manifest(tmp_path / "cache").stored.mirror, "the recipe flips, so that mirrored copies are there"
    assert_equal_runs(losses(ours, tmp_path / "a"), losses(on(ours, tmp_path / "cache"), tmp_path / "b"))


def test_latents_are_drawn_and_normalised_as_from_images(tmp_path):
    ours = toy(pictures(tmp_path / "images", broken=(5, 9)), {"data.flip": True})
    made = write(ours, tmp_path / "cache", EXACT)
    assert made.codec.shape == (24, 4, 6) and made.counts.rejects == 2
    online, cached = losses(ours, tmp_path / "a"), losses(on(ours, tmp_path / "cache"), tmp_path / "b")
    assert_equal_runs(online, cached)
    assert (tmp_path / "b/rejects.jsonl").read_text() == (tmp_path / "a/rejects.jsonl").read_text()
    half = write(ours, tmp_path / "half")
    rows, _ = losses(on(ours, tmp_path / "half"), tmp_path / "c")
    assert half.stored.dtype == half.stored.features == "fp16"
    for a, b in zip(online[0], rows, strict=True):
        assert a.keys() == b.keys() and all(abs(a[k] - b[k]) < 2e-3 * (1 + abs(a[k])) for k in a)
    assert rows != online[0]


def test_captions_train_as_from_images(tmp_path, tiny_text_recipe):
    images = pictures(tmp_path / "images", size=(8, 8))
    ours = tiny_text_recipe({
        "data.source": str(images), "data.caption": None, "data.empty_share": 0.4, "data.split": "all",
        "training.batch": 8, "training.steps": 3, "data.synthetic_share": 0.5,
    })  # fmt: skip
    made = write(ours, tmp_path / "cache", EXACT)
    assert made.text is not None and made.counts.captioned == 22
    assert_equal_runs(losses(ours, tmp_path / "a"), losses(on(ours, tmp_path / "cache"), tmp_path / "b"))
    assert (tmp_path / "cache/empty.safetensors").is_file()


def test_a_part_of_a_cache_is_that_part_of_the_images(tmp_path):
    ours = toy(pictures(tmp_path / "images"), {"data.split": "train"})
    write(ours, tmp_path / "cache", EXACT)
    a, b = (prepare(one, CPU) for one in (ours, on(ours, tmp_path / "cache")))
    assert len(b.source) == 17 and a.source.fingerprint == b.source.fingerprint
    batches = [next(iter(Loader(parts.source, 8, 1))) for parts in (a, b)]
    assert torch.equal(batches[0].indices, batches[1].indices) and torch.equal(batches[0].labels, batches[1].labels)


# ------------------------------------------------------------------------------------------------ the same bytes


def test_workers_ranges_and_interruptions_give_the_same_bytes(tmp_path):
    ours = toy(pictures(tmp_path / "images", broken=(5,)), {"data.flip": True})
    write(ours, tmp_path / "one")
    want = contents(tmp_path / "one")
    assert len([name for name in want if name.endswith(".safetensors") and name.startswith("shard")]) == 3
    write(ours.with_({"data.workers": 2}), tmp_path / "workers")
    assert contents(tmp_path / "workers") == want
    assert write(ours, tmp_path / "jobs", shards=range(2, 3)) is None
    with pytest.raises(DataError, match="an unfinished cache: shards 0-1 of 3 are missing"):
        open_source(str(tmp_path / "jobs"))
    (tmp_path / f"jobs/.shard-00000.safetensors.{machine()}-{2**22 + 1}-dead.part").write_bytes(b"of a killed job")
    assert write(ours, tmp_path / "jobs", shards=range(0, 2)) is not None, "the job that finds all of them composes"
    assert contents(tmp_path / "jobs") == want
    with pytest.raises(ValueError, match="there are 3 shards"):
        write(ours, tmp_path / "jobs", shards=range(3, 4))


def test_the_empty_prompt_is_embedded_as_all_others(tmp_path, tiny_text_recipe, monkeypatch):
    images = pictures(tmp_path / "images", n=6, size=(8, 8))
    ours = tiny_text_recipe({"data.source": str(images), "data.caption": None, "data.split": "all"})
    seen, embed, threads = [], Networks.embed, torch.get_num_threads()

    def watched(self, prompts):
        seen.append((list(prompts) == [""], torch.get_num_threads(), torch.get_float32_matmul_precision()))
        return embed(self, prompts)

    monkeypatch.setattr(Networks, "embed", watched)
    torch.set_num_threads(2)
    try:
        write(ours, tmp_path / "cache", {"tf32": True})
    finally:
        torch.set_num_threads(threads)
    assert {empty for empty, *_ in seen} == {True, False} and len({how[1:] for how in seen}) == 1


def test_threads_of_the_cpu_change_nothing(tmp_path):
    ours, before = toy(pictures(tmp_path / "images")), torch.get_num_threads()
    write(ours, tmp_path / "one")
    try:
        torch.set_num_threads(3)
        write(ours, tmp_path / "three")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def test_an_error_in_the_middle_leaves_whole_shards_and_the_next_call_goes_on(tmp_path, monkeypatch):
    ours = toy(pictures(tmp_path / "images"))
    write(ours, tmp_path / "one")
    encoding = open_encoding(ours, tmp_path / "two", CPU, default_stored(ours).with_({"shard": 8, "batch": 3}))
    seen = []

    def failing(read, encode=encoding.networks.encode):
        seen.append(read.indices)
        if 17 in read.indices:
            raise RuntimeError("the power is gone")
        return encode(read)

    monkeypatch.setattr(encoding.networks, "encode", failing)
    with pytest.raises(RuntimeError, match="power"):
        encode(encoding)
    left = sorted(path.name for path in (tmp_path / "two").iterdir())
    assert [name for name in left if name.endswith("safetensors")] == [f"shard-0000{k}.safetensors" for k in (0, 1)]
    assert not [name for name in left if name.endswith("part")]
    write(ours, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


# ------------------------------------------------------------------------------------------------ what it says


def test_counts_rejects_and_statistics(tmp_path):
    ours = toy(pictures(tmp_path / "images", broken=(5, 9)))
    made = write(ours, tmp_path / "cache", EXACT)
    counts = made.counts
    assert (counts.items, counts.usable, counts.rejects) == (22, 20, 2)
    assert [facts.usable for facts in made.contents] == [8, 6, 6] or sum(f.usable for f in made.contents) == 20
    lines = [json.loads(line) for line in (tmp_path / "cache/rejects.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and all(Path(line["path"]).name in ("005.png", "009.png") for line in lines)
    codec, source = ToyCodec(3), open_source(str(tmp_path / "images"))
    usable = [i for i in range(22) if i not in {line["index"] for line in lines}]
    images = torch.stack([source[i].image for i in usable]).double() / 127.5 - 1
    moments = codec.encode(images)
    mean = codec.sample(moments, None)
    square = mean**2 + (codec.std * codec.scale) ** 2
    want = (square.mean((0, 2, 3)) - mean.mean((0, 2, 3)) ** 2).sqrt()
    assert torch.allclose(torch.tensor(made.statistics.mean).double(), mean.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(torch.tensor(made.statistics.std).double(), want, atol=1e-6)
    overall = (square.mean() - mean.mean() ** 2).sqrt()
    assert abs(made.statistics.overall_std - overall.item()) < 1e-6


def test_a_cache_whose_latents_are_not_normalised_says_so(tmp_path):
    write(toy(pictures(tmp_path / "images")), tmp_path / "cache")  # uniform noise has a std of 0.577, the codec of 0.8
    assert [line for line in Cache(tmp_path / "cache").notes if "std 0.465" in line and "exactly once" in line]
    manifest = json.loads((tmp_path / "cache/manifest.json").read_text())
    manifest["statistics"]["overall_std"] = 0.9
    (tmp_path / "cache/manifest.json").write_text(json.dumps(manifest))
    assert not [line for line in Cache(tmp_path / "cache").notes if "warning" in line]


def test_round_trip_through_the_codec(tmp_path):
    images = pictures(tmp_path / "images")
    write(toy(images), tmp_path / "cache")
    source, codec = open_source(str(images)), ToyCodec(3)
    batch = next(iter(Loader(open_source(str(tmp_path / "cache")), 22, 0)))
    want = torch.stack([source[int(i)].image for i in batch.indices]).float() / 127.5 - 1
    back = codec.decode(codec.sample(batch.images.float(), None))
    noise = ((back - want) ** 2).mean()
    assert 10 * torch.log10(4 / noise) > 60, "PSNR of half-precision moments, dB"


# ------------------------------------------------------------------------------------------------ numbers


def test_int8_features_err_by_half_a_level_at_most():
    tokens = torch.randn(5, 7, 16, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 2, 7)[:, None]
    tokens[0, 0] = 0
    levels, scale = quantised(tokens)
    error = (restored(levels, scale) - tokens).abs().amax(-1)
    assert levels.dtype == torch.int8 and bool((error <= tokens.abs().amax(-1) / 254 * 1.0001).all())
    assert error.max() > 0 and levels.abs().max() == 127
    with pytest.raises(OverflowError, match="do not fit"):
        quantised(torch.full((1, 4), 1e6))


def test_numbers_too_large_for_half_precision_are_refused():
    with pytest.raises(OverflowError, match="up to 1e"):
        rounded(torch.tensor([1.0, 1e5]), "fp16")
    assert rounded(torch.tensor([1e5]), "bf16").isfinite().all()


@pytest.mark.parametrize("features, bound", [("fp16", 6e-4), ("bf16", 5e-3), ("int8", 5e-3), ("fp32", 0.0)])
def test_features_come_back_as_they_were_stored(tmp_path, features, bound):
    ours = toy(pictures(tmp_path / "images"))
    write(ours, tmp_path / "cache", {"features": features})
    teacher, source = prepare(ours, CPU).teachers[0], open_source(str(tmp_path / "images"))
    batch = next(iter(Loader(open_source(str(tmp_path / "cache")), 8, 0)))
    want = teacher(torch.stack([source[int(i)].image for i in batch.indices]), grid=(2, 3))
    found = batch.features[0]
    assert found.grid == (2, 3) and found.tokens.is_floating_point()
    assert (found.tokens.float() - want.tokens).abs().max() <= bound
    assert (found.pooled.float() - want.pooled).abs().max() <= bound


# ------------------------------------------------------------------------------------------------ refusals


def refused(ours) -> str:
    with pytest.raises(ValueError) as caught:
        prepare(ours, CPU)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_run_refuses_a_cache_of_something_else(tmp_path, tiny_text_recipe):
    ours = toy(pictures(tmp_path / "images"))
    cache = tmp_path / "cache"
    write(ours, cache)
    assert "a cache of latents of codec toy (toy-codec-3-0), this run is set to pixels: give --codec toy" in refused(
        on(ours, cache, {"codec.kind": "pixels"})
    )
    assert "a cache of images of 8x12, data.size asks for 16x16" in refused(on(ours, cache, {"data.size": 16}))
    assert "without mirrored copies: encode with mirror=true" in refused(on(ours, cache, {"data.flip": True}))
    other = on(ours, cache, {"teachers": ({"kind": "dinov2", "source": "./nowhere"},)})
    assert "features of toy-extractor-16-4x4-0, the recipe's teacher is dinov2 ./nowhere" in refused(other)
    assert "on a grid of 2x3, the model has 4x6 tokens" in refused(on(ours, cache, {"model.patch": 1}))
    text = on(tiny_text_recipe({"codec": {"kind": "toy"}}), cache, {"data.caption": None})
    assert "without the captions that this model is trained with" in refused(text)
    manifest = json.loads((cache / "manifest.json").read_text())
    manifest["codec"]["scale"] = 0.5
    (cache / "manifest.json").write_text(json.dumps(manifest))
    assert "was made with codec.scale 0.5, this run has 0.8" in refused(on(ours, cache))
    manifest["codec"]["id"] = "toy-codec-3-7"
    (cache / "manifest.json").write_text(json.dumps(manifest))
    assert "was made with codec toy-codec-3-7, this run has toy-codec-3-0" in refused(on(ours, cache))


def test_captions_of_another_encoder_are_refused(tmp_path, tiny_text_recipe):
    images = pictures(tmp_path / "images", size=(8, 8))
    ours = tiny_text_recipe({"data.source": str(images), "data.caption": None, "data.split": "all"})
    write(ours, tmp_path / "cache")
    told = refused(on(ours, tmp_path / "cache", {"text.seed": 1}))
    assert "were encoded by toy-text-48-12-0, the recipe's text encoder is toy-text-48-12-1" in told
    assert "a cache with no captions from classes, data.caption asks for" in refused(
        on(ours, tmp_path / "cache", {"data.caption": "a {class}"})
    )


def test_a_folder_is_one_cache_of_one_kind(tmp_path):
    ours = toy(pictures(tmp_path / "images"))
    write(ours, tmp_path / "cache", shards=range(0, 1))
    with pytest.raises(DataError, match=r"cache of other things: stored.dtype was 'fp16', is 'fp32'"):
        write(ours, tmp_path / "cache", {"dtype": "fp32"})
    with pytest.raises(DataError, match="holds something that is no cache"):
        write(ours, tmp_path / "images")
    write(ours, tmp_path / "cache")
    with pytest.raises(ValueError, match="is a cache already"):
        write(on(ours, tmp_path / "cache"), tmp_path / "again")
    with pytest.raises(ValueError, match="dtype=uint8 is for pixels"):
        write(ours, tmp_path / "other", {"dtype": "uint8"})


def test_nothing_usable_and_no_pictures(tmp_path):
    ours = toy(pictures(tmp_path / "images", n=4, broken=(0, 1, 2, 3)), {"data.size": (8, 12)})
    with pytest.raises(DataError, match="none of the 4 images can be used"):
        write(ours, tmp_path / "cache")
    write(toy(pictures(tmp_path / "good")), tmp_path / "two")
    with pytest.raises(DataError, match="a cache of latents holds no pictures"):
        open_source(str(tmp_path / "two"))[0]


def test_scores_while_training_ask_for_pictures_before_anything_is_written(tmp_path):
    ours = toy(pictures(tmp_path / "images"))
    write(ours, tmp_path / "cache")
    scored = on(ours, tmp_path / "cache", {"evaluation": {"n": 4, "extractors": ("pixels",)}})
    with pytest.raises(ValueError, match=r"holds no pictures; name the images.*evaluation\.data\.source=IMAGES"):
        train(scored, tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------ resuming


def test_a_run_goes_on_between_images_and_an_exact_cache_and_never_between_roundings(tmp_path):
    ours = toy(pictures(tmp_path / "images"))
    write(ours, tmp_path / "exact", EXACT)
    write(ours, tmp_path / "half")
    short = {"training.steps": 2, "training.save_every": 2}
    whole = losses(ours, tmp_path / "whole")
    losses(ours.with_(short), tmp_path / "run")
    mixed = losses(on(ours, tmp_path / "exact"), tmp_path / "run")
    assert all(torch.equal(a, b) for a, b in zip(whole[1], mixed[1], strict=True))
    losses(ours.with_(short), tmp_path / "other")
    with pytest.raises(ValueError, match=r"codec was toy-codec-3-0, is toy-codec-3-0 stored in fp16"):
        losses(on(ours, tmp_path / "half"), tmp_path / "other")


def test_teachers_and_the_encoder_of_images_do_not_run(tmp_path, monkeypatch):
    ours = toy(pictures(tmp_path / "images"))
    write(ours, tmp_path / "cache")

    def never(*_, **__):
        raise AssertionError("asked again")

    monkeypatch.setattr("ditkit.recipes.build.load_teacher", never)
    monkeypatch.setattr(ToyCodec, "encode", never)
    losses(on(ours, tmp_path / "cache"), tmp_path / "run")


def test_a_text_run_on_a_cache_never_loads_its_encoder(tmp_path, tiny_text_recipe, monkeypatch):
    images = pictures(tmp_path / "images", size=(8, 8))
    changes = {"data.source": str(images), "data.caption": None, "training.batch": 8, "training.steps": 2}
    ours = tiny_text_recipe(changes)
    write(ours, tmp_path / "cache")

    def never(*_, **__):
        raise AssertionError("loaded")

    monkeypatch.setattr("ditkit.recipes.build.open_text", never)
    monkeypatch.setattr("ditkit.recipes.cached.load_text", never)
    train(on(ours, tmp_path / "cache"), tmp_path / "run", CPU)
    assert (tmp_path / "run/samples/0000002.png").is_file(), "drawn from captions of the data, the cache knows them"
    parts = prepare(on(ours, tmp_path / "cache"), CPU)
    with pytest.raises(AssertionError, match="loaded"):
        parts.text(["a prompt that no image has"])


def test_ranges_for_people():
    assert ranges([0, 1, 2, 7, 9, 10]) == "0-2, 7, 9-10"
    assert ranges(range(0, 40, 2)).endswith("and 14 more")
    assert ALONE.first
