"""Diffusion-DPO against its formula, and the properties that its users were bitten by."""

from __future__ import annotations

import math

import pytest
import torch

from ditkit.config import read_settings
from ditkit.diffusion import (
    DDPM,
    DPO,
    BatchNoise,
    Cosine,
    Discrete,
    Flow,
    Linear,
    LogitNormal,
    Uniform,
    convert,
)
from ditkit.diffusion.prediction import Estimate
from ditkit.diffusion.preference import squared_ratio
from ditkit.protocols import Condition, Output

B, C, SIDE = 4, 3, 4


class Net(torch.nn.Module):
    """A network of two numbers; remembers what it was asked. `kind` turns its velocity into another prediction."""

    def __init__(self, gain=0.3, kind="velocity", path=None):
        super().__init__()
        self.gain, self.bias = torch.nn.Parameter(torch.tensor(gain)), torch.nn.Parameter(torch.tensor(0.1))
        self.kind, self.path, self.seen = kind, path or Linear(), None

    def forward(self, x, t, cond, capture=()):
        self.seen = (x.detach(), t, cond)
        velocity = self.gain * x + self.bias
        return Output(convert(Estimate(x, t, self.path, "velocity", velocity), self.kind))

    def null(self, cond):
        return cond.with_label(torch.full_like(cond.label, 9))


def frozen(net):
    def answer(x, t, cond):
        with torch.no_grad():
            return net(x, t, cond)

    return answer


def pairs(seed=0):
    return torch.randn(B, 2 * C, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def noise(step=0):
    return BatchNoise(0, step, B)


COND = Condition(label=torch.arange(B))


@pytest.mark.parametrize("form", ["noise", "velocity"])
def test_at_the_start_the_loss_is_ln_2_and_the_accuracy_one_half(form):
    net = Net()
    loss = DPO(form=form, beta=5000)(net, pairs(), COND, noise(), reference=frozen(net))
    assert torch.equal(loss.terms["denoise"], torch.full((B,), math.log(2)))
    assert loss.total.item() == pytest.approx(math.log(2), abs=1e-7)
    assert torch.equal(loss.terms["accuracy"], torch.full((B,), 0.5)) and not loss.terms["margin"].any()


@pytest.mark.parametrize("form", ["noise", "velocity"])
def test_the_loss_is_the_papers_formula(form):
    """Written out with plain loops: means over C, H, W; one noise and one time for winner and loser."""
    net, before, x = Net(0.3), Net(0.2), pairs()
    density = LogitNormal()
    loss = DPO(form=form, beta=70, density=density)(net, x, COND, noise(), reference=frozen(before))
    eps, t = noise().normal("eps", (B, C, SIDE, SIDE)), density.sample(B, noise())
    for i in range(B):
        errors = []
        for model in (net, before):
            for clean in (x[i, :C], x[i, C:]):
                x_t = (1 - t[i]) * clean + t[i] * eps[i]
                velocity = model.gain * x_t + model.bias
                if form == "velocity":
                    errors.append((velocity - (eps[i] - clean)).square().mean())
                else:
                    errors.append((x_t + (1 - t[i]) * velocity - eps[i]).square().mean())
        m_w, m_l, r_w, r_l = errors
        inside = -0.5 * 70 * ((m_w - m_l) - (r_w - r_l))
        assert loss.terms["denoise"][i].item() == pytest.approx(
            -torch.nn.functional.logsigmoid(inside).item(), rel=1e-4
        )
        assert loss.terms["margin"][i].item() == pytest.approx(inside.item(), rel=1e-3, abs=1e-5)
        assert loss.terms["winner"][i].item() == pytest.approx(m_w.item(), rel=1e-5)
        assert loss.terms["accuracy"][i].item() == float(inside > 0)
    assert torch.equal(loss.t, t)


def test_winner_and_loser_share_noise_time_and_condition():
    net, x = Net(), pairs()
    DPO(drop=0.5)(net, x, COND, noise(3), reference=frozen(net))
    seen, t, cond = net.seen
    assert torch.equal(t[:B], t[B:]) and torch.equal(cond.label[:B], cond.label[B:])
    assert (cond.label == 9).any() and (cond.label != 9).any(), "some were dropped, in pairs"
    shared = (1 - t[:B]).view(-1, 1, 1, 1) * (x[:, :C] - x[:, C:])
    assert torch.allclose(seen[:B] - seen[B:], shared, atol=1e-6), "the same noise cancels"


@pytest.mark.parametrize("kind", ["velocity", "noise", "data", "score"])
@pytest.mark.parametrize("path", [Linear(), Cosine()])
@pytest.mark.parametrize("form", ["noise", "velocity"])
def test_the_loss_does_not_depend_on_what_the_network_predicts(kind, path, form):
    density = Uniform(low=0.05, high=0.95)
    made = [DPO(path=path, prediction=k, form=form, beta=30, density=density) for k in ("velocity", kind)]
    wanted, got = (
        dpo(Net(0.3, k, path), pairs(), COND, noise(), reference=frozen(Net(0.1, k, path)))
        for dpo, k in zip(made, ("velocity", kind), strict=True)
    )
    assert torch.allclose(got.terms["margin"], wanted.terms["margin"], rtol=2e-3, atol=1e-4)


def test_the_two_forms_differ_by_one_minus_t_squared():
    t = torch.linspace(0, 1, 5)
    assert torch.allclose(squared_ratio(Linear(), t, "velocity", "noise"), (1 - t) ** 2)
    assert torch.allclose(squared_ratio(Linear(), t[1:], "data", "velocity"), 1 / t[1:] ** 2)
    losses = [
        DPO(form=form, beta=10)(Net(0.3), pairs(), COND, noise(), reference=frozen(Net(0.2)))
        for form in ("noise", "velocity")
    ]
    exact, constant = (loss.terms["margin"] for loss in losses)
    assert torch.allclose(exact, (1 - losses[0].t) ** 2 * constant, rtol=1e-4, atol=1e-6)


def test_a_step_downhill_prefers_the_winner_and_beta_counts_per_mean():
    x, dpo = pairs(), DPO(form="velocity", beta=1.0)
    net = Net()
    loss = dpo(net, x, COND, noise(), reference=frozen(Net()))
    loss.total.backward()
    wanted = torch.stack([net.gain.grad, net.bias.grad])
    # at the reference the gradient is beta / 4 of that of m_w - m_l (each a mean over C, H, W), averaged over pairs
    other = Net()
    flow, both = Flow(drop=0), torch.cat([x[:, :C], x[:, C:]])
    eps = noise().normal("eps", (B, C, SIDE, SIDE)).repeat(2, 1, 1, 1)
    t = Uniform().sample(B, noise()).repeat(2)
    errors = flow.per_sample(
        other(t.view(-1, 1, 1, 1) * eps + (1 - t).view(-1, 1, 1, 1) * both, t, COND).sample, both, eps, t
    )
    ((errors[:B] - errors[B:]).mean() / 4).backward()
    assert torch.allclose(wanted, torch.stack([other.gain.grad, other.bias.grad]), atol=1e-6)
    with torch.no_grad():
        for p in net.parameters():
            p -= 0.1 * p.grad
    after = dpo(net, x, COND, noise(), reference=frozen(Net()))
    assert after.total < loss.total and after.terms["margin"].mean() > 0
    swapped = dpo(net, torch.cat([x[:, C:], x[:, :C]], 1), COND, noise(), reference=frozen(Net()))
    assert torch.allclose(swapped.terms["margin"], -after.terms["margin"], atol=1e-7)
    assert torch.equal(swapped.terms["accuracy"], 1 - after.terms["accuracy"])


def test_the_discrete_chain_of_the_paper():
    chain = DPO(path=DDPM(), prediction="noise", density=Discrete(), drop=0.2)
    net = Net(0.3, "noise", DDPM())
    loss = chain(net, pairs(), COND, noise(), reference=frozen(net))
    assert torch.equal((loss.t * 999).round() / 999, loss.t) and loss.total.item() == pytest.approx(math.log(2))


def test_a_learned_variance_is_left_alone():
    class Wide(Net):
        def forward(self, x, t, cond, capture=()):
            out = super().forward(x, t, cond).sample
            return Output(torch.cat([out, torch.full_like(out, 1e6)], 1))

    one, two = (
        DPO(beta=10)(kind(0.3), pairs(), COND, noise(), reference=frozen(kind(0.2))).terms["margin"]
        for kind in (Net, Wide)
    )
    assert torch.equal(one, two)


def test_what_cannot_be_is_refused():
    net, dpo = Net(), DPO()
    with pytest.raises(ValueError, match="needs the reference"):
        dpo(net, pairs(), COND, noise())
    with pytest.raises(ValueError, match="even number of channels"):
        dpo(net, pairs()[:, :5], COND, noise(), reference=frozen(net))
    with pytest.raises(ValueError, match="leave out align"):
        dpo(net, pairs(), COND, noise(), (object(),), reference=frozen(net))
    with pytest.raises(ValueError, match="infinite at t = 0"):
        DPO(prediction="data", form="velocity")
    assert read_settings(DPO, {"kind": "dpo", "beta": 100}).beta == 100
