"""Benchmarks: what is timed, by a clock that moves only as the test says; and real runs of tiny networks."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ditkit.analysis.cost import cost, sharing_cost
from ditkit.diffusion import CFG, SampleNoise, SamplerSettings, Sharing
from ditkit.models import DiT, build_model, ddt_settings
from ditkit.protocols import Condition, Output, SelfCondition
from ditkit.recipes import recipe
from ditkit.recipes.benches.bench import ENOUGH, Bench, BenchSettings, network
from ditkit.recipes.benches.registry import measure
from ditkit.recipes.benches.sampling import Arm, rival, sides, timed_run
from ditkit.recipes.stopwatch import Run, cpu_threads, spread, timed

CPU = torch.device("cpu")
SIT = recipe("digits.sit").with_({"model.depth": 2, "model.width": 16, "model.heads": 2})
DDT = recipe("digits.ddt").with_({"model.encoder_blocks": 2, "model.width": 16, "model.heads": 2, "align.depth": 1})
WHOLE, ALONE, KEPT, DRAW, STEP = 4.0, 1.5, 1.0, 0.25, 0.5  # seconds of the made-up clock


def bench(which, **settings) -> Bench:
    return Bench(which, BenchSettings(**{"batch": 2, "repeats": 2, **settings}), CPU)


class Costly(nn.Module):
    """A network that does nothing, in a known time."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def forward(self, x, t, cond, *, capture=()):
        self.clock.now += WHOLE
        return Output(x)

    def null(self, cond: Condition) -> Condition:
        return cond


class Halves(Costly):
    """The same in two halves; a decoder that remembers its modulations is faster."""

    def encode(self, x, t, cond):
        self.clock.now += WHOLE - ALONE
        return x

    def decode(self, x, s):
        kept = isinstance(s, SelfCondition)
        self.clock.now += KEPT if kept and s.modulations else ALONE
        if kept:
            s.modulations = (s.s,)
        return x


@pytest.fixture
def clock(monkeypatch):
    """Time passes in the networks above, in draws, and as each step begins: nowhere else."""
    clock = SimpleNamespace(now=0.0, stages=[])
    draw = SampleNoise._draw
    fake = SimpleNamespace(perf_counter=lambda: clock.now)
    monkeypatch.setattr("ditkit.recipes.stopwatch.time", fake)
    monkeypatch.setattr("ditkit.recipes.benches.bench.time", fake)
    monkeypatch.setattr(
        "ditkit.recipes.benches.sampling.network",
        lambda bench, model, *_: Halves(clock) if model.kind == "ddt" else Costly(clock),
    )

    def drawing(self, *asked):
        clock.now += DRAW
        return draw(self, *asked)

    def progress(stage, done, total):
        clock.now += STEP
        clock.stages.append((stage, done, total))

    monkeypatch.setattr(SampleNoise, "_draw", drawing)
    clock.progress = progress
    return clock


def test_the_loop_is_what_a_run_takes_beside_its_network(clock):
    changes = {"sampling.solver": "euler_maruyama", "sampling.last": 0.04}
    found = measure("sampling", bench(SIT.with_(changes), steps=5, peak=1e-3), progress=clock.progress)["results"]
    assert found["seconds_a_call"] == {"median": WHOLE, "least": WHOLE, "most": WHOLE, "n": 10}
    assert found["loop_percent"]["median"] == pytest.approx(100 * (5 * STEP + 4 * DRAW) / (5 * WHOLE)), "last: no draw"
    assert found["noise_percent"]["median"] == pytest.approx(100 * 4 * DRAW / (5 * WHOLE))
    run = 5 * (WHOLE + STEP) + 4 * DRAW
    assert found["seconds_a_run"]["median"] == pytest.approx(run)
    assert found["images_a_second"]["median"] == pytest.approx(2 / run)
    assert found["evaluations_a_second"]["median"] == pytest.approx(2 * 5 / run)
    rate = 2 * cost(SIT.model).gmacs / WHOLE
    assert found["gmacs_a_second"]["median"] == pytest.approx(rate)
    assert found["peak_percent"]["median"] == pytest.approx(100 * (2 * rate / 1000) / 1e-3), "2 FLOP a MAC"
    assert [s for s in clock.stages if s[0] == "sampling"] == [("sampling", i, 10) for i in range(11)]


def test_a_guided_call_holds_both_branches(clock):
    found = measure("sampling", bench(SIT.with_({"sampling.guidance": CFG(scale=2.0, high=0.5)}), steps=4))["results"]
    assert found["rows_a_call"] == [2, 4] and found["evaluations_an_image"] == 1 + 1 + 2 + 2
    assert found["evaluations_a_second"]["median"] == pytest.approx(2 * 6 / (4 * WHOLE))
    assert found["gmacs_a_second"]["most"] == pytest.approx(2 * found["gmacs_a_second"]["least"])


def test_speedups_stand_beside_what_multiply_accumulates_predict(clock):
    found = measure("sharing", bench(DDT, steps=7, every=3))["results"]
    assert found["schedule"] == [0, 3, 6]
    arms, spent = found["arms"], sharing_cost(DDT.model)
    assert list(arms) == ["DDT", "DDT shared", "DDT shared, modulations remade", "SiT"]
    shared = arms["DDT shared"]
    assert shared["seconds_with_encoder"] == {"median": WHOLE, "least": WHOLE, "most": WHOLE, "n": 2 * 3}
    assert shared["seconds_without_encoder"] == {"median": KEPT, "least": KEPT, "most": KEPT, "n": 2 * 4}
    assert arms["DDT shared, modulations remade"]["seconds_without_encoder"]["median"] == ALONE
    assert arms["DDT"]["seconds_without_encoder"] is None
    gain = found["speedup"]["DDT shared"]["DDT"]
    assert gain["measured"] == gain["by_evaluation"] == pytest.approx(7 * WHOLE / (3 * WHOLE + 4 * KEPT))
    assert gain["predicted"] == pytest.approx(7 * spent.full / (3 * spent.full + 4 * spent.shared))
    assert gain["attained_percent"] == pytest.approx(100 * gain["measured"] / gain["predicted"])
    over_sit = found["speedup"]["DDT shared, modulations remade"]["SiT"]
    sit = cost(rival(DDT.model, "")[1]).gmacs
    assert over_sit["predicted"] == pytest.approx(7 * sit / (3 * spent.full + 4 * spent.decoder))
    assert over_sit["measured"] == pytest.approx(7 * WHOLE / (3 * WHOLE + 4 * ALONE))


def test_an_accelerator_is_run_once_more_without_waiting(clock, monkeypatch):
    monkeypatch.setattr("ditkit.recipes.benches.sampling.runs_ahead", lambda device: True)
    arm = Arm(Costly(clock), SIT.model, SamplerSettings(steps=3), 1.0)
    run = timed_run(bench(SIT, steps=3), arm, lambda step, steps: None)
    assert len(run.calls) == 3 and run.watched == run.seconds == 3 * WHOLE and clock.now == 6 * WHOLE + DRAW
    slow = Run(5.0, 6.0, run.calls[:1], 1, run.latents)
    assert slow.loop_percent == pytest.approx(100 * (6.0 - WHOLE) / WHOLE), "of the run in which it was timed"


def test_arms_take_turns_for_ten_seconds_or_as_often_as_asked(clock, monkeypatch):
    seen = []

    def run(bench, arm, told):
        seen.append(arm.gmacs)
        clock.now += ENOUGH / 6
        return Run(1.0, 1.0, [], 1, torch.zeros(1))

    monkeypatch.setattr("ditkit.recipes.benches.sampling.timed_run", run)
    arms = {name: Arm(nn.Identity(), SIT.model, SamplerSettings(), mark) for name, mark in (("a", 1.0), ("b", 2.0))}
    assert [len(runs) for runs in sides(bench(SIT, repeats=None), arms).values()] == [3, 3]
    assert seen == [1.0, 2.0] * 3
    assert len(sides(bench(SIT, repeats=5), arms)["b"]) == 5


# ---------------------------------------------------------------------------------------------------- real networks


def latents(model, shape, sharing=None, steps=4):
    arm = Arm(model, shape, SamplerSettings(steps=steps, sharing=sharing), 1.0)
    return timed_run(bench(DDT, steps=steps), arm, lambda step, steps: None)


def test_sharing_with_the_encoder_at_every_evaluation_changes_nothing():
    model = network(bench(DDT), DDT.model)
    plain, calls = latents(model, DDT.model), []
    each = latents(model, DDT.model, Sharing(rule="every:1", evaluations=4, encode=(0, 1, 2, 3)))
    rare = latents(model, DDT.model, Sharing(rule="every:2", evaluations=4, encode=(0, 2)))
    assert torch.equal(plain.latents, each.latents)
    assert (plain.latents - rare.latents).abs().max() > 2e-5, "random weights leave s something to say"
    assert [call.part for call in each.calls] == ["encode", "decode"] * 4
    assert [call.part for call in rare.calls] == ["encode", "decode", "decode"] * 2
    assert [call.part for call in plain.calls] == ["forward"] * 4 and {call.rows for call in plain.calls} == {2}
    assert measure("sharing", bench(DDT, steps=4, every=2, repeats=1))["results"]["bit_equal"] is True
    with timed(model, CPU, calls):
        assert "forward" in vars(model)
    assert not {"forward", "encode", "decode"} & set(vars(model)), "the network is as it was"


@pytest.mark.parametrize("which", [SIT, DDT])
def test_no_weight_is_left_at_zero(which):
    assert not all(p.any() for p in build_model(which.model).parameters()), "published initialisations end in zeros"
    one, same, other = (network(bench(which, seed=s), which.model) for s in (0, 0, 1))
    assert all(p.any() for p in one.parameters()) and not one.training
    pairs = [zip(one.parameters(), two.parameters(), strict=True) for two in (same, other)]
    assert all(torch.equal(a, b) for a, b in pairs[0]) and not all(torch.equal(a, b) for a, b in pairs[1])


def test_warm_up_calls_the_network_on_the_whole_batch(monkeypatch):
    seen, stages, forward = [], [], DiT.forward
    monkeypatch.setattr(DiT, "forward", lambda self, x, t, cond: seen.append(len(x)) or forward(self, x, t, cond))
    network(bench(SIT, batch=3, warmup=2), SIT.model, 2, lambda *told: stages.append(told))
    assert seen == [6, 6] and stages[-1] == ("preparing dit", 3, 3)


def test_weights_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr("ditkit.recipes.benches.bench.available", lambda device: 2**30)
    with pytest.raises(ValueError, match=r"the weights take 2\.\d GiB, cpu has 1\.0 GiB"):
        network(bench(DDT), ddt_settings("XL/2"))


@pytest.mark.parametrize("size", ["b", "l", "xl"])
def test_sit_of_the_same_size_is_the_published_one(size):
    name, made = rival(ddt_settings(f"{size.upper()}/2"), "")
    assert name == "SiT" and made == recipe(f"sit.{size}_2_256").model


def test_the_other_side_can_be_named_or_left_out():
    assert rival(DDT.model, "none") is None
    assert rival(DDT.model, "digits.sit") == ("digits.sit", recipe("digits.sit").model)
    assert "SiT" not in measure("sharing", bench(DDT, repeats=1, against="none"))["results"]["arms"]


def test_a_result_is_json_and_names_no_folder(tmp_path):
    found = measure("sampling", bench(SIT.model_copy(update={"name": str(tmp_path / "mine.py:big")}), threads=1))
    text = json.dumps(found, allow_nan=False)
    assert found["recipe"] == "mine.py:big" and str(tmp_path) not in text
    assert {"date", "command", "environment", "settings", "model"} < set(found)
    assert found["environment"]["threads"] == 1 and found["environment"]["cpu"]
    assert found["model"] == SIT.model.model_dump(mode="json")


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with cpu_threads(None):
        assert torch.get_num_threads() == before


def test_spread():
    assert spread([3.0, 1.0, 2.0, 10.0]) == {"median": 2.5, "least": 1.0, "most": 10.0, "n": 4}
    assert spread([]) is None


SHARED = Sharing(rule="every:5", evaluations=5, encode=(0,))


@pytest.mark.parametrize(
    ("what", "which", "settings", "said"),
    [
        ("samplin", SIT, {}, "no benchmark 'samplin'; did you mean 'sampling'"),
        ("sharing", SIT, {}, "has no encoder to share"),
        ("sharing", DDT.with_({"model": ddt_settings("B/2", encoder_blocks=0)}), {}, "has no encoder to share"),
        ("sharing", DDT, {"every": 6}, "every 6 evaluations is not between 1 and the 5"),
        ("sharing", DDT, {"against": "sit.s_2"}, r"latents of \(4, 32, 32\), this DDT on \(1, 8, 8\)"),
        ("sharing", DDT, {"against": "sit.s_3"}, "no such recipe"),
        ("sharing", DDT, {"peak": 1.0}, "peak is a setting of bench sampling"),
        ("sampling", DDT, {"every": 2}, "every is a setting of bench sharing"),
        ("sampling", DDT.with_({"sampling.sharing": SHARED}), {}, "see bench sharing"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_built(monkeypatch, what, which, settings, said):
    monkeypatch.setattr("ditkit.recipes.benches.sampling.network", lambda *_: pytest.fail("built"))
    with pytest.raises(ValueError, match=said) as caught:
        measure(what, bench(which, **settings))
    assert "\n" not in str(caught.value)
