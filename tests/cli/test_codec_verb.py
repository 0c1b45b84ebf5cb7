"""`ditkit codec`: a codec of one's own, from images to a folder that train, sample and evaluate take."""

from __future__ import annotations

import json
import shutil
import signal
import time

import pytest
import torch

from ditkit.pretrained import CodecSettings, load_codec
from ditkit.recipes.own_codec import make_codec, open_images
from ditkit.training.codec_settings import CodecTraining

pytest.importorskip("diffusers")
TINY = ("width=8", "warmup=2", "batch=32", "attention=false", "lr=5e-3")


@pytest.fixture(scope="module")
def made(tmp_path_factory, ditkit):
    """A tiny codec of the digits, trained with a teacher, and what was printed."""
    home = tmp_path_factory.mktemp("codec")
    result = ditkit(
        "codec", "--data", "digits", "--out", home / "codec", "--steps", 40, "--teacher", "toy", "channels=3", *TINY
    )
    assert result.exit_code == 0, result.output
    return home / "codec", result


def test_writes_a_codec_that_loads_and_its_card(made):
    out, result = made
    assert sorted(p.name for p in out.iterdir()) == [
        "codec.json", "config.json", "diffusion_pytorch_model.safetensors", "metrics.jsonl", "reconstructions.png",
        "report.html", "scores.json", "training.json",
    ]  # fmt: skip
    card = json.loads((out / "codec.json").read_text())
    codec = load_codec(str(out))
    assert CodecSettings.parse(str(out)) == CodecSettings(kind="kl", source=str(out))
    assert (codec.id, codec.channels, codec.factor) == (card["id"], 3, 2)
    assert (codec.scale, codec.shift) == (card["scale"], card["shift"])
    assert (card["images"], card["test"]["images"]) == (1437, 360) and "never saw" in card["test"]["seen"]
    assert card["teacher"].startswith("toy-extractor") and "ssim" not in card["test"]
    assert f"PSNR {card['test']['psnr']:.2f} dB on 360 images" in result.stdout
    assert f"next: ditkit train sit.s_2 --data digits --codec {out}" in result.stdout
    page = (out / "report.html").read_text()
    assert "Teacher: 1 - cosine" in page and "Reconstructions" in page


def latents(codec, n=256):
    source, _ = open_images("digits", CodecTraining(), None)
    x = torch.stack([source[i].image for i in range(n)]).float() / 127.5 - 1
    moments = codec.encode(x)
    return codec.sample(moments, torch.randn(moments[:, : codec.channels].shape, generator=torch.Generator()))


def test_scale_and_shift_normalise_the_latents(made):
    z = latents(load_codec(str(made[0])))
    assert abs(z.mean()) < 0.1 and abs(z.std() - 1) < 0.1


def test_scale_and_shift_per_channel(made, tmp_path):
    """A finished folder's network with the other way to normalise: each channel by itself is standard."""
    from ditkit.recipes.own_codec import affine_config, save

    out = made[0]
    card = json.loads((out / "codec.json").read_text())
    mean, std = (torch.tensor(card["latents"][key], dtype=torch.float64) for key in ("mean", "std"))
    tmp_path.joinpath("codec").mkdir()
    save(load_codec(str(out)).vae, affine_config(mean, std, CodecTraining(normalise="channel")), tmp_path / "codec")
    codec = load_codec(str(tmp_path / "codec"))
    assert len(codec.scale) == len(codec.shift) == 3
    z = latents(codec)
    assert z.mean((0, 2, 3)).abs().max() < 0.15 and (z.std((0, 2, 3)) - 1).abs().max() < 0.15
    original, other = load_codec(str(out)), codec
    torch.testing.assert_close(
        other.decode(z), original.decode(original.sample((z / torch.tensor(codec.scale).view(1, 3, 1, 1)
        + torch.tensor(codec.shift).view(1, 3, 1, 1)).repeat(1, 2, 1, 1), None)), atol=1e-4, rtol=1e-4,
    )  # fmt: skip


def test_the_same_command_on_a_finished_folder_changes_nothing(made, ditkit):
    out, first = made
    before = (out / "config.json").read_bytes()
    again = ditkit(
        "codec",
        "--data",
        "digits",
        "--out",
        out,
        "--steps",
        40,
        "--teacher",
        "toy",
        "channels=3",
        "save_every=7",
        *TINY,
    )
    assert again.exit_code == 0 and "is finished already" in again.stderr
    assert again.stdout == first.stdout and (out / "config.json").read_bytes() == before


def test_bad_input_is_one_line(made, tmp_path, pictures, refused):
    out, _ = made
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    data = pictures(tmp_path / "data", n=4, size=(24, 40))
    for words, said in (
        (("--out", out, "--steps", 40, "channels=5", *TINY), "channels=3, now 5"),
        (("--out", tmp_path / "full"), "exists already"),
        (("--data", tmp_path / "gone"), "no such file or folder"),
        (("factor=3",), "factor"),
        (("chanels=4",), "did you mean 'channels'?"),
        (("--steps", 3, "steps=4"), "--steps 3 and steps=4 contradict each other"),
        (("--data", data, "--size", "30", "factor=4"), "images of 30x30; both sides must be multiples of factor=4"),
        (("--teacher", tmp_path / "gone"), "cannot load teacher"),
    ):
        place = () if "--out" in words else ("--out", tmp_path / "codec")
        assert said in refused("codec", *place, *words)
    assert not (tmp_path / "codec").exists()


def test_images_that_are_not_square_and_one_that_is_broken(tmp_path, pictures, ditkit):
    data = pictures(tmp_path / "data", n=12, size=(26, 40))
    bad = sorted(data.rglob("*.png"))[3]
    bad.write_bytes(bad.read_bytes()[:100])
    result = ditkit("codec", "--data", data, "--out", tmp_path / "codec", "--steps", 3, "factor=8", "batch=4",
                    "hold_out=false", "normalise=channel", "width=8", "warmup=1")  # fmt: skip
    assert result.exit_code == 0, result.output
    card = json.loads((tmp_path / "codec" / "codec.json").read_text())
    assert card["size"] == [24, 40] and "trained on these images too" in card["test"]["seen"]
    assert 0 < card["test"]["ssim"] < 1 and len(card["scale"]) == 4
    codec = load_codec(str(tmp_path / "codec"))
    assert codec.encode(torch.zeros(1, 3, 24, 40)).shape == (1, 8, 3, 5)


@pytest.mark.long
def test_sigterm_saves_and_the_same_command_goes_on(tmp_path, own_process, ditkit):
    words = ("codec", "--data", "digits", "--out", tmp_path / "codec", "channels=1", *TINY)
    process = own_process(*words, "--steps", 100_000)
    while not (tmp_path / "codec" / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143 and "the same command goes on" in error and "Traceback" not in error
    assert not (tmp_path / "codec" / "config.json").exists(), "nobody mistakes it for a codec"
    result = ditkit(*words, "--steps", 99_999)
    assert result.exit_code == 2 and "was begun with steps=100000, now 99999" in result.stderr


def test_the_codec_in_train_sample_and_evaluate(made, tmp_path, ditkit):
    out, run = made[0], tmp_path / "run"
    tiny = ("training.batch=16", "training.validate_every=20", "sampling.steps=4", "model.width=32", "model.heads=2")
    result = ditkit("train", "digits.sit", "--codec", out, "--steps", 20, "--out", run, *tiny)
    assert result.exit_code == 0, result.output
    assert "not normalised" not in (run / "log.txt").read_text()
    recipe = json.loads((run / "recipe.json").read_text())
    assert recipe["codec"]["source"] == str(out) and recipe["model"]["channels"] == 3
    result = ditkit("sample", run, "--n", 4, "--out", tmp_path / "samples")
    assert result.exit_code == 0, result.output
    result = ditkit("evaluate", "--reconstruct", out, "--data", "digits", "--out", tmp_path / "scores", "n=32")
    assert result.exit_code == 0 and "psnr" in result.stdout


def test_a_run_refuses_another_posterior(made, tmp_path, ditkit):
    """Draws and means are not mixed in one run."""
    run = tmp_path / "run"
    tiny = ("training.batch=8", "sampling.steps=2", "model.width=32", "model.heads=2", "model.depth=1")
    words = ("train", "digits.sit", "--codec", made[0], "--out", run, *tiny)
    result = ditkit(*words, "--steps", 1, "codec.posterior=mean")
    assert result.exit_code == 0, result.output
    again = ditkit(*words, "--steps", 2)
    assert again.exit_code == 2 and "codec" in again.stderr, again.output
    go_on = ditkit(*words, "--steps", 2, "codec.posterior=mean")
    assert go_on.exit_code == 0, go_on.output


@pytest.mark.long
def test_the_channel_study_begins_alike(tmp_path):
    """Equal seeds and steps: the same images in the same order, another number of latent channels."""
    source, training = open_images("digits", CodecTraining(steps=2, warmup=0, width=4, batch=4, attention=False), None)
    cards = {}
    for channels in (4, 8):
        folder = tmp_path / str(channels)
        cards[channels] = make_codec(
            source, training.with_({"channels": channels}), folder, device=torch.device("cpu"),
            bar=lambda *_: None, say=lambda _: None,
        )  # fmt: skip
        shutil.rmtree(folder)
    assert cards[4]["data"] == cards[8]["data"] and cards[8]["channels"] == 8
    assert cards[8]["parameters"] > cards[4]["parameters"]
