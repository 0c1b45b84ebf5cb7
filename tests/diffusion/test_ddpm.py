"""DDPM tables and respacing against the recorded arrays, and the promises of the time axis."""

import pytest
import torch

from ditkit.diffusion import DDPM, space_timesteps

ARRAYS = {
    "betas": "betas",
    "alphas_cumprod": "alphas_bar",
    "alphas_cumprod_prev": "alphas_bar_prev",
    "alphas_cumprod_next": "alphas_bar_next",
    "posterior_variance": "posterior_variance",
    "posterior_log_variance_clipped": "posterior_log_variance",
    "posterior_mean_coef1": "posterior_data",
    "posterior_mean_coef2": "posterior_now",
    "timestep_map": "index",
}
CASES = ["linear1000", "cosine1000", "linear_steps", "r250", "r25", "ddim50", "sections"]
CHAINS = [DDPM(), DDPM(schedule="cosine"), DDPM().respace(250), DDPM(steps=100), DDPM(indices=(7,))]


def chain_of(case):
    """The DDPM that a recorded create_diffusion call describes."""
    schedule = "cosine" if case.get("noise_schedule") == "squaredcos_cap_v2" else "linear"
    return DDPM(schedule=schedule, steps=case.get("diffusion_steps", 1000)).respace(case["timestep_respacing"])


@pytest.mark.parametrize("name", CASES)
def test_tables_as_recorded(reference, name):
    ref = reference("dit_schedules")
    assert set(ref.meta["cases"]) == set(CASES)
    case = ref.meta["cases"][name]
    tables = chain_of(case["create_diffusion"]).tables()
    recorded = [key for key in ref.outputs if key.startswith(f"{name}.")]
    assert recorded
    for key in recorded:
        array = getattr(tables, ARRAYS[key.split(".", 1)[1]])
        stride = 1 if key.endswith("timestep_map") else case.get("stride", 1)
        ref.close(key, array[::stride])


def test_space_timesteps_as_recorded(reference):
    ref = reference("dit_schedules")
    for call in ref.meta["space_timesteps"]:
        name = str(call["arg"]).replace(" ", "")
        ref.close(f"space.{name}", torch.tensor(space_timesteps(call["n"], call["arg"])))


def test_respacing_numbers_of_the_released_code():
    assert space_timesteps(1000, 5) == (0, 250, 500, 749, 999)
    assert space_timesteps(1000, "250")[:6] == (0, 4, 8, 12, 16, 20)
    assert space_timesteps(1000, "ddim250")[-1] == 996
    assert space_timesteps(1000, "") == tuple(range(1000))
    betas = DDPM().respace(5).betas
    want = torch.tensor([0.0001, 0.47852482, 0.85079934, 0.95693195, 0.98795473], dtype=torch.float64)
    assert torch.allclose(betas, want, atol=1e-8)


@pytest.mark.parametrize(
    ("spec", "words"),
    [("ddim300", "no integer stride"), ("ddimx", "no integer stride"), ("1001", "cannot keep"), ("0", "cannot keep"),
     ("10,x", "write 250"), ([600, 600], "cannot keep 600 of the 500"), (1001, "cannot keep")],
)  # fmt: skip
def test_impossible_respacing_is_refused(spec, words):
    with pytest.raises(ValueError, match=words):
        space_timesteps(1000, spec)


@pytest.mark.parametrize("indices", [(5, 3), (3, 3), (-1, 4), (0, 1000), ()])
def test_bad_indices_are_refused(indices):
    with pytest.raises(ValueError):
        DDPM(indices=indices)


def test_a_chain_too_short_for_linear_betas_is_refused():
    with pytest.raises(ValueError, match="beta"):
        _ = DDPM(steps=10).betas
    assert DDPM(steps=10, schedule="cosine").betas.max() < 1


def test_time_is_exact_for_all_indices():
    """k / (T - 1) in float32 gives back k: for the chain's own lookup and for a network's 999 t."""
    path, k = DDPM(), torch.arange(1000)
    t = path.times().flip(0)
    assert t.dtype == torch.float32
    assert torch.equal(t * 999, k.float())
    assert torch.equal(path.index(t), k)
    assert torch.equal(path.alpha(t), path.alphas_bar.sqrt().float())
    assert torch.equal(path.sigma(t), (1 - path.alphas_bar).sqrt().float())
    assert torch.equal(path.alpha(t.double()), path.alpha(k.double() / 999))  # either way of writing the time


@pytest.mark.parametrize("path", CHAINS, ids=str)
def test_every_visited_time_finds_its_row(path):
    times = path.times()
    assert len(times) == path.length
    assert torch.equal(path.index(times), torch.arange(path.length).flip(0))
    abar = path.tables().alphas_bar.flip(0)
    assert torch.allclose(path.alpha(times).double() ** 2, abar, rtol=2e-7, atol=0)
    assert path.gather("betas", times).dtype == torch.float32


def test_respacing_keeps_alpha_and_sigma():
    full, cut = DDPM(), DDPM().respace("ddim50")
    t = torch.linspace(0, 1, 77)
    assert torch.equal(full.alpha(t), cut.alpha(t)) and torch.equal(full.sigma(t), cut.sigma(t))
    assert cut.respace("") != cut and cut.length == 50


def test_visited_times():
    path = DDPM()
    assert (path.visited(5).float() * 999).tolist() == [999, 749, 500, 250, 0]
    assert (path.visited(50, "ddim").float() * 999).tolist() == list(range(980, -1, -20))
    cut = path.respace(250)
    assert torch.equal(cut.visited(250).float(), cut.times())
    assert torch.equal(cut.visited(2), torch.tensor([1.0, 0.0], dtype=torch.float64))


def test_posterior_is_bayes_rule():
    """q(x_prev | x_t, x) from the product of two Gaussians, in float64."""
    path = DDPM().respace(25)
    tables, t = path.tables(), path.times().flip(0).double()[1:]
    abar, previous, beta = tables.alphas_bar[1:], tables.alphas_bar_prev[1:], tables.betas[1:]
    precision = (1 - beta) / beta + 1 / (1 - previous)
    x, x_t = torch.randn(2, 24, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean = ((1 - beta).sqrt() / beta * x_t.flatten() + previous.sqrt() / (1 - previous) * x.flatten()) / precision
    assert torch.allclose(path.posterior_mean(x, x_t, t).flatten(), mean, rtol=1e-9)
    assert torch.allclose(path.log_variance("fixed_small", t), -precision.log(), rtol=1e-9)
    assert torch.allclose(abar, previous * (1 - beta))


def test_log_variance_spans_beta_and_posterior():
    path, t = DDPM(), torch.tensor([0.0, 1 / 999, 500 / 999, 1.0])
    ends = torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1).expand(4, 2, 3, 3)
    low, high = path.log_variance("learned_range", t, ends).unbind(1)
    assert torch.allclose(low[:, 0, 0], path.log_variance("fixed_small", t))
    assert torch.allclose(high[:, 0, 0], path.betas[[0, 1, 500, 999]].log().float())
    assert torch.allclose(low[:, 0, 0], torch.tensor([-9.8167251, -9.8167251, -4.6000497, -3.9120238]))
    assert torch.allclose(path.log_variance("fixed_large", t)[1:], high[1:, 0, 0])
    assert path.log_variance("fixed_large", t)[0] == low[0, 0, 0]
    with pytest.raises(ValueError, match="variance channels"):
        path.log_variance("learned_range", t)


def test_abar_of_the_released_code():
    abar = DDPM().alphas_bar
    want = {0: 0.9999, 250: 0.52142303, 500: 0.077796658, 750: 0.0033001584, 999: 4.0358298e-05}
    for k, value in want.items():
        assert abar[k].item() == pytest.approx(value, rel=1e-7)
