"""`ditkit train` on users' own folders: run folder, shapes of data, local networks, resume, signals."""

from __future__ import annotations

import json
import math
import re
import signal
import time

import pytest
from PIL import Image

import ditkit as package
from ditkit.cli.train import losses
from ditkit.recipes import recipe
from ditkit.recipes.run_page import heaviest

SMALL = (
    "model.depth=2", "model.width=64", "model.heads=2", "training.batch=8", "training.log_every=2",
    "training.precision=fp32", "sampling.steps=2", "--device", "cpu",
)  # fmt: skip
PLAIN = ("--codec", "pixels", "--teacher", "none")


@pytest.fixture(scope="module")
def home(tmp_path_factory, pictures, ditkit):
    """A folder with pictures (one of them cut short) and one finished run of 4 steps."""
    home = tmp_path_factory.mktemp("train")
    data = pictures(home / "two")
    cut = data / "cat" / "003.png"
    cut.write_bytes(cut.read_bytes()[:300])
    (data / "cat" / "notes.psd").write_text("not a picture")
    result = ditkit("train", "repa.sit_s_2", "--data", data, *PLAIN, *SMALL, "--steps", 4, "--out", home / "run")
    assert result.exit_code == 0, result.output
    (home / "said.txt").write_text(result.stderr)
    return home


def again(ditkit, home, *words):
    return ditkit("train", "repa.sit_s_2", "--data", home / "two", *PLAIN, *SMALL, "--out", home / "run", *words)


def test_run_folder_holds_everything(home):
    run = home / "run"
    made = recipe(run / "recipe.json")
    assert (made.model.size, made.model.channels, made.model.num_classes) == ((24, 40), 3, 2)
    facts = json.loads((run / "environment.json").read_text())
    assert facts["codec"] == "pixels-3" and facts["data"]["classes"] == ["cat", "dog"] and facts["packages"]["torch"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4] and "validation_loss" in rows[-1]
    assert {p.name for p in (run / "checkpoints" / "0000004").iterdir()} == {
        "model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"
    }  # fmt: skip
    with Image.open(run / "samples" / "0000004.png") as sheet:
        assert 8 * 40 <= sheet.width < 9 * 40 and sheet.height >= 8 * 24, "64 samples, four columns for each class"
    assert package.load(run).step == 4


def test_the_report_of_a_run_stands_alone(home):
    page = (home / "run" / "report.html").read_text()
    assert "<h1>SiT-S/2 + REPA on your own images</h1>" in page and "4 of 4 steps of 8 images" in page
    assert "data:image/png;base64," in page and "<svg" in page and "<script" not in page
    assert all(title in page for title in ("Training loss", "Validation loss", "Show the resolved recipe"))


def test_a_truncated_image_is_said_and_listed_and_the_run_goes_on(home):
    listed = [json.loads(line) for line in (home / "run" / "rejects.jsonl").read_text().splitlines()]
    assert [(r["path"], "truncated" in r["reason"]) for r in listed] == [(str(home / "two/cat/003.png"), True)]
    log, said = (home / "run" / "log.txt").read_text(), (home / "said.txt").read_text()
    for text in (log, said):
        assert "cat/003.png: cannot be decoded" in text
        assert "validation leaves out 1 image" in text


def test_log_says_what_the_data_decided(home):
    log = (home / "run" / "log.txt").read_text()
    assert "size 24x40 (height x width)" in log and "1 .psd" in log
    assert "model.num_classes: 1000 in the recipe, 2 here (from the data)" in log
    assert "codec" not in "".join(line for line in log.splitlines() if "(from the data)" in line)


def test_the_same_command_continues(home, ditkit):
    result = again(ditkit, home, "--steps", 6)
    assert result.exit_code == 0, result.output
    assert "resumed at step 4" in (home / "run" / "log.txt").read_text()
    steps = [json.loads(line)["step"] for line in (home / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6]
    assert "step 6" in result.stdout and (home / "run/samples/0000006.png").exists()
    assert ditkit("train", home / "run").exit_code == 0, "a run folder is a recipe and its own place"


def test_fewer_steps_than_done_are_refused_and_the_recipe_keeps_what_was_trained(home, refused):
    before = (home / "run" / "recipe.json").read_bytes()
    assert "nothing to train: the run is at step 6, 2 are asked for" in refused("train", home / "run", "--steps", 2)
    assert (home / "run" / "recipe.json").read_bytes() == before


def test_a_finished_run_keeps_the_recipe_that_made_it(home, ditkit):
    before = (home / "run" / "recipe.json").read_bytes()
    result = ditkit("train", home / "run", "training.lr=0.5")
    assert result.exit_code == 0 and "nothing to train: the run is at step" in result.stderr
    assert (home / "run" / "recipe.json").read_bytes() == before


def test_another_recipe_in_the_same_folder_is_refused_with_the_differences(home, ditkit, refused):
    base = ("train", "repa.sit_s_2", "--data", home / "two", *PLAIN, *SMALL, "--out", home / "run", "--steps", 6)
    before = (home / "run" / "recipe.json").read_bytes()
    line = refused(*base, "model.depth=3", "objective.drop=0.2")
    assert "model.depth was 2, is 3" in line and "objective.drop was 0.1, is 0.2" in line and "--out" in line
    assert "seed was 0, is 7" in refused(*base, "training.seed=7")
    assert (home / "run" / "checkpoints").exists()
    assert recipe(home / "run").model.depth == json.loads(before)["model"]["depth"] == 2


def test_a_folder_without_checkpoints_may_be_tried_again_with_another_recipe(home, ditkit):
    base = ("train", "repa.sit_s_2", "--data", home / "two", *PLAIN, *SMALL, "--out", home / "try", "--steps", 1)
    (home / "try").mkdir()
    (home / "try" / "recipe.json").write_bytes((home / "run" / "recipe.json").read_bytes())  # a start that failed
    result = ditkit(*base, "model.depth=1")
    assert result.exit_code == 0, result.output
    assert recipe(home / "try").model.depth == 1


@pytest.mark.parametrize("classes", [("cat",), ("",)], ids=["one class", "unlabelled"])
def test_one_class_and_unlabelled_folders(tmp_path, pictures, ditkit, classes):
    data = pictures(tmp_path / "data", classes, n=8)
    result = ditkit(
        "train", "repa.sit_s_2", "--data", data, *PLAIN, *SMALL, "--steps", 2, "--out", tmp_path / "run"
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    made = recipe(tmp_path / "run")
    labelled = classes != ("",)
    assert made.model.num_classes == labelled
    assert (made.sampling.guidance is not None) == labelled
    assert ("without guidance" in result.stderr) != labelled
    assert (tmp_path / "run/samples/0000002.png").exists()


def test_with_a_teacher_of_ones_own(tmp_path, pictures, ditkit, refused):
    data = pictures(tmp_path / "data", n=4)
    assert (
        ditkit("teacher", data, "--out", tmp_path / "teacher", "--steps", 2, "batch=4", "network.width=16").exit_code
        == 0
    )
    words = ("train", "repa.sit_s_2", "--data", data, "--codec", "pixels", "--teacher", tmp_path / "teacher", *SMALL)
    words += ("align.depth=1", "align.projector_width=32", "--steps", 2, "--out", tmp_path / "run")
    result = ditkit(*words)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run/checkpoints/0000002/align.safetensors").exists()
    row = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert -1 <= row["loss_align"] <= 1


def test_overrides_go_beside_options(tmp_path, pictures, ditkit):
    data = pictures(tmp_path / "data", n=10)
    result = ditkit(
        "train", "repa.sit_s_2", "--data", data, "--size", 32, *PLAIN, *SMALL, "--steps", 1, "training.steps=1",
        "data.split=train", "model.patch=4", "--out", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    made = recipe(tmp_path / "run")
    assert (made.training.steps, made.data.split, made.model.patch, made.model.size) == (1, "train", 4, (32, 32))


@pytest.fixture(scope="module")
def local_networks(tmp_path_factory):
    """Tiny random networks in the formats of SD's VAE and DINOv2, saved as diffusers and transformers save them."""
    diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
    home = tmp_path_factory.mktemp("networks")
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    vae = diffusers.AutoencoderKL(
        **blocks, block_out_channels=[8, 8], latent_channels=4, norm_num_groups=4, layers_per_block=1,
        scaling_factor=0.18215,
    )  # fmt: skip
    vae.save_pretrained(home / "vae")
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(home / "dino")
    return home


def test_local_codec_and_published_teacher_end_to_end(tmp_path, pictures, ditkit, local_networks):
    data = pictures(tmp_path / "data", n=4, size=(32, 48))
    words = ("train", "repa.sit_s_2", "--data", data, "--codec", local_networks / "vae", *SMALL)
    words += ("--teacher", local_networks / "dino", "align.depth=1", "align.projector_width=32", "--steps", 2)
    result = ditkit(*words, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    made = recipe(tmp_path / "run")
    assert (made.model.size, made.model.channels, made.model.patch) == ((16, 24), 4, 2), "the VAE halves each side"
    assert made.teachers[0].kind == "dinov2"
    assert (tmp_path / "run/samples/0000002.png").exists()
    assert ditkit("train", *words[1:], "--out", tmp_path / "run", "training.lr=1e-3").exit_code == 0


def test_offline_stops_with_one_line_and_nothing_half_made(tmp_path, pictures, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    data = pictures(tmp_path / "data", n=2)
    before = time.monotonic()
    for words in ((), ("--codec", "pixels")):
        line = refused("train", "repa.sit_s_2", "--data", data, *words)
        for way_on in ("ditkit teacher", "--teacher RUN|none", "--codec pixels"):
            assert way_on in line
    assert time.monotonic() - before < 30
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "number, code",
    [
        pytest.param(signal.SIGINT, 130, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, 143, id="SIGTERM", marks=pytest.mark.long),
    ],
)
def test_signals_leave_a_state_that_the_same_command_continues(tmp_path, pictures, own_process, ditkit, number, code):
    data = pictures(tmp_path / "data", n=4)
    words = ("train", "repa.sit_s_2", "--data", data, *PLAIN, *SMALL, "training.log_every=1", "--out", tmp_path / "run")
    process = own_process(*words, "--steps", 100_000)
    metrics = tmp_path / "run" / "metrics.jsonl"
    until = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text().count("\n") > 2):
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code, error
    said = re.search(r"^ditkit: interrupted at step (\d+) of 100000; the state is saved", error, re.M)
    assert said and "Traceback" not in error
    step = int(said[1])
    assert (tmp_path / "run" / "checkpoints" / f"{step:07d}" / "state.json").exists()
    result = ditkit(*words, "--steps", step + 1)
    assert result.exit_code == 0, result.output
    assert f"resumed at step {step}" in result.stderr


# ----------------------------------------------------------------------------------------- beginning from weights

DIGITS = (
    "model.encoder_blocks=1", "model.decoder_blocks=1", "model.width=32", "model.heads=2", "align.depth=1",
    "align.projector_width=16", "training.batch=8", "training.validate_every=none", "sampling.steps=2",
    "--teacher", "toy", "--device", "cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def at_8(tmp_path_factory, ditkit):
    """A DDT of two steps on 8 x 8 digits."""
    folder = tmp_path_factory.mktemp("start") / "at_8"
    result = ditkit("train", "digits.ddt", *DIGITS, "--steps", 2, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder


def test_start_begins_at_another_size_and_is_kept(tmp_path, ditkit, at_8):
    words = ("train", "digits.ddt", *DIGITS, "--data", "digits", "--size", 12, "--out", tmp_path / "run")
    result = ditkit(*words, f"--start={at_8}", "start.weights=raw", "--steps", 1)
    assert result.exit_code == 0, result.output
    assert f"begins from {at_8}, step 2, raw weights and projectors" in result.stderr
    assert "they were trained on 8x8, here it is 12x12; positions follow" in result.stderr
    made = recipe(tmp_path / "run")
    assert (made.start.path, made.start.weights, made.model.size) == (str(at_8), "raw", (12, 12))
    result = ditkit("train", tmp_path / "run", "--steps", 2)
    assert result.exit_code == 0 and "begins from" not in result.stderr, result.output


def test_start_is_refused_in_one_line(tmp_path, refused, at_8):
    words = ("train", "digits.ddt", *DIGITS, "--steps", 1, "--out", tmp_path / "run", "--start")
    assert "model.width is 32 there, 64 here" in refused(*words, at_8, "model.width=64")
    assert "no such run" in refused(*words, tmp_path / "nowhere")
    assert "--start: its value is missing" in refused(*words)
    assert "start: name a run" in refused(*words[:-1], "start=")
    assert "--start a and start.path=b contradict each other" in refused(*words, "a", "start.path=b")
    assert not (tmp_path / "run").exists()


def test_the_loss_on_the_screen_is_the_mean_that_the_log_gets():
    shown = []
    on_step = losses(lambda *told: shown.append(told), 4, every=2)
    for step, loss in enumerate((1.0, 3.0, math.nan, 8.0), 1):
        on_step(step, {"loss": loss})
    notes = [note for *_, note in shown]
    assert notes[:2] == ["loss 1.0000 (mean of 1)", "loss 2.0000 (mean of 2)"]
    assert notes[2:] == ["loss nan (mean of 0)", "loss 8.0000 (mean of 1)"], "a skipped step is in no mean"


def test_a_time_that_outweighs_all_others_is_named():
    row = {"step": 4, "validation_loss_t0.0625": 9.0, "validation_loss_t0.1875": 0.5, "validation_loss_t0.3125": 0.5}
    told = "90% of the validation loss of mine comes from times around t = 0.062."
    assert heaviest("mine", [row, {"step": 5}]) == told
    assert heaviest("mine", [{**row, "validation_loss_t0.1875": 9.0}]) == "" == heaviest("mine", [])
