"""Files of MMDiTs: published sizes, what stands beside the network, position tables, and what cannot be written."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from ditkit.align import Projector
from ditkit.checkpoints import CheckpointError, export_published, load_published
from ditkit.checkpoints.diffusers_sd3 import transformer_config
from ditkit.checkpoints.grids import native_of, stored_table
from ditkit.models import SD3_SIZES, Condition, DiT, DiTSettings, MMDiT, MMDiTSettings, repa_mmdit_settings

PREFIX = "model.diffusion_model."
TEXT = {"depth": 2, "channels": 4, "text_width": 24, "pooled_width": 8}
PUBLISHED = {
    "Stability-AI/sd3.5:sd3_medium": ("sd3", SD3_SIZES["sd3-medium"]),
    "Stability-AI/sd3.5:sd3.5_medium": ("sd3", SD3_SIZES["sd3.5-medium"]),
    "Stability-AI/sd3.5:sd3.5_large": ("sd3", SD3_SIZES["sd3.5-large"]),
    "sihyun-yu/REPA:MMDiT(t2i)": ("repa-mmdit", repa_mmdit_settings()),
}


def mmdit(width=128, heads=2, **overrides):
    """A random MMDiT without a stored table; nothing in it is zero."""
    model = MMDiT(MMDiTSettings(**{**TEXT, "width": width, "heads": heads, "size": (8, 8), **overrides}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.1, generator=generator)
    return model.eval()


def inputs(settings, size, seed=1):
    """x (2, C, *size), t (2,), cond with 5 text tokens."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, settings.channels, *size, generator=generator)
    text = torch.randn(2, 5, settings.text_width, generator=generator)
    pooled = torch.randn(2, settings.pooled_width, generator=generator)
    return x, torch.tensor([0.3, 0.8]), Condition(text=text, pooled=pooled)


def expanded(template):
    for key, shapes in template.items():
        for entry in shapes:
            first, last = map(int, entry.get("i", "0..0").split(".."))
            for i in range(first, last + 1):
                yield key.replace("{i}", str(i)), torch.empty(entry["shape"], device="meta")


def test_all_published_rows_are_here(reference):
    rows = [r for r in reference("state_keys_full").meta["info"] if "sd3" in r or "MMDiT" in r]
    assert rows == sorted(PUBLISHED, key=rows.index) and len(rows) == len(PUBLISHED)


@pytest.mark.parametrize("row", PUBLISHED)
def test_published_files_need_no_arguments(reference, row):
    """Keys and shapes of the real files, on the meta device: 2.0, 2.2, 8.1 and 0.5 billion parameters."""
    case, (source, settings) = reference("state_keys_full"), PUBLISHED[row]
    info = case.meta["info"][row]
    state = dict(expanded(info["keys"]))
    assert len(state) == info["tensors"] and sum(v.numel() for v in state.values()) == info["state_elements"]
    published = load_published(state, source)
    assert published.settings == settings
    assert (published.path.kind, published.prediction, published.notes) == ("linear", "velocity", ())
    assert published.align_depth == (8 if source == "repa-mmdit" else None)
    back = export_published(published.model, source, published.projectors)
    assert {k.removeprefix(PREFIX): v.shape for k, v in back.items()} == {k: v.shape for k, v in state.items()}
    parts = [published.model, *(published.projectors or ())]
    count = sum(p.numel() for part in parts for p in part.parameters())
    assert count == info["parameters"] == info["trainable"]
    case.close(f"params.{row}", torch.tensor(count))


@pytest.mark.parametrize("row", [r for r in PUBLISHED if "sd3" in r])
def test_published_files_in_diffusers_layout(reference, row):
    """Every tensor has its place there and comes back, for the dual blocks and the 38 blocks too."""
    state = dict(expanded(reference("state_keys_full").meta["info"][row]["keys"]))
    published = load_published(state, "sd3")
    again = load_published(export_published(published.model, "diffusers-sd3"), "diffusers-sd3")
    assert again.settings == published.settings and again.source == "diffusers-sd3"


def test_a_single_file_holds_more_than_the_network():
    model = mmdit(table=12, qk_norm="rms")
    state = export_published(model, "sd3")
    assert all(key.startswith(PREFIX) for key in state)
    more = {"first_stage_model.encoder.conv_in.weight": torch.ones(2), "first_stage_model.x": torch.ones(2),
            "text_encoders.clip_l.transformer.text_model.x": torch.ones(1)}  # fmt: skip
    published = load_published({**state, **more}, "sd3")
    assert published.notes == (
        "left aside: the VAE, 2 tensors first_stage_model.*",
        "left aside: the text encoders, 1 tensors text_encoders.*",
    )
    bare = load_published({k.removeprefix(PREFIX): v for k, v in state.items()}, "sd3")
    assert bare.notes == () and bare.settings == published.settings == model.settings
    for loaded in (published.model, bare.model):
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in loaded.state_dict().items())
    with pytest.raises(CheckpointError, match=r"unknown cond_stage_model\.x"):
        load_published({**state, **more, "cond_stage_model.x": torch.ones(1)}, "sd3")


def test_half_precision_stays():
    state = {k: v.half() for k, v in export_published(mmdit(), "sd3").items()}
    published = load_published(state, "sd3")
    assert {v.dtype for v in published.model.state_dict().values()} == {torch.float16}
    assert published.settings.size == (8, 8)  # the table still tells
    assert all(torch.equal(v, state[k]) for k, v in export_published(published.model, "sd3").items())


@pytest.mark.parametrize("source", ["sd3", "diffusers-sd3"])
@pytest.mark.parametrize("size", [(8, 8), (10, 10), (12, 8), (6, 8)])
def test_a_run_without_a_table_is_written_with_one(source, size):
    """The model has other settings then, and the same outputs: at its native size, and at sizes two tokens apart."""
    model = mmdit(size=size, step=1.0)
    again = load_published(export_published(model, source), source, **({"heads": 2} if source != "sd3" else {}))
    side = 3 * max(size) // 2
    assert again.settings.table == side and model.settings.table == 0
    rows, columns = size
    for other in (size, (rows + 4, columns), (rows, columns + 8), (rows - 4, columns + 4)):
        with torch.no_grad():
            x, t, cond = inputs(model.settings, other)
            assert torch.equal(again.model(x, t, cond).sample, model(x, t, cond).sample), other
    with pytest.raises(ValueError, match=f"do not fit the position table of {side} x {side}"):
        again.model(*inputs(model.settings, (2 * side + 2, 2)))


def test_the_table_tells_the_native_size():
    for size, step in (((8, 8), 1.0), ((16, 16), 2.0), ((64, 64), 0.5), ((12, 12), 16 / 6), ((128, 128), 0.25)):
        model = mmdit(width=64, heads=1, depth=1, size=size, step=step)
        settings = load_published(export_published(model, "sd3"), "sd3").settings
        assert (settings.size, settings.step) == (size, step)
    stored = MMDiT(MMDiTSettings(**TEXT, width=64, heads=1, table=192, step=0.25, size=(128, 128))).position
    for table in (stored, stored.half()):  # -16 .. 31.75, as the 192-grid of the released files is made
        assert native_of(table) == ((64, 64), 0.25)


def test_a_table_that_tells_nothing_is_used_as_it_is():
    model = mmdit(table=40)
    state = export_published(model, "sd3")
    key = f"{PREFIX}pos_embed"
    state[key] = torch.randn(state[key].shape, generator=torch.Generator().manual_seed(3))
    small, told = load_published(state, "sd3"), load_published(state, "sd3", size=(8, 12))
    assert (small.settings.size, small.settings.step) == ((80, 80), 0.25)  # published: 64 x 64 tokens, if they fit
    assert told.settings.size == (8, 12)
    for published in (small, told):
        assert torch.equal(published.model.position.flatten(0, 1), state[key][0])
    with pytest.raises(CheckpointError, match="needs 44 positions a side; the table has 40"):
        load_published(state, "sd3", size=(88, 8))
    with pytest.raises(CheckpointError, match=r"pos_embed .* no square grid"):
        load_published({**state, key: state[key][:, :-1]}, "sd3")


@pytest.mark.parametrize(
    "source, overrides, reason",
    [
        ("sd3", {"sets": 3}, "three sets of weights; only two were released"),
        ("diffusers-sd3", {"sets": 3}, "three sets"),
        ("sd3", {"time_scale": 1.0}, r"network time 1 t \+ 0, the family 1000 t.*train with time_scale=1000"),
        ("diffusers-sd3", {"time_offset": 2.0}, r"network time 1000 t \+ 2"),
        ("repa-mmdit", {}, "network time 1000 t .* the family 1 t"),
        ("sd3", {"qk_norm": "layer"}, "qk_norm is layer"),
        ("sd3", {"heads": 4}, "2 blocks of width 128 with 4 heads; the official class has 2 of width 128 with 2 heads"),
        ("sd3", {"width": 64, "heads": 2}, r"width 64 with 2 heads; .* \(diffusers-sd3 takes any\)"),
        ("diffusers-sd3", {"pooled_width": 0}, "no pooled text vector; diffusers' class always does"),
        ("diffusers-sd3", {"mlp_ratio": 2.0}, "mlp_ratio is 2; diffusers' class has 4"),
        ("repa-mmdit", {"time_scale": 1.0}, "takes a pooled text vector"),
        ("repa-mmdit", {"time_scale": 1.0, "pooled_width": 0, "dual": (1,)}, "dual attention"),
        ("repa-mmdit", {"time_scale": 1.0, "pooled_width": 0}, "its text is 24 wide; the official class reads 768"),
        ("repa-mmdit", {"time_scale": 1.0, "pooled_width": 0, "text_width": 768}, "4 places a side; .* has 16"),
    ],
)
def test_what_cannot_be_written(source, overrides, reason):
    with pytest.raises(CheckpointError, match=reason) as caught:
        export_published(mmdit(**overrides), source)
    assert f"no '{source}'" in str(caught.value) and "\n" not in str(caught.value)


def test_what_else_cannot_be_written():
    projectors = torch.nn.ModuleList([Projector(128, 6, 8)])
    for source in ("sd3", "diffusers-sd3"):
        with pytest.raises(CheckpointError, match="no projectors; leave them out"):
            export_published(mmdit(), source, projectors)
    for source in ("sd3", "diffusers-sd3", "repa-mmdit"):
        with pytest.raises(CheckpointError, match="takes an MMDiT, not a DiT"):
            export_published(DiT(DiTSettings(depth=1, width=32, heads=2, size=(8, 8))), source)
    state = {source: export_published(mmdit(), source) for source in ("sd3", "diffusers-sd3")}
    for source, tensors in state.items():
        with pytest.raises(CheckpointError, match=f"{source}' predicts velocity, not data"):
            export_published(mmdit(), source, prediction="data")
        with pytest.raises(CheckpointError, match=f"{source}' predicts velocity, not noise"):
            load_published(tensors, source, prediction="noise")


def test_dual_blocks_without_qk_norm_and_other_channels():
    model = mmdit(dual=(2,), channels=6, patch=4, mlp_ratio=2.0, pooled_width=0)
    settings = load_published(export_published(model, "sd3"), "sd3").settings
    assert settings == model.settings.with_({"table": 6})


def test_a_repa_run_without_a_table():
    model = MMDiT(repa_mmdit_settings(2, table=0))
    state = export_published(model, "repa-mmdit")
    assert state["pos_embed"].shape == (1, 256, 64)
    published = load_published(state, "repa-mmdit")
    assert published.projectors is None and published.settings == model.settings.with_({"table": 16})
    assert torch.equal(published.model.position, model.position)


@pytest.mark.parametrize("source", ["sd3", "diffusers-sd3"])
def test_files_that_are_no_mmdit_in_one_line(source):
    blocks, prefix = {"sd3": ("joint_blocks", PREFIX), "diffusers-sd3": ("transformer_blocks", "")}[source]
    state = export_published(mmdit(table=12), source)
    with pytest.raises(CheckpointError, match=rf"unknown {blocks}\.x\.y"):
        load_published({**state, f"{prefix}{blocks}.x.y": torch.zeros(1)}, source)


@pytest.mark.parametrize("key, axes", [("x_embedder.proj.weight", 4), ("pos_embed", 3), ("context_embedder.weight", 2)])
def test_sizes_are_not_read_from_tensors_of_another_kind(key, axes):
    state = export_published(mmdit(table=12), "sd3")
    with pytest.raises(CheckpointError, match=f"{key} has 1 axes instead of {axes}"):
        load_published({**state, PREFIX + key: state[PREFIX + key].flatten()}, "sd3")


def test_a_table_of_nan_tells_nothing():
    state = export_published(mmdit(table=12), "sd3")
    state[f"{PREFIX}pos_embed"].fill_(float("nan"))
    assert load_published(state, "sd3").settings.size == (24, 24)


def test_heads_that_tensors_do_not_tell():
    state = export_published(mmdit(width=32, heads=4), "diffusers-sd3")
    with pytest.raises(CheckpointError, match="width 32 is no multiple of heads of 64 channels; give heads="):
        load_published(state, "diffusers-sd3")
    assert load_published(state, "diffusers-sd3", heads=4).settings.heads == 4
    normed = export_published(mmdit(width=32, heads=4, qk_norm="rms"), "diffusers-sd3")
    assert load_published(normed, "diffusers-sd3").settings.heads == 4
    with pytest.raises(CheckpointError, match="heads=2, but the qk-norm tensors say 4"):
        load_published(normed, "diffusers-sd3", heads=2)


@pytest.mark.parametrize("source", ["sd3", "diffusers-sd3"])
def test_every_missing_key_is_named(source):
    state = export_published(mmdit(width=64, heads=1, depth=1, qk_norm="rms", dual=(1,)), source)
    for key in state:
        with pytest.raises(CheckpointError, match=r"keys do not match: (missing|unknown|shape) ") as caught:
            load_published({k: v for k, v in state.items() if k != key}, source)
        block = re.sub(r"(\w+_embedder|attn2?)\..*", r"\1", key)  # of parts that models may lack the rest is unknown
        assert block.removeprefix(PREFIX) in str(caught.value), key


def test_files_of_the_three_families_are_told_apart():
    sd3 = export_published(mmdit(table=12), "sd3")
    with pytest.raises(CheckpointError, match="looks like 'sd3'; load it with that source"):
        load_published(sd3, "repa-mmdit")
    with pytest.raises(CheckpointError, match="looks like 'diffusers-sd3'; load it with that source"):
        load_published(export_published(mmdit(), "diffusers-sd3"), "sd3")
    aligned = export_published(MMDiT(repa_mmdit_settings(2)), "repa-mmdit", torch.nn.ModuleList([Projector(64, 4, 8)]))
    with pytest.raises(CheckpointError, match="looks like 'repa-mmdit'; load it with that source"):
        load_published(aligned, "sd3")


def test_folder_of_diffusers(tmp_path):
    """A pipeline's folder or its transformer, one file or shards: heads and size come from config.json."""
    model = mmdit(width=32, heads=4, table=16)
    folder = tmp_path / "transformer"
    folder.mkdir()
    state = export_published(model, "diffusers-sd3")
    (folder / "config.json").write_text(json.dumps(transformer_config(model.settings)))
    names = sorted(state)
    for i, part in enumerate((names[::2], names[1::2])):
        save_file({k: state[k] for k in part}, folder / f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors")
    for place in (tmp_path, folder):
        published = load_published(place, "diffusers-sd3")
        assert published.settings == model.settings
        assert all(torch.equal(v, state[k]) for k, v in export_published(published.model, "diffusers-sd3").items())


@pytest.mark.parametrize("overrides", [{}, {"qk_norm": "rms", "dual": (1, 2), "table": 12}, {"size": (12, 8)}])
def test_the_class_of_diffusers_opens_it_and_computes_the_same(overrides):
    diffusers = pytest.importorskip("diffusers")
    model = mmdit(width=32, heads=4, **overrides)
    config = {k: v for k, v in transformer_config(model.settings).items() if not k.startswith("_")}
    theirs = diffusers.SD3Transformer2DModel(**config).eval()
    theirs.load_state_dict(export_published(model, "diffusers-sd3"), strict=True)
    for size in (model.settings.size, (4, 12)):
        x, t, cond = inputs(model.settings, size)
        with torch.no_grad():
            want = model(x, t, cond).sample
            got = theirs(x, timestep=1000 * t, encoder_hidden_states=cond.text, pooled_projections=cond.pooled).sample
        torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5)


def test_stored_tables_of_both_kinds():
    assert stored_table(mmdit(table=12)).shape == (12, 12, 128) and stored_table(mmdit()).shape == (12, 12, 128)
    half = stored_table(mmdit().to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
