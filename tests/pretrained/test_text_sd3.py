"""SD3's and REPA's text conditioning: assembly as recorded and as the diffusers pipeline does it; any subset."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import warnings

import pytest
import torch

from ditkit.pretrained import PretrainedMissing, TextSettings, load_text
from ditkit.pretrained.text_networks import Encoded
from ditkit.pretrained.text_sd3 import assemble, layout
from ditkit.protocols import TextEncoder

PROMPTS = ["a red circle", "", "Grüße an 日本 🙂 (x)"]
SUBSETS = [s for n in range(4) for s in itertools.combinations(("clip_l", "clip_g", "t5"), n)]


def settings(folder, **more) -> TextSettings:
    return TextSettings(kind="sd3", source=str(folder), **more)


def test_assembly_as_recorded(reference):
    found = reference("sd35_textcond")
    l, g, t5 = (found.inputs[f"a.{name}"] for name in ("l", "g", "t5"))
    parts = layout({"clip_l": (8, 8), "clip_g": (12, 12), "t5": (4096, 0)}, 3, 2)
    pooled = found.inputs["a.l_pooled"], found.inputs["a.g_pooled"]
    encoded = {"clip_l": Encoded(l, pooled[0]), "clip_g": Encoded(g, pooled[1]), "t5": Encoded(t5)}
    cond = assemble(parts, encoded, 1, torch.device("cpu"))
    found.close("a.context", cond.text)
    found.close("a.pooled", cond.pooled)
    assert cond.mask is None


def test_published_sizes():
    """154 x 4096 and 2048; channels of CLIP-L, CLIP-G and T5 as the paper's figure has them."""
    parts = layout({"clip_l": (768, 768), "clip_g": (1280, 1280), "t5": (4096, 0)}, 77, 77)
    cond = assemble(parts, {}, 2, torch.device("cpu"))
    assert cond.text.shape == (2, 154, 4096) and cond.pooled.shape == (2, 2048) and not cond.text.any()
    assert [part.channels for part in parts] == [(0, 768), (768, 2048), (0, 4096)]
    assert [part.pooled for part in parts] == [(0, 768), (768, 2048), (0, 0)]


def test_equal_to_the_pipeline(tiny, sd3_folder):
    """Text and pooled vector are what StableDiffusion3Pipeline.encode_prompt makes of the same folder."""
    diffusers = pytest.importorskip("diffusers")
    names = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
    pipeline = diffusers.StableDiffusion3Pipeline(
        transformer=None, vae=None, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), **tiny.tiny_text_parts()
    )
    assert all(getattr(pipeline, name) is not None for name in names)
    encoder = load_text(str(sd3_folder))
    assert isinstance(encoder, TextEncoder) and encoder.notes == []
    for length in (77, 100):
        arguments = {"max_sequence_length": length, "do_classifier_free_guidance": False}
        with torch.no_grad():
            text, _, pooled, _ = pipeline.encode_prompt(PROMPTS, PROMPTS, PROMPTS, **arguments)
        cond = load_text(settings(sd3_folder, t5_length=length, batch=2))(PROMPTS)
        torch.testing.assert_close(cond.text, text, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(cond.pooled, pooled, atol=2e-5, rtol=1e-5)
        assert cond.mask is None and cond.text.shape == (3, 77 + length, 32) and cond.pooled.shape == (3, 20)


def test_which_states_are_taken(tiny, sd3_folder):
    """CLIP: the second to last block's, not normed; CLIP-L pooled without, CLIP-G with projection; T5's normed."""
    parts = tiny.tiny_text_parts()
    cond = load_text(str(sd3_folder))(PROMPTS[:1])
    seen = {}
    for name in ("text_encoder", "text_encoder_2"):
        tower = parts[name].text_model
        tower.encoder.layers[-2].register_forward_hook(lambda m, i, o, n=name: seen.update({n: o}))
        ids = parts[name.replace("text_encoder", "tokenizer")](
            PROMPTS[:1], padding="max_length", max_length=77, return_tensors="pt"
        ).input_ids
        seen[f"{name} pooled"] = tower(ids).last_hidden_state[0, ids[0].tolist().index(513)]
    states = {n: o if isinstance(o, torch.Tensor) else o[0] for n, o in seen.items()}
    torch.testing.assert_close(cond.text[:, :77, :8], states["text_encoder"])
    torch.testing.assert_close(cond.text[:, :77, 8:20], states["text_encoder_2"])
    assert not cond.text[:, :77, 20:].any()
    torch.testing.assert_close(cond.pooled[0, :8], states["text_encoder pooled"])
    projected = parts["text_encoder_2"].text_projection(states["text_encoder_2 pooled"])
    torch.testing.assert_close(cond.pooled[0, 8:], projected)
    root_mean_square = (cond.text[:, 77:] / parts["text_encoder_3"].encoder.final_layer_norm.weight).square().mean(-1)
    torch.testing.assert_close(root_mean_square, torch.ones(1, 77), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kept", SUBSETS, ids=lambda kept: "+".join(kept) or "nothing")
def test_any_subset(kept, sd3_folder, tmp_path):
    """What is left out is zero, the rest does not move, sizes stay, and its weights are never opened: they are gone."""
    folder = tmp_path / "pipeline"
    shutil.copytree(sd3_folder, folder)
    names = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5": "text_encoder_3"}
    out = [role for role in names if role not in kept]
    for role in out:
        (folder / names[role] / "model.safetensors").unlink()
        shutil.rmtree(folder / names[role].replace("text_encoder", "tokenizer"))
    whole, encoder = load_text(str(sd3_folder)), load_text(settings(folder, **dict.fromkeys(out, "none")))
    assert len(encoder.notes) == len(out) and encoder.parts == whole.parts and set(encoder.networks) == set(kept)
    assert (encoder.width, encoder.length, encoder.pooled_width) == (32, 154, 20)
    full, cond = whole(PROMPTS), encoder(PROMPTS)
    drop = torch.tensor([[part.name in out for part in whole.parts]]).expand(3, -1)
    wanted = full.without(drop)
    assert torch.equal(cond.text, wanted.text) and torch.equal(cond.pooled, wanted.pooled)
    assert (encoder.id == whole.id) == (not out)


def test_widths_of_what_is_missing(tiny, tmp_path):
    """From the pipeline's transformer where there is no T5 at all, else from the settings: 4096."""
    tiny.tiny_sd3_text(tmp_path, t5=False)
    assert load_text(str(tmp_path)).width == 4096
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps({"joint_attention_dim": 40}))
    encoder = load_text(settings(tmp_path))
    assert (encoder.width, encoder.length) == (40, 154) and encoder(["x"]).text.shape == (1, 154, 40)
    assert encoder.notes == ["text encoder t5 is left out: zeros stand in its place"]
    with pytest.raises(PretrainedMissing, match="that pipeline has none"):
        load_text(settings(tmp_path, t5=str(tmp_path)))
    none = dict.fromkeys(("clip_l", "clip_g", "t5"), "none")
    small = load_text(TextSettings(kind="sd3", t5_length=0, widths=(768, 0, 4096), **none))
    assert (small.length, small.width, small.pooled_width) == (77, 768, 768)


def test_encoders_from_places_of_their_own(sd3_folder):
    """Bare folders of one network and its tokenizer, and pipelines named for one encoder."""
    whole = load_text(str(sd3_folder))
    mixed = load_text(
        TextSettings(kind="sd3", clip_l=str(sd3_folder), clip_g=str(sd3_folder), t5=str(sd3_folder), batch=3)
    )
    assert mixed.id == whole.id
    torch.testing.assert_close(mixed(PROMPTS).text, whole(PROMPTS).text)


def test_a_plain_clip_serves_as_clip_l(tiny, tmp_path):
    """OpenAI's CLIP has a projection, which SD3 does not use; a whole CLIP's config is understood."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextModel

    text = tiny.clip_model(8, "quick_gelu", seed=1)
    config = CLIPConfig(
        text_config=text.config.to_dict() | {"projection_dim": 5},  # as old files have it: not the projection's
        vision_config={"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
        projection_dim=8,
    )
    model = CLIPModel(config)
    model.text_model.load_state_dict(text.text_model.state_dict())
    model.text_projection.load_state_dict(text.text_projection.state_dict())
    model.save_pretrained(tmp_path / "clip")
    tiny.clip_tokenizer().save_pretrained(tmp_path / "clip")
    alone = CLIPTextModel(text.config)
    alone.load_state_dict({k.removeprefix("text_model."): v for k, v in text.text_model.state_dict().items()})
    alone.save_pretrained(tmp_path / "text")
    tiny.clip_tokenizer().save_pretrained(tmp_path / "text")
    none = {"clip_g": "none", "t5": "none", "widths": (8, 12, 32)}
    ids = tiny.clip_tokenizer()(PROMPTS, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        wanted = text.text_model(ids)
    for name in ("clip", "text"):
        cond = load_text(TextSettings(kind="sd3", clip_l=str(tmp_path / name), **none))(PROMPTS)
        torch.testing.assert_close(cond.pooled[:, :8], wanted.pooler_output)
        repa = load_text(f"clip:{tmp_path / name}")
        assert (repa.width, repa.length, repa.pooled_width) == (8, 77, 0) and isinstance(repa, TextEncoder)
        found = repa(PROMPTS)
        torch.testing.assert_close(found.text, wanted.last_hidden_state)
        assert found.pooled is None and found.mask is None and repa([]).text.shape == (0, 77, 8)
    as_g = load_text(TextSettings(kind="sd3", clip_g=str(tmp_path / "clip"), clip_l="none", t5="none"))
    ends = (ids == 513).int().argmax(1)
    padded = torch.where(torch.arange(77) > ends[:, None], 0, ids)  # published: CLIP-G pads with 0, whatever it says
    with torch.no_grad():
        torch.testing.assert_close(as_g(PROMPTS).pooled[:, 768:], text(padded).text_embeds)
        torch.testing.assert_close(
            as_g(PROMPTS).text[:, :77, 768:776], text(padded, output_hidden_states=True).hidden_states[-2]
        )


def test_stability_tokens_and_batches(sd3_folder):
    """The setting reaches the tokenizers; at batch 1 an answer never depends on the other prompts."""
    official = load_text(settings(sd3_folder, tokens="stability"))
    assert torch.equal(official(["a (red:1.3) dot"]).text, official(["a red dot"]).text)
    assert official.id != load_text(str(sd3_folder)).id
    encoder = load_text(str(sd3_folder))
    together = encoder(PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        alone = encoder([prompt])
        assert torch.equal(alone.text[0], together.text[i]) and torch.equal(alone.pooled[0], together.pooled[i])
    assert encoder([]).text.shape == (0, 154, 32)


def test_long_prompts_are_told_once(sd3_folder):
    encoder = load_text(str(sd3_folder))
    long = " ".join(f"w{i}" for i in range(40))
    with pytest.warns(UserWarning, match="too long") as caught:
        cond = encoder([long, "short", long])
    assert len(caught) == 1 and "w39" in str(caught[0].message) and "t5 without" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = encoder([long])
    assert torch.equal(again.text[0], cond.text[0])
    with pytest.warns(UserWarning, match="clip_l without"):
        load_text(f"clip:{sd3_folder}")([long])


def test_precision(sd3_folder):
    """Networks in half precision, answers in float32, under another id; autocast around it changes nothing."""
    half, full = load_text(settings(sd3_folder, precision="bf16")), load_text(str(sd3_folder))
    cond = half(PROMPTS)
    assert cond.text.dtype == cond.pooled.dtype == torch.float32 and half.id != full.id
    exact = full(PROMPTS)
    assert 0 < (cond.text - exact.text).norm() / exact.text.norm() < 0.05
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(full(PROMPTS).text, exact.text)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("weights", "weights are missing"),
        ("sizes", "another size"),
        ("none", "no file named"),
        ("swapped", "a t5 model, where CLIP is expected"),
        ("tokenizer", "its tokenizer"),
        ("bytes", "header"),
    ],
)
def test_damaged_folders_in_one_line(damage, says, sd3_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "pipeline"
    shutil.copytree(sd3_folder, folder)
    file = folder / "text_encoder_2" / "model.safetensors"
    if damage == "weights":
        state = load_file(file)
        del state["text_projection.weight"]
        save_file(state, file, {"format": "pt"})
    if damage == "sizes":
        save_file(load_file(file) | {"text_projection.weight": torch.zeros(3, 3)}, file, {"format": "pt"})
    if damage == "none":
        file.unlink()
    if damage == "swapped":
        shutil.rmtree(folder / "text_encoder_2")
        shutil.copytree(folder / "text_encoder_3", folder / "text_encoder_2")
    if damage == "tokenizer":
        shutil.rmtree(folder / "tokenizer_2")
    if damage == "bytes":
        file.write_bytes(b"not tensors")
    with pytest.raises(PretrainedMissing, match=says) as error:
        load_text(str(folder))
    text = str(error.value)
    assert "\n" not in text and "clip_g" in text and "--text toy" in text and "--codec" not in text


def test_a_missing_extra_is_named(monkeypatch, sd3_folder):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for spec in (str(sd3_folder), "sd3", f"clip:{sd3_folder}"):
        with pytest.raises(PretrainedMissing, match=r"pip install 'ditkit\[hf\]'") as error:
            load_text(spec)
        assert "\n" not in str(error.value)
    assert load_text("toy").width == 48


def test_settings():
    assert TextSettings.parse("toy") == TextSettings() and TextSettings.parse("clip").kind == "clip"
    assert TextSettings.parse("sd3:org/name") == TextSettings(kind="sd3", source="org/name")
    read = TextSettings.model_validate_json(TextSettings(kind="sd3", t5="none").model_dump_json())
    assert read.t5 == "none"
    with pytest.raises(ValueError, match="takes no t5"):
        TextSettings(kind="toy", t5="none")
    with pytest.raises(ValueError, match="takes no seed"):
        TextSettings(kind="sd3", seed=3)
    with pytest.raises(ValueError, match="t5_length 0"):
        TextSettings(kind="sd3", t5_length=0)
    for wrong in ("./nowhere", "openai/clip-vit-large-patch14"):
        with pytest.raises(PretrainedMissing) as error:
            TextSettings.parse(wrong)
        assert "\n" not in str(error.value)
    toy = load_text(TextSettings(width=12, length=5, seed=2))
    assert (toy.width, toy.length, toy.id) == (12, 5, "toy-text-12-5-2") and toy.to("cpu") is toy
