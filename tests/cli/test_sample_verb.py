"""`ditkit sample`: pictures from a run, a model folder and published files; what cannot be asked is one line."""

from __future__ import annotations

import argparse
import json
import signal
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from ditkit.cli.keys import as_options, respell
from ditkit.diffusion import SampleNoise
from ditkit.evaluation import open_generated
from ditkit.protocols import Condition
from ditkit.recipes.load import load, save_exported


@pytest.fixture(scope="module")
def model(tiny_run, tmp_path_factory):
    """A model folder of the tiny run."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_exported(load(tiny_run), folder)
    return folder


@pytest.fixture
def published(reference, tmp_path):
    """published(recording) -> (a training file with model and ema, heads)."""

    def make(name: str, source: str):
        found, file = reference(name), tmp_path / f"{name}.pt"
        torch.save({"model": found.state, "ema": found.state, "opt": {}, "args": argparse.Namespace(lr=1e-4)}, file)
        maker = found.meta["constructor"]
        return [file, "--source", source, "--heads", maker.get("num_heads") or maker["num_groups"]]

    return make


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """A tiny random 4-channel autoencoder of factor 4, as a folder."""
    diffusers = pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("vae")
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (4, 4, 4),
    }
    torch.manual_seed(0)
    diffusers.AutoencoderKL(layers_per_block=1, latent_channels=4, norm_num_groups=2, **blocks).save_pretrained(folder)
    return folder


def ok(result):
    assert result.exit_code == 0, result.output
    return dict(line.split(maxsplit=1) for line in result.stdout.splitlines())


def test_a_run_gives_pictures_archive_and_sheet(ditkit, tiny_run, tmp_path):
    out = tmp_path / "out"
    words = ["sample", tiny_run, "--n", 12, "--classes", "3,7", "--seed", 5, "--guidance", 2, "--out", out]
    told = ok(ditkit(*words))
    names = [f"{i:06d}.png" for i in range(12)]
    assert sorted(p.name for p in out.iterdir()) == [*names, "request.json", "samples.npz"]
    assert np.asarray(Image.open(out / names[0])).shape == (8, 8)
    with np.load(out / "samples.npz") as archive:
        assert archive["arr_0"].shape == (12, 8, 8, 1) and archive["label"].tolist() == [3, 7] * 6
        first = archive["arr_0"]
    assert told["threads"].startswith(f"{torch.get_num_threads()} in each process; OMP_NUM_THREADS=")
    assert told["weights"] == "averaged (EMA), step 3" and "euler, 4 steps" in told["sampler"]
    assert "8 network evaluations" in told["sampler"] and "guidance 2" in told["sampler"]
    assert told["sheet"] == str(tmp_path / "out-grid.png") and Image.open(told["sheet"]).width > 3 * 64

    (out / names[3]).unlink()
    (out / "samples.npz").unlink()
    assert "(11 were there)" in ok(ditkit(*words))["images"]
    with np.load(out / "samples.npz") as archive:
        assert np.array_equal(archive["arr_0"], first), "a resumed folder holds the same images"


def test_the_default_folder_is_in_the_model_and_tells_settings_apart(ditkit, model):
    first = ok(ditkit("sample", model, "--n", 3))["archive"]
    assert ok(ditkit("sample", model, "--n", 3))["archive"] == first
    others = {
        ok(ditkit("sample", model, *words))["archive"] for words in ([], ["--n=3", "--seed=1"], ["n=3", "steps=2"])
    }
    assert len({first, *others}) == 4 and all(str(model / "samples" / "0000003-ema-") in path for path in others)


def test_raw_weights_another_step_and_solver(ditkit, tiny_run, tmp_path):
    seen = {}
    for name, words in {
        "ema": [], "raw": ["--weights", "raw"], "earlier": ["step=2"], "heun": ["--solver", "heun"],
        "more": ["sampling.steps=6"], "chunk": ["--chunk", "2"],
    }.items():  # fmt: skip
        told = ok(ditkit("sample", tiny_run, "--n", 4, "--classes", "balanced", "--out", tmp_path / name, *words))
        images = open_generated(tmp_path / name).images[:]
        seen[name] = (told, images)
    assert seen["raw"][0]["weights"] == "raw, step 3" and seen["earlier"][0]["weights"] == "averaged (EMA), step 2"
    assert "heun, 4 steps, no guidance: 7 network" in seen["heun"][0]["sampler"]
    assert "6 steps, no guidance: 6 network" in seen["more"][0]["sampler"]
    for name in ("raw", "earlier", "heun"):
        assert not torch.equal(seen[name][1], seen["ema"][1]), name
    difference = (seen["chunk"][1].int() - seen["ema"][1].int()).abs().max()
    assert difference <= 1, "draws belong to the image, not to the chunk"


def test_interval_guides_where_it_says(ditkit, tiny_run, tmp_path):
    words = ["sample", tiny_run, "--n", 2, "--guidance", 3, "--interval", "0,0.5"]
    told = ok(ditkit(*words, "--out", tmp_path / "half"))
    assert "guidance 3 for 0 <= t <= 0.5: 6 network" in told["sampler"]  # 4 steps, begun at 1, .75, .5, .25
    stored = json.loads((tmp_path / "half" / "request.json").read_text())["sampler"]["guidance"]
    assert (stored["scale"], stored["low"], stored["high"]) == (3, 0, 0.5)


@pytest.mark.parametrize(
    ("name", "source", "words", "says"),
    [
        ("dit_forward_learnsigma", "dit", [], "ancestral, 4 steps, guidance 1.5 on the first 3 channels: 8 network"),
        ("dit_forward_fixedsigma", "dit", [], "ancestral, 4 steps, variance fixed_large, guidance"),
        (
            "dit_forward_learnsigma",
            "dit",
            ["--solver", "ddim", "--guidance", "1"],
            "ddim, 4 steps, no guidance: 4 netw",
        ),
        ("sit_forward", "sit", [], "euler_maruyama, 4 steps, form sigma, last_rule mean, last step 0.04, guidance 1.5"),
        ("repa_forward_1enc", "repa", ["--align-depth", "2"], "euler_maruyama, 4 steps, form linear"),
        ("ddt_improved_dit_forward", "improved-dit", ["patch=2", "shape.size=[8,8]"], "euler, 4 steps, last step 0.04"),
    ],
)
def test_a_published_file_gives_pictures(ditkit, reference, published, vae, tmp_path, name, source, words, says):
    out = tmp_path / "out"
    words = [*words, "--classes", "0,1", "--steps", 4, "--codec", vae, "--out", out]
    told = ok(ditkit("sample", *published(name, source), *words))
    assert says in told["sampler"] and told["weights"] == "averaged (EMA)"
    with Image.open(out / "000001.png") as image:
        side = 4 * reference(name).meta["constructor"].get("input_size", 8)
        assert image.size == (side, side) and image.mode == "RGB"


def test_a_lightning_checkpoint_of_ddt_is_sampled_as_its_paper_does(ditkit, refused, reference, vae, tmp_path):
    """Euler, a last step of 0.04, guidance 2 on their (0.3, 1): ends excluded, both passes at every step."""
    official, file, out = reference("ddt_forward").state, tmp_path / "R256.ckpt", tmp_path / "out"
    copies = {f"ema_denoiser.{k}": v for k, v in official.items()} | {f"denoiser.{k}": v for k, v in official.items()}
    torch.save({"state_dict": copies, "epoch": 1, "callbacks": {}}, file)
    words = ["sample", file, "--source", "ddt", "--heads", 3, "--patch", 2, "--n", 2, "--codec", vae, "--out", out]
    assert "5 blocks of width 48 are no published size; give encoder_blocks=" in refused(*words)
    told = ok(ditkit(*words, "--encoder-blocks", 3, "--steps", 5, "shape.size=[8,8]", "--classes", "3,5"))
    assert told["weights"] == "averaged (EMA)"
    says = "euler, 5 steps, last step 0.04, guidance 2 for 0 < t < 0.7: 10 network evaluations an image"
    assert told["sampler"] == says
    sampler = json.loads((out / "request.json").read_text())["sampler"]
    guidance = {"scale": 2, "low": 0, "high": 0.7, "closed": False, "skip_outside": False}
    assert guidance.items() <= sampler["guidance"].items() and (sampler["steps"], sampler["last"]) == (5, 0.04)

    loaded = load(file, source="ddt", encoder_blocks=3, size=(8, 8))
    settings = loaded.recipe.sampling.with_({"steps": 5})
    draws = SampleNoise(0, (0, 1), (4, 8, 8))
    latents, _ = settings.run(
        loaded.model, draws.initial(), Condition(label=torch.tensor([3, 5])), path=loaded.path, prediction="velocity"
    )
    assert torch.allclose(latents, by_hand(loaded.model, draws.initial(), (3, 5)), atol=1e-5)


def by_hand(model, x, classes):
    """The published sampler, written out in their time: 0 is noise, [unconditional, conditional] in one batch."""
    labels = Condition(label=torch.tensor([model.settings.num_classes] * 2 + list(classes)))
    times = [*torch.linspace(0, 1 - 0.04, 5).tolist(), 1.0]
    for t, after in pairwise(times):
        v = -model(torch.cat([x, x]), torch.tensor(1 - t), labels).sample
        null, cond = v.chunk(2)
        x = x + (after - t) * (null + (2.0 if 0.3 < t < 1 else 1.0) * (cond - null))
    return x.detach()


def test_other_sizes(ditkit, refused, published, vae, tmp_path):
    file = [*published("sit_forward", "sit"), "--classes", 0, "--steps", 2, "--codec", vae]
    ok(ditkit("sample", *file, "--size", "16x48", "--out", tmp_path / "out"))
    assert Image.open(tmp_path / "out" / "000000.png").size == (48, 16)
    assert "multiples of 8 (codec factor 4, patch 2)" in refused("sample", *file, "--size", 20)


def test_a_published_file_without_its_codec(refused, published, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = published("sit_forward", "sit")
    line = refused("sample", *file, "--classes", 0)
    assert "sd-vae-ft-ema" in line and "--codec pixels" in line
    assert "4 channels, pixels are 1 or 3" in refused("sample", *file, "--codec", "pixels", "--n", 1)


BAD = [
    (["--classes", "3,10"], "class 10 does not exist: the model knows 0 to 9"),
    (["--classes", "-1"], "class -1 does not exist"),
    (["--classes", "cat"], "classes 'cat': write random, balanced, or class numbers"),
    (["--n", "0"], "n: input should be greater than or equal to 1"),
    (["--solver", "huen"], "did you mean 'heun'?"),
    (["--steps", "0"], "sampling.steps: input should be greater than or equal to 1"),
    (["--interval", "0,0.5"], "an interval has no use without guidance"),
    (["--interval", "0.9,0.5", "--guidance", "2"], "0 <= LOW < HIGH <= 1"),
    (["--guidance", "-2"], "guidance: input should be greater"),
    (["sampling.stpes=3"], "did you mean 'sampling.steps'?"),
    (["sede=3"], "did you mean 'seed'?"),
    (["--seed"], "--seed: its value is missing"),
    (["--seed", "x"], "seed: input should be a valid integer"),
    (["--weights", "best"], "weights: choose 'ema' (averaged), 'raw', 'ema:DECAY' or 'power:WIDTH' (given 'best')"),
    (["--step", "7"], "no checkpoint of step 7"),
    (["--uint8", "sometimes"], "unknown uint8 rule 'sometimes'"),
    (["--size", "9"], "multiples of 2"),
    (["--device", "tpu9"], "device 'tpu9' cannot be used: there is no such kind of device"),
    (["--out", "/dev/null/x"], "cannot write to /dev/null/x: /dev/null is a file"),
    (["--codec", "toy"], "the model works in 1 channels"),
]


@pytest.mark.parametrize(("words", "says"), BAD)
def test_bad_input_is_one_line_and_writes_nothing(refused, tiny_run, tmp_path, words, says):
    assert says in refused("sample", tiny_run, "--out", tmp_path / "out", *words)
    assert list(tmp_path.iterdir()) == []


def test_bad_places(refused, published, tiny_run, tmp_path):
    assert "no such run, model folder or checkpoint file" in refused("sample", tmp_path / "gone")
    assert "no run and no exported model" in refused("sample", tmp_path)
    assert "choose from dit, sit, repa" in refused("sample", *published("sit_forward", "dti"))
    assert "looks like 'dit' or 'sit'" in refused("sample", *published("dit_forward_learnsigma", "repa"))
    (tmp_path / "out").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "out" / "cat.png")
    assert "holds other things" in refused("sample", tiny_run, "--out", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["cat.png"]


def test_another_request_in_the_same_folder_is_refused(ditkit, refused, tiny_run, tmp_path):
    ok(ditkit("sample", tiny_run, "--n", 2, "--out", tmp_path / "out"))
    line = refused("sample", tiny_run, "--n", 2, "--seed", 1, "--out", tmp_path / "out")
    assert "request.seed: 0 there, 1 now" in line


def test_classes_by_name(ditkit, refused, tiny_run, tmp_path):
    loaded = load(tiny_run)
    assert loaded.classes == tuple("0123456789")
    loaded.classes = ("circle", "square", "star", "ring", "bar", "dot", "arc", "wave", "grid", "0")
    save_exported(loaded, tmp_path / "model")
    words = ["sample", tmp_path / "model", "--out", tmp_path / "out", "--classes"]
    assert ok(ditkit(*words, "square, circle,0"))["classes"] == "0 circle, 1 square"
    assert open_generated(tmp_path / "out").labels.tolist() == [1, 0, 0], "a number is a number"
    assert "or names; did you mean 'square'?" in refused(*words, "sqare")
    assert "classes" not in ok(ditkit("sample", tiny_run, "--n", 2, "--out", tmp_path / "digits"))


@pytest.mark.long
def test_ctrl_c_leaves_whole_files_and_the_same_command_continues(own_process, ditkit, tiny_run, tmp_path):
    words = ["sample", tiny_run, "--n", 100, "--chunk", 4, "--steps", 100, "--out", tmp_path / "out"]
    process = own_process(*words)
    while not (tmp_path / "out" / "000007.png").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in stderr
    made = sorted((tmp_path / "out").glob("*.png"))
    assert 8 <= len(made) < 100 and not (tmp_path / "out" / "samples.npz").exists()
    assert all(Image.open(path).size == (8, 8) for path in made)
    assert f"({len(made) // 4 * 4} were there)" in ok(ditkit(*words))["images"]


def test_keys_have_two_spellings():
    declared = {"--n", "--codec"}
    assert respell(["run", "--n", "3", "--seed", "5", "--steps=7", "--labels", "1,2"], declared) == [
        "run", "--n", "3", "seed=5", "sampling.steps=7", "classes=1,2",
    ]  # fmt: skip
    for words in (["run", "--sharing"], ["run", "--sharing="], ["run", "--sharing", ""]):
        with pytest.raises(ValueError, match=r"^--sharing: its value is missing$"):
            respell(words, declared)
    assert respell(["--codec", "pixels", "--unknown", "--", "--seed", "1"], declared) == [
        "--codec", "pixels", "--unknown", "--", "--seed", "1",
    ]  # fmt: skip


def test_options_are_keys_too(ditkit, tiny_run, tmp_path):
    """KEY=VALUE is promised, and `out` is what a user tries first."""
    assert as_options(["run", "out=a=b", "n=8", "device=cpu"], {"--out"}) == [
        "run",
        "--out",
        "a=b",
        "n=8",
        "device=cpu",
    ]
    ok(ditkit("sample", tiny_run, "n=2", "steps=2", f"out={tmp_path / 'here'}", "device=cpu"))
    assert (tmp_path / "here" / "000001.png").is_file()


def test_help_has_an_example(ditkit):
    for verb in ("sample", "evaluate", "convert"):
        assert f"Example: ditkit {verb} " in ditkit(verb, "--help").stdout
