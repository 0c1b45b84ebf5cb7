"""The official networks' outputs, block outputs and gradients, through the shipped converters, in our conventions.

dit: official index k is t = k / 999. sit: model(x, t) == -official(x, 1 - t). repa: model(x, t).
"""

import pytest
import torch

from ditkit.checkpoints import export_published, load_published
from ditkit.models import Condition

DIT = ["dit_forward_learnsigma", "dit_forward_fixedsigma"]
REPA = ["repa_forward_1enc", "repa_forward_2enc"]


def _dit(reference, name):
    case = reference(name)
    return case, load_published(case.state, "dit", heads=case.meta["constructor"]["num_heads"]).model


def _sit(reference):
    case = reference("sit_forward")
    return case, load_published(case.state, "sit", heads=4).model


def _repa(reference, name):
    case = reference(name)
    maker = case.meta["constructor"]
    return case, load_published(case.state, "repa", heads=maker["num_heads"], align_depth=maker["encoder_depth"])


def _labels(case, key="y"):
    return Condition(label=case.inputs[key])


def _first_three(sample, scale):
    """forward_with_cfg of DiT and SiT: rows [conditional, null]; 3 guided channels, the rest of each half as it is."""
    cond, null = sample[:, :3].chunk(2)
    guided = null + scale * (cond - null)
    return torch.cat([torch.cat([guided, guided]), sample[:, 3:]], dim=1)


def _gradients_match(case, model, projectors=None):
    """Every official parameter's gradient norm; the model's parameters get their official names by the exporter."""
    with torch.no_grad():
        for part in filter(None, (model, projectors)):
            for p in part.parameters():
                p.copy_(p.grad)
    source = case.meta["family"]
    norms = export_published(model, source, projectors)
    recorded = case.meta["info"]["grad_norms"]
    assert norms.keys() - {"pos_embed"} == recorded.keys()
    for key, want in recorded.items():
        if key.endswith("k_norm.bias"):  # adds a constant to a softmax row: the true gradient is 0, both are rounding
            assert max(norms[key].norm().item(), want) < 1e-8
            continue
        assert norms[key].norm().item() == pytest.approx(want, rel=1e-3), key


@pytest.mark.parametrize("name", DIT)
def test_dit_forward_and_blocks(reference, name):
    case, model = _dit(reference, name)
    seen = {}
    for key, module in {
        "x_embedder": model.patch,
        "t_embedder": model.time,
        "y_embedder": model.label,
        "block0.attn": model.blocks[0].attention,
        "final_layer": model.final,
    }.items():
        module.register_forward_hook(lambda _m, _i, out, key=key: seen.__setitem__(key, out))
    out = model(case.inputs["x"], case.inputs["t"] / 999, _labels(case), capture=(1, 2, 3))
    case.close("forward", out.sample)
    for block in range(3):
        case.close(f"mid.block{block}", out.hidden[block + 1])
    for key, value in seen.items():
        case.close(f"mid.{key}", value)


@pytest.mark.parametrize("name", DIT)
def test_dit_other_times_guidance_and_label_drop(reference, name):
    case, model = _dit(reference, name)
    x, t, y = case.inputs["x"], case.inputs["t"], _labels(case)
    case.close("forward_noninteger_t", model(x, (0.731 * t + 0.25) / 999, y).sample)
    half = case.inputs["x_cfg"].chunk(2)[0]
    both = model(torch.cat([half, half]), case.inputs["t_cfg"] / 999, _labels(case, "y_cfg")).sample
    for scale in (1.5, 4.0):
        case.close(f"cfg_{scale}", _first_three(both, scale))
    dropped = y.where(case.inputs["drop_rand"] >= 0.1, model.null(y))  # where True keeps the label
    assert (dropped.label == model.settings.num_classes).any()
    case.close("train_mode_labeldrop", model.train()(x, t / 999, dropped).sample)


@pytest.mark.parametrize("name", DIT)
def test_dit_gradients(reference, name):
    case, model = _dit(reference, name)
    out = model(case.inputs["x"], case.inputs["t"] / 999, _labels(case)).sample
    (out * case.inputs["cotangent"]).mean().backward()
    case.close("grad_x_embedder_weight", model.patch.project.weight.grad)
    _gradients_match(case, model)


def test_sit_forward_blocks_and_guidance(reference):
    case, model = _sit(reference)
    out = model(case.inputs["x"], 1 - case.inputs["t"], _labels(case), capture=(1, 2, 3))
    case.close("forward", -out.sample)
    for block in range(3):
        case.close(f"mid.block{block}", out.hidden[block + 1])
    half = case.inputs["x_cfg"].chunk(2)[0]
    both = -model(torch.cat([half, half]), 1 - case.inputs["t_cfg"], _labels(case, "y_cfg")).sample
    for scale in (1.5, 4.0):
        case.close(f"cfg_{scale}", _first_three(both, scale))


def test_sit_gradients(reference):
    case, model = _sit(reference)
    out = -model(case.inputs["x"], 1 - case.inputs["t"], _labels(case)).sample
    (out * case.inputs["cotangent"]).mean().backward()
    _gradients_match(case, model)


def test_sit_without_the_dead_half(reference):
    case = reference("sit_forward")
    alternative = {k.removeprefix("alt."): v for k, v in case.inputs.items() if k.startswith("alt.")}
    published = load_published({**case.state, **alternative}, "sit", heads=4)
    assert published.settings.variance == "none"
    out = published.model(case.inputs["x"], 1 - case.inputs["t"], _labels(case)).sample
    case.close("alt_learnsigma_forward", -out)


def test_sit_of_another_prediction_has_no_sign(reference):
    case = reference("sit_forward")
    noise = load_published(case.state, "sit", heads=4, prediction="noise")
    out = noise.model(case.inputs["x"], 1 - case.inputs["t"], _labels(case)).sample
    case.close("forward", out)
    back = export_published(noise.model, "sit", prediction="noise")
    assert all(torch.equal(back[k], v) for k, v in case.state.items())


@pytest.mark.parametrize("name", REPA)
def test_repa_forward_and_projections(reference, name):
    case, published = _repa(reference, name)
    depth = published.align_depth
    out = published.model(case.inputs["x"], case.inputs["t"], _labels(case), capture=(1, depth))
    case.close("forward", out.sample)
    for block in range(depth):
        case.close(f"mid.block{block}", out.hidden[block + 1])
    for i, projector in enumerate(published.projectors):
        case.close(f"z{i}", projector(out.hidden[depth]))


@pytest.mark.parametrize("name", REPA)
def test_repa_gradients(reference, name):
    case, published = _repa(reference, name)
    depth, projectors = published.align_depth, published.projectors
    out = published.model(case.inputs["x"], case.inputs["t"], _labels(case), capture=(depth,))
    loss = (out.sample * case.inputs["cotangent"]).mean()
    for i, projector in enumerate(projectors):
        loss = loss + (projector(out.hidden[depth]) * case.inputs[f"zcot{i}"]).mean()
    loss.backward()
    _gradients_match(case, published.model, projectors)


def test_diffusers_weights_give_the_official_output(reference):
    case = reference("diffusers_dit_pair")
    foreign = {k.removeprefix("diffusers."): v for k, v in case.state.items() if k.startswith("diffusers.")}
    official = {k.removeprefix("orig."): v for k, v in case.state.items() if k.startswith("orig.")}
    model = load_published(foreign, "diffusers-dit", heads=4, size=(8, 8)).model
    out = model(case.inputs["x"], case.inputs["t"] / 999, _labels(case)).sample
    case.close("official.forward", out)
    case.close("diffusers.patched_freq_shift0.norm_eps1e-06", out)
    as_published = load_published(official, "dit", heads=4).model
    assert torch.equal(as_published(case.inputs["x"], case.inputs["t"] / 999, _labels(case)).sample, out)
    # the class itself computes something else, as its own recording shows
    assert (case.outputs["diffusers.forward.norm_eps1e-06"] - out).abs().max() > 1
    case.close("t_proj.official", _sinusoid_seen(model, case))
    case.close("diffusers.pos_embed", model.position.view(case.outputs["diffusers.pos_embed"].shape))


def _sinusoid_seen(model, case):
    seen = []
    model.time.mlp[0].register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    model(case.inputs["x"], case.inputs["t"] / 999, _labels(case))
    return seen[0]
