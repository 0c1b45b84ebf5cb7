"""The REPA loss recorded from the published code, through the shipped converter, objective and aligner."""

from __future__ import annotations

import pytest
import torch

from ditkit.align import Aligner, AlignSettings, Projector
from ditkit.checkpoints import export_published, load_published
from ditkit.diffusion import Cosine, Flow, Linear
from ditkit.protocols import Condition, Features

CASES = ["linear.uniform", "linear.lognormal", "cosine.uniform", "cosine.lognormal"]


class Recorded:
    """A Noise that hands out the recorded draws."""

    def __init__(self, draws):
        self.draws = draws

    def normal(self, stream, shape):
        return self.draws[stream]

    uniform = normal


def load(reference):
    case = reference("repa_loss")
    maker = case.meta["constructor"]
    published = load_published(case.state, "repa", heads=maker["num_heads"], align_depth=maker["encoder_depth"])
    settings = AlignSettings(depth=published.align_depth, projector_width=maker["projector_dim"])
    aligner = Aligner(settings, maker["hidden_size"], maker["z_dims"])
    aligner.projectors.load_state_dict(published.projectors.state_dict())
    targets = [Features(z, z.mean(1), (4, 4)) for z in (case.inputs["z0"], case.inputs["z1"])]
    return case, published.model, aligner, targets


def official_gradient_norms(model, aligner):
    """Norms under the published keys: export a copy whose weights are the gradients."""
    with torch.no_grad():
        for parameter in (*model.parameters(), *aligner.parameters()):
            if parameter.grad is not None:
                parameter.copy_(parameter.grad)
    return {key: value.norm().item() for key, value in export_published(model, "repa", aligner.projectors).items()}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_equal_the_recording(reference, name):
    case, model, aligner, targets = load(reference)
    objective = Flow(path=Linear() if name.startswith("linear") else Cosine(), drop=0.0)
    t = case.outputs[f"{name}.t"]
    cond = Condition(label=case.inputs["y"])
    loss = objective.at(model, case.inputs["images"], cond, case.inputs["noise"], t, aligner.terms(targets, 0))
    case.close(f"{name}.denoising_loss", loss.terms["denoise"])
    case.close(f"{name}.proj_loss", loss.terms["align"].mean())
    wanted = case.outputs[f"{name}.denoising_loss"].mean() + 0.5 * case.outputs[f"{name}.proj_loss"]
    torch.testing.assert_close(loss.total, wanted, atol=1e-5, rtol=1e-4)
    loss.total.backward()
    norms = official_gradient_norms(model, aligner)
    for key, norm in case.meta["info"]["grad_norms"][name].items():
        assert norms[key] == pytest.approx(norm, rel=1e-3), key


def test_training_mode_with_label_drop_equals_the_recording(reference):
    """The published network drops labels itself, ours gets them dropped: same draws, same loss."""
    case, model, aligner, targets = load(reference)
    draws = {"eps": case.inputs["noise"], "t": case.inputs["u"], "drop": case.inputs["drop_rand"]}
    cond = Condition(label=case.inputs["y"])
    loss = Flow(drop=0.1)(model.train(), case.inputs["images"], cond, Recorded(draws), aligner.terms(targets, 0))
    case.close("linear.uniform.train_mode.denoising_loss", loss.terms["denoise"])
    case.close("linear.uniform.train_mode.proj_loss", loss.terms["align"].mean())
    case.close("linear.uniform.train_mode.t", loss.t)


def test_published_projector_sizes():
    """Parameters of one projector as counted on the published code: B, L, XL with 768 or 1024 wide teachers."""
    counts = {(768, 768): 7_344_896, (1024, 768): 7_869_184, (1152, 768): 8_131_328, (1152, 1024): 8_655_872}
    with torch.device("meta"):
        for (width, target), count in counts.items():
            assert sum(p.numel() for p in Projector(width, target).parameters()) == count
