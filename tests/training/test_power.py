"""Power-function averages after EDM2's section 3 and appendix C: profiles, their products, and other widths of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ditkit.training.power import WIDEST, Profile, fit, fits, gamma_of, inner, reach, width_of

WIDTHS = (0.05, 0.1)
TIME = 800
STORED = [Profile(width, time) for time in range(50, TIME + 1, 50) for width in WIDTHS]


def density(profile: Profile, s: np.ndarray) -> np.ndarray:
    """The profile at times s, as the paper writes it."""
    gamma = gamma_of(profile.width)
    inside = np.clip(s / profile.time, 1e-300, None)
    return np.where(s <= profile.time, (gamma + 1) / profile.time * inside**gamma, 0.0)


def bins(profile: Profile, updates: int) -> np.ndarray:
    """What the weights of each update count: the profile's integral from s - 1 to s."""
    edges = np.minimum(np.arange(updates + 1) / profile.time, 1.0)
    return np.diff(edges ** (gamma_of(profile.width) + 1))


def tracked(history: np.ndarray, width: float) -> np.ndarray:
    """The running average of the rows, by its definition: beta(t) = (1 - 1 / t)^(gamma + 1)."""
    average = np.zeros(history.shape[1])
    for t, row in enumerate(history, 1):
        beta = (1 - 1 / t) ** (gamma_of(width) + 1)
        average = beta * average + (1 - beta) * row
    return average


def test_the_papers_exponents():
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005) and gamma_of(0.1) == pytest.approx(6.94, abs=0.005)
    assert gamma_of(WIDEST) == pytest.approx(0, abs=1e-6)  # all weights count alike
    for width in (0.003, 0.02, 0.05, 0.1, 0.2, 0.28):
        assert width_of(gamma_of(width)) == pytest.approx(width, rel=1e-12)
    for wrong in (0, -0.1, 0.3):
        with pytest.raises(ValueError, match=r"above 0 and up to 0\.289"):
            gamma_of(wrong)


@pytest.mark.parametrize("width", [0.02, 0.1, 0.25])
def test_a_width_is_the_standard_deviation_of_its_profile(width):
    s = (np.arange(400_000) + 0.5) / 400_000
    p = density(Profile(width, 1.0), s)
    mean = (p * s).mean()
    assert p.mean() == pytest.approx(1, abs=1e-6)
    assert math.sqrt((p * (s - mean) ** 2).mean()) == pytest.approx(width, rel=1e-5)


def test_the_running_average_has_this_profile():
    """Weights that are 1 at one update and 0 at all others show what each update counts."""
    updates = 40
    for width in (0.05, 0.2):
        counts = tracked(np.eye(updates), width)
        assert counts == pytest.approx(bins(Profile(width, updates), updates), abs=1e-14)
        assert counts.sum() == pytest.approx(1, abs=1e-13)


def test_products_equal_brute_force_integrals():
    profiles = [Profile(0.05, 10.0), Profile(0.1, 10.0), Profile(0.1, 7.0), Profile(0.25, 3.0), Profile(0.02, 9.0)]
    s = (np.arange(2_000_000) + 0.5) / 200_000
    values = [density(p, s) for p in profiles]
    brute = np.array([[(a * b).sum() / 200_000 for b in values] for a in values])
    assert inner(profiles, profiles) == pytest.approx(brute, rel=1e-5)
    assert np.isfinite(inner([Profile(0.005, 1e7)], [Profile(0.28, 10.0)])).all()


def test_what_was_stored_is_found_again_exactly():
    for i, profile in enumerate(STORED):
        found = fit(STORED[: i + 2], profile)
        assert found.missed == 0 and np.array_equal(found.weights, np.eye(len(STORED[: i + 2]))[i])
    with pytest.raises(ValueError, match="no stored profile"):
        fit([], STORED[0])


def test_weights_sum_to_one_and_what_is_missed_is_the_distance():
    for width in (0.03, 0.07, 0.15, 0.2):
        wanted = Profile(width, TIME)
        found = fit(STORED, wanted)
        assert found.weights.sum() == pytest.approx(1, abs=1e-12)
        s = (np.arange(400_000) + 0.5) * TIME / 400_000
        left = sum(w * density(p, s) for w, p in zip(found.weights, STORED, strict=True)) - density(wanted, s)
        relative = math.sqrt((left**2).mean() / (density(wanted, s) ** 2).mean())
        assert found.missed == pytest.approx(relative, rel=1e-3)


def test_no_other_weights_of_sum_one_come_nearer():
    wanted = Profile(0.15, TIME)
    found = fit(STORED, wanted)

    def distance(weights: np.ndarray) -> float:
        gram, aim = inner(STORED, STORED), inner(STORED, [wanted])[:, 0]
        return float(weights @ gram @ weights - 2 * weights @ aim + inner([wanted], [wanted])[0, 0])

    rng, best = np.random.default_rng(0), distance(found.weights)
    for _ in range(200):
        move = rng.normal(size=len(STORED)) * 1e-3
        assert distance(found.weights + move - move.mean()) > best


@pytest.mark.parametrize("width, miss", [(0.03, 0.05), (0.06, 0.005), (0.08, 0.005), (0.15, 0.01), (0.2, 0.03)])
def test_an_average_made_afterwards_is_near_the_one_that_was_tracked(width, miss):
    """A random walk of 800 steps in 300 dimensions, averages of 0.05 and 0.1 stored at 16 of them.

    The profile's miss bounds the average's: over weights of unit variance an average moves by no more than it.
    """
    history = np.random.default_rng(1).normal(size=(TIME, 300)).cumsum(0)
    stored = np.stack([tracked(history[: int(p.time)], p.width) for p in STORED])
    found = fit(STORED, Profile(width, TIME))
    made, direct = found.weights @ stored, tracked(history, width)
    assert found.missed < miss
    distance = np.linalg.norm(made - direct) / np.linalg.norm(history[-1] - direct)
    assert distance < 2 * miss, distance
    still = np.full((TIME, 3), 7.0)
    again = found.weights @ np.stack([tracked(still[: int(p.time)], p.width) for p in STORED])
    assert again == pytest.approx(still[0], rel=1e-12)  # weights that never moved


def test_more_and_more_varied_averages_reach_farther():
    late, seldom = STORED[-8:], [p for p in STORED if p.time % 200 == 0]
    near, rough, many = (reach(stored, TIME, 0.05) for stored in (late, seldom, STORED))
    assert near and rough and many
    assert near[0] == many[0] and near[1] < 0.15 < 0.2 < many[1]  # the far past is in early ones only
    assert many[0] < 0.03 < 0.04 < rough[0]  # what lies between two of them is not seen
    one = reach([p for p in STORED if p.width == 0.05], TIME, 0.05)
    assert one and one[1] < 0.1
    assert reach([Profile(0.05, 10)], TIME, 0.05) is None  # nothing from these times
    narrow, wide = fits(STORED, [Profile(many[0] * 0.8, TIME), Profile(min(many[1] * 1.2, 0.288), TIME)])
    assert narrow.missed > 0.05 and wide.missed > 0.05


def test_there_is_no_profile_before_the_first_averaging():
    """One at time 0 made every weight NaN, and missed 0."""
    for stored, wanted in (((0, 100), 100), ((0,), 0), ((math.nan, 100), 100)):
        with pytest.raises(ValueError, match=r"a profile at time (0|nan): averages begin with the first averaging"):
            fit([Profile(0.05, time) for time in stored], Profile(0.1, wanted))
