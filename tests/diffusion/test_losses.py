"""Objectives against the recorded losses of DiT, SiT and REPA; label drop and auxiliary terms."""

import pytest
import torch
from torch import nn

from ditkit.checkpoints import load_published
from ditkit.config import SettingsError, read_settings
from ditkit.diffusion import (
    DDPM,
    EDM,
    VP,
    BatchNoise,
    Cosine,
    Estimate,
    Flow,
    ImprovedDDPM,
    Linear,
    LogitNormal,
    Plain,
    SiTWeight,
    Uniform,
    bits_per_dimension,
    drop_labels,
    interpolate,
    interval,
)
from ditkit.diffusion.variational import prior_term, variational_term
from ditkit.protocols import Condition, Output

SIT = {"Linear": Linear(), "GVP": Cosine(), "VP": VP()}
DIT_CASES = {
    "mse_learned_range": ImprovedDDPM(),
    "rescaled_mse": ImprovedDDPM(loss="rescaled_mse"),
    "rescaled_kl": ImprovedDDPM(loss="rescaled_kl"),
    "fixed_large_mse": ImprovedDDPM(variance="fixed_large"),
    "fixed_large_kl": ImprovedDDPM(variance="fixed_large", loss="rescaled_kl"),
    "fixed_small_kl": ImprovedDDPM(variance="fixed_small", loss="rescaled_kl"),
    "predict_xstart": ImprovedDDPM(prediction="data"),
    "cosine": ImprovedDDPM(path=DDPM(schedule="cosine")),
    "respaced": ImprovedDDPM(path=DDPM().respace(50), loss="rescaled_mse"),
}


class Recorded:
    """A noise source that gives back recorded draws by stream."""

    def __init__(self, **streams):
        self.streams = streams

    def normal(self, stream, shape):
        assert self.streams[stream].shape == tuple(shape)
        return self.streams[stream]

    uniform = normal


class Fixed:
    """A network whose output is given; remembers what it was called with."""

    def __init__(self, value, null=6):
        self.value, self.null_label, self.calls = value, null, []

    def __call__(self, x, t, cond, *, capture=()):
        self.calls.append((x, t, cond))
        hidden = {block: torch.full((len(x), 3, 2), float(block)) for block in capture}
        return Output(self.value, hidden)

    def null(self, cond):
        return Condition(label=torch.full_like(cond.label, self.null_label))


# ------------------------------------------------------------------------------------------------ DiT


def dit_inputs(ref, name):
    objective = DIT_CASES[name]
    index = ref.inputs["t_respaced" if name == "respaced" else "t"]
    t = objective.path.times().flip(0)[index]
    value = ref.inputs["model_output"]
    value = value if objective.variance == "learned_range" else value[:, :4]
    return objective, t, value


@pytest.mark.parametrize("name", DIT_CASES)
def test_dit_losses_as_recorded(reference, name):
    ref = reference("dit_losses")
    assert set(ref.meta["cases"]) == set(DIT_CASES)
    objective, t, value = dit_inputs(ref, name)
    model = Fixed(value)
    loss = objective.at(model, ref.inputs["x_start"], Condition(), ref.inputs["noise"], t)
    got = {**loss.terms, "loss": loss.terms["denoise"]}
    for term in ("loss", "mse", "vb"):
        if f"{name}.{term}" in ref.outputs:
            ref.close(f"{name}.{term}", got[term])
    assert ("vb" in got) == (objective.variance == "learned_range" or "kl" in objective.loss)
    assert loss.total.item() == pytest.approx(ref.outputs[f"{name}.loss"].mean().item(), rel=1e-4)
    seen = model.calls[0][1] * 999
    assert seen.tolist() == ref.meta["info"]["model_saw_t"][name], "the network's time is the original index, exactly"


def test_dit_posterior_quantities(reference):
    ref, name = reference("dit_losses"), "mse_learned_range"
    objective, t, value = dit_inputs(ref, name)
    x, eps, path = ref.inputs["x_start"], ref.inputs["noise"], objective.path
    x_t = interpolate(path, x, eps, t)
    estimate = Estimate(x_t, t, path, "noise", value[:, :4], value[:, 4:])
    got = {
        "x_t": x_t,
        "posterior_mean": path.posterior_mean(x, x_t, t),
        "p_pred_xstart": estimate.data,
        "p_mean": path.posterior_mean(estimate.data, x_t, t),
        "p_mean_clip": path.posterior_mean(estimate.data.clamp(-1, 1), x_t, t),
        "p_log_variance": path.log_variance("learned_range", t, estimate.variance),
        "prior_bpd": prior_term(path, x),
    }
    for quantity, tensor in got.items():
        ref.close(f"{name}.{quantity}", tensor)
    rest = {key.split(".")[1] for key in ref.outputs if key.startswith(f"{name}.")} - set(got)
    assert rest == {"vb", "mse", "loss"}, "every recorded quantity is compared"


def test_dit_bits_per_dimension(reference):
    ref = reference("dit_losses")
    path, value = DDPM().respace(ref.meta["bpd_respacing"]), ref.inputs["model_output"]

    def denoise(x, t, step):
        return Estimate(x, t, path, "noise", value[:, :4], value[:, 4:])

    bound = bits_per_dimension(denoise, path, ref.inputs["x_start"], lambda step: ref.inputs["bpd_noise"][step])
    names = {"total": "total_bpd", "prior": "prior_bpd", "vb": "vb", "data_mse": "xstart_mse", "noise_mse": "mse"}
    for own, recorded in names.items():
        ref.close(f"bpd.{recorded}", getattr(bound, own))


def test_the_bound_trains_the_variance_alone():
    """MSE + vb: the vb's gradient reaches the variance logits and not the mean; in the KL form both."""
    generator = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, 3, 2, 4, 4, generator=generator)
    t = torch.tensor([0.0, 0.5, 1.0])
    for loss, mean_too in (("mse", False), ("kl", True)):
        value = torch.randn(3, 4, 4, 4, generator=generator).requires_grad_()
        main, terms = ImprovedDDPM(loss=loss).per_sample(value, x, eps, t)
        (terms["vb"].sum()).backward()
        assert bool(value.grad[:, :2].abs().max() > 0) == mean_too
        assert value.grad[:, 2:].abs().amax((1, 2, 3)).min() > 0
        assert main.shape == (3,)


def test_a_perfect_reverse_step_costs_nothing():
    """With the true mean and the posterior's variance the KL is 0 at every step but the first."""
    path = DDPM().respace(20)
    x, eps = torch.randn(2, 20, 1, 4, 4, generator=torch.Generator().manual_seed(0)).clamp(-1, 1).double()
    t = path.times().flip(0).double()
    estimate = Estimate(interpolate(path, x, eps, t), t, path, "data", x, torch.full_like(x, -1))
    vb = variational_term(estimate, x, "learned_range")
    assert vb[1:].abs().max() < 1e-6 and vb[0] > 0
    with pytest.raises(ValueError, match="needs a DDPM path"):
        variational_term(Estimate(x, t, Linear(), "data", x), x, "fixed_small")


@pytest.mark.parametrize(
    ("objective", "channels", "words"),
    [
        (ImprovedDDPM(drop=0), 2, "set the model's variance to 'learned'"),
        (ImprovedDDPM(drop=0, variance="fixed_small"), 4, "set the model's variance to 'none'"),
        (Flow(drop=0), 4, r"returns \(2, 4, 4, 4\)"),
    ],
    ids=str,
)
def test_wrong_channel_count_is_one_clear_line(objective, channels, words):
    model = Fixed(torch.zeros(2, channels, 4, 4))
    with pytest.raises(ValueError, match=words) as caught:
        objective(model, torch.zeros(2, 2, 4, 4), Condition(), BatchNoise(0, 0, 2))
    assert "\n" not in str(caught.value)


def test_ddpm_times_are_the_chain():
    n = 20_000
    for path in (DDPM(), DDPM().respace("ddim50")):
        t = ImprovedDDPM(path=path).times(n, BatchNoise(0, 0, n))
        counts = torch.bincount(path.index(t), minlength=path.length)
        assert torch.isin(t, path.times()).all() and counts.min() > 0 and len(counts) == path.length


# ------------------------------------------------------------------------------------------------ SiT


def sit_case(ref, name):
    """(objective, recorded draws in our time) of one PATH.PREDICTION.WEIGHT."""
    path, kind, weight = name.split(".")
    low, high = interval(SIT[path], kind)
    weight = Plain() if weight == "None" else SiTWeight(form=weight)
    flow = Flow(path=SIT[path], prediction=kind, density=Uniform(low=low, high=high), weight=weight, drop=0)
    return flow, Recorded(eps=ref.inputs["noise"], t=1 - ref.inputs["u"])


def test_sit_losses_as_recorded(reference):
    """All 27 path x prediction x weight losses of a given output; SiT's velocity is minus ours."""
    ref = reference("sit_losses")
    assert len(ref.meta["cases"]) == 27
    for name in ref.meta["cases"]:
        flow, noise = sit_case(ref, name)
        sign = -1 if flow.prediction == "velocity" else 1
        model = Fixed(sign * ref.inputs["model_output"])
        loss = flow(model, ref.inputs["x1"], Condition(), noise)
        ref.close(f"{name}.t", 1 - loss.t)
        ref.close(f"{name}.loss", loss.terms["denoise"])
        if f"{name}.xt" in ref.outputs:
            ref.close(f"{name}.xt", model.calls[0][0])


@pytest.mark.parametrize("path", SIT)
@pytest.mark.parametrize("kind", ["velocity", "score", "noise"])
def test_sit_network_losses_as_recorded(reference, path, kind):
    """The tiny published network through the shipped converter: losses and the norm of their gradient."""
    ref, name = reference("sit_losses"), f"{path}.{kind}.None"
    published = load_published(ref.state, "sit", heads=3, path=SIT[path], prediction=kind)
    flow, noise = sit_case(ref, name)
    loss = flow(published.model.eval(), ref.inputs["x1"], Condition(label=ref.inputs["y"]), noise)
    ref.close(f"{name}.net_loss", loss.terms["denoise"])
    loss.total.backward()
    norm = torch.stack([p.grad.norm() for p in published.model.parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(ref.meta["info"][f"{name}.grad_norm_total"], rel=1e-3)


# ------------------------------------------------------------------------------------------------ REPA


REPA_CASES = ["linear.uniform", "linear.lognormal", "cosine.uniform", "cosine.lognormal", "linear.uniform.train_mode"]


@pytest.mark.parametrize("name", REPA_CASES)
def test_repa_denoising_loss(reference, name):
    """Draws, network input and denoising loss; in train mode with the recorded label drop."""
    ref = reference("repa_loss")
    assert set(ref.meta["cases"]) == set(REPA_CASES)
    path, weighting, *train = name.split(".")
    density = Uniform() if weighting == "uniform" else LogitNormal(path=path)
    flow = Flow(path={"linear": Linear(), "cosine": Cosine()}[path], density=density, drop=0.1 if train else 0)
    model = load_published(ref.state, "repa", heads=4, align_depth=2).model.eval()
    noise = Recorded(
        eps=ref.inputs["noise"], t=ref.inputs["u" if weighting == "uniform" else "n"], drop=ref.inputs["drop_rand"]
    )
    loss = flow(model, ref.inputs["images"], Condition(label=ref.inputs["y"]), noise)
    ref.close(f"{name}.t", loss.t)
    ref.close(f"{name}.denoising_loss", loss.terms["denoise"])
    x_t = interpolate(flow.path, ref.inputs["images"], ref.inputs["noise"], loss.t)
    ref.close(f"{name}.model_input", x_t)
    assert not train or (ref.inputs["drop_rand"] < 0.1).any(), "the recording must drop something"


# ------------------------------------------------------------------------------------------------ drop, auxiliary


def test_label_drop_rate_and_rows():
    n = 20_000
    model, cond = Fixed(None, null=9), Condition(label=torch.arange(n) % 5)
    kept = drop_labels(model, cond, BatchNoise(0, 0, n), 0.1).label
    dropped = kept == 9
    assert abs(dropped.float().mean() - 0.1) < 4 * (0.09 / n) ** 0.5
    assert torch.equal(kept[~dropped], cond.label[~dropped])
    parts = [
        drop_labels(model, cond.index(slice(a, a + 5000)), BatchNoise(0, 0, n, a, a + 5000), 0.1).label
        for a in range(0, n, 5000)
    ]
    assert torch.equal(torch.cat(parts), kept), "the same samples drop, whatever the cut"
    assert not torch.equal(drop_labels(model, cond, BatchNoise(0, 1, n), 0.1).label, kept)


def test_null_label_of_a_two_class_data_set():
    """The null label is the model's own num_classes, never 1000 (DiT issue 108)."""
    out = drop_labels(Fixed(None, null=2), Condition(label=torch.tensor([0, 1])), BatchNoise(0, 0, 2), 1.0)
    assert out.label.tolist() == [2, 2]


def test_text_is_dropped_per_sample():
    class Model(Fixed):
        def null(self, cond):
            return Condition(text=torch.zeros_like(cond.text), pooled=torch.zeros_like(cond.pooled))

    cond = Condition(text=torch.ones(64, 3, 2), pooled=torch.ones(64, 4))
    out = drop_labels(Model(None), cond, BatchNoise(0, 0, 64), 0.5)
    assert torch.equal(out.text[:, 0, 0], out.pooled[:, 0]), "text and pooled drop together"
    assert 0 < out.text[:, 0, 0].sum() < 64


def test_nothing_to_drop():
    class Model:
        def null(self, cond):
            raise AssertionError("must not be asked")

    cond = Condition(label=torch.zeros(2, dtype=torch.long))
    assert drop_labels(Model(), cond, BatchNoise(0, 0, 2), 0.0) is cond
    assert drop_labels(Model(), Condition(), BatchNoise(0, 0, 2), 0.5) == Condition()


class Extra:
    def __init__(self, name, capture, weight):
        self.name, self.capture, self.weight = name, capture, weight

    def __call__(self, hidden):
        assert set(self.capture) <= set(hidden)
        return sum(hidden[block] for block in self.capture).mean((1, 2))


@pytest.mark.parametrize("objective", [Flow(drop=0), ImprovedDDPM(drop=0)], ids=lambda o: o.kind)
def test_auxiliary_terms_add_up(objective):
    channels = 4 if objective.kind == "improved_ddpm" else 2
    x, noise = torch.zeros(3, 2, 4, 4), BatchNoise(0, 0, 3)
    model = Fixed(torch.zeros(3, channels, 4, 4, requires_grad=True))
    plain = objective(model, x, Condition(), noise)
    both = objective(model, x, Condition(), noise, (Extra("align", (2, 4), 0.5), Extra("other", (1,), 2.0)))
    assert both.terms["align"].tolist() == [6.0] * 3 and both.terms["other"].tolist() == [1.0] * 3
    assert both.total.item() == pytest.approx(plain.total.item() + 0.5 * 6 + 2.0 * 1)
    assert next(iter(both.terms)) == "denoise" and torch.equal(both.terms["denoise"], plain.terms["denoise"])
    assert both.total.requires_grad and not any(v.requires_grad for v in both.terms.values())
    assert plain.total.item() == pytest.approx(plain.terms["denoise"].mean().item())
    assert all(v.shape == (3,) for v in both.terms.values()) and both.t.shape == (3,)


@pytest.mark.parametrize("objective", [Flow(), Flow(density=LogitNormal()), ImprovedDDPM()], ids=str)
def test_loss_does_not_see_the_batch_cut(objective):
    """Accumulation and ranks: per-sample losses of the parts are those of the whole."""
    torch.manual_seed(0)
    net = nn.Conv2d(2, 4 if objective.kind == "improved_ddpm" else 2, 3, padding=1)

    class Model(Fixed):
        def __call__(self, x, t, cond, *, capture=()):
            return Output(net(x) + (t + cond.label).view(-1, 1, 1, 1))

    x, cond = torch.randn(8, 2, 4, 4), Condition(label=torch.arange(8))
    whole = objective(Model(None), x, cond, BatchNoise(0, 5, 8))
    parts = [
        objective(Model(None), x[a : a + 2], cond.index(slice(a, a + 2)), BatchNoise(0, 5, 8, a, a + 2))
        for a in range(0, 8, 2)
    ]
    assert torch.equal(torch.cat([p.t for p in parts]), whole.t)
    assert torch.allclose(torch.cat([p.terms["denoise"] for p in parts]), whole.terms["denoise"], rtol=1e-5)


def test_losses_of_a_network_that_starts_at_zero():
    """A zero network: noise MSE about 1, velocity MSE about E|eps - x|^2 = 2 for unit data."""
    x = torch.randn(64, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    flow = Flow(drop=0)(Fixed(torch.zeros_like(x)), x, Condition(), BatchNoise(0, 0, 64))
    ddpm = ImprovedDDPM(drop=0)(Fixed(torch.zeros(64, 8, 16, 16)), x, Condition(), BatchNoise(0, 0, 64))
    assert flow.total.item() == pytest.approx(2, rel=0.02)
    assert ddpm.terms["mse"].mean().item() == pytest.approx(1, rel=0.02)


# ------------------------------------------------------------------------------------------------ settings


def test_edm_training_has_unit_targets():
    """Karras et al. 2022: on data of std sigma_data the F-target and the network's input have unit variance."""
    x = 0.5 * torch.randn(256, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    model = Fixed(torch.zeros_like(x))
    flow = Flow(path=EDM(), prediction="edm", density={"kind": "edm_log_normal"}, drop=0)
    loss = flow(model, x, Condition(), BatchNoise(0, 0, 256))
    assert loss.terms["denoise"].mean().item() == pytest.approx(1, abs=0.02)
    assert model.calls[0][0].std().item() == pytest.approx(1, abs=0.02)
    assert loss.terms["denoise"].std() < 0.1, "at every noise level"


@pytest.mark.parametrize(
    "tree",
    [
        {"path": "vp"},
        {"prediction": "noise", "weight": {"kind": "sit", "form": "likelihood"}},
        {"prediction": "score", "weight": {"kind": "sit"}},
        {"path": "cosine", "prediction": "data", "weight": {"kind": "sd3"}},
    ],
    ids=str,
)
def test_an_infinite_loss_is_refused(tree):
    tree = {key: {"kind": value} if key == "path" else value for key, value in tree.items()}
    for density in ({"kind": "uniform"}, {"kind": "discrete"}):  # both draw the ends
        with pytest.raises(SettingsError, match="infinite at t ="):
            read_settings(Flow, {**tree, "density": density})
    kept_off = {"kind": "uniform", "low": 1e-3, "high": 0.999}
    assert read_settings(Flow, {**tree, "density": kept_off}).density.low == 1e-3


@pytest.mark.parametrize("name", DIT_CASES)
def test_objectives_read_back(name):
    objective = DIT_CASES[name]
    assert read_settings(ImprovedDDPM, objective.model_dump(mode="json")) == objective
    assert objective.prediction in ("noise", "data") and objective.path.kind == "ddpm"


def test_unknown_key_names_the_nearest():
    with pytest.raises(SettingsError, match="prediction"):
        read_settings(Flow, {"predicton": "noise"})
