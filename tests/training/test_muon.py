"""Muon: its formula, torch's own, which weights it takes, steps that are skipped, resume, weights that are cut."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

import team

from ditkit.models import build_model
from ditkit.models.dit import dit_settings
from ditkit.ranks import ALONE
from ditkit.recipes import recipe
from ditkit.training import CheckpointError, TrainSettings, add_adapter, fit, read
from ditkit.training.adapters import AdapterSettings
from ditkit.training.checkpoint import read_tensors
from ditkit.training.muon import MuonAdamW, matrices, orthogonalised, size_of
from ditkit.training.optim import apply, describe, make_optimizer, set_rate

GOOD, BAD = torch.tensor(True), torch.tensor(False)


def quintic(x: Tensor, iterations: int) -> Tensor:
    """The published iteration, in float64, on singular values: f(s) = 3.4445 s - 4.775 s^3 + 2.0315 s^5."""
    u, s, v = torch.linalg.svd(x.double(), full_matrices=False)
    s = s / s.square().sum().sqrt()
    for _ in range(iterations):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ s.diag() @ v


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """A block with one matrix of each kind, and what stays outside."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(4, 8)
        block = nn.ModuleDict({"qkv": nn.Linear(8, 24), "fc1": nn.Linear(8, 32), "modulation": nn.Linear(8, 16)})
        self.blocks = nn.ModuleList([block])
        for i, p in enumerate(self.parameters()):
            p.data = drawn(*p.shape, seed=i)


def optimizer_of(net: nn.Module, **settings) -> MuonAdamW:
    made = make_optimizer([net], TrainSettings(lr=1e-3, weight_decay=0.1, **settings))
    assert isinstance(made, MuonAdamW)
    return made


def give_gradients(net: nn.Module, seed: int) -> dict[str, Tensor]:
    for i, p in enumerate(net.parameters()):
        p.grad = drawn(*p.shape, seed=100 * seed + i)
    return {name: p.grad.clone() for name, p in net.named_parameters()}


@pytest.mark.parametrize("shape", [(16, 16), (8, 24), (24, 8)])
def test_newton_schulz_is_its_polynomial_of_the_singular_values(shape):
    x = torch.stack([drawn(*shape, seed=i) for i in range(3)])
    for iterations in (1, 5):
        expected = torch.stack([quintic(one, iterations) for one in x])
        exact = orthogonalised(x.double(), iterations, torch.float64)
        assert torch.allclose(exact, expected, atol=1e-12)
        assert (orthogonalised(x, iterations).double() - expected).abs().max() < 0.05  # bfloat16
    values = torch.linalg.svdvals(orthogonalised(x.double(), 5, torch.float64))
    assert values.min() > 0.6 and values.max() < 1.3
    assert torch.equal(orthogonalised(torch.zeros(1, *shape)), torch.zeros(1, *shape, dtype=torch.bfloat16))


@pytest.mark.parametrize("match", ["spectral", "adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_three_steps_are_the_formula_written_out(match, nesterov):
    net = Net()
    optimizer = optimizer_of(
        net, muon={"lr": 0.02, "weight_decay": 0.3, "momentum": 0.9, "match": match, "nesterov": nesterov}
    )
    weights = {"blocks.0.qkv.weight": 3, "blocks.0.fc1.weight": 1}
    mine = {name: p.detach().double().clone() for name, p in net.named_parameters() if name in weights}
    sums = {name: torch.zeros_like(w) for name, w in mine.items()}
    for step in range(3):
        grads = give_gradients(net, step)
        apply(optimizer, GOOD)
        for name, cut in weights.items():
            g = grads[name].double()
            sums[name] = 0.9 * sums[name] + 0.1 * g
            u = 0.9 * sums[name] + 0.1 * g if nesterov else sums[name]
            o = torch.cat([quintic(part, 5) for part in u.chunk(cut)])
            rows, columns = g.shape[0] // cut, g.shape[1]
            size = max(1, rows / columns) ** 0.5 if match == "spectral" else 0.2 * max(rows, columns) ** 0.5
            mine[name] = mine[name] * (1 - 0.02 * 0.3) - 0.02 * size * o
    for name, expected in mine.items():
        moved = 0.02 * 3 * size_of(optimizer.muon, expected.shape[0] // weights[name], expected.shape[1])
        assert (net.get_parameter(name) - expected).abs().max() < 1e-4 * moved, name  # float32: this is a CPU


@pytest.mark.parametrize("match, theirs", [("spectral", "original"), ("adamw", "match_rms_adamw")])
@pytest.mark.parametrize("nesterov", [True, False])
def test_whole_matrices_step_as_torchs_muon_does(match, theirs, nesterov):
    net, other = Net(), Net()
    optimizer = optimizer_of(net, muon={"lr": 0.02, "weight_decay": 0.1, "match": match, "nesterov": nesterov})
    weight = other.blocks[0]["fc1"].weight
    reference = torch.optim.Muon([weight], lr=0.02, weight_decay=0.1, adjust_lr_fn=theirs, nesterov=nesterov)
    before = weight.detach().clone()
    for step in range(4):
        weight.grad = give_gradients(net, step)["blocks.0.fc1.weight"]
        apply(optimizer, GOOD)
        reference.step()
    found = net.blocks[0]["fc1"].weight
    assert torch.equal(optimizer.state[found]["momentum_buffer"], reference.state[weight]["momentum_buffer"])
    assert (found - weight).norm() < 0.01 * (weight - before).norm()


def test_everything_else_steps_as_with_adamw_alone():
    net, other = Net(), Net()
    optimizer = optimizer_of(net, muon={})
    plain = torch.optim.AdamW(other.parameters(), lr=1e-3, weight_decay=0.1, fused=True)
    for step in range(3):
        give_gradients(net, step), give_gradients(other, step)
        apply(optimizer, GOOD)
        plain.step()
    taken = matrices(net)
    for name, p in net.named_parameters():
        assert torch.equal(p, other.get_parameter(name)) == (name not in taken), name


def test_a_skipped_step_leaves_everything_as_it_is():
    """Also where gradients are infinite, and in the first step, before there is any state."""
    for first in (True, False):
        net = Net()
        optimizer = optimizer_of(net, muon={"weight_decay": 0.5})
        if not first:
            give_gradients(net, 0)
            apply(optimizer, GOOD)
        weights = {n: p.detach().clone() for n, p in net.named_parameters()}
        state = {n: {k: v.clone() for k, v in optimizer.state[p].items()} for n, p in net.named_parameters()}
        for value in (float("nan"), float("inf"), -3.0):
            for p in net.parameters():
                p.grad = torch.full_like(p, value)
            apply(optimizer, BAD)
        for name, p in net.named_parameters():
            assert torch.equal(p, weights[name]), name
            for key, value in optimizer.state[p].items():
                assert torch.equal(value, state[name].get(key, torch.zeros_like(value))), (name, key)
        give_gradients(net, 7)
        apply(optimizer, GOOD)
        assert all(p.isfinite().all() and not torch.equal(p, weights[n]) for n, p in net.named_parameters())


def test_what_it_takes():
    """The matrices of attention and MLP in the blocks: no modulation, embedding, output layer, bias or adapter."""
    dit = build_model(dit_settings("S/2", depth=2, width=32, heads=2, size=(4, 4), num_classes=3))
    parts = {"attention.qkv": 3, "attention.proj": 1, "mlp.fc1": 1, "mlp.fc2": 1}
    expected = {f"blocks.{i}.{part}.weight": cut for i in range(2) for part, cut in parts.items()}
    assert matrices(dit) == expected
    ddt, mmdit = (matrices(build_model(recipe(name).model)) for name in ("digits.ddt", "t2i.digits"))
    ends = {".".join(name.split(".")[2:]) for name in ddt}
    assert ends == {f"{p}.weight" for p in ("attention.qkv", "attention.proj", "mlp.gate", "mlp.up", "mlp.down")}
    assert not [name for name in mmdit if "modulation" in name] and {mmdit[n] for n in mmdit if "qkv" in n} == {3}
    add_adapter(dit, AdapterSettings(rank=2))
    assert matrices(dit) == {}
    with pytest.raises(ValueError, match=r"training\.muon: there are no whole matrices .* leave it out"):
        make_optimizer([dit], TrainSettings(muon={}))


def test_it_says_what_each_has(tmp_path, make_job):
    said: list[str] = []
    fit(make_job(tmp_path, steps=1, muon={}), on_message=said.append)
    assert "Muon for 2 matrices in 2 weights (512 numbers), AdamW for 179 numbers" in said
    assert describe(optimizer_of(Net(), muon={})) == (
        "Muon for 4 matrices in 2 weights (448 numbers), AdamW for 240 numbers"
    )
    optimizer = optimizer_of(Net(), muon={"lr": 0.02})
    set_rate(optimizer, 1e-3)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, pytest.approx(0.02)]


def test_a_step_that_is_not_finite_is_skipped_in_a_run(tmp_path, make_job, same):
    """The run sees NaN gradients once; what it goes on from is what it was."""
    kept = {}

    def spoil(step: int, values: dict) -> None:
        kept[step] = {k: v.clone() for k, v in job.model.state_dict().items()}
        if step == 4:
            hook.append(job.model.blocks[0][0].weight.register_hook(lambda grad: grad * float("nan")))
        if step == 5:
            hook.pop().remove()

    job, hook = make_job(tmp_path, steps=7, muon={}), []
    state = fit(job, on_step=spoil)
    same(kept[4], kept[5])
    assert (
        state.guard.skipped == 1
        and state.finite()
        and not torch.equal(kept[6]["enter.weight"], kept[5]["enter.weight"])
    )


def test_resume_is_bit_equal_and_keeps_the_sums(tmp_path, make_job, same):
    settings = {"steps": 12, "save_every": 6, "keep_last": 9, "muon": {"lr": 0.01, "weight_decay": 0.1}}
    fit(make_job(tmp_path / "whole", **settings))
    fit(make_job(tmp_path / "cut", **settings | {"steps": 6}))
    fit(make_job(tmp_path / "cut", **settings))
    for file in ("model", "ema", "align", "optimizer"):
        same(*(read_tensors(tmp_path / run, 12, file) for run in ("whole", "cut")))
    names = set(read_tensors(tmp_path / "cut", 12, "optimizer"))
    assert "momentum_buffer.model.blocks.0.0.weight" in names and "exp_avg.model.blocks.0.0.bias" in names
    assert "exp_avg.model.blocks.0.0.weight" not in names


def test_another_optimizer_cannot_go_on(tmp_path, make_job):
    for first, then in (({}, {"muon": {}}), ({"muon": {}}, {})):
        folder = tmp_path / str(len(first))
        fit(make_job(folder, steps=2, save_every=2, **first))
        with pytest.raises(CheckpointError, match=r"another optimizer's; set training\.muon as it was"):
            fit(make_job(folder, steps=4, **then))


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("net", ["", "dit"])
def test_two_processes_step_as_one(pair, tmp_path, kind, net):
    """fsdp cuts every matrix by rows, qkv across its parts: each is gathered before it is orthogonalised."""
    asked = {"steps": 3, "batch": 8, "net": net, "lr": 1e-3, "muon": {"lr": 0.01, "weight_decay": 0.1}}
    one = team.train(ALONE, folder=str(tmp_path / "one"), **asked)["weights"]
    two = pair("train", folder=str(tmp_path / kind), parallel={"kind": kind}, **asked)
    start = team.train(ALONE, folder=str(tmp_path / "start"), **asked | {"lr": 1e-30, "muon": {"lr": 1e-30}})["weights"]
    assert all(torch.equal(two[0]["weights"][name], two[1]["weights"][name]) for name in one)
    seen = 0
    for name, value in one.items():
        moved = (value - start[name]).norm()
        if name.startswith("model.blocks") and name.endswith("weight"):
            assert (two[0]["weights"][name] - value).norm() < 0.02 * moved, name  # bfloat16's rounding
            seen += 1
    assert seen >= 2 and read(tmp_path / kind)
