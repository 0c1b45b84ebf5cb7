"""Encoder sharing: schedules, what runs when, equality where nothing may change, and what is refused."""

import pytest
import torch

from ditkit.diffusion import (
    CFG,
    DDPM,
    SOLVERS,
    Autoguidance,
    Denoise,
    Linear,
    SampleNoise,
    SamplerSettings,
    SharedEncoder,
    Sharing,
    every_schedule,
    sample,
    uniform_schedule,
)
from ditkit.models.ddt import DDT, DDTSettings
from ditkit.models.dit import DiT, DiTSettings
from ditkit.protocols import Condition, Denoiser, Output, SelfCondition

N = 12
SHAPE = (4, 8, 6)  # C, H, W: not square
COND = Condition(label=torch.tensor([0, 1, 2]))
START = SampleNoise(3, range(3), SHAPE).initial()
RUN = dict(path=Linear(), prediction="velocity")
GUIDANCE = {
    "none": None,
    "cfg": CFG(scale=2.0),
    "interval": CFG(scale=2.0, low=0.3, high=0.8),  # skips the unconditional branch outside, unless sharing
    "one pass": CFG(scale=1.0),
}


class Counted(DDT):
    """A tiny DDT with weights that matter, whose encoder blocks tell each time they run."""

    def __init__(self, seed=0, **settings):
        shape = dict(encoder_blocks=2, decoder_blocks=2, width=32, heads=2, size=SHAPE[1:], num_classes=5)
        super().__init__(DDTSettings(**{**shape, **settings}))
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.15, generator=generator)
        self.rows: dict[int, list[int]] = {}  # block (1-based): rows of each call
        for i, block in enumerate(self.blocks, 1):
            self.rows[i] = []
            block.register_forward_pre_hook(lambda module, args, i=i: self.rows[i].append(len(args[0])))
        self.modulations = 0
        self.blocks[-1].modulation.register_forward_hook(lambda *_: setattr(self, "modulations", self.modulations + 1))
        self.eval()

    def clear(self):
        self.modulations = 0
        for rows in self.rows.values():
            rows.clear()


@pytest.fixture
def model():
    return Counted()


def schedule(indices, evaluations=N, keep=True):
    return Sharing(rule="mine.json", evaluations=evaluations, encode=tuple(indices), keep=keep)


def settings(indices=None, evaluations=N, keep=True, **changes):
    sharing = None if indices is None else schedule(indices, evaluations, keep)
    return SamplerSettings(**{"steps": N, **changes}, sharing=sharing)


# ------------------------------------------------------------------------------------------------ schedules


def test_uniform_and_every():
    assert uniform_schedule(10, 4) == [0, 2, 5, 7] and uniform_schedule(5, 5) == [0, 1, 2, 3, 4]
    assert uniform_schedule(250, 1) == [0]
    assert every_schedule(10, 3) == [0, 3, 6, 9] and every_schedule(9, 9) == [0]
    for steps in range(1, 40):
        for k in range(1, steps + 1):
            indices = uniform_schedule(steps, k)
            assert Sharing(rule="uniform", evaluations=steps, encode=tuple(indices)).budget == k
            assert {b - a for a, b in zip(indices, [*indices[1:], steps], strict=True)} <= {steps // k, -(-steps // k)}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: uniform_schedule(10, 0), "a budget of 0 is not between 1 and the 10 evaluations"),
        (lambda: uniform_schedule(10, 11), "a budget of 11 is not between 1 and the 10 evaluations"),
        (lambda: every_schedule(10, 0), "every 0 evaluations is not between 1 and the 10"),
        (lambda: every_schedule(10, 11), "every 11 evaluations is not between 1 and the 10"),
        (lambda: schedule([]), "begin the schedule with 0"),
        (lambda: schedule([1, 2]), "begin the schedule with 0"),
        (lambda: schedule([0, 4, 4]), "ascend without repeats"),
        (lambda: schedule([0, 4, N]), f"ends at evaluation {N}, of {N} counted from 0"),
    ],
)
def test_schedules_that_are_none(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_settings_read_back():
    shared = settings([0, 3, 7], keep=False)
    assert SamplerSettings.model_validate_json(shared.model_dump_json()) == shared
    assert SamplerSettings().sharing is None


# ------------------------------------------------------------------------------------------------ what runs when


@pytest.mark.parametrize("name", GUIDANCE)
@pytest.mark.parametrize("indices", [[0], [0, 1, 5, 11], list(range(N))])
def test_the_encoder_runs_k_times_and_the_decoder_n(model, name, indices):
    _, spent = settings(indices, guidance=GUIDANCE[name]).run(model, START, COND, **RUN)
    branches = 1 if name in ("none", "one pass") else 2
    assert spent == branches * N
    for block in (1, 2):
        assert model.rows[block] == [3 * branches] * len(indices)  # K times, both branches at once
    for block in (3, 4):
        assert model.rows[block] == [3 * branches] * N


@pytest.mark.parametrize("name", GUIDANCE)
def test_every_evaluation_scheduled_changes_nothing(model, name):
    guidance = GUIDANCE[name]
    shared, _ = settings(range(N), guidance=guidance).run(model, START, COND, **RUN)
    if name == "interval":
        guidance = guidance.model_copy(update={"skip_outside": False})
    plain, _ = settings(guidance=guidance).run(model, START, COND, **RUN)
    assert torch.equal(shared, plain)


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "dopri5"])
def test_every_solver_counts_its_evaluations(model, solver):
    """All evaluations scheduled: bit-equal, Heun's correctors and Kutta's stages included."""
    path = DDPM() if solver == "ancestral" else Linear()
    options = {"variance": "fixed_small"} if solver == "ancestral" else {}
    how = dict(path=path, prediction="velocity", noise_source=SampleNoise(3, range(3), SHAPE))
    plain = SamplerSettings(solver=solver, steps=4, options=options)
    count = plain.evaluations(path, "velocity")
    wanted, spent = plain.run(model, START, COND, **how)
    assert spent == count == len(model.rows[1])
    assert count == {"heun": 7, "heun_sde": 7, "midpoint": 8, "heun3": 12, "rk4": 16}.get(solver, 4)
    found, _ = plain.model_copy(update={"sharing": schedule(range(count), count)}).run(model, START, COND, **how)
    assert torch.equal(found, wanted)
    model.clear()
    less, _ = plain.model_copy(update={"sharing": schedule([0, 2], count)}).run(model, START, COND, **how)
    assert len(model.rows[1]) == 2 and len(model.rows[3]) == count and not torch.equal(less, wanted)


def test_reused_states_are_those_of_the_schedule(model):
    """By hand: Euler with encode at 0, 5, 6 and decode everywhere."""
    found, _ = settings([0, 5, 6]).run(model, START, COND, **RUN)
    x, s = START, torch.empty(0)
    with torch.no_grad():
        for k in range(N):
            t = torch.full((3,), 1 - k / N)
            s = model.encode(x, t, COND) if k in (0, 5, 6) else s
            x = x - model.decode(x, s) / N
    assert torch.allclose(found, x, atol=1e-5)
    other, _ = settings([0, 5, 7]).run(model, START, COND, **RUN)
    assert not torch.allclose(found, other, atol=1e-3)


@pytest.mark.parametrize("name", GUIDANCE)
def test_kept_modulations_change_nothing_but_the_work(model, name):
    indices = [0, 3, 4, 9]
    kept, _ = settings(indices, guidance=GUIDANCE[name]).run(model, START, COND, **RUN)
    assert model.modulations == len(indices)
    model.clear()
    made, _ = settings(indices, guidance=GUIDANCE[name], keep=False).run(model, START, COND, **RUN)
    assert model.modulations == N and torch.equal(kept, made)


def test_modulations_are_not_held_where_s_is_used_once(model):
    class Watching:
        settings = model.settings
        handed: list[type] = []  # noqa: RUF012

        def __call__(self, x, t, cond, *, capture=()):
            raise AssertionError("only its halves are used")

        def null(self, cond):
            return model.null(cond)

        def encode(self, x, t, cond):
            return model.encode(x, t, cond)

        def decode(self, x, s):
            self.handed.append(type(s))
            return model.decode(x, s)

    settings([0, 1, 4, 11]).run(Watching(), START, COND, **RUN)
    kept = [4, 5, 6, 7, 8, 9, 10, 1, 2, 3]
    assert [k for k, kind in enumerate(Watching.handed) if kind is SelfCondition] == sorted(kept)


def test_each_run_begins_anew(model):
    """Chunks one after another through one SamplerSettings, as generating does it."""
    shared = settings([0, 4], guidance=CFG(scale=2.0))
    parts = [slice(0, 1), slice(1, 3)]
    first = [shared.run(model, START[rows], COND.index(rows), **RUN)[0] for rows in parts]
    second = [shared.run(model, START[rows], COND.index(rows), **RUN)[0] for rows in reversed(parts)]
    assert all(map(torch.equal, first, reversed(second)))
    together, _ = shared.run(model, START, COND, **RUN)
    assert torch.allclose(torch.cat(first), together, atol=1e-4)


def test_only_the_strong_model_is_shared(model):
    weak = Counted(seed=1)
    shared = settings([0, 6], guidance=Autoguidance(scale=1.5, high=0.5))
    _, spent = shared.run(model, START, COND, **RUN, autoguide=weak)
    assert len(model.rows[1]) == 2 and len(model.rows[4]) == N
    assert len(weak.rows[1]) == len(weak.rows[4]) == 6 and spent == N + 6


def test_the_wrapper_is_a_denoiser_of_the_models_dtype(model):
    """bfloat16 weights are seen through the wrapper; `sample` takes it like any model."""
    model.bfloat16()
    seen = []
    shared = SharedEncoder(model, schedule([0, 2], 4), observe=lambda *told: seen.append(told))
    assert isinstance(shared, Denoiser) and shared.settings is model.settings
    assert shared.null(COND).label.tolist() == [5, 5, 5]
    x = sample(shared, START, COND, solver="euler", times=torch.linspace(1, 0, 5), **RUN)
    assert x.dtype == torch.float32 and (shared.evaluated, shared.encoded) == (4, 2)
    assert [(index, t.tolist()) for index, _, t, _ in seen] == [(0, [1.0] * 3), (2, [0.5] * 3)]
    assert all(x.dtype == s.dtype == torch.bfloat16 and s.shape == (3, 12, 32) for _, x, _, s in seen)


# ------------------------------------------------------------------------------------------------ refusals


def refused(sampler, model, message):
    """One clear line, before the network has run."""
    with pytest.raises(ValueError, match=message) as error:
        sampler.run(model, START, COND, **RUN)
    assert "\n" not in str(error.value)
    assert not any(getattr(model, "rows", {}).values())


def test_a_schedule_for_another_count(model):
    message = "'mine.json' was made for 10 evaluations and this sampler makes"
    refused(settings([0, 5], 10), model, f"{message} 12")
    refused(settings([0, 5], 10, solver="heun"), model, f"{message} 23")


def test_models_that_cannot_share(model):
    shape = dict(depth=1, width=32, heads=2, patch=2, channels=4, size=SHAPE[1:], num_classes=5)
    refused(settings([0, 5]), DiT(DiTSettings(**shape)), "DiT has no encode and decode")
    refused(settings([0, 5]), lambda x, t, cond: Output(x), "function has no encode and decode")
    refused(settings([0, 5]), Counted(encoder_blocks=0), "no encoder blocks")


def test_adaptive_solvers(model):
    refused(settings([0, 5], solver="dopri5"), model, "adaptive solvers cannot share")
    with pytest.raises(ValueError, match="adaptive solvers cannot share"):
        SamplerSettings(solver="dopri5").evaluations(Linear(), "velocity")


def test_a_changing_batch(model):
    """Where one's own loop lets guidance skip a branch: refused while s is reused, fine where s is new."""
    shared = SharedEncoder(model, schedule([0, 2], 4))
    denoise = Denoise(shared, COND, guidance=CFG(scale=2.0, high=0.8), **RUN)
    denoise(START, 1.0, 0)
    with pytest.raises(ValueError, match="the batch changed from 3 to 6 rows while s is reused"):
        denoise(START, 0.7, 1)
    shared = SharedEncoder(model, schedule([0, 1], 4))
    denoise = Denoise(shared, COND, guidance=CFG(scale=2.0, high=0.8), **RUN)
    denoise(START, 1.0, 0)
    assert denoise(START, 0.7, 1).velocity.isfinite().all()


def test_one_object_serves_one_run(model):
    shared = SharedEncoder(model, schedule([0], 2))
    t = torch.ones(3)
    for _ in range(2):
        shared(START, t, COND)
    with pytest.raises(ValueError, match="evaluation 3 of a schedule made for 2: one object serves one run"):
        shared(START, t, COND)
    with pytest.raises(ValueError, match="capture without sharing"):
        SharedEncoder(model, schedule([0], 2))(START, t, COND, capture=(1,))
