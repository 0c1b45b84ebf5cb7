"""Stability's text files: one network each, or all of them in a whole SD3 file."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from ditkit.pretrained import PretrainedMissing, TextSettings, load_text

PROMPTS = ["a red circle", ""]
NAMES = {"clip_l": "clip_l", "clip_g": "clip_g", "t5": "t5xxl"}


@pytest.fixture(scope="module")
def networks(tiny):
    """With 64 channels a head, as the published ones have: the files do not say how many heads there are."""
    return {
        "clip_l": tiny.clip_model(128, "quick_gelu", seed=1),
        "clip_g": tiny.clip_model(128, "gelu", seed=2),
        "t5": tiny.t5_model(24),
    }


def states(networks, dtype=torch.float16):
    found = {role: {k: v.to(dtype).clone() for k, v in n.state_dict().items()} for role, n in networks.items()}
    found["clip_l"].pop("text_projection.weight")  # as in some published files
    del found["t5"]["encoder.embed_tokens.weight"]
    return found


def whole_file(path, networks, **changes):
    tensors = {"model.diffusion_model.pos_embed": torch.zeros(2), "first_stage_model.x": torch.zeros(2)}
    for role, state in (states(networks) | changes).items():
        tensors |= {f"text_encoders.{NAMES[role]}.transformer.{k}": v for k, v in state.items()}
    save_file(tensors, path)
    return path


def expected(networks, tiny, role):
    """States and pooled vector by transformers itself, from weights that went through half precision."""
    model = networks[role]
    own = tiny.t5_tokenizer() if role == "t5" else tiny.clip_tokenizer(pad="!" if role == "clip_g" else tiny.END)
    ids = own(PROMPTS, padding="max_length", max_length=77, return_tensors="pt").input_ids
    full = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict({k: v.half().float() for k, v in full.items()})
    with torch.no_grad():
        if role == "t5":
            found = model(ids).last_hidden_state, None
        else:
            out = model.text_model(ids, output_hidden_states=True)
            pooled = out.pooler_output if role == "clip_l" else model.text_projection(out.pooler_output)
            found = out.hidden_states[-2], pooled
    model.load_state_dict(full)
    return found


@pytest.mark.parametrize("whole", [True, False])
def test_the_same_networks(whole, networks, tiny, sd3_folder, tmp_path):
    if whole:
        places = {"source": str(whole_file(tmp_path / "sd3.safetensors", networks))}
    else:
        places = {role: str(tmp_path / f"{name}.safetensors") for role, name in NAMES.items()}
        for role, state in states(networks).items():
            save_file(state, places[role])
    encoder = load_text(TextSettings(kind="sd3", tokenizers=str(sd3_folder), **places))
    assert (encoder.length, encoder.width, encoder.pooled_width) == (154, 256, 256)
    assert {n.model.dtype for n in encoder.networks.values()} == {torch.float32}
    cond = encoder(PROMPTS)
    for part in encoder.parts:
        text, pooled = expected(networks, tiny, part.name)
        found = cond.text[:, slice(*part.tokens), slice(*part.channels)]
        torch.testing.assert_close(found, text, atol=1e-4, rtol=1e-4)
        if pooled is not None:
            torch.testing.assert_close(cond.pooled[:, slice(*part.pooled)], pooled, atol=1e-4, rtol=1e-4)


def test_eight_bit_weights_are_widened(networks, sd3_folder, tmp_path):
    """t5xxl_fp8_e4m3fn: what is computed with is float32, with the file's values."""
    state = {k: v.to(torch.float8_e4m3fn) for k, v in states(networks)["t5"].items()}
    save_file(state, tmp_path / "t5.safetensors")
    none = {"clip_l": "none", "clip_g": "none", "tokenizers": str(sd3_folder)}
    encoder = load_text(TextSettings(kind="sd3", t5=str(tmp_path / "t5.safetensors"), **none))
    model = encoder.networks["t5"].model
    assert torch.equal(model.shared.weight, state["shared.weight"].float())
    assert torch.equal(model.encoder.embed_tokens.weight, model.shared.weight)
    assert encoder(PROMPTS).text.isfinite().all()


def test_t5s_other_name_of_the_embedding(networks, sd3_folder, tmp_path):
    state = states(networks)["t5"]
    none = {"clip_l": "none", "clip_g": "none", "tokenizers": str(sd3_folder)}
    ids = []
    for name in ("shared.weight", "encoder.embed_tokens.weight"):
        named = {name if k == "shared.weight" else k: v for k, v in state.items()}
        save_file(named, tmp_path / "t5.safetensors")
        ids.append(load_text(TextSettings(kind="sd3", t5=str(tmp_path / "t5.safetensors"), **none)).id)
    assert ids[0] == ids[1]


def test_clip_kind_reads_files(networks, tiny, sd3_folder, tmp_path):
    file = whole_file(tmp_path / "sd3.safetensors", networks)
    repa = load_text(TextSettings(kind="clip", source=str(file), tokenizers=str(sd3_folder)))
    assert (repa.width, repa.length) == (128, 77) and repa(PROMPTS).text.shape == (2, 77, 128)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("text", "no readable .safetensors"),
        ("absent", "holds no t5"),
        ("missing", "weights are missing: encoder.block.1"),
        ("unknown", "unknown tensors: scaled_fp8"),
        ("size", "another size than the config says: encoder.block.1"),
        ("other", "holds no clip_l"),
    ],
)
def test_wrong_files_in_one_line(damage, says, networks, sd3_folder, tmp_path):
    file = tmp_path / "sd3.safetensors"
    t5 = states(networks)["t5"]
    key = "encoder.block.1.layer.0.SelfAttention.q.weight"
    if damage == "missing":
        del t5[key]
    if damage == "unknown":
        t5["scaled_fp8"] = torch.zeros(1)
    if damage == "size":
        t5[key] = torch.zeros(3, 3)
    whole_file(file, networks, t5={} if damage == "absent" else t5)
    if damage == "text":
        file.write_text("no tensors")
    if damage == "other":
        save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(PretrainedMissing, match=says) as error:
        load_text(TextSettings(kind="sd3", source=str(file), tokenizers=str(sd3_folder)))
    assert "\n" not in str(error.value) and "sd3.safetensors" in str(error.value)
