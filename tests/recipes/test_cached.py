"""What a cache may pass as: the images only where it holds them all, exactly; what is loaded, what is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditkit.data import DataError, Loader, open_source
from ditkit.data.cache import Cache
from ditkit.data.cache_batches import Asked
from ditkit.data.cache_format import Stored
from ditkit.data.index import Rule, write_index
from ditkit.pretrained import SelfTaught, ViTSettings
from ditkit.protocols import Condition
from ditkit.recipes import recipe
from ditkit.recipes.build import build_job, prepare
from ditkit.recipes.cached import StoredText, identity_or_name, marks
from ditkit.recipes.choose import choose
from ditkit.recipes.encode import encode, open_encoding
from ditkit.training.loop import fit

CPU = torch.device("cpu")
EXACT = {"dtype": "fp32", "features": "fp32", "texts": "fp32"}
TINY = {
    "model.depth": 2, "model.width": 32, "model.heads": 2, "training.batch": 8, "training.steps": 2,
    "training.log_every": 1, "training.validate_every": 2, "training.precision": "fp32", "data.flip": False,
}  # fmt: skip


def pictures(folder: Path, n: int = 12, bare: tuple[int, ...] = ()) -> Path:
    """n small pictures of two classes, each but those of `bare` with a caption of its own."""
    for i in range(n):
        path = folder / "ab"[i % 2] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)
        if i not in bare:
            path.with_suffix(".txt").write_text(f"picture number {i}\n")
    return folder


def toy(data: Path | str, changes=()):
    ours = choose("repa.sit_s_2", data=str(data), codec="toy", teachers=["none"])
    return ours.with_({**TINY, **dict(changes)})


@pytest.fixture
def with_text(tiny_text_recipe):
    """with_text(images, changes) -> a tiny text recipe on these images."""
    free = {"data.caption": None, "data.split": "all", "data.size": None, "data.channels": None, "codec.kind": "toy"}
    return lambda data, changes=(): tiny_text_recipe({"data.source": str(data), **free, **dict(changes)})


def write(ours, folder: Path, stored=()):
    keys = {"shard": 8, "batch": 3, "dtype": "fp32", **dict(stored)}
    return encode(open_encoding(ours, folder, CPU, Stored(**keys)))


def on(ours, cache: Path, changes=()):
    return ours.with_({"data.source": str(cache), "data.size": None, "data.channels": None, **dict(changes)})


def source_of(ours):
    return prepare(ours, CPU).source


def flip_byte(path: Path, name: str, row: int) -> None:
    data = bytearray(path.read_bytes())
    head = int.from_bytes(data[:8], "little")
    told = json.loads(data[8 : 8 + head])[name]
    start, stop = told["data_offsets"]
    data[8 + head + start + row * (stop - start) // told["shape"][0]] ^= 255
    path.write_bytes(data)


# ------------------------------------------------------------------------------------------------ what passes as what


@pytest.mark.parametrize("split", ["all", "train"])
def test_a_cache_without_the_uncaptioned_images_is_not_the_images(tmp_path, with_text, split):
    images, part = pictures(tmp_path / "images", bare=(1, 4, 7)), {"data.split": split}
    assert write(with_text(images), tmp_path / "cache").counts.rejects == 3
    plain = toy(images, part)
    assert source_of(on(plain, tmp_path / "cache")).fingerprint != source_of(plain).fingerprint
    told = with_text(images, part)
    assert source_of(on(told, tmp_path / "cache")).fingerprint == source_of(told).fingerprint
    assert "3 images without a caption are not in the cache" in Cache(tmp_path / "cache").notes[-1]


def test_a_cache_of_captioned_images_passes_as_the_images_without_text_too(tmp_path, with_text):
    images = pictures(tmp_path / "images")
    write(with_text(images), tmp_path / "cache")
    assert source_of(on(toy(images), tmp_path / "cache")).fingerprint == source_of(toy(images)).fingerprint


@pytest.mark.parametrize("split", ["train", "test"])
def test_parts_of_digits_are_those_of_their_cache(tmp_path, split):
    ours = recipe("digits.repa").with_({**TINY, "align": None, "teachers": (), "data.split": split})
    write(ours, tmp_path / "cache", {"dtype": "uint8", "shard": 1000, "batch": 500})
    online, cached = source_of(ours), source_of(on(ours, tmp_path / "cache"))
    assert isinstance(cached, Cache) and cached.fingerprint == online.fingerprint
    assert np.array_equal(cached.labels, online.labels)
    captioned = on(ours, tmp_path / "cache", {"data.split": "all"})
    assert source_of(captioned).fingerprint != online.fingerprint


def test_tf32_is_a_rounding_of_its_own_where_the_run_has_none(tmp_path):
    ours = toy(pictures(tmp_path / "images"))
    write(ours, tmp_path / "cache", {"tf32": True, **EXACT})
    cache = Cache(tmp_path / "cache")
    assert marks(cache) == dict.fromkeys(("codec", "teachers", "text"), " computed in TF32")
    assert not any(marks(cache, tf32=True).values())
    job = build_job(prepare(on(ours, tmp_path / "cache", {"training.tf32": False}), CPU), tmp_path / "run")
    assert job.identity["codec"].endswith(" computed in TF32")


def test_a_real_autoencoder_trains_as_from_images_within_rounding(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    diffusers.AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=["DownEncoderBlock2D"] * 2, norm_num_groups=4,
        up_block_types=["UpDecoderBlock2D"] * 2, latent_channels=4, scaling_factor=0.5, sample_size=16,
    ).save_pretrained(tmp_path / "vae")  # fmt: skip
    ours = choose(
        "repa.sit_s_2", data=str(pictures(tmp_path / "images")), codec=str(tmp_path / "vae"), teachers=["none"]
    )
    ours = ours.with_(TINY)
    write(ours, tmp_path / "cache", EXACT)
    rows = []
    for one, name in ((ours, "a"), (on(ours, tmp_path / "cache"), "b")):
        fit(build_job(prepare(one, CPU), tmp_path / name))
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        rows.append([{k: v for k, v in json.loads(line).items() if "loss" in k} for line in lines])
    assert rows[0] and "validation_loss" in rows[0][-1]
    for a, b in zip(*rows, strict=True):
        assert a.keys() == b.keys() and all(abs(a[k] - b[k]) < 1e-5 * (1 + abs(a[k])) for k in a)


# ------------------------------------------------------------------------------------------------ what is refused


def test_keys_that_say_how_images_are_read_are_refused(tmp_path):
    ours = toy(pictures(tmp_path / "images"))
    write(ours, tmp_path / "cache")
    for key in ("table", "part", "image_column", "label_column", "text_column", "synthetic_column", "synthetic_table"):
        with pytest.raises(DataError, match=rf"data\.{key} says how images are read.*\(data\.{key}=none\)") as seen:
            source_of(on(ours, tmp_path / "cache", {f"data.{key}": "x"}))
        assert "\n" not in str(seen.value)


def test_an_index_is_known_by_what_it_keeps(tmp_path, monkeypatch):
    images = pictures(tmp_path / "images")
    source = open_source(str(images))

    def keep(name: str, rows: list[int]) -> str:
        return str(write_index(tmp_path / name, source, "images", np.array(rows), [Rule("some", 1, 1)]))

    path = keep("a.json", [0, 2, 3, 5, 6, 9])
    ours = toy(images, {"data.index": path})
    assert write(ours, tmp_path / "cache").counts.items == 6
    cached = on(ours, tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    for same in (path, "a.json", "./a.json", keep("copy.json", [0, 2, 3, 5, 6, 9])):
        found = source_of(cached.with_({"data.index": same}))
        assert found.fingerprint == source_of(ours).fingerprint
    write(ours.with_({"data.index": "a.json"}), tmp_path / "cache")  # goes on with it
    keep("a.json", [0, 2, 3, 5, 6, 10])
    with pytest.raises(DataError, match=r"a cache of the images of .*a\.json, data\.index=.* keeps others"):
        source_of(cached)


def test_scenes_have_no_parts_in_a_cache_of_all(tmp_path):
    write(toy(pictures(tmp_path / "images")), tmp_path / "cache")
    manifest = json.loads((tmp_path / "cache/manifest.json").read_text())
    manifest["source"]["place"] = "scenes"
    (tmp_path / "cache/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="scenes are made for each split anew"):
        source_of(on(toy("x"), tmp_path / "cache", {"data.split": "train"}))


@pytest.mark.parametrize("key, told", [("files", "it does not tell of"), ("contents", "it tells of 0 shards, not")])
def test_a_manifest_that_does_not_tell_of_all_files_is_refused_in_one_line(tmp_path, key, told):
    write(toy(pictures(tmp_path / "images")), tmp_path / "cache")
    manifest = json.loads((tmp_path / "cache/manifest.json").read_text())
    (tmp_path / "cache/manifest.json").write_text(json.dumps({**manifest, key: []}))
    with pytest.raises(DataError, match=f"manifest.json: not readable as a cache's: {told}") as seen:
        open_source(str(tmp_path / "cache"))
    assert "\n" not in str(seen.value)


# ------------------------------------------------------------------------------------------------ what is loaded


def test_a_local_teacher_is_never_built_for_its_name(tmp_path, monkeypatch):
    settings = ViTSettings(grid=(4, 4), channels=3, patch=2, width=16, depth=1, heads=2)
    SelfTaught.untrained(settings).save(tmp_path / "teacher")
    ours = choose(
        "repa.sit_s_2", data=str(pictures(tmp_path / "images")), codec="toy", teachers=[str(tmp_path / "teacher")]
    )
    ours = ours.with_({**TINY, "align.depth": 1, "align.projector_width": 16})
    write(ours, tmp_path / "cache")
    with monkeypatch.context() as patch:
        for place in ("ditkit.recipes.cached.load_teacher", "ditkit.recipes.build.load_teacher"):
            patch.setattr(place, lambda *_: pytest.fail("loaded"))
        assert prepare(on(ours, tmp_path / "cache"), CPU).teachers[0].id.startswith("selftaught-")
    (tmp_path / "teacher").rename(tmp_path / "old")
    SelfTaught.untrained(settings, seed=1).save(tmp_path / "teacher")
    with pytest.raises(ValueError, match=r"with features of selftaught-.*, the recipe's teacher is selftaught-"):
        prepare(on(ours, tmp_path / "cache"), CPU)


def test_other_local_networks_are_loaded_once_while_their_files_stay(tmp_path, monkeypatch):
    from ditkit.pretrained import TeacherSettings, TextSettings

    (tmp_path / "net").mkdir()
    (tmp_path / "net/config.json").write_text("{}")
    loads = []

    class Named:
        def __init__(self, settings):
            loads.append(settings)
            self.id = f"{settings.kind}-{len(loads)}"

    monkeypatch.setattr("ditkit.recipes.cached.load_teacher", Named)
    monkeypatch.setattr("ditkit.recipes.cached.load_text", Named)
    teacher = TeacherSettings(kind="dinov2", source=str(tmp_path / "net"))
    text = TextSettings(kind="clip", source=str(tmp_path / "net"))
    assert [identity_or_name(one) for one in (teacher, teacher, text, text)] == ["dinov2-1"] * 2 + ["clip-2"] * 2
    (tmp_path / "net/config.json").write_text("{} ")
    assert identity_or_name(teacher) == "dinov2-3"


# ------------------------------------------------------------------------------------------------ captions


def test_batches_hold_captions_as_they_were_drawn(tmp_path, with_text):
    images = pictures(tmp_path / "images")
    write(with_text(images), tmp_path / "cache")
    online = next(iter(Loader(open_source(str(images)), 12, 3)))
    dropped = next(iter(Loader(open_source(str(tmp_path / "cache")), 12, 3, asked=Asked(empty_share=0.5))))
    plain = next(iter(Loader(open_source(str(tmp_path / "cache")), 12, 3, asked=Asked())))
    assert dropped.captions == plain.captions == online.captions and all(online.captions)
    empty = [not torch.equal(a, b) for a, b in zip(dropped.cond.text, plain.cond.text, strict=True)]
    assert 0 < sum(empty) < 12


def test_skipping_damage_a_run_asks_its_encoder_and_validates_on_the_rest(tmp_path, with_text, caplog):
    ours = with_text(pictures(tmp_path / "images"), {"training.batch": 8})
    write(ours, tmp_path / "cache", EXACT)
    whole = prepare(on(ours, tmp_path / "cache"), CPU).source
    flip_byte(tmp_path / "cache/shard-00000.safetensors", "text", 2)
    prompts = [whole.captions(i).first for i in range(4)]
    skipping = prepare(on(ours, tmp_path / "cache", {"data.corrupt": "skip"}), CPU)
    for i in range(4):
        skipping.source.captions(i)
    with caplog.at_level(logging.WARNING):
        found: Condition = skipping.text(prompts)
    assert "shard-00000.safetensors: is damaged" in caplog.text and "text encoder is asked instead" in caplog.text
    assert torch.equal(found.text, prepare(ours, CPU).text(prompts).text)
    caplog.clear()
    job = build_job(skipping, tmp_path / "run")
    assert job.validate is not None and "validation leaves out 1 images" in caplog.text
    assert all(np.isfinite(value) for value in job.validate(job.model).values())
    with pytest.raises(DataError, match=r"shard-00000\.safetensors: is damaged"):
        stopping = prepare(on(ours, tmp_path / "cache"), CPU)
        for i in range(4):
            stopping.source.captions(i)
        StoredText(stopping.cache, ours.text, CPU)(prompts)
