"""DDT's training losses recorded from the published trainers, through converters, objective, weights and aligner.

Its times run the other way (t = 1 is data) and its cosine term is 1 - cosine where ours is REPA's minus cosine. The
recorded GVP scheduler is no path of ours: it runs against its own network's time and its derivatives lack pi/2, so it
is compared through a stand-in that turns time back and scales the output; no recipe can ask for it.
"""

from __future__ import annotations

import math

import pytest
import torch

from ditkit.align import Aligner, AlignSettings
from ditkit.checkpoints import export_published, load_published
from ditkit.diffusion import Cosine, Flow, Linear, LogitNormal, SNRWeight, Uniform
from ditkit.diffusion.objective import drop_labels
from ditkit.protocols import Condition, Features, Output

CASES = (
    "ddt.fm.lognorm", "ddt.fm.uniform", "ddt.repa.lognorm", "dit.fm.lognorm", "dit.fm.uniform", "dit.repa.lognorm",
    "ddt.fm.drop", "ddt.fm.inverse_sigma", "ddt.fm.snr", "ddt.fm.minsnr", "ddt.fm.maxsnr", "ddt.fm.gvp", "dit.cos",
    "ddt.repa.resized_features", "ddt.repa.layer1", "ddt.fm.nonsquare",
)  # fmt: skip
# their names: minsnr clips from below, maxsnr from above
WEIGHTS = {"inverse_sigma": "inverse_sigma", "snr": "snr", "minsnr": "snr_floor", "maxsnr": "snr_cap"}


class Recorded:
    """A Noise that hands out the recorded draws."""

    def __init__(self, draws):
        self.draws = draws

    def normal(self, stream, shape):
        return self.draws[stream]

    uniform = normal


class TurnedBack(torch.nn.Module):
    """The network as the recorded GVP scheduler uses it: at time 1 - t of ours, output times -pi / 2."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, t, cond, *, capture=()):
        return Output(-math.pi / 2 * self.model(x, 1 - t, cond).sample)


class Case:
    """One recorded trainer as our parts."""

    def __init__(self, ref, name):
        self.ref, self.name, self.asked = ref, name, ref.meta["cases"][name]
        made = ref.meta["constructor"]
        self.source = {"ddt": "ddt", "dit": "improved-dit"}[self.asked["net"]]
        prefix = "dit." if self.source == "improved-dit" else ""
        state = {k.removeprefix(prefix): v for k, v in ref.state.items() if k.startswith(prefix)}
        state = {k: v for k, v in state.items() if not k.startswith(("dit.", "proj."))}
        align = self.asked.get("align")
        state |= {f"diffusion_trainer.{k}": v for k, v in ref.state.items() if align and k.startswith("proj.")}
        split = {"encoder_blocks": made["num_encoder_blocks"]} if self.source == "ddt" else {}
        shape = {"heads": made["num_groups"], "align_depth": align, **split}
        published = load_published(state, self.source, **shape)
        self.model, self.terms = published.model, ()
        if align:
            settings = AlignSettings(
                depth=published.align_depth, weight=self.asked.get("feat_w", 0.5), grid="resize_features",
                projector_width=ref.meta["proj_hidden"], projector_init="torch",
            )  # fmt: skip
            self.aligner = Aligner(settings, made["hidden_size"], [ref.meta["proj_out"]], (4, 4))
            self.aligner.projectors.load_state_dict(published.projectors.state_dict())
            tokens = ref.inputs[self.asked["feats"]]
            side = math.isqrt(tokens.shape[1])
            self.terms = self.aligner.terms([Features(tokens, tokens.mean(1), (side, side))], 0)

    def loss(self):
        """What our objective makes of the recorded draws."""
        inputs, asked = self.ref.inputs, self.asked
        end = "_ns" if asked.get("x") == "x_ns" else ""
        # t of theirs is sigmoid(tn) or tu; logit-normal draws are those of our time with the sign turned
        draws = {"eps": inputs[f"noise{end}"], "t": -inputs["tn"] if asked["lognorm"] else 1 - inputs["tu"]}
        draws["drop"] = inputs["mask_u"]
        settings = dict(density=LogitNormal() if asked["lognorm"] else Uniform(), drop=asked.get("null_p", 0.0))
        if asked.get("weight"):
            settings["weight"] = SNRWeight(form=WEIGHTS[asked["weight"]])
        if asked["trainer"] == "cos":
            settings["cosine"] = 1.0
        objective, model = Flow(path=Linear(), **settings), self.model
        if asked.get("sched") == "gvp":
            objective, model, draws["t"] = Flow(path=Cosine(), **settings), TurnedBack(model), inputs["tu"]
        cond = Condition(label=inputs["y"])
        self.dropped = drop_labels(self.model, cond, Recorded(draws), objective.drop).label
        return objective(model, inputs[asked.get("x", "x")], cond, Recorded(draws), self.terms)


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_equal_the_recording(reference, name):
    case = Case(reference("ddt_losses"), name)
    loss, ref = case.loss(), case.ref
    total = loss.total
    if name == "ddt.fm.gvp":
        total = total * (2 / math.pi) ** 2
    if "align" in loss.terms:
        ref.close(f"{name}.fm_loss", loss.terms["denoise"].mean())
        ref.close(f"{name}.cos_loss", 1 + loss.terms["align"].mean())
        total = total + case.terms[0].weight  # the constant of 1 - cosine
    if "cosine" in loss.terms:
        ref.close(f"{name}.fm_loss", (loss.terms["denoise"] - loss.terms["cosine"]).mean())
        ref.close(f"{name}.cos_loss", loss.terms["cosine"].mean())
    ref.close(f"{name}.loss", total)
    ref.close(f"{name}.y_after_drop", case.dropped)
    total.backward()
    norms = official_gradient_norms(case)
    wanted = dict(ref.meta["info"]["grad_norms"][name])
    if "proj_total" in wanted:
        own = torch.stack([p.grad.norm() for p in case.aligner.parameters()]).norm().item()
        assert own == pytest.approx(wanted.pop("proj_total"), rel=1e-3)
    assert torch.tensor(list(norms.values())).norm().item() == pytest.approx(wanted.pop("total"), rel=1e-3)
    for key, norm in wanted.items():
        assert norms[key] == pytest.approx(norm, rel=1e-3), key


def official_gradient_norms(case):
    """Norms under the published keys: export the network with its gradients for weights."""
    with torch.no_grad():
        for parameter in case.model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    return {key: value.norm().item() for key, value in export_published(case.model, case.source).items()}


def test_every_recorded_case_is_tested(reference):
    assert set(CASES) == set(reference("ddt_losses").meta["cases"])


def test_the_direction_term_is_one_minus_the_cosine_over_channels():
    """By hand on two places: one aligned, one opposed; a score is compared like its noise."""
    eps, x = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1).expand(1, 2, 1, 2), torch.zeros(1, 2, 1, 2)
    value = torch.stack([3 * eps[..., 0], -0.5 * eps[..., 1]], dim=-1)
    t = torch.full((1,), 0.5)
    assert Flow(cosine=1.0).direction(value, x, eps, t).item() == pytest.approx(1.0)
    one = value[..., :1]
    assert Flow(cosine=1.0).direction(one, x[..., :1], eps[..., :1], t).item() == pytest.approx(0.0, abs=1e-6)
    score = Flow(prediction="score", density=Uniform(low=0.1, high=0.9), cosine=0.5)
    assert score.direction(-value, x, eps, t).item() == pytest.approx(1.0)
