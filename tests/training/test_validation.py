"""The validation loss: fixed draws, bins, any batch size."""

from __future__ import annotations

import pytest
import torch

from ditkit.diffusion import Flow, ImprovedDDPM, LogitNormal, SiTWeight, Uniform, interpolate, interval
from ditkit.protocols import Condition, Output
from ditkit.training import ValidationLoss, fit, read_metrics
from ditkit.training.validation import MARGIN, PairNoise, _without_chance


@pytest.fixture
def model(toy):
    return toy.Toy().eval()


def test_any_batch_size_gives_the_same_number(toy, model):
    results = [toy.make_validation(Flow(), n=7, batch=batch)(model) for batch in (1, 3, 8, 64, 1000)]
    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=1e-6)
    assert list(results[0])[:2] == ["loss", "loss_t0.0625"] and len(results[0]) == 9
    assert results[0]["loss"] == pytest.approx(sum(list(results[0].values())[1:]) / 8)


def test_it_repeats_and_does_not_touch_the_global_generator(toy, model):
    state, validation = torch.get_rng_state(), toy.make_validation(Flow())
    assert validation(model) == validation(model) == toy.make_validation(Flow())(model)
    assert torch.equal(state, torch.get_rng_state())
    assert validation(model) != toy.make_validation(Flow(), seed=1)(model)


def test_only_the_weights_move_it(toy, model):
    """Label drop, density and auxiliary terms of the training objective play no part."""
    plain = toy.make_validation(Flow(drop=0))(model)
    assert toy.make_validation(Flow(drop=0.9))(model) == plain
    assert toy.make_validation(Flow(density=LogitNormal()))(model) == plain
    with torch.no_grad():
        model.leave.bias += 0.1
    assert toy.make_validation(Flow(drop=0))(model) != plain


def test_its_loss_is_the_objective_written_out(toy, model):
    validation = toy.make_validation(Flow(), n=3, bins=4)
    noise = PairNoise(0, [(2, 1)], 4, torch.device("cpu"))
    x, eps, t = validation.latents()[2:], noise.normal("eps", (1, 1, 4, 4)), noise.uniform("t", (1,))
    with torch.no_grad():
        out = model(interpolate(Flow().path, x, eps, t), t, Condition(label=torch.tensor([2]))).sample
    want = (out - (eps - x)).square().mean().item()
    rows = []
    seen = Flow.__call__

    class Spy(Flow):
        def __call__(self, *args):
            loss = seen(self, *args)
            rows.extend(zip(loss.t.tolist(), loss.terms["denoise"].tolist(), strict=True))
            return loss

    ValidationLoss(Spy(), toy.to_latents, toy.images_of(10**6, 3), Condition(torch.arange(3)), bins=4, batch=5)(model)
    assert rows[2 * 4 + 1] == pytest.approx((t.item(), want), rel=1e-6)


@pytest.mark.parametrize("objective", [Flow(), Flow(density=Uniform(low=0.001, high=0.999)), ImprovedDDPM()])
def test_each_image_has_one_time_in_each_bin(objective, toy):
    class Wide(toy.Toy):
        def forward(self, x, t, cond, *, capture=()):
            times.append(t)
            sample = super().forward(x, t, cond).sample
            return Output(torch.cat((sample, sample), 1) if isinstance(objective, ImprovedDDPM) else sample)

    times = []
    toy.make_validation(objective, n=6, bins=5)(Wide())
    table = torch.cat(times).view(6, 5)
    assert torch.equal((table * 5).clamp(max=4.999).long(), torch.arange(5).expand(6, 5))
    assert len(table[:, 2].unique()) == 6, "times within a bin differ between images"
    if isinstance(objective, ImprovedDDPM):
        assert torch.equal((table * 999).round() / 999, table), "only times of the chain"


def test_the_bins_tell_times_apart(toy):
    """A network that is right for pure noise and knows nothing about data has its loss where t is small."""

    class Zero(toy.Toy):
        def forward(self, x, t, cond, *, capture=()):
            return Output(x / t.view(-1, 1, 1, 1).clamp(min=1e-3))  # eps + (1 - t) / t x, for eps - x

    result = toy.make_validation(Flow(), n=64)(Zero())
    assert result["loss_t0.0625"] > 10 * result["loss_t0.9375"] > 0


def test_latents_are_encoded_once(toy, model):
    calls = []

    def encode(images, noise):
        calls.append(len(images))
        return toy.to_latents(images, noise)

    cond = Condition(torch.zeros(5, dtype=torch.long))
    validation = ValidationLoss(Flow(), encode, toy.images_of(0, 5), cond, batch=2)
    assert not calls, "nothing is computed before it is asked for"
    validation(model)
    validation(model)
    assert calls == [2, 2, 1]
    whole = ValidationLoss(Flow(), toy.to_latents, toy.images_of(0, 5), Condition())
    assert torch.equal(whole.latents(), validation.latents())


def test_no_images_is_an_error(toy):
    with pytest.raises(ValueError, match="at least one image"):
        toy.make_validation(Flow(), n=0)


def test_rows_and_weights_of_a_run(make_job, tmp_path):
    state = fit(make_job(tmp_path, validate=True, validate_every=5, validate_on="both"))
    rows = {row["step"]: row for row in read_metrics(tmp_path)}
    assert [step for step in rows if "validation_loss" in rows[step]] == [5, 10, 12]
    assert "loss" not in rows[5] and "loss" in rows[12]
    validation = state.job.validate
    assert rows[12]["validation_loss"] == validation(state.ema)["loss"]
    assert rows[12]["validation_raw_loss_t0.0625"] == validation(state.model.eval())["loss_t0.0625"]


@pytest.mark.parametrize("on, names", [("ema", {"validation_loss"}), ("raw", {"validation_raw_loss"})])
def test_the_weights_that_are_validated(on, names, make_job, tmp_path):
    fit(make_job(tmp_path, validate=True, validate_on=on))
    assert {key for key in read_metrics(tmp_path)[-1] if key.endswith("_loss")} == names


def test_validation_leaves_training_as_it_was(make_job, tmp_path, same):
    states = [fit(make_job(tmp_path / str(v), validate=v, validate_every=2, validate_on="both")) for v in (True, False)]
    same(states[0].model.state_dict(), states[1].model.state_dict())
    assert states[0].model.training and not states[0].ema.training


def test_times_keep_off_an_end_at_which_the_weight_has_a_pole():
    """Data prediction by the velocity's error, 1 / t^2: a single time near 0 would outweigh all others."""
    weighted = Flow(prediction="data", weight=SiTWeight(form="velocity"), density=LogitNormal(), drop_each=0.5)
    quiet = _without_chance(weighted)
    low, high = interval(weighted.path, "data")
    assert (quiet.density, quiet.drop, quiet.drop_each) == (Uniform(low=low + MARGIN, high=high), 0.0, 0.0)
    assert quiet.weight == weighted.weight and quiet.prediction == "data"
    assert _without_chance(Flow(density=LogitNormal())).density == Uniform()
    noise = _without_chance(Flow(prediction="noise", weight=SiTWeight(form="velocity"), density=LogitNormal()))
    assert noise.density.high == interval(noise.path, "noise")[1] - MARGIN
