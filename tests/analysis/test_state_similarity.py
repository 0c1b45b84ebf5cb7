"""What sharing costs, measured: the recorded statistics, and networks for which every number is known."""

from itertools import pairwise

import pytest
import torch

from ditkit.analysis.sharing import (
    Templates,
    branch_error,
    cumulative_error,
    draw_templates,
    evaluation_weights,
    optimal_schedule,
    sharing_schedule,
    state_similarity,
    velocity_error,
)
from ditkit.checkpoints import load_published
from ditkit.diffusion import CFG, Autoguidance, Linear, SamplerSettings, Sharing, uniform_schedule
from ditkit.models import DDTSettings, DiTSettings, build_model
from ditkit.protocols import Condition, Decoupled, Output, SelfCondition

RUN = dict(path=Linear(), prediction="velocity")
LABELS = Condition(label=torch.tensor([0, 1, 2]))
NOISE = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
TEMPLATES = Templates(NOISE, LABELS)
GUIDED = SamplerSettings(steps=6, last=0.1, guidance=CFG(scale=3.0, low=0.2, high=0.8))


class Known:
    """A Decoupled denoiser of known numbers: s (B, 1, D) from a function of (call, t (B,), label (B,)), v = s[0]."""

    def __init__(self, function):
        self.function, self.encoded = function, 0

    def encode(self, x, t, cond):
        self.encoded += 1
        return self.function(self.encoded - 1, t, cond.label).unsqueeze(1)

    def decode(self, x, s):
        s = s.s if isinstance(s, SelfCondition) else s
        return s[:, 0, 0].view(-1, 1, 1, 1).expand_as(x).to(x)

    def __call__(self, x, t, cond, *, capture=()):
        return Output(self.decode(x, self.encode(x, t, cond)))

    def null(self, cond):
        return Condition(label=torch.full_like(cond.label, 9))


@pytest.fixture(scope="module")
def ddt():
    """A tiny DDT with weights that matter."""
    settings = DDTSettings(
        encoder_blocks=2, decoder_blocks=1, width=16, heads=2, channels=2, size=(4, 4), num_classes=9
    )
    model = build_model(settings).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.25, generator=generator)
    return model


def shared(sampler, schedule, count=None):
    sharing = Sharing(rule="test", evaluations=count or sampler.steps, encode=tuple(schedule))
    return sampler.model_copy(update={"sharing": sharing})


def change(model, sampler, schedule):
    """Mean square change of the final samples by a schedule."""
    runs = [s.run(model, NOISE, LABELS, **RUN)[0] for s in (sampler, shared(sampler, schedule))]
    return (runs[0] - runs[1]).double().square().mean().item()


# ------------------------------------------------------------------------------------------------ the statistic


def test_recorded_statistics_of_runs(reference):
    ref = reference("ddt_sharing")
    model = load_published(ref.state, "ddt", patch=2, encoder_blocks=3, heads=2).model.eval()
    templates = Templates(ref.inputs["template_noise"], Condition(label=ref.inputs["template_condition"]))
    for case in ("share.a", "share.interval_shift"):
        kw = ref.meta["cases"][case]
        low, high = kw.get("guidance_interval_min", 0.0), kw.get("guidance_interval_max", 1.0)
        guidance = CFG(scale=kw["guidance"], low=1 - high, high=1 - low, closed=False)
        sampler = SamplerSettings(steps=kw["num_steps"], shift=kw["timeshift"], last=kw["last_step"], guidance=guidance)
        got = state_similarity(model, sampler, templates, **RUN)
        ref.close(f"{case}.sim", got.similarity)
        budget = kw["num_steps"] // kw["state_refresh_rate"]
        ref.close(f"{case}.schedule", sharing_schedule(got.similarity, budget))
        assert torch.allclose(1 - got.times, ref.outputs[f"{case}.timesteps"][:-1].double(), atol=1e-6)


def test_recorded_statistics_of_given_states(reference):
    ref = reference("ddt_sharing")
    for case, kw in ref.meta["dp_cases"].items():
        states = ref.inputs[f"dp_states.{kw['states']}"]
        model = Known(lambda call, t, label, states=states: states[call].expand(len(t), -1))
        sampler = SamplerSettings(steps=len(states), guidance=CFG(scale=2.0))
        got = state_similarity(model, sampler, TEMPLATES, **RUN, at_once=3)
        ref.close(f"dp.{case}.sim", got.similarity)
        ref.close(f"dp.{case}.schedule", sharing_schedule(got.similarity, len(states) // kw["refresh"]))
        assert model.encoded == len(states)


def test_branches(ddt):
    got = state_similarity(ddt, GUIDED, TEMPLATES, **RUN)
    assert got.similarity.dtype == torch.float64 and got.templates == 3 and got.similarity.shape == (6, 6)
    assert torch.equal(got.similarity, (got.conditional + got.unconditional) / 2)
    assert (got.conditional - got.unconditional).abs().max() > 1e-4
    for matrix in (got.similarity, got.conditional, got.unconditional):
        assert torch.allclose(matrix, matrix.T) and torch.allclose(matrix.diagonal(), torch.ones(6).double(), atol=1e-6)
    times = GUIDED.times(**RUN)[:-1]
    assert torch.allclose(got.times, times, atol=1e-6)

    null = ddt.null(LABELS)  # between, at the first evaluation: x is the noise, t is 1
    pair = [torch.nn.functional.normalize(ddt.encode(NOISE, torch.ones(3), c), dim=-1) for c in (LABELS, null)]
    assert got.between[0].item() == pytest.approx((pair[0] * pair[1]).sum(-1).mean().item(), abs=1e-6)
    assert got.between.shape == (6,) and got.between.max() < 0.9999


def test_both_branches_are_seen_outside_the_interval(ddt):
    both = GUIDED.model_copy(update={"guidance": GUIDED.guidance.model_copy(update={"skip_outside": False})})
    results = [state_similarity(ddt, sampler, TEMPLATES, **RUN).similarity for sampler in (GUIDED, both)]
    assert torch.equal(*results)


@pytest.mark.parametrize("guidance", [None, CFG(scale=1.0), Autoguidance(scale=2.0)])
def test_one_branch(ddt, guidance):
    if isinstance(guidance, Autoguidance):
        guidance = guidance.against(ddt)
    sampler = SamplerSettings(steps=5, guidance=guidance)
    got = state_similarity(ddt, sampler, TEMPLATES, **RUN)
    assert got.unconditional is None and got.between is None and torch.equal(got.similarity, got.conditional)
    assert got.similarity.shape == (5, 5) and velocity_error(ddt, sampler, TEMPLATES, **RUN).shape == (5, 5)


@pytest.mark.parametrize("solver", ["euler", "heun", "euler_maruyama", "multistep"])
def test_parts_change_nothing(ddt, solver):
    sampler = GUIDED.model_copy(update={"solver": solver})
    whole, parts = (state_similarity(ddt, sampler, TEMPLATES, **RUN, at_once=n) for n in (3, 2))
    assert torch.allclose(whole.similarity, parts.similarity, atol=1e-6)
    assert torch.allclose(whole.between, parts.between, atol=1e-6)
    assert len(whole.similarity) == sampler.evaluations(**RUN) == (11 if solver == "heun" else 6)
    errors = [velocity_error(ddt, sampler, TEMPLATES, **RUN, at_once=n) for n in (3, 1)]
    assert torch.allclose(*errors, rtol=1e-3, atol=1e-3 * float(errors[0].abs().max()))


def test_memory_bounds_the_parts(ddt, monkeypatch):
    rows = []
    encode = ddt.encode
    monkeypatch.setattr(ddt, "encode", lambda x, t, cond: (rows.append(len(x)), encode(x, t, cond))[1])
    state = 4 * 4 * 16  # bytes of one s: 4 tokens of width 16
    monkeypatch.setattr("ditkit.analysis.templates.STORED", 2 * 12 * state)
    state_similarity(ddt, GUIDED, TEMPLATES, **RUN)
    assert rows == [1] + [4] * 6 + [2] * 6  # two templates at once, then one; both branches
    rows.clear()
    monkeypatch.setattr("ditkit.analysis.templates.STORED", 1)
    state_similarity(ddt, GUIDED, TEMPLATES, **RUN)
    assert rows == [1] + [2] * 18


def test_the_pieces_of_a_product_change_nothing(ddt, monkeypatch):
    whole = state_similarity(ddt, GUIDED, TEMPLATES, **RUN).similarity
    monkeypatch.setattr("ditkit.analysis.sharing.PIECE", 1)
    assert torch.allclose(whole, state_similarity(ddt, GUIDED, TEMPLATES, **RUN).similarity, atol=1e-12)


def test_templates_are_drawn_once(ddt):
    templates = draw_templates(ddt)
    assert templates.noise.shape == (8, 2, 4, 4) and templates.cond.label.shape == (8,)
    again = draw_templates(ddt, 3)
    assert torch.equal(again.noise, templates.noise[:3]) and torch.equal(again.cond.label, templates.cond.label[:3])
    many = draw_templates(ddt, 500, seed=1, size=(8, 6))
    assert many.noise.shape == (500, 2, 8, 6) and many.cond.label.unique().tolist() == list(range(9))
    assert not torch.equal(draw_templates(ddt, seed=1).noise, templates.noise)


def test_templates_without_labels():
    settings = DDTSettings(encoder_blocks=1, decoder_blocks=1, width=16, heads=2, size=(4, 4), num_classes=0)
    model = build_model(settings).eval()
    got = state_similarity(model, SamplerSettings(steps=3), draw_templates(model, 2), **RUN)
    assert got.similarity.shape == (3, 3)


# ------------------------------------------------------------------------------------------------ the harm


def test_weights_are_those_of_the_solver():
    euler = SamplerSettings(steps=5, last=0.04, shift=2.0)
    assert torch.allclose(evaluation_weights(euler, **RUN), euler.times(**RUN).diff())
    adams = evaluation_weights(SamplerSettings(solver="multistep", steps=4), **RUN)  # 1; then -1/2, 3/2
    assert torch.allclose(-4 * adams, torch.tensor([0.5, 1.0, 1.0, 1.5]).double())
    heun = evaluation_weights(SamplerSettings(solver="heun", steps=2), **RUN)
    assert torch.allclose(heun, torch.tensor([-0.25, -0.25, -0.5]).double())


@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint", "heun3", "rk4", "multistep", "ddim", "dpmpp_2m"])
def test_weights_add_up_to_the_way(solver):
    """A velocity that is 1 everywhere moves the sample by -1."""
    sampler = SamplerSettings(solver=solver, steps=6)
    weights = evaluation_weights(sampler, **RUN)
    assert len(weights) == sampler.evaluations(**RUN) and weights.sum().item() == pytest.approx(-1, abs=1e-9)


def test_errors_of_a_known_network():
    """v = t^2: at evaluation l under s of j it is off by t_j^2 - t_l^2."""
    model = Known(lambda call, t, label: t.double().square().unsqueeze(1))
    sampler = SamplerSettings(steps=7, last=0.05, state="float64")
    times = state_similarity(model, sampler, TEMPLATES, **RUN).times
    d = sampler.times(**RUN).diff().unsqueeze(1) * (times**2 - times.unsqueeze(1) ** 2)  # (l, j)
    d = torch.tril(d)
    squares = velocity_error(model, sampler, TEMPLATES, **RUN, coherent=False)
    assert torch.allclose(squares, d.square(), atol=1e-9)
    coherent = velocity_error(model, sampler, TEMPLATES, **RUN)
    assert torch.allclose(torch.tril(torch.tensor(cumulative_error(coherent))), d.cumsum(0).square().tril(), atol=1e-9)


@pytest.mark.parametrize("sampler", [SamplerSettings(steps=6), GUIDED, SamplerSettings(solver="multistep", steps=6)])
def test_the_change_of_samples_is_foretold_exactly_where_x_does_not_matter(sampler):
    model = Known(lambda call, t, label: ((1 + label) * t.square() + label).unsqueeze(1))
    error = velocity_error(model, sampler, TEMPLATES, **RUN)
    cumulative = cumulative_error(error)
    for schedule in ([0], [0, 1], [0, 1, 2], [0, 1, 2, 3, 4]):  # one reuse, up to the end
        foretold = cumulative[5][schedule[-1]]
        assert foretold == pytest.approx(change(model, sampler, schedule), rel=1e-4) and foretold > 0


@pytest.mark.parametrize("guidance", [None, GUIDED.guidance, CFG(scale=3.0, channels=1)])
def test_one_reuse_at_the_end_is_foretold_exactly(ddt, guidance):
    """Behind the last evaluation nothing answers, whatever the network."""
    sampler = SamplerSettings(steps=6, last=0.3, guidance=guidance)
    error = velocity_error(ddt, sampler, TEMPLATES, **RUN)
    measured = change(ddt, sampler, [0, 1, 2, 3, 4])
    assert error[5, 4].item() == pytest.approx(measured, rel=1e-3) and measured > 1e-9


def test_errors_make_schedules(ddt):
    error = velocity_error(ddt, GUIDED, TEMPLATES, **RUN)
    assert torch.equal(error.triu(), torch.zeros(6, 6).double()) and bool((error.diagonal(-1) > 0).all())
    schedules = [optimal_schedule(error, k) for k in range(1, 7)]
    assert [len(s) for s in schedules] == list(range(1, 7)) and schedules[-1] == list(range(6))


@pytest.mark.parametrize("coherent", [True, False])
def test_reach_bounds_what_is_measured(ddt, coherent):
    full = velocity_error(ddt, GUIDED, TEMPLATES, **RUN, coherent=coherent)
    near = velocity_error(ddt, GUIDED, TEMPLATES, **RUN, coherent=coherent, reach=2)
    gap = torch.arange(6).unsqueeze(1) - torch.arange(6)
    assert torch.equal(near[gap <= 2], full[gap <= 2]) and bool(near[gap > 2].isinf().all())
    assert torch.equal(velocity_error(ddt, GUIDED, TEMPLATES, **RUN, coherent=coherent, reach=99), full)
    assert max(b - a for a, b in pairwise([*optimal_schedule(near, 3), 6])) <= 3


def test_reach_bounds_the_decoder_runs(ddt, monkeypatch):
    calls = []
    decode = ddt.decode
    monkeypatch.setattr(ddt, "decode", lambda x, s: (calls.append(len(x)), decode(x, s))[1])
    velocity_error(ddt, GUIDED, TEMPLATES, **RUN, reach=2, at_once=3)
    assert calls == [6] * (6 + 0 + 1 + 2 + 2 + 2 + 2)  # each its own, then with the s of up to two before


def test_runs_without_sharing_are_what_is_measured(ddt):
    """A sampler that shares already is measured as if it did not."""
    plain = state_similarity(ddt, GUIDED, TEMPLATES, **RUN).similarity
    assert torch.equal(plain, state_similarity(ddt, shared(GUIDED, [0]), TEMPLATES, **RUN).similarity)
    errors = [velocity_error(ddt, sampler, TEMPLATES, **RUN) for sampler in (GUIDED, shared(GUIDED, [0, 3]))]
    assert torch.equal(*errors)


# ------------------------------------------------------------------------------------------------ between branches


def test_branches_that_differ_by_a_constant_share_perfectly():
    model = Known(lambda call, t, label: (t.square() + 0.1 * label).unsqueeze(1))
    got = branch_error(model, GUIDED, TEMPLATES, [0], **RUN)
    assert got.branch.sum() < 1e-12 < 1e-6 < got.time.sum()
    assert got.work == pytest.approx(7 / 12) and got.schedule == tuple(uniform_schedule(6, 3))


def test_one_s_for_both_is_no_guidance():
    """The guided velocity then is the conditional one: off by (scale - 1)(c - u) inside the interval, by 0 outside."""
    model = Known(lambda call, t, label: (t + 0.1 * label).unsqueeze(1))
    got = branch_error(model, GUIDED, TEMPLATES, [0, 3], **RUN)
    inside = (got.same > 1e-9).tolist()  # outside it is rounding
    times = GUIDED.times(**RUN)
    assert inside == [0.2 <= float(t) <= 0.8 for t in times[:-1]] and True in inside and False in inside
    lost = (2 * 0.1 * (LABELS.label - 9)).square().double().mean() * times.diff().square()
    assert torch.allclose(got.same, lost * torch.tensor(inside), rtol=1e-4)
    guided = (times[:-1, None] + 0.1 * LABELS.label + torch.tensor(inside)[:, None] * 0.2 * (LABELS.label - 9)) ** 2
    assert torch.allclose(got.output, guided.mean(1) * times.diff().square(), rtol=1e-4)


def test_branch_error_against_sharing_in_time(ddt):
    everywhere = branch_error(ddt, GUIDED, TEMPLATES, range(6), **RUN)
    assert everywhere.work == 1 and everywhere.schedule == tuple(range(6))
    assert torch.equal(everywhere.branch, torch.zeros(6).double()) and torch.equal(everywhere.time, everywhere.branch)
    error = velocity_error(ddt, GUIDED, TEMPLATES, **RUN, coherent=False)
    got = branch_error(ddt, GUIDED, TEMPLATES, [0, 4], **RUN, schedule=[0, 2, 3], at_once=1)
    assert torch.allclose(got.time, torch.stack([error[l, j] for l, j in enumerate((0, 0, 2, 3, 3, 3))]), rtol=1e-3)
    assert (got.branch == 0).tolist() == [True, False, False, False, True, False]


# ------------------------------------------------------------------------------------------------ what is refused


MEASURES = [
    state_similarity,
    velocity_error,
    lambda model, sampler, templates, **given: branch_error(model, sampler, templates, [0], **given),
]


@pytest.mark.parametrize("measure", MEASURES)
def test_networks_and_samplers_that_cannot_share(ddt, measure):
    plain = DiTSettings(depth=1, width=16, heads=2, channels=2, size=(4, 4), num_classes=9)
    improved = DDTSettings(encoder_blocks=0, decoder_blocks=1, width=16, heads=2, channels=2, size=(4, 4))
    for settings, message in ((plain, "DiT has no encode and decode"), (improved, "no encoder blocks")):
        with pytest.raises(ValueError, match=rf"^sharing: [^\n]*{message}[^\n]*$"):
            measure(build_model(settings), GUIDED, TEMPLATES, **RUN)
    with pytest.raises(ValueError, match=r"^sampler: 'dopri5' [^\n]*adaptive solvers cannot share[^\n]*$"):
        measure(ddt, GUIDED.model_copy(update={"solver": "dopri5"}), TEMPLATES, **RUN)
    with pytest.raises(ValueError, match=r"^sharing: 0 templates at once[^\n]*$"):
        measure(ddt, GUIDED, TEMPLATES, **RUN, at_once=0)


def test_other_bad_input(ddt):
    with pytest.raises(ValueError, match=r"^sharing: 3 template latents with 2 conditions$"):
        Templates(NOISE, LABELS.index(slice(0, 2)))
    with pytest.raises(ValueError, match=r"^sharing: 0 template latents"):
        draw_templates(ddt, 0)
    with pytest.raises(ValueError, match=r"^sharing: a reach of 0 [^\n]*$"):
        velocity_error(ddt, GUIDED, TEMPLATES, **RUN, reach=0)
    with pytest.raises(ValueError, match=r"^sharing: without classifier-free guidance [^\n]*$"):
        branch_error(ddt, SamplerSettings(steps=4), TEMPLATES, [0], **RUN)
    for full, schedule in (([1], None), ([0, 6], None), ([0], [])):
        with pytest.raises(ValueError, match=r"^sharing: the schedule [^\n]*below 6$"):
            branch_error(ddt, GUIDED, TEMPLATES, full, **RUN, schedule=schedule)


def test_stand_ins_are_decoupled(ddt):
    assert isinstance(ddt, Decoupled) and isinstance(Known(None), Decoupled)
