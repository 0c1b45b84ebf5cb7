"""Several averages at once: by hand, skipped steps, on disk, resumed, by name, of any width, on several processes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from ditkit.training import CheckpointError, TrainSettings, fit, list_steps, read
from ditkit.training.checkpoint import path_of, read_tensors
from ditkit.training.ema import Averages, Ema
from ditkit.training.files import SaveError
from ditkit.training.power import gamma_of
from ditkit.training.snapshots import list_snapshots, write_snapshots
from ditkit.training.weights import describe, parse

KEPT = {"ema_also": (0.5, 0.99), "ema_power": (0.05, 0.1)}
NAMES = ("ema-0.5", "ema-0.99", "power-0.05", "power-0.1")
LONG = {"steps": 60, "save_every": 20, "ema_snapshots": 3, "keep_last": 1, "lr": 1e-3, **KEPT}


@pytest.fixture(scope="module")
def long_run(toy, tmp_path_factory):
    """60 steps with an average stored every 3; the weights after each step."""
    folder, history = tmp_path_factory.mktemp("long"), []
    job = toy.make_job(folder, **LONG)
    flat = lambda: torch.cat([p.detach().flatten() for p in job.model.parameters()]).double()  # noqa: E731
    fit(job, on_step=lambda step, values: history.append(flat().numpy()))
    return folder, np.stack(history)


def flat(tensors: dict, model: nn.Module) -> np.ndarray:
    return torch.cat([tensors[name].flatten() for name, _ in model.named_parameters()]).double().numpy()


def tracked(history: np.ndarray, width: float) -> np.ndarray:
    """The power-function average of the rows, by definition."""
    average = np.zeros_like(history[0])
    for t, row in enumerate(history, 1):
        beta = (1 - 1 / t) ** (gamma_of(width) + 1)
        average = beta * average + (1 - beta) * row
    return average


def test_every_average_is_what_it_says(long_run, toy):
    """Against float64 by hand: relative 1e-6, float32's rounding over 60 steps."""
    folder, history = long_run
    model = toy.Toy()
    start = torch.cat([p.detach().flatten() for p in model.parameters()]).double().numpy()
    for decay in (0.9, 0.5, 0.99):
        expected = start
        for row in history:
            expected = decay * expected + (1 - decay) * row
        assert flat(read(folder, weights=f"ema:{decay}"), model) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    for width in (0.05, 0.1):
        found = flat(read(folder, weights=f"power:{width}"), model)
        assert found == pytest.approx(tracked(history, width), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("every, averaged", [(1, [0, 1, 2, 3, 4, 5, 6]), (2, [1, 3, 5])])
def test_averaging_counts_its_own_updates(tmp_path, make_job, every, averaged):
    history = []
    job = make_job(tmp_path, steps=7, ema_every=every, ema_power=(0.2,), aligned=False)
    state = fit(job, on_step=lambda s, v: history.append(job.model.enter.weight.detach().double().numpy().copy()))
    mine = state.averages.of("power-0.2", 0)["enter.weight"].double().numpy()
    assert mine == pytest.approx(tracked(np.stack([history[i] for i in averaged]), 0.2), abs=1e-6)
    assert state.averages.count == len(averaged)


def test_a_skipped_step_moves_nothing_and_does_not_count():
    """Bad steps in between, also the first: exactly the averages of the good ones."""
    settings = TrainSettings(**KEPT)
    values = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    bad = {0, 1, 4}
    results = []
    for steps in (range(8), [i for i in range(8) if i not in bad]):
        module = nn.Linear(3, 1, bias=False)
        with torch.no_grad():
            module.weight.fill_(9.0)
        averages = Averages([module], settings)
        for i in steps:
            good = torch.tensor(i not in bad)
            with torch.no_grad():
                module.weight.copy_(values[i] if good else module.weight)
            before = {name: own[0].clone() for name, own in averages.tensors.items()}
            averages.update(good)
            assert good or all(torch.equal(before[name], own[0]) for name, own in averages.tensors.items())
        results.append((int(averages.count), {name: own[0] for name, own in averages.tensors.items()}))
    assert results[0][0] == results[1][0] == 5
    for name, mine in results[0][1].items():
        assert torch.equal(mine, results[1][1][name]), name


def test_late_in_a_run_single_precision_still_averages_exactly():
    """At update 1,000,000 an average of width 0.1 moves by 8e-6: no digit of that may be lost to 1 - (1 - 1/n)^8."""
    module = nn.Linear(1, 1, bias=False)
    averages = Averages([module], TrainSettings(ema_power=(0.1,)))
    averages.count.fill_(999_999)
    with torch.no_grad():
        averages.tensors["power-0.1"][0].zero_()
        module.weight.fill_(1.0)
    averages.update(torch.tensor(True))
    expected = -np.expm1((gamma_of(0.1) + 1) * np.log1p(-1e-6))
    assert averages.tensors["power-0.1"][0].item() == pytest.approx(expected, rel=1e-6)


def test_only_what_is_trained_is_averaged():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    averages = Averages([model], TrainSettings(**KEPT))
    assert {name for name, _ in averages.trained[0]} == {"1.weight", "1.bias"}
    assert all(len(own) == 2 for own in averages.tensors.values())
    frozen = nn.Linear(2, 2).requires_grad_(False)
    nothing = Averages([frozen], TrainSettings(**KEPT))
    nothing.update(torch.tensor(True))  # nothing to do, no error
    Ema(frozen, 0.5).update(frozen, torch.tensor(True))


def test_further_averages_change_no_bit_of_the_rest(tmp_path, make_job, same):
    one, other = (fit(make_job(tmp_path / name, **more)) for name, more in (("a", {}), ("b", KEPT)))
    same(one.model.state_dict(), other.model.state_dict())
    same(one.ema.state_dict(), other.ema.state_dict())


def test_checkpoints_hold_all_and_resume_is_bit_equal(tmp_path, make_job, same):
    settings = {"steps": 12, "save_every": 4, "keep_last": 9, **KEPT}
    fit(make_job(tmp_path / "whole", **settings))
    fit(make_job(tmp_path / "cut", **settings | {"steps": 8}))
    fit(make_job(tmp_path / "cut", **settings))
    files = {p.stem for p in path_of(tmp_path / "whole", 12).glob("*.safetensors")}
    assert {*NAMES, *(f"align_{name}" for name in NAMES)} < files
    for file in sorted(files):
        same(*(read_tensors(tmp_path / run, 12, file) for run in ("whole", "cut")))
    for part in ("model", "align"):
        same(*(read(tmp_path / run, weights="power:0.06", part=part) for run in ("whole", "cut")))
    snapshots = [[p.name for p, *_ in list_snapshots(tmp_path / run)] for run in ("whole", "cut")]
    assert snapshots[0] == snapshots[1] and len(snapshots[0]) == 3 * 2 * 2  # steps, widths, modules


def test_an_earlier_step_drops_what_came_later(tmp_path, make_job):
    settings = {"steps": 12, "save_every": 4, "keep_last": 9, **KEPT}
    fit(make_job(tmp_path, **settings))
    (tmp_path / "averages" / ".writing-0000009-power-0.05").write_bytes(b"cut off")
    state = fit(make_job(tmp_path, **settings | {"steps": 5, "ema_snapshots": 5}), resume=4)
    assert {s.step for s in list_snapshots(tmp_path)} == {4, 5} and state.step == 5
    assert not list((tmp_path / "averages").glob(".writing-*"))


def test_averages_of_another_start(tmp_path, make_job, same):
    """A new decay begins where it is first asked for, and says so; a new width cannot."""
    fit(make_job(tmp_path, steps=4, save_every=4))
    with pytest.raises(CheckpointError, match=r"power-0\.1 is not in the checkpoint of step 4: leave it out"):
        fit(make_job(tmp_path, steps=8, ema_power=(0.1,)))
    said: list[str] = []
    job = make_job(tmp_path, steps=5, save_every=5, ema_also=(0.5,))
    raw = read(tmp_path, weights="raw")
    state = fit(job, on_message=said.append)
    assert "the average ema-0.5 begins at step 4, as a copy of the raw weights" in said
    halfway = torch.lerp(raw["leave.bias"], state.model.leave.bias.detach(), 0.5)
    assert torch.equal(state.averages.of("ema-0.5", 0)["leave.bias"], halfway)
    assert "averagings" not in json.loads((path_of(tmp_path, 5) / "state.json").read_text())


def test_any_width_afterwards_is_near_the_tracked_one(long_run, toy):
    """20 averages of each width 0.05 and 0.1 over 60 steps: within 1 % of the way from the last weights."""
    folder, history = long_run
    model, said = toy.Toy(), []
    for width in (0.04, 0.06, 0.08, 0.15):
        made, direct = flat(read(folder, weights=f"power:{width}", say=said.append), model), tracked(history, width)
        assert np.linalg.norm(made - direct) < 0.01 * np.linalg.norm(history[-1] - direct)
    assert (
        len(said) == 4
        and "power:0.08 at step 60 is made afterwards of 40 stored averages (of width 0.05, 0.1)" in said[2]
    )
    read(folder, weights="power:0.1", say=said.append)
    assert len(said) == 4  # as it was kept


def test_widths_at_steps_whose_checkpoint_is_gone(long_run, toy):
    folder, history = long_run
    assert list_steps(folder) == [60]
    for width, tolerance in ((0.05, 1e-6), (0.08, 0.02)):
        made = flat(read(folder, 30, f"power:{width}"), toy.Toy())
        direct = tracked(history[:30], width)
        assert np.linalg.norm(made - direct) < tolerance * np.linalg.norm(direct)
    with pytest.raises(CheckpointError, match="neither a checkpoint nor averages of step 31"):
        read(folder, 31, "power:0.08")
    with pytest.raises(CheckpointError, match="no checkpoint of step 30"):
        read(folder, 30, "ema")


def test_what_is_not_averaged_is_the_last(tmp_path, make_job):
    """A buffer that counts: a sum of its values would be nonsense."""
    job = make_job(tmp_path, steps=12, ema_power=(0.1, 0.05), ema_snapshots=2, aligned=False)
    fit(job, on_step=lambda step, values: job.model.calls.fill_(step))
    assert read(tmp_path, weights="power:0.07")["calls"] == read(tmp_path, weights="power:0.1")["calls"] == 12


@pytest.mark.parametrize(
    "weights, says",
    [
        (
            "power:0.01",
            r"power:0\.01 cannot be made of .* up to step 60 \(\d+% .*: 0\.0\d+ to 0\.2\d+",
        ),
        ("power:0.3", r"widths are above 0 and at most 0\.289"),
        ("power:wide", "'wide' is no number"),
        ("power", "choose 'ema'"),
        ("raw:0.5", "choose 'ema'"),
        ("ema:1", "a decay is at least 0 and below 1"),
        ("ema:0.7", r"no average of decay 0\.7 was kept .* there are ema:0\.9, ema:0\.5, ema:0\.99"),
    ],
)
def test_what_cannot_be_had_is_refused_in_one_line(long_run, weights, says):
    with pytest.raises(CheckpointError, match=says) as found:
        read(long_run[0], weights=weights)
    assert "\n" not in str(found.value)


def test_names(tmp_path, make_job, same):
    assert parse("ema:0.50") == parse("ema:0.5") and describe("power:0.05") == "averaged (power function of width 0.05)"
    fit(make_job(tmp_path, steps=2, save_every=2))
    same(read(tmp_path, weights="ema:0.9"), read(tmp_path))
    with pytest.raises(CheckpointError, match="no power-function averages were kept"):
        read(tmp_path, weights="power:0.1")


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_average_is_named(tmp_path, make_job, damage):
    fit(make_job(tmp_path, steps=6, save_every=2, keep_last=1, ema_power=(0.05, 0.1)))
    path = tmp_path / "averages" / "0000004-power-0.05.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-50])
        with pytest.raises(CheckpointError, match=r"0000004-power-0\.05\.safetensors"):
            read(tmp_path, weights="power:0.08")
    else:
        path.unlink()  # the others do
        assert read(tmp_path, weights="power:0.08")


def test_averages_that_cannot_be_written_end_the_run_or_are_told(tmp_path, make_job):
    (tmp_path / "averages").write_text("a file where the folder should be")
    settings = {"steps": 4, "save_every": 2, "ema_power": (0.1,)}
    with pytest.raises(SaveError, match="averages of step 2 could not be written"):
        fit(make_job(tmp_path, **settings))
    said: list[str] = []
    state = fit(make_job(tmp_path, **settings, on_save_error="continue"), on_message=said.append)
    assert state.step == 4 and sum("widths are made of the others" in line for line in said) == 2, said


@pytest.mark.parametrize("kind", [pytest.param("ddp", marks=pytest.mark.long), "fsdp"])
def test_two_processes_keep_the_averages_of_one(tmp_path, make_job, pair, kind):
    """Gradients of two processes differ by rounding; so may what they average. Cut weights (DTensors) too."""
    settings = {"steps": 6, "save_every": 3, "ema_snapshots": 2, "muon": {"lr": 0.01}, **KEPT}
    alone = fit(make_job(tmp_path / "one", **settings))
    found = pair("train", folder=tmp_path / kind, parallel={"kind": kind}, **settings)
    assert all(one["step"] == 6 for one in found)
    for number, prefix in enumerate(("", "align_")):
        for name in NAMES:
            for key, mine in alone.averages.of(name, number).items():
                theirs = found[0]["weights"][f"{prefix}{name}.{key}"]
                assert torch.allclose(mine, theirs, atol=2e-4), (name, key, (mine - theirs).abs().max())
    for weights in ("ema:0.99", "power:0.1", "power:0.07"):
        one, two = (read(tmp_path / run, weights=weights) for run in ("one", kind))
        assert one.keys() == two.keys() and all(torch.allclose(one[k], two[k], atol=2e-4) for k in one)
    assert {s.step for s in list_snapshots(tmp_path / kind)} == {2, 4, 6}


def test_nothing_is_stored_before_the_first_averaging(tmp_path, make_job):
    """And what an earlier version stored then counts for nothing."""
    settings = {"steps": 12, "save_every": 12, "ema_every": 4, "ema_snapshots": 2, "ema_power": (0.05, 0.1)}
    state = fit(make_job(tmp_path, **settings, aligned=False))
    assert {s.step for s in list_snapshots(tmp_path)} == {4, 6, 8, 10, 12}
    wanted = read(tmp_path, weights="power:0.07")
    names = list(state.averages.powers)
    write_snapshots(tmp_path, 2, state.averaged(names), 0, state.trained())
    found = read(tmp_path, weights="power:0.07")
    assert all(torch.equal(found[k], v) and v.isfinite().all() for k, v in wanted.items())
    with pytest.raises(CheckpointError, match="nothing has been averaged up to step 2"):
        read(tmp_path, 2, "power:0.05")


def test_without_power_functions_nothing_is_counted_on_the_device():
    """mps has no float64: a counter there would end every training."""
    device = torch.device("meta")
    model = nn.Linear(2, 2, device=device)
    averages = Averages([model], TrainSettings(ema_also=(0.5,)))
    averages.update(torch.ones((), dtype=torch.bool, device=device))
    assert averages.count.device.type == "cpu" and averages.count == 0
    assert Averages([model], TrainSettings(ema_power=(0.1,))).count.device.type == "meta"
