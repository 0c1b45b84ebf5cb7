"""Training a KL autoencoder of one's own: its losses, its end, and going on to the bit."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ditkit.pretrained import SelfTaught, ToyExtractor
from ditkit.pretrained.vit import ViTSettings
from ditkit.training import checkpoint, codec_loss, read_metrics
from ditkit.training.codec import CodecState, measure, new_network, one_step, pooled, train_codec
from ditkit.training.codec_settings import CodecTraining
from ditkit.training.guard import Interrupted

pytest.importorskip("diffusers")
STEPS = {"steps": 12, "save_every": 4}
SCRIPT = Path(__file__).with_name("own_codec.py")
_spec = importlib.util.spec_from_file_location("own_codec_script", SCRIPT)
script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(script)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_kl_term_is_the_closed_form():
    mean, log_variance = noise(2, 3, 4, 4), noise(2, 3, 4, 4, seed=1)
    wanted = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum() / 96
    torch.testing.assert_close(codec_loss.kl_divergence(mean, log_variance, 96), wanted)
    assert codec_loss.kl_divergence(torch.zeros(1, 2), torch.zeros(1, 2), 5) == 0


def test_reconstruction_distances():
    a, b = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, -2.0], [0.0, 1.0]]]])
    assert codec_loss.reconstruction(a, b, "l1") == 1.0 and codec_loss.reconstruction(a, b, "l2") == 1.5


def teachers():
    return [SelfTaught.untrained(ViTSettings(channels=1, width=16, depth=1)), ToyExtractor()]


@pytest.mark.parametrize("teacher", teachers(), ids=lambda t: t.id.partition("-")[0])
def test_the_teacher_term_has_a_gradient_and_vanishes_on_originals(teacher):
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    decoded = (x + 0.3 * noise(2, 3, 8, 8)).requires_grad_()
    value = codec_loss.feature_distance(teacher, x, decoded)
    value.backward()
    assert value > 1e-4 and decoded.grad.abs().sum() > 0
    step = decoded.detach() - 0.02 * decoded.grad / decoded.grad.abs().max()
    assert codec_loss.feature_distance(teacher, x, step) < value, "downhill"
    assert codec_loss.feature_distance(teacher, x, x).abs() < 1e-5


def test_a_vision_teacher_passes_gradients_too():
    transformers = pytest.importorskip("transformers")
    from ditkit.pretrained import VisionTeacher

    config = transformers.Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=2)
    teacher = VisionTeacher(transformers.Dinov2Model(config), "dinov2")
    pixels = (torch.rand(1, 3, 8, 8) * 255).round()
    floats = (pixels / 255).requires_grad_()
    seen, called = teacher.see(floats, grid=(2, 2)), teacher(pixels.to(torch.uint8), grid=(2, 2))
    torch.testing.assert_close(seen.tokens, called.tokens)
    seen.tokens.square().sum().backward()
    assert floats.grad.abs().sum() > 0 and not called.tokens.requires_grad


def test_the_loss_falls_with_every_term(tmp_path):
    seen = []
    asked = script.settings(steps=30, lr=5e-3)
    train_codec(
        script.images(), asked, tmp_path, teacher=teachers()[0], progress=lambda step, values: seen.append(values)
    )
    assert len(seen) == 30 and set(seen[0]) == {"loss", "loss_pixels", "loss_kl", "loss_features"}
    first, last = seen[0], seen[-1]
    assert last["loss_pixels"] < 0.7 * first["loss_pixels"] and last["loss_features"] < first["loss_features"]
    total = last["loss_pixels"] + asked.kl_weight * last["loss_kl"] + asked.feature_weight * last["loss_features"]
    assert last["loss"] == pytest.approx(total, rel=1e-5)
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == list(range(2, 31, 2))
    assert rows[0]["loss"] == pytest.approx((seen[0]["loss"] + seen[1]["loss"]) / 2)


def test_the_kl_weight_pulls_the_posterior_to_a_standard_normal(tmp_path):
    last = {}
    for weight in (0.0, 1.0):
        values = []
        train_codec(
            script.images(), script.settings(steps=20, lr=5e-3, kl_weight=weight), tmp_path / str(weight),
            progress=lambda step, row, kept=values: kept.append(row),
        )  # fmt: skip
        last[weight] = values[-1]["loss_kl"]
    assert last[1.0] < 0.2 * last[0.0]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A training that nobody stopped, in one thread: (its folder, the network)."""
    folder, threads = tmp_path_factory.mktemp("unbroken"), torch.get_num_threads()
    torch.set_num_threads(1)
    vae = train_codec(script.images(), script.settings(**STEPS), folder)
    torch.set_num_threads(threads)
    return folder, vae


def check_equal(folder, unbroken, same):
    """Going on in `folder` ends as the unbroken one did: weights, average, optimizer, metrics."""
    whole, vae = unbroken
    same(train_codec(script.images(), script.settings(**STEPS), folder).state_dict(), vae.state_dict())
    for name in ("model", "ema", "optimizer"):
        same(*(checkpoint.read_tensors(home, STEPS["steps"], name) for home in (folder, whole)))
    assert read_metrics(folder) == read_metrics(whole)


@pytest.mark.long
def test_a_killed_training_goes_on_to_the_same_bits(tmp_path, same, unbroken):
    words = [sys.executable, str(SCRIPT), str(tmp_path), json.dumps(STEPS), str(int(signal.SIGKILL)), "6"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert checkpoint.list_steps(tmp_path) == [4]
    check_equal(tmp_path, unbroken, same)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_training_saves_and_goes_on_to_the_same_bits(tmp_path, same, unbroken, number, code):
    def progress(step, values):
        if step == 6:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match="saved at step 6; the same command goes on") as stop:
        train_codec(script.images(), script.settings(**STEPS), tmp_path, progress=progress)
    assert stop.value.exit_code == code and checkpoint.list_steps(tmp_path) == [6]
    check_equal(tmp_path, unbroken, same)


def test_one_checkpoint_stays_and_a_damaged_one_starts_nothing(tmp_path):
    train_codec(script.images(), script.settings(steps=9, save_every=3), tmp_path)
    assert checkpoint.list_steps(tmp_path) == [9]
    path = checkpoint.path_of(tmp_path, 9) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(checkpoint.CheckpointError, match="none of the 1 checkpoints is whole"):
        train_codec(script.images(), script.settings(steps=9, save_every=3), tmp_path)


def test_the_seed_makes_the_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    a, b, c = (new_network(script.settings(seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), wanted)
    first = [next(vae.parameters()) for vae in (a, b, c)]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


def test_the_average_follows_the_weights_early_on():
    state = CodecState.fresh(script.settings(ema=0.999), torch.device("cpu"))
    start = {k: v.clone() for k, v in state.vae.state_dict().items()}
    batch = torch.stack([script.images()[i].image for i in range(8)])
    for _ in range(5):
        one_step(state, batch, None, torch.device("cpu"))
    key = "decoder.conv_out.weight"
    moved = (state.vae.state_dict()[key] - start[key]).norm()
    behind = (state.vae.state_dict()[key] - state.average.model.state_dict()[key]).norm()
    assert 0 < behind < 0.5 * moved, "with decay 0.999 from the start it would be 99 % behind"


def test_measured_statistics_are_those_of_drawn_latents():
    vae = new_network(script.settings(channels=3)).eval()
    source = script.images(40)
    bars = []
    mean, std = measure(vae, source, script.settings(channels=3), lambda done, total: bars.append((done, total)))
    assert bars[-1] == (40, 40)
    x = torch.stack([source[i].image for i in range(40)]).float() / 127.5 - 1
    with torch.no_grad():
        posterior = vae.encode(x).latent_dist
    drawn = posterior.mean + posterior.std * noise(200, *posterior.mean.shape)
    wanted = drawn.mean((0, 1, 3, 4)).double(), drawn.std((0, 1, 3, 4)).double()
    torch.testing.assert_close(mean, wanted[0], atol=0.01, rtol=0)
    torch.testing.assert_close(std, wanted[1], atol=0, rtol=0.01)
    assert pooled(mean, std) == pytest.approx((drawn.mean().item(), drawn.std().item()), rel=0.01, abs=0.01)


def test_factor_and_width_follow_the_images():
    found = [(s.factor, s.width) for size in ((8, 8), (32, 64), (256, 256)) for s in [CodecTraining().fitted(size)]]
    assert found == [(2, 16), (4, 32), (8, 64)]
    assert CodecTraining(factor=16, width=12).fitted((8, 8)).network()["block_out_channels"] == (12, 24, 48, 48, 48)


def test_a_loss_that_is_no_number_ends_in_one_line():
    state = CodecState.fresh(script.settings(), torch.device("cpu"))
    with torch.no_grad():
        next(state.vae.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1; lower lr"):
        one_step(state, torch.zeros(2, 3, 8, 8, dtype=torch.uint8), None, torch.device("cpu"))
