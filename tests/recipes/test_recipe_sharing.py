"""Encoder sharing of a loaded model: the store, rules as schedules, what a trade-off is made of."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ditkit.analysis.cost import sharing_cost
from ditkit.diffusion import CFG, Sharing
from ditkit.evaluation import Moments, Reference, make_request
from ditkit.protocols import Condition
from ditkit.recipes import sharing_page
from ditkit.recipes.load import load
from ditkit.recipes.measure_sharing import Watched, choose_reach, measure, obtain
from ditkit.recipes.sharing import Measured, Place, digest, parse_sharing, read_schedule, write_schedule
from ditkit.recipes.sharing_page import SharingFindings, compared, different, sharing_sections, trade_off_rows
from ditkit.recipes.trade_off import Arm, Distance, Point, TradeOff, distance, point, predict, run_arms, work

SIZE = (8, 8)


@pytest.fixture(scope="module")
def loaded(tiny_ddt):
    return load(tiny_ddt)


@pytest.fixture
def measured():
    """A measurement whose two statistics want different schedules: s changes early, the velocity minds late."""
    i = np.arange(6)
    early, late = 1 - 0.9**i, (i / 5) ** 3
    similarity = 1 - np.abs(early[:, None] - early)
    error = (late[:, None] - late) ** 2
    return Measured(similarity, error, 1 - i / 6, {}, {"templates": 2, "seed": 0})


def test_a_measurement_reads_back_equal(measured, tmp_path):
    branched = Measured(measured.similarity, measured.error, measured.times, {"time": np.arange(6.0)}, {"a": [1, "b"]})
    branched.save(tmp_path / "x")
    found = Measured.load(tmp_path / "x")
    for name in ("similarity", "error", "times"):
        assert np.array_equal(getattr(found, name), getattr(branched, name))
    assert found.facts == {"a": [1, "b"]} and np.array_equal(found.branches["time"], np.arange(6.0))
    assert Measured.load(tmp_path / "y") is None and found.evaluations == 6


def test_rules_become_schedules(loaded, measured, tmp_path):
    sampling = loaded.recipe.sampling
    place = Place(tmp_path, SIZE, ("run",))
    measured.save(place.folder(loaded, sampling))

    def parsed(text, keep=True):
        found = parse_sharing(text, loaded, sampling, place, keep)
        return found and (found.rule, found.evaluations, found.encode, found.keep)

    assert parsed("uniform:4") == ("uniform:4", 6, (0, 1, 3, 4), True)
    assert parsed("every:4", keep=False) == ("every:4", 6, (0, 4), False)
    assert parsed("none") is None
    dp, velocity = parsed("dp:2"), parsed("velocity:2")
    assert dp == ("dp:2", 6, (0, 3), True) and velocity == ("velocity:2", 6, (0, 4), True)
    file = write_schedule(measured.schedule("velocity", 2), tmp_path)
    assert file.name == "velocity-2.json" and parsed(str(file)) == velocity
    light = write_schedule(Sharing(rule="mine", evaluations=6, encode=(0,), keep=False), tmp_path)
    assert parsed(str(light)) == ("mine", 6, (0,), False), "a file may say that nothing is kept"
    assert read_schedule(light).budget == 1


def test_a_digest_is_of_all_that_moves_s(loaded, tiny_ddt):
    sampling = loaded.recipe.sampling
    first = digest(loaded, sampling, SIZE)
    shared = sampling.model_copy(update={"sharing": Sharing(rule="x", evaluations=6, encode=(0,))})
    assert digest(loaded, shared, SIZE) == first == digest(load(tiny_ddt), sampling, SIZE)
    others = [
        digest(loaded, sampling, (16, 8)),
        digest(load(tiny_ddt, "raw"), sampling, SIZE),
        digest(load(tiny_ddt, step=3), sampling, SIZE),
        # a published file does not tell heads and split: the same weights are another network
        digest(replace(loaded, settings=loaded.settings.with_({"heads": 1})), sampling, SIZE),
        digest(replace(loaded, settings=loaded.settings.with_({"encoder_blocks": 1})), sampling, SIZE),
        *(digest(loaded, sampling.with_(changes), SIZE) for changes in (
            {"steps": 7}, {"shift": 2.0}, {"last": 0.1}, {"solver": "multistep"}, {"guidance": CFG(scale=2)},
        )),
    ]  # fmt: skip
    assert len({first, *others}) == 11


def test_measuring_reports_all_of_its_work(loaded):
    sampling = loaded.recipe.sampling.model_copy(update={"guidance": CFG(scale=2.0)})
    said: dict[str, list] = {}

    def bar(stage, done, total):
        said.setdefault(stage, []).append((done, total))

    found = measure(loaded, sampling, 2, 0, SIZE, bar)
    assert {stage: told[-1][1] for stage, told in said.items()} == {"similarity": 24, "velocity": 84, "branches": 96}
    assert all(told[-1][0] == told[-1][1] for told in said.values()), "the bars end full"
    assert (
        set(found.branches) == {"similarity", "branch", "time", "same", "output"} and found.facts["branch_work"] > 0.5
    )


def test_the_harm_is_measured_as_far_as_the_budgets_need():
    assert choose_reach(100, [10]) == 99 and choose_reach(250, [25, 50]) == 40 and choose_reach(250, [2]) == 249
    assert choose_reach(250, [25], 9) == 9 and choose_reach(6, [3], 80) == 5 and choose_reach(1, [1]) == 0
    with pytest.raises(ValueError, match=r"reach=8: 25 encoder runs for 250 evaluations .* give reach=9 or more"):
        choose_reach(250, [50, 25], 8)


def test_a_short_reach_takes_less_work_and_is_found_again_by_those_that_need_no_more(loaded, tmp_path):
    told: list[tuple[int, int]] = []

    def bar(stage, done, total):
        if stage == "velocity":
            told.append((done, total))

    def obtained(reach):
        return obtain(loaded, loaded.recipe.sampling, 2, 0, SIZE, tmp_path, bar, reach)

    short, there = obtained(2)
    rows = 2 * (6 + 1 + 2 + 2 + 2 + 2)  # the decoder once for itself, and once for each s within reach
    assert not there and short.reach == short.facts["reach"] == 2 and told[-1] == (rows, rows)
    assert obtained(1)[1] and obtained(2)[1]
    assert short.schedule("velocity", 2).budget == 2
    with pytest.raises(ValueError, match=r"some s has to serve 6 of the 6 .* measured for 3 at most$"):
        short.schedule("velocity", 1)
    assert short.schedule("dp", 1).encode == (0,), "the similarity is known everywhere"
    place = Place(tmp_path / "home", SIZE, ("run",))
    short.save(place.folder(loaded, loaded.recipe.sampling))
    with pytest.raises(ValueError, match=r"at most; measure it first: ditkit analyze sharing run --budget 1$"):
        parse_sharing("velocity:1", loaded, loaded.recipe.sampling, place)
    whole, there = obtained(None)
    assert not there and whole.reach == 5 and obtained(4)[1] and obtained(99)[1] and obtained(None)[1]
    near = np.isfinite(short.error)
    assert np.allclose(short.error[near], whole.error[near], rtol=1e-5, atol=1e-12)


def test_a_watched_model_says_what_the_model_says(loaded):
    seen = []
    watched = Watched(loaded.model, lambda *told: seen.append(told), "s", 4)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.5, 0.5])
    label = Condition(label=torch.tensor([1, 2]))
    want = loaded.model(x, t, label).sample
    assert torch.equal(watched.decode(x, watched.encode(x, t, label)), want)
    assert torch.equal(watched(x, t, label).sample, want) and seen == [("s", 2, 4)]


def test_paired_limits_are_narrower_than_those_of_each():
    torch.manual_seed(0)
    real, base = torch.randn(400, 3), torch.randn(200, 3) * 1.2
    reference = Reference("x", real, Moments.of(real))
    shared = base + 0.02 * torch.randn(200, 3) + 0.05
    found, alone = distance(shared, reference, base), distance(base, reference)
    assert found.more == pytest.approx(found.value - alone.value) and alone.more == 0 and alone.more_interval is None
    low, high = found.more_interval
    assert low < found.more < high and high - low < 0.5 * (found.interval[1] - found.interval[0])
    assert distance(base, reference, base).more_interval is None, "equal images show no spread"
    assert distance(shared[:90], reference, base[:90]).interval is None, "too few for limits"


def test_the_prediction_counts_the_branches_that_run(loaded):
    costs = sharing_cost(loaded.recipe.model)
    plain = loaded.recipe.sampling
    sharing = Sharing(rule="every:3", evaluations=6, encode=(0, 3))
    shared = plain.model_copy(update={"sharing": sharing})
    want = costs.speedup(6, 2)
    assert predict(loaded, Arm(shared, evaluations=6), Arm(plain, evaluations=6), SIZE) == pytest.approx(want)
    assert predict(loaded, Arm(shared, evaluations=12), Arm(plain, evaluations=12), SIZE) == pytest.approx(want)
    # guidance in half of the time costs 9 of 12 passes without sharing, and all 12 with it
    assert predict(loaded, Arm(shared, evaluations=12), Arm(plain, evaluations=9), SIZE) == pytest.approx(0.75 * want)
    light = plain.model_copy(update={"sharing": sharing.model_copy(update={"keep": False})})
    assert 1 < predict(loaded, Arm(light, evaluations=6), Arm(plain, evaluations=6), SIZE) < want
    assert predict(loaded, Arm(plain), Arm(plain), SIZE) == 1


def test_arms_take_turns_and_see_the_same_noise(loaded):
    plain = loaded.recipe.sampling
    everywhere = Sharing(rule="every:1", evaluations=6, encode=tuple(range(6)))
    arms = {
        "none": Arm(plain),
        "all": Arm(plain.model_copy(update={"sharing": everywhere})),
        "one": Arm(plain.model_copy(update={"sharing": Sharing(rule="uniform:1", evaluations=6, encode=(0,))})),
    }
    told = []
    request = make_request(20, 10, "balanced", seed=3).with_({"chunk": 8})
    rounds = run_arms(loaded, arms, request, {}, lambda *args: told.append(args))
    assert rounds == 5 and all(len(arm.seconds) == 5 for arm in arms.values())
    assert told[-1] == ("trade-off", 15, 15)
    assert arms["all"].moved == arms["none"].moved == 0 and arms["one"].moved > 0
    assert arms["one"].bytes == 20 * 64 and arms["one"].evaluations == 6


@pytest.fixture
def tried():
    """A made-up trade-off: at K = 2 both solved schedules are one; at K = 3 the velocity's moves the images least."""

    def at(rule, encode, change):
        far = Distance(value=2.0 + change, interval=(1.5, 2.5), more=change, more_interval=(0.0, 2 * change))
        sharing = Sharing(rule=rule, evaluations=6, encode=encode)
        return Point(
            sharing=sharing, seconds=0.5, speedup=2.0, speedup_range=(1.9, 2.1), predicted=2.2, change=change,
            changed=0.5, psnr=30.0, distances={"pixels": far},
        )  # fmt: skip

    points = (
        at("uniform:2", (0, 3), 0.4), at("dp:2", (0, 2), 0.3), at("velocity:2", (0, 2), 0.3),
        at("uniform:3", (0, 2, 4), 0.2), at("dp:3", (0, 1, 3), 0.25), at("velocity:3", (0, 3, 4), 0.1),
    )  # fmt: skip
    unshared = Point(sharing=None, seconds=1.0, distances={"pixels": Distance(value=2.0, interval=(1.5, 2.5))})
    return TradeOff(
        sampler="euler", images=100, rounds=5, batch=64, seed=1, labels="balanced", evaluations=6, device="cpu",
        threads=1, spaces={"pixels": "pixels-1x8x8"}, real="abc", real_images=200, classifier_accuracy=None,
        unshared=unshared, points=points,
    )  # fmt: skip


def test_equal_schedules_are_one_row(tried):
    rows = trade_off_rows(tried)
    assert [row[0] for row in rows] == ["none", "uniform:3", "dp:3", "velocity:3", "uniform:2", "dp = velocity:2"]
    assert rows[0][-1] == "" and rows[-1][-2:] == ["2.3", "+0.3 (+0 to +0.6)"]
    assert [kinds for kinds, _ in different(tried, 2)] == [["uniform"], ["dp", "velocity"]]


def test_the_words_say_who_wins_and_who_does_not(tried):
    lines = compared(tried)
    assert lines == [
        "Encoder at 2 of 6 evaluations: 2.00 times as fast (multiply-accumulates predict 2.20). Fréchet distance in "
        "pixels without sharing: 2.",
        "Uniform: Fréchet distance 2.4 (difference +0 to +0.8), latents moved by 40.0%.",
        "DP on similarity = DP on velocity error: Fréchet distance 2.3 (difference +0 to +0.6), latents moved by "
        "30.0%.",
        "The latents move least with DP on similarity = DP on velocity error at K = 2; DP on velocity error at K = 3.",
    ]


def test_distances_of_too_few_images_are_doubted(tried):
    few = tried.model_copy(update={"biased": tuple(tried.spaces)})
    assert "biased" not in "".join(compared(tried)) and compared(few)[-1].endswith("distances are biased upwards.")
    assert "distances are biased upwards" in str(sharing_page.trade_off_table(few))


def test_sections_without_a_trade_off_and_beyond_a_reach(measured, tried):
    measured.error[5, 0] = math.inf
    schedules = [measured.schedule(kind, 2) for kind in ("dp", "velocity")]
    found = SharingFindings(measured, schedules)
    assert [s.title for s in sharing_sections(found)] == [
        "How alike the self-conditions are", "Schedules", "How it was measured",
    ]  # fmt: skip
    whole = sharing_sections(SharingFindings(measured, schedules, tried))
    assert [s.title for s in whole][2] == "Trade-off" and "dp = velocity:2" in whole[2].body


def test_schedules_of_equal_work_share_their_times(loaded):
    def arm(rule, encode, seconds, keep=True):
        sharing = Sharing(rule=rule, evaluations=6, encode=encode, keep=keep)
        sampling = loaded.recipe.sampling.model_copy(update={"sharing": sharing})
        return Arm(sampling, seconds=seconds, evaluations=6)

    unshared = Arm(loaded.recipe.sampling, seconds=[4.0, 4.0, 4.0], evaluations=6)
    a, b = arm("uniform:2", (0, 3), [2.0, 2.0, 1.0]), arm("dp:2", (0, 4), [1.0, 1.0, 1.0])
    others = arm("uniform:3", (0, 2, 4), [3.0] * 3), arm("light", (0, 3), [3.0] * 3, keep=False)
    assert work(a) == work(b) and len({work(x) for x in (unshared, a, *others)}) == 4
    found = point(loaded, a, unshared, [a, b], {}, SIZE)
    assert (found.seconds, found.speedup, found.speedup_range) == (1.0, 4.0, (2.0, 4.0))
