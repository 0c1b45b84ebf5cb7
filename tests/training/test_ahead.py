"""What is made ready ahead of time is what would have been made in time."""

from __future__ import annotations

import itertools
import threading
from typing import NamedTuple

import pytest
import torch

from ditkit.diffusion import BatchNoise
from ditkit.protocols import Condition, Features
from ditkit.training.ahead import Draws, _fetched, page_locked, pinned
from ditkit.training.readings import Reading, Readings

ASKED = (("normal", "eps", (3, 2, 4, 4)), ("uniform", "t", (3,)), ("normal", "posterior", (3, 2, 4, 4)))


def test_draws_made_ahead_are_those_of_their_step():
    """Also after a step that asked for something else, a jump of the step, and another seed."""
    draws = Draws(7, 12, torch.device("cpu"), ahead=True)
    for step, asked, seed in [
        (0, ASKED, 7),
        (1, ASKED, 7),
        (2, ASKED[:1], 7),
        (3, ASKED, 7),
        (9, ASKED, 7),
        (10, ASKED, 8),
    ]:
        ours, plain = draws(step, 3, 6, seed=seed), BatchNoise(seed, step, 12, 3, 6)
        for kind, stream, shape in asked:
            assert torch.equal(getattr(ours, kind)(stream, shape), getattr(plain, kind)(stream, shape)), (step, stream)
    assert len(draws._drawn) <= 2 * len(ASKED), "draws that nobody asks for are forgotten"


def test_draws_of_an_ordinary_run_are_ready_when_they_are_asked_for(monkeypatch):
    draws, made = Draws(0, 6, torch.device("cpu"), ahead=True), []
    whole = BatchNoise._draw

    def spied(self, *rest):
        made.append((self.step, threading.current_thread().name.split("_")[0]))
        return whole(self, *rest)

    monkeypatch.setattr(BatchNoise, "_draw", spied)
    for step in range(3):
        for kind, stream, shape in ASKED:
            getattr(draws(step, 0, 3), kind)(stream, shape)
    draws.pool.shutdown()
    assert {name for step, name in made if step > 0} == {"draws"}, "only the first step's draws hold the loop up"


def test_fetched_batches_come_in_order_and_errors_in_their_turn():
    assert list(itertools.islice(_fetched(iter(range(100)), pin=False), 5)) == [0, 1, 2, 3, 4]
    assert list(_fetched(iter(range(3)), pin=False)) == [0, 1, 2]

    def broken():
        yield 1
        raise ValueError("bad file")

    batches = _fetched(broken(), pin=False)
    assert next(batches) == 1
    with pytest.raises(ValueError, match="bad file"):
        next(batches)


def test_a_reader_that_stops_ends_the_thread():
    batches = _fetched(itertools.count(), pin=False)
    next(batches)
    batches.close()
    left = [t for t in threading.enumerate() if t.name == "batches"]
    for thread in left:
        thread.join(2)
        assert not thread.is_alive()


def test_on_a_cpu_batches_are_the_loaders_own():
    given = iter(range(3))
    assert pinned(given, "cpu") is given


@pytest.mark.parametrize("late", [False, True])
def test_readings_arrive_in_order_and_at_most_one_step_late(late, monkeypatch):
    readings = Readings(torch.device("cpu"))
    readings.late = late
    monkeypatch.setattr(Readings, "push", _without_pinning)
    seen = []
    for step in range(1, 6):
        readings.push(step, Reading.of({"loss": torch.tensor(float(step)), "grad_norm": torch.tensor(0.5)}))
        arrived = readings.take()
        assert [n for n, _ in arrived] == ([step - 1] if late and step > 1 else [] if late else [step])
        seen += arrived
    seen += readings.take(everything=True)
    assert seen == [(n, {"loss": float(n), "grad_norm": 0.5}) for n in range(1, 6)]


def _without_pinning(self, step, reading):
    self._waiting.append((step, reading.names, reading.values, None))


def test_one_bad_number_makes_the_reading_bad():
    good = Reading.of({"loss": torch.tensor(1.0), "grad_norm": torch.tensor(2.0)})
    bad = Reading.of({"loss": torch.tensor(1.0), "grad_norm": torch.tensor(float("inf"))})
    assert bool(good.good) and not bool(bad.good)


class Mixed(NamedTuple):
    """A batch with everything that a cache brings."""

    images: torch.Tensor
    captions: tuple[str, ...]
    features: tuple[Features, ...]
    cond: Condition
    positions: range


def test_everything_of_a_batch_is_locked(monkeypatch):
    """One field that is left out would make the host wait for the device at every step."""
    locked = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: locked.append(self) or self)
    features = Features(torch.zeros(2, 4, 3), torch.zeros(2, 3), (2, 2))
    cond = Condition(label=torch.zeros(2, dtype=torch.int64), text=torch.zeros(2, 5, 3))
    given = Mixed(torch.zeros(2, 1, 4, 4), ("a", "b"), (features,), cond, range(2))
    made = page_locked(given)
    assert {id(t) for t in locked} == {id(t) for t in (given.images, *features[:2], cond.label, cond.text)}
    assert made.captions == ("a", "b") and made.positions == range(2) and made.features[0].grid == (2, 2)
