"""sample, Denoise and SamplerSettings: grids, draws, dtypes, counting; independence of how a batch is cut."""

from functools import partial

import pytest
import torch

from ditkit.checkpoints import load_published
from ditkit.diffusion import CFG, DDPM, EDM, SOLVERS, VP, Cosine, Denoise, Linear, SampleNoise, SamplerSettings, sample
from ditkit.diffusion.noise import philox_normal
from ditkit.diffusion.solvers import euler, euler_maruyama
from ditkit.protocols import Condition, Output

SHAPE = (4, 3, 2, 2)
START = philox_normal(0, (1,), SHAPE)


class Recorder(torch.nn.Module):
    """Remembers what it was called with; returns -x or, with variance, also logits."""

    def __init__(self, dtype=torch.float32, variance=False):
        super().__init__()
        self.weight, self.variance, self.seen = torch.nn.Parameter(torch.ones(1, dtype=dtype)), variance, []

    def forward(self, x, t, cond, *, capture=()):
        self.seen.append((x.dtype, t.dtype, tuple(t.shape), x.shape[0], t[0].item()))
        out = -x * self.weight
        return Output(torch.cat([out, out * 0], 1) if self.variance else out)


# ------------------------------------------------------------------------------------------------ one run


def test_state_and_network_have_their_own_dtypes():
    """REPA keeps the state in float64 and the network in float32; bf16 networks see t in float32 all the same."""
    for network, state in [(torch.float32, torch.float64), (torch.bfloat16, torch.float32)]:
        model = Recorder(network)
        latents = sample(model, START.to(state), None, path=Linear(), prediction="velocity", solver="heun",
                         times=torch.linspace(1, 0, 4))  # fmt: skip
        assert latents.dtype == state and not latents.requires_grad
        assert {seen[:4] for seen in model.seen} == {(network, torch.float32, (4,), 4)}


def test_draws_follow_the_state():
    """A float32 noise source feeds a float64 state; the step's number is what is asked for."""
    asked = []

    def noise(step):
        asked.append(step)
        return philox_normal(1, (step,), SHAPE)

    latents = sample(Recorder(), START.double(), None, path=Linear(), prediction="velocity", solver="euler_maruyama",
                     times=[1.0, 0.6, 0.3, 0.0], noise_source=noise)  # fmt: skip
    assert latents.dtype == torch.float64 and asked == [0, 1]
    for solver in ("euler_maruyama", "heun_sde", partial(SOLVERS["ancestral"], variance="fixed_small"),
                   partial(SOLVERS["ddim"], eta=1.0)):  # fmt: skip
        with pytest.raises(ValueError, match="noise_source"):
            sample(Recorder(), START, None, path=Cosine(), prediction="velocity", solver=solver, times=[1.0, 0.5, 0.1])


def test_the_prior_is_scaled_once_and_only_at_the_noise_end():
    stand_still = lambda denoise, path, x, times, noise: x  # noqa: E731
    for path in (Linear(), Cosine(), VP(), EDM(), DDPM()):
        arguments = dict(path=path, prediction="data", solver=stand_still)
        assert torch.equal(sample(Recorder(), START, None, times=[1.0, 0.5], **arguments), START * path.prior_scale)
        for times in ([0.5, 0.0], [0.0, 1.0]):  # from the middle, or from the data
            assert torch.equal(sample(Recorder(), START, None, times=times, **arguments), START)


def test_edm_networks_see_their_input_scaled():
    model = Recorder()
    denoise = Denoise(model, None, path=EDM(), prediction="edm")
    seen = -denoise(START * 80.0, 1.0).value  # the recorder returns minus its input
    assert torch.allclose(seen, START * 80 / (80**2 + 0.5**2) ** 0.5, rtol=1e-5)


def test_discrete_times_reach_the_network_exactly():
    """Index k of 1000 is t = k / 999, and the network multiplies by 999 in float32: every k must come back."""
    model = Recorder(variance=True)
    settings = SamplerSettings(solver="ancestral", steps=1000)
    settings.run(model, START[:1], None, path=DDPM(), prediction="noise", noise_source=lambda k: START[:1])
    back = [(torch.tensor(t, dtype=torch.float32) * 999).item() for *_, t in model.seen]
    assert back == [float(k) for k in range(999, -1, -1)]


def test_wrong_number_of_channels():
    class Odd:
        def __call__(self, x, t, cond, *, capture=()):
            return Output(x[:, :2])

    with pytest.raises(ValueError, match="2 channels out for 3 in"):
        sample(Odd(), START, None, path=Linear(), prediction="velocity", solver="euler", times=[1.0, 0.0])


def test_unknown_solver():
    with pytest.raises(ValueError, match="did you mean 'euler'"):
        sample(Recorder(), START, None, path=Linear(), prediction="velocity", solver="eulr", times=[1.0, 0.0])
    with pytest.raises(ValueError, match="did you mean 'heun"):
        SamplerSettings(solver="huen")
    with pytest.raises(ValueError, match="no option 'etta'; did you mean 'eta'"):
        SamplerSettings(solver="ddim", options={"etta": 1.0})
    with pytest.raises(ValueError, match="option 'form' = 'sigmoid'"):
        SamplerSettings(solver="euler_maruyama", options={"form": "sigmoid"})


def test_ones_own_solver():
    def half_way(denoise, path, x, times, noise):
        return denoise(x, times[0], 0).data * 0.5

    latents = sample(Recorder(), START, None, path=Linear(), prediction="data", solver=half_way, times=[1.0, 0.0])
    assert torch.equal(latents, -START * 0.5)


# ------------------------------------------------------------------------------------------------ settings


def times_of(path=None, prediction="velocity", **settings):
    return SamplerSettings(**settings).times(path or Linear(), prediction)


def test_grids():
    """ODE and SDE: N + 1 points; with a last step N - 1 equal ones and that one; a shift moves them to the noise."""
    assert times_of(steps=4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    repa = times_of(solver="euler_maruyama", steps=250, last=0.04)
    assert len(repa) == 251 and repa[-2:].tolist() == [0.04, 0.0]
    assert torch.allclose(repa[:-1].diff(), torch.tensor(-0.96 / 249, dtype=torch.float64))
    # DDT's grids, 1 - t: N = 5, last step 0.04; then shifted by 1.5
    assert (1 - times_of(steps=5, last=0.04)).tolist() == pytest.approx([0, 0.24, 0.48, 0.72, 0.96, 1])
    assert (1 - times_of(steps=5, shift=1.5)).tolist() == pytest.approx(
        [0, 0.142857, 0.307692, 0.5, 0.727273, 1], abs=1e-6
    )
    assert times_of(steps=2, start=0.8, stop=0.2).tolist() == pytest.approx([0.8, 0.5, 0.2])
    assert times_of(solver="reverse_ddim", steps=2).tolist() == [0.0, 0.5, 1.0]


def test_grids_keep_to_where_the_prediction_is_defined():
    for path, prediction, ends in [
        (Linear(), "velocity", (1, 0)), (Cosine(), "noise", (0.999, 0.001)), (Linear(), "score", (0.999, 0.001)),
        (VP(), "velocity", (1, 0.001)), (EDM(), "edm", (1, 0)), (DDPM(), "noise", (1, 0)),
    ]:  # fmt: skip
        grid = times_of(path, prediction, steps=3)
        assert (float(grid[0]), float(grid[-1])) == pytest.approx(ends), (path, prediction)
    assert float(times_of(Linear(), "noise", solver="ddim", steps=3)[-1]) == 0  # its last jump needs no look at t = 0


def test_visited_indices():
    def indices(**settings):
        return (times_of(DDPM(), "noise", solver="ancestral", **settings) * 999).round().int().tolist()

    assert indices(steps=5) == [999, 749, 500, 250, 0]
    assert indices(steps=250)[:4] == [999, 995, 991, 987] and indices(steps=250)[-4:] == [12, 8, 4, 0]
    assert indices(steps=50, spacing="ddim")[:2] == [980, 960] and len(indices(steps=50, spacing="ddim")) == 50
    respaced = DDPM().respace(10)
    assert torch.equal(SamplerSettings(solver="ddim", steps=10).times(respaced, "noise"),
                       SamplerSettings(solver="ddim", steps=10).times(DDPM(), "noise"))  # fmt: skip
    with pytest.raises(ValueError, match="respaced to 10"):
        SamplerSettings(solver="ddim", steps=20).times(respaced, "noise")
    with pytest.raises(ValueError, match="no meaning on a DDPM table"):
        indices(steps=5, shift=2.0)
    with pytest.raises(ValueError, match="remove `stop`"):
        times_of(last=0.04, stop=0.1)


def test_run_reports_evaluations_and_progress():
    told = []
    settings = SamplerSettings(solver="heun", steps=5)
    latents, evaluations = settings.run(Recorder(), START, None, path=Linear(), prediction="velocity",
                                        progress=lambda step, steps: told.append((step, steps)))  # fmt: skip
    assert evaluations == 9 and told == [(k, 5) for k in range(5)] and latents.dtype == torch.float32
    wide, _ = SamplerSettings(state="float64").run(Recorder(), START, None, path=Linear(), prediction="velocity")
    assert wide.dtype == torch.float64


PUBLISHED = {
    "DiT": (SamplerSettings(solver="ancestral", steps=250), DDPM(), 250),
    "SiT ODE": (SamplerSettings(solver="heun", steps=125, options={"correct_last": True}), Linear(), 250),
    "SiT SDE": (SamplerSettings(solver="euler_maruyama", steps=250, last=0.04), Linear(), 250),
    "REPA": (SamplerSettings(solver="euler_maruyama", steps=250, last=0.04, options={"form": "linear"},
                             state="float64"), Linear(), 250),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_samplers_spend_250_evaluations(name):
    settings, path, evaluations = PUBLISHED[name]
    model = Recorder(variance=name == "DiT")
    noise = SampleNoise(0, range(2), (3, 2, 2))
    prediction = "noise" if name == "DiT" else "velocity"
    _, spent = settings.run(model, noise.initial(), None, path=path, prediction=prediction, noise_source=noise)
    assert spent == evaluations == len(model.seen)
    assert SamplerSettings.model_validate_json(settings.model_dump_json()) == settings


# ------------------------------------------------------------------------------------------------ invariance


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "dopri5"])
def test_any_batch_cut_gives_the_same_latents(reference, solver):
    """The draws are bit-equal for any cut; a network's matrix products may round differently with the batch size."""
    ref = reference("repa_samplers")
    model = load_published(ref.state, "repa", heads=4, align_depth=1).model.eval()
    options = {"variance": "fixed_small"} if solver == "ancestral" else {"eta": 0.7} if solver == "ddim" else {}
    settings = SamplerSettings(solver=solver, steps=4, options=options, guidance=CFG(scale=2.0, high=0.8))
    labels = torch.tensor([3, 999, 7, 0, 500])

    def run(indices):
        noise = SampleNoise(5, indices, (4, 8, 8))
        cond = Condition(label=labels[list(indices)])
        return settings.run(model, noise.initial(), cond, path=Linear(), prediction="velocity", noise_source=noise)[0]

    whole = run(range(5))
    cut = torch.cat([run(range(0, 1)), run(range(1, 4)), run(range(4, 5))])
    assert torch.allclose(whole, cut, atol=2e-5)
    assert not torch.allclose(whole[0], whole[1], atol=1e-2)


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "dopri5"])
def test_any_batch_cut_is_bit_equal_without_matrix_products(solver):
    class Elementwise:
        def __call__(self, x, t, cond, *, capture=()):
            return Output(torch.tanh(2 * x) - t.view(-1, 1, 1, 1))

    options = {"variance": "fixed_large"} if solver == "ancestral" else {}
    settings = SamplerSettings(solver=solver, steps=6, options=options)

    def run(indices):
        noise = SampleNoise(5, indices, (4, 8, 8))
        return settings.run(Elementwise(), noise.initial(), None, path=Cosine(), prediction="velocity",
                            noise_source=noise)[0]  # fmt: skip

    assert torch.equal(run(range(8)), torch.cat([run(range(0, 1)), run([1, 2, 3, 4]), run(range(5, 8))]))


def test_sample_and_settings_agree():
    noise = SampleNoise(1, range(4), SHAPE[1:])
    settings = SamplerSettings(solver="euler_maruyama", steps=6, last=0.1, options={"form": "linear", "norm": 0.5})
    arguments = dict(path=Linear(), prediction="velocity", noise_source=noise)
    one, _ = settings.run(Recorder(), noise.initial(), None, **arguments)
    two = sample(Recorder(), noise.initial(), None, times=settings.times(Linear(), "velocity"),
                 solver=partial(euler_maruyama, form="linear", norm=0.5), **arguments)  # fmt: skip
    assert torch.equal(one, two)
    three = sample(Recorder(), START, None, path=Linear(), prediction="velocity", solver=euler, times=[1.0, 0.5, 0.0])
    assert torch.allclose(three, START * 1.5**2)  # v = -x, two Euler steps of -1/2


@pytest.mark.parametrize("path, prediction", [(Linear(), "velocity"), (EDM(), "edm"), (DDPM(), "noise")])
def test_solvers_never_wait_for_the_device(path, prediction):
    """On the meta device any look at a value of the state is an error, and so is a tensor on the wrong device."""

    class Doubled:
        def __call__(self, x, t, cond, *, capture=()):
            return Output(torch.cat([x * t.view(-1, 1, 1, 1), x], 1))

    for name in SOLVERS:
        if name == "dopri5":  # its step sizes follow from the state
            continue
        options = {"ancestral": {"clip": True}, "ddim": {"eta": 0.5}}.get(name, {})
        settings = SamplerSettings(solver=name, steps=3, options=options)
        latents, evaluations = settings.run(
            Doubled(), START.to("meta"), None, path=path, prediction=prediction, noise_source=lambda step: START
        )
        assert latents.is_meta and latents.shape == SHAPE and evaluations >= 2


@pytest.mark.gpu
@pytest.mark.parametrize("solver", ["heun", "dopri5", "heun_sde", "dpmpp_2m", "ddim"])
def test_gpu_equals_cpu(reference, solver):
    ref = reference("repa_samplers")
    published = load_published(ref.state, "repa", heads=4, align_depth=1)
    settings = SamplerSettings(solver=solver, steps=6, guidance=CFG(scale=2.0), state="float64")
    latents = []
    for device in ("cpu", "cuda"):
        noise = SampleNoise(5, range(4), (4, 8, 8), device=device)
        cond = Condition(label=torch.tensor([1, 2, 3, 4], device=device))
        model = published.model.eval().to(device)
        latents.append(settings.run(model, noise.initial(), cond, path=Linear(), prediction="velocity",
                                    noise_source=noise)[0].cpu())  # fmt: skip
    assert torch.allclose(*latents, atol=1e-3)
