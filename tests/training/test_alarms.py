"""Alarms: loss spikes without false ones, dead runs, and how far updates move the weights."""

from __future__ import annotations

import json
import os
import random
import re
import signal

import numpy as np
import pytest
import torch

from ditkit.diffusion import Flow
from ditkit.training import Interrupted, fit, loop, read_metrics
from ditkit.training.alarms import WARM, Alarms, Spikes, Still
from ditkit.training.checkpoint import read_state
from ditkit.training.report import RATIO


def alarms(losses, limit: float = 6.0, **values) -> tuple[Spikes, list[str]]:
    spikes = Spikes(limit)
    said = [spikes.watch(step, {"loss": float(loss), **values}) for step, loss in enumerate(losses, 1)]
    return spikes, [text for text in said if text]


def batch_means(rng: np.random.Generator, steps: int, batch: int, sigma: float) -> np.ndarray:
    """Losses of batches whose samples are log-normal: a tail as that of diffusion losses over times, or longer."""
    return sum(rng.lognormal(0.0, sigma, steps) for _ in range(batch)) / batch


@pytest.mark.parametrize(
    "batch, sigma, most", [(1, 0.5, 4), (4, 1.0, 4), (16, 0.7, 2), (16, 1.0, 4), (64, 0.7, 1), (256, 0.7, 0)]
)
def test_false_alarms_are_rare(batch, sigma, most):
    """At most so many in 20,000 steps of a loss that also falls by half; plain deviations would give many more."""
    rng = np.random.default_rng(batch)
    losses = batch_means(rng, 20_000, batch, sigma) * (0.5 + 0.5 * np.exp(-np.arange(20_000) / 3000))
    spikes, said = alarms(losses)
    assert spikes.count <= most and len(said) <= most
    if (batch, sigma) == (4, 1.0):
        last = losses[10_000:]
        plain = int((last > last.mean() + 6 * last.std()).sum())
        assert plain > 2 * most, f"the test's loss has {plain} values six deviations out in half of its steps"


@pytest.mark.parametrize("at", [WARM + 1, 300, 5000])
def test_a_spike_is_told_at_its_step(at):
    losses = 0.2 + 0.02 * np.random.default_rng(0).standard_normal(6000)
    losses[at - 1] = 0.5
    spikes, said = alarms(losses)
    assert spikes.count == 1 and len(said) == 1
    step, loss, deviations, mean = re.fullmatch(
        r"alarm: step (\d+): loss (\S+) is (\S+) deviations above its running mean (\S+) \(1 such steps so far\)",
        said[0],
    ).groups()
    assert int(step) == at and float(loss) == 0.5
    assert float(mean) == pytest.approx(0.2, abs=0.01) and float(deviations) == pytest.approx(15, rel=0.3)


def test_no_alarm_before_the_loss_is_known():
    losses = np.full(WARM, 0.2) + 0.01 * np.random.default_rng(0).standard_normal(WARM)
    losses[[5, 40, 99]] = 5.0
    assert alarms(losses) == (alarms(losses)[0], []) and alarms(losses)[0].count == 0


def test_a_second_spike_is_seen_and_a_burst_is_one_line():
    losses = 0.2 + 0.02 * np.random.default_rng(0).standard_normal(3000)
    losses[[500, 1500]] = 1.0
    assert [int(re.search(r"step (\d+)", text)[1]) for text in alarms(losses)[1]] == [501, 1501]
    losses[2000:] += 1.0  # a new level: an alarm, not one at every step for ever
    spikes, said = alarms(losses)
    assert len(said) == 3 and 3 <= spikes.count < 30


def test_terms_that_end_are_no_spike():
    """Alignment lowers the loss while it lasts; where it stops another loss begins."""
    rng, spikes = np.random.default_rng(0), Spikes(6.0)
    for step in range(1, 2001):
        noise = 0.01 * rng.standard_normal()
        values = {"loss": 0.3 + noise, "loss_denoise": 0.6} if step <= 1000 else {"loss": 0.6 + noise}
        assert spikes.watch(step, values) is None
    assert spikes.steps == 1000


def test_without_a_limit_there_are_none():
    spikes, said = alarms([0.1] * 200 + [1e9], limit=None)
    assert not said and spikes.count == 0


def test_dead_runs_are_told_once_a_streak():
    still, said = Still(), []
    for step in range(1, 401):
        dead = step > 50
        values = {"loss": 1.0 if dead else 1.0 / step, "loss_align": 0.0 if step > 120 else 1.0, "loss_denoise": 1.0}
        said += still.watch(step, values | {"grad_norm": 0.0 if dead and step != 300 else 1.0})
    assert [(re.search(r"step (\d+)", text)[1], text.split(": ", 2)[2].split(" has")[0]) for text in said] == [
        ("150", "the gradient"), ("151", "the loss"), ("220", "loss_align"), ("400", "the gradient"),
    ]  # fmt: skip


def test_alarms_of_a_checkpoint_go_on_exactly():
    """Numbers through JSON at any step: the same alarms at the same steps, the same numbers at the end."""
    rng = random.Random(0)
    losses = [0.2 + 0.02 * rng.gauss(0, 1) + (i > 150 and i % 150 < 2) for i in range(1000)]
    whole, broken, heard = Alarms(Spikes(6.0)), Alarms(Spikes(6.0)), ([], [])
    for step, loss in enumerate(losses, 1):
        heard[0].extend(whole.watch(step, {"loss": loss, "grad_norm": 1.0}))
        if step % 70 == 0:
            numbers = json.loads(json.dumps(broken.numbers()))
            broken = Alarms(Spikes(6.0))
            broken.restore(numbers)
        heard[1].extend(broken.watch(step, {"loss": loss, "grad_norm": 1.0}))
    assert heard[0] == heard[1] and len(heard[0]) > 3 and whole.numbers() == broken.numbers()


# ------------------------------------------------------------------------------------------------ in a run


def spiking(at: int, factor: float):
    objective = Flow(drop=0.2)

    def call(model, x, cond, noise, auxiliary=()):
        loss = objective(model, x, cond, noise, auxiliary)
        return loss._replace(total=loss.total * (factor if noise.step == at - 1 else 1.0))

    return dict(objective=call)


def test_a_run_says_it_counts_it_and_resumes_with_it(make_job, tmp_path):
    settings = dict(steps=120, save_every=50, log_every=40, lr=1e-5, batch=12)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    said = []
    state = fit(make_job(whole, **settings, job=spiking(110, 30.0)), on_message=said.append)
    [line] = [text for text in said if text.startswith("alarm")]
    assert line.startswith("alarm: step 110: loss ") and line in (whole / "log.txt").read_text()
    assert [row["spikes"] for row in read_metrics(whole)] == [0, 0, 1]
    with pytest.raises(Interrupted):
        fit(
            make_job(broken, **settings, job=spiking(110, 30.0)),
            on_step=lambda step, values: os.kill(os.getpid(), signal.SIGINT) if step == 75 else None,
        )
    fit(make_job(broken, **settings, job=spiking(110, 30.0)))
    assert read_state(whole, 120)["alarms"] == read_state(broken, 120)["alarms"]
    assert state.alarms.spikes.count == 1


def test_a_constant_loss_is_told(make_job, toy, tmp_path):
    """Nothing is learned and nothing is drawn: the loss is the same number at every step."""
    job, said = make_job(tmp_path, steps=101, aligned=False), []
    job.objective = lambda model, x, cond, noise, auxiliary=(): Flow(drop=0.0)(
        model, torch.zeros_like(x), cond.with_label(torch.zeros_like(cond.label)), Same(noise), auxiliary
    )
    for p in job.model.parameters():
        p.register_hook(lambda g: g * 0)
    fit(job, on_message=said.append)
    assert any("the loss has been exactly the same for 100 steps" in text for text in said)
    assert any("the gradient has been exactly 0 for 100 steps" in text for text in said)


class Same:
    """Noise without chance."""

    def __init__(self, noise):
        self.step = noise.step

    def normal(self, stream, shape):
        return torch.ones(shape)

    def uniform(self, stream, shape):
        return torch.full(shape, 0.5)


def test_update_ratio_is_the_length_of_the_step_over_that_of_the_weights(make_job, monkeypatch, tmp_path):
    """Measured at the last step of a row only, over network and projectors, after clipping, at the step's own rate."""
    before, wanted, real = {}, [], loop.update

    def watched(state, reading):
        before["weights"] = [p.detach().clone() for p in state.parameters]
        real(state, reading)
        moved = torch.stack([(p - b).norm() for p, b in zip(state.parameters, before["weights"], strict=True)]).norm()
        wanted.append((moved / torch.stack([b.norm() for b in before["weights"]]).norm()).item())

    monkeypatch.setattr(loop, "update", watched)
    heard = {}
    fit(make_job(tmp_path, steps=10, log_every=4, warmup=5, clip=0.5), on_step=lambda step, v: heard.update({step: v}))
    assert [RATIO in heard[step] for step in range(1, 11)] == [step in (4, 8, 10) for step in range(1, 11)]
    rows = read_metrics(tmp_path)
    assert [row[RATIO] for row in rows] == pytest.approx([wanted[3], wanted[7], wanted[9]], rel=1e-5)
    assert len(set(wanted)) == 10 and min(wanted) > 0


def test_a_skipped_step_has_no_update_ratio(make_job, toy, tmp_path):
    encode = lambda images, noise: toy.to_latents(images, noise) * (float("nan") if noise.step == 3 else 1)  # noqa: E731
    fit(make_job(tmp_path, steps=8, log_every=4, job=dict(encode=encode)))
    assert [RATIO in row for row in read_metrics(tmp_path)] == [False, True]
