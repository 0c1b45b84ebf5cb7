"""Stability's, diffusers' and REPA's MMDiTs: outputs, blocks, gradients and samples, through the shipped converters.

Their network time is 1000 t (REPA: t), and the velocity has our sign. Blocks count from 1: their skip layer 1 is our 2.
"""

import hashlib
from functools import partial

import pytest
import torch

from ditkit.checkpoints import export_published, load_published
from ditkit.diffusion import CFG, Denoise, Linear, SkipLayer, sample
from ditkit.diffusion.sample import integrate
from ditkit.diffusion.schedules import sd3_grid
from ditkit.diffusion.solvers import dpmpp_2m, euler, euler_maruyama, heun
from ditkit.models import Condition
from ditkit.pretrained.codec import denormalise
from ditkit.pretrained.kl_file import SD3  # scale, shift

SD35 = ["sd35_mmditx_plain", "sd35_mmditx_rms", "sd35_mmditx_dual"]
PAIRS = ["diffusers_sd3_pair_plain", "diffusers_sd3_pair_dual"]
REPA = ["repa_mmdit", "repa_mmdit_qknorm"]
STABILITY = "model.diffusion_model."


def text(case, tokens="context", pooled="y"):
    return Condition(text=case.inputs[tokens], pooled=case.inputs.get(pooled))


def gradients_match(case, source, model, projectors=None):
    """Every official parameter's gradient norm; the model's parameters get their official names by the exporter."""
    with torch.no_grad():
        for part in filter(None, (model, projectors)):
            for p in part.parameters():
                p.copy_(p.grad)
    norms = {k.removeprefix(STABILITY): v for k, v in export_published(model, source, projectors).items()}
    recorded = case.meta["info"]["grad_norms"]
    assert norms.keys() - {"pos_embed"} == recorded.keys()
    for key, want in recorded.items():
        assert norms[key].norm().item() == pytest.approx(want, rel=1e-3), key


# ------------------------------------------------------------------------------------------------ Stability


@pytest.mark.parametrize("name", SD35)
def test_mmditx(reference, name):
    case = reference(name)
    model = load_published(case.state, "sd3").model
    after, times = {}, case.inputs["t"] / 1000
    model.blocks[0].register_forward_hook(lambda _m, _a, out: after.update(first=after.get("first", out)))
    with torch.no_grad():
        out = model(case.inputs["x_a"], times, text(case), capture=(1,))
        case.close("b.forward", model(case.inputs["x_b"], times, text(case)).sample)
        for layer in case.meta["skip_layers"]:
            skipped = model(case.inputs["x_a"], times, text(case), skip=tuple(i + 1 for i in layer))
            case.close(f"a.skip_{layer[0]}", skipped.sample)
    case.close("a.forward", out.sample)
    case.close("mid.joint0.0", after["first"][1][0])  # text tokens
    case.close("mid.joint0.1", out.hidden[1])
    for size in "ab":
        rows, columns = (side // 2 for side in case.inputs[f"x_{size}"].shape[2:])
        case.close(f"{size}.pos_embed_crop", model._crop(rows, columns)[None])


@pytest.mark.parametrize("name", SD35)
def test_mmditx_gradients(reference, name):
    case = reference(name)
    model = load_published(case.state, "sd3").model
    out = model(case.inputs["x_a"], case.inputs["t"] / 1000, text(case)).sample
    (out * case.inputs["cotangent"]).mean().backward()
    gradients_match(case, "sd3", model)


@pytest.fixture
def basemodel(reference):
    case = reference("sd35_basemodel")
    prefixed = {STABILITY + key: value for key, value in case.state.items()}
    return case, load_published({**prefixed, "first_stage_model.decoder.conv_in.weight": torch.ones(1)}, "sd3")


def test_stability_base_model(basemodel):
    """Loaded by the shapes of its tensors; denoised estimates, guided and with skipped layers."""
    case, published = basemodel
    s, told = published.settings, case.meta["info"]["inferred"]
    assert (s.depth, s.table) == (told["depth"], told["pos_embed_max_size"])
    assert s.dual == tuple(i + 1 for i in told["x_block_self_attn_layers"])
    assert published.notes == ("left aside: the VAE, 1 tensors first_stage_model.*",)
    x, sigma = case.inputs["latent"], case.inputs["sigma"]
    cond, negative = text(case, "cond", "cond_y"), text(case, "uncond", "uncond_y")
    blocks = tuple(i + 1 for i in case.meta["slg"]["layers"])

    def denoised(condition, skip=()):
        with torch.no_grad():
            return x - sigma[:, None, None, None] * published.model(x, sigma, condition, skip=skip).sample

    c, u, skipped = denoised(cond), denoised(negative), denoised(cond, blocks)
    guided = u + case.meta["cfg_scale"] * (c - u)
    case.close("apply_model", c)
    case.close("cfg", guided)
    start, end = (10 * case.meta["slg"][edge] for edge in ("start", "end"))
    for step in (0, 2, 5, 9):
        more = case.meta["slg"]["scale"] * (c - skipped) if start < step < end else 0
        case.close(f"slg.step{step}", guided + more)


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "img2img", "slg"])
def test_stability_sampling_from_end_to_end(basemodel, name):
    case, published = basemodel
    settings = case.meta["cases"][name]
    steps, negative = settings["steps"], text(case, "uncond", "uncond_y")
    times = sd3_grid(steps, case.meta["shift"])
    guidance = CFG(scale=settings["cfg"])
    if "slg" in settings:
        slg = settings["slg"]
        blocks = tuple(i + 1 for i in slg["layers"])
        window = {"start": slg["start"], "end": slg["end"]}
        guidance = SkipLayer(scale=settings["cfg"], skip_scale=slg["scale"], blocks=blocks, **window)
    x = case.inputs["noise"]
    if "denoise" in settings:
        times = times[int(steps * (1 - settings["denoise"])) :]
        x = Linear().alpha(times[0]) * case.inputs["latent"] + times[0] * x
    solver = {"euler": euler, "dpmpp_2m": partial(dpmpp_2m, variable="log_sigma")}[settings["sampler"]]
    latents = sample(
        published.model, x.float(), text(case, "cond", "cond_y"), path=Linear(), prediction="velocity", solver=solver,
        times=times, guidance=guidance.against(negative),
    )  # fmt: skip
    case.close(f"do_sampling.{name}", denormalise(latents, *SD3))


# ------------------------------------------------------------------------------------------------ diffusers


@pytest.mark.parametrize("name", PAIRS)
def test_the_same_weights_in_both_layouts(reference, name):
    case = reference(name)
    official = load_published(case.state, "sd3").model
    foreign = export_published(official, "diffusers-sd3")
    recorded = case.meta["info"]["conversion"]
    assert foreign.keys() == recorded.keys()
    for key, entry in recorded.items():
        assert list(foreign[key].shape) == entry["shape"], key
        assert torch.equal(foreign[key], torch.cat([case.state[k][a:b] for k, a, b in entry["rows_of"]])), key
        digest = hashlib.sha256(foreign[key].contiguous().numpy().tobytes()).hexdigest()
        assert digest[:16] == entry["sha256_16"], key
    published = load_published(foreign, "diffusers-sd3")
    assert published.settings == official.settings and published.notes == ()
    skip = tuple(i + 1 for i in case.meta["skip"])
    runs = {"a": ("x_a", ()), "b": ("x_b", ())} | ({"skip": ("x_a", skip)} if skip else {})
    for run, (x, blocks) in runs.items():
        with torch.no_grad():
            out = published.model(case.inputs[x], case.inputs["t"] / 1000, text(case), skip=blocks).sample
            same = official(case.inputs[x], case.inputs["t"] / 1000, text(case), skip=blocks).sample
        assert torch.equal(out, same)
        case.close(f"official.{run}", out)
        case.close(f"diffusers.{run}", out)


def test_a_model_that_was_made_in_diffusers(reference):
    """Heads of 8 channels, 4 latent channels, a position table of its own."""
    case = reference("diffusers_sd3_native")
    maker = case.meta["diffusers_constructor"]
    published = load_published(case.state, "diffusers-sd3", heads=maker["num_attention_heads"])
    s = published.settings
    assert (s.heads, s.channels, s.dual, s.table, s.qk_norm) == (4, 4, (1,), 8, "rms")
    with torch.no_grad():
        for size in "ab":
            out = published.model(case.inputs[f"x_{size}"], case.inputs["t"] / 1000, text(case))
            case.close(f"forward.{size}", out.sample)


# ------------------------------------------------------------------------------------------------ REPA


def repa(reference, name):
    case = reference(name)
    return case, load_published(case.state, "repa-mmdit", align_depth=case.meta["constructor"]["encoder_depth"])


@pytest.mark.parametrize("name", REPA)
def test_repa_text_to_image(reference, name):
    case, published = repa(reference, name)
    depth, count = published.align_depth, len(case.meta["constructor"]["z_dims"])
    assert len(published.projectors) == count and published.settings.pooled_width == 0
    loss = 0
    for size in "ab":
        out = published.model(case.inputs[f"x_{size}"], case.inputs["t"], text(case), capture=(depth,))
        case.close(f"{size}.forward", out.sample)
        for i, projector in enumerate(published.projectors):
            z = projector(out.hidden[depth])
            case.close(f"{size}.z{i}", z)
            loss = loss + z.square().mean() * (size == "a")
        if size == "a":
            loss = loss + (out.sample * case.inputs["cotangent"]).mean()
    loss.backward()
    gradients_match(case, "repa-mmdit", published.model, published.projectors)


REPA_SOLVERS = {"euler": euler, "heun": heun, "em": partial(euler_maruyama, form="linear", last_rule="mean")}


@pytest.mark.parametrize("name", REPA)
def test_repa_text_to_image_samplers(reference, name):
    case, published = repa(reference, name)
    w, negative = case.inputs["w"].double(), text(case, "context_null")
    for run, settings in case.meta["cases"].items():
        kind, settings = run.split(".")[0], settings["kw"]
        n = settings["num_steps"]
        times = torch.linspace(1, 0, n + 1, dtype=torch.float64)
        if kind == "em":
            times = torch.cat([torch.linspace(1, 0.04, n, dtype=torch.float64), torch.zeros(1)])
        low, high = settings.get("guidance_low", 0), settings.get("guidance_high", 1)
        guidance = CFG(scale=settings.get("cfg_scale", 1), low=low, high=high).against(negative)
        arguments = {"path": Linear(), "prediction": "velocity", "guidance": guidance}
        denoise = Denoise(published.model, text(case), **arguments)
        with torch.no_grad():
            z = integrate(denoise, case.inputs["x_a"].double(), REPA_SOLVERS[kind], times, lambda k: w[k])
        case.close(f"sample.{run}", z)
