"""export_published is the exact inverse of load_published: same keys, equal tensors, for every source and size."""

import re

import pytest
import torch

from ditkit.align import Projector
from ditkit.checkpoints import SOURCES, CheckpointError, export_published, load_published
from ditkit.models import (
    Condition,
    DDTSettings,
    DiT,
    DiTSettings,
    MMDiTSettings,
    build_model,
    ddt_settings,
    dit_settings,
    repa_mmdit_settings,
)

RECORDED = [
    ("dit_forward_learnsigma", "dit", {"heads": 3}),
    ("dit_forward_fixedsigma", "dit", {"heads": 4}),
    ("dit_sampling", "dit", {"heads": 4}),
    ("sit_forward", "sit", {"heads": 4}),
    ("repa_forward_1enc", "repa", {"heads": 4, "align_depth": 2}),
    ("repa_forward_2enc", "repa", {"align_depth": 1}),
    ("diffusers_dit_pair", "diffusers-dit", {"heads": 4, "size": (8, 8)}),
    ("ddt_forward", "ddt", {"encoder_blocks": 3}),
    ("ddt_improved_dit_forward", "improved-dit", {"heads": 4, "patch": 2}),
    ("sd35_mmditx_plain", "sd3", {}),
    ("sd35_mmditx_rms", "sd3", {}),
    ("sd35_mmditx_dual", "sd3", {"size": (8, 8)}),
    ("sd35_basemodel", "sd3", {}),
    ("diffusers_sd3_native", "diffusers-sd3", {"heads": 4}),
    ("repa_mmdit", "repa-mmdit", {"align_depth": 2}),
    ("repa_mmdit_qknorm", "repa-mmdit", {"align_depth": 1}),
]
TIMES = {"dit": (999.0, 0.0), "sit": (-1.0, 1.0), "repa": (1.0, 0.0), "diffusers-dit": (999.0, 0.0)}
# of tiny models: encoder and decoder blocks; what their tensors do not tell
SPLIT = {"ddt": (1, 2), "improved-dit": (0, 2)}
UNTOLD = {"diffusers-dit": {"size": (8, 8)}, "ddt": {"size": (8, 8), "encoder_blocks": 1},
          "improved-dit": {"size": (8, 8)}}  # fmt: skip
TEXT = {"depth": 2, "size": (8, 8), "channels": 4, "text_width": 24, "pooled_width": 8, "table": 12, "dual": (1,)}
MMDIT = {
    "sd3": MMDiTSettings(**TEXT, width=128, heads=2, qk_norm="rms"),
    "diffusers-sd3": MMDiTSettings(**TEXT, width=32, heads=4),
    "repa-mmdit": repa_mmdit_settings(2),
}


def tiny(source="dit", **overrides):
    """A random model with the time map of `source`."""
    base = {"width": 32, "heads": 4, "size": (8, 8), "num_classes": 5}
    if source in MMDIT:
        settings = MMDIT[source].with_(overrides)
    elif source in SPLIT:
        encoder, decoder = SPLIT[source]
        settings = DDTSettings(**{**base, "encoder_blocks": encoder, "decoder_blocks": decoder, **overrides})
    else:
        scale, offset = TIMES[source]
        settings = DiTSettings(**{**base, "depth": 2, "time_scale": scale, "time_offset": offset, **overrides})
    model = build_model(settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.1, generator=generator)
    return model


def aligned(source):
    """Projectors as the files of `source` hold them, and the argument that comes with them."""
    count = {"repa": 2, "ddt": 1, "improved-dit": 1, "repa-mmdit": 2}.get(source, 0)
    width = MMDIT[source].width if source in MMDIT else 32
    projectors = torch.nn.ModuleList(Projector(width, 6 + 4 * i, 8) for i in range(count))
    return (projectors, {"align_depth": 1}) if count else (None, {})


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def recorded_state(reference, name):
    state = reference(name).state
    if name == "diffusers_dit_pair":
        return {k.removeprefix("diffusers."): v for k, v in state.items() if k.startswith("diffusers.")}
    if name.startswith("sd35"):  # the recording leaves the prefix of the published files out
        return {f"model.diffusion_model.{k}": v for k, v in state.items()}
    return state


@pytest.mark.parametrize("name, source, shape", RECORDED)
def test_recorded_weights_come_back(reference, name, source, shape):
    state = recorded_state(reference, name)
    before = {k: v.clone() for k, v in state.items()}
    published = load_published(state, source, **shape)
    assert equal(export_published(published.model, source, published.projectors), before)
    with torch.no_grad():  # a loaded model is a copy: training it leaves the caller's tensors alone
        for p in published.model.parameters():
            p.add_(1)
    assert equal(state, before)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_own_models_come_back(source, dtype):
    model, (projectors, depth) = tiny(source).to(dtype), aligned(source)
    state = export_published(model, source, projectors)
    heads = {"heads": 4} if "heads" in SOURCES[source].arguments else {}
    again = load_published(state, source, **heads, **UNTOLD.get(source, {}), **depth)
    assert again.settings == model.settings and again.source == source
    assert equal(again.model.state_dict(), model.state_dict())
    assert equal(export_published(again.model, source, again.projectors), state)
    if projectors is not None:
        assert equal(again.projectors.state_dict(), projectors.state_dict()) and again.align_depth == 1


def _expanded(template):
    for key, shapes in template.items():
        for entry in shapes:
            first, last = map(int, entry.get("i", "0..0").split(".."))
            for i in range(first, last + 1):
                yield key.replace("{i}", str(i)), torch.empty(entry["shape"], device="meta")


@pytest.mark.parametrize("row, source", [("facebookresearch/DiT:DiT-XL/2", "dit"), ("willisma/SiT:SiT-XL/2", "sit"),
                                         ("sihyun-yu/REPA:SiT-XL/2", "repa")])  # fmt: skip
def test_published_xl_needs_no_arguments(reference, row, source):
    """Keys and shapes of the real files, on the meta device: heads and depth come from the published table."""
    info = reference("state_keys_full").meta["info"][row]
    state = dict(_expanded(info["keys"]))
    published = load_published(state, source)
    scale, offset = TIMES[source]
    variance = {"dit": "learned", "sit": "dropped", "repa": "none"}[source]
    assert published.settings == dit_settings("XL/2", variance=variance, time_scale=scale, time_offset=offset)
    assert published.align_depth == (8 if source == "repa" else None)
    back = export_published(published.model, source, published.projectors)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in state.items()}
    assert (len(back), sum(v.numel() for v in back.values())) == (info["tensors"], info["state_elements"])


@pytest.mark.parametrize("row, source, name", [("DDT-XL/2 22en6de", "ddt", "XL/2"),
                                               ("improved-DiT-XL", "improved-dit", "XL/2")])  # fmt: skip
def test_published_ddt_needs_no_arguments(reference, row, source, name):
    info = reference("state_keys_full").meta["info"][f"MCG-NJU/DDT:{row}"]
    state = dict(_expanded(info["keys"]))
    published = load_published(state, source)
    assert published.settings == (ddt_settings(name) if source == "ddt" else ddt_settings(name, encoder_blocks=0))
    assert (published.path.kind, published.prediction, published.projectors) == ("linear", "velocity", None)
    back = export_published(published.model, source)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in state.items()}
    assert (len(back), sum(v.numel() for v in back.values())) == (info["tensors"], info["state_elements"])
    high = load_published(state, source, size=(64, 64))  # 512 x 512 pixels: the same tensors
    assert high.settings == published.settings.with_({"size": (64, 64)})


def test_parameter_counts_of_the_ddt_repository(reference):
    case = reference("state_keys_full")
    rows = {
        "DDT-XL/2 22en6de": ("ddt", ddt_settings("XL/2")),
        "improved-DiT-XL": ("improved-dit", ddt_settings("XL/2", encoder_blocks=0)),
        "improved-DiT-L": ("improved-dit", ddt_settings("L/2", encoder_blocks=0)),
    }
    assert {r.partition(":")[2] for r in case.meta["info"] if r.startswith("MCG-NJU/DDT")} == rows.keys()
    for row, (source, settings) in rows.items():
        with torch.device("meta"):
            state = export_published(build_model(settings), source)
        info, count = case.meta["info"][f"MCG-NJU/DDT:{row}"], sum(v.numel() for v in state.values())
        assert (count, count, len(state)) == (info["parameters"], info["trainable"], info["tensors"]), row
        case.close(f"params.MCG-NJU/DDT:{row}", torch.tensor(count))


@pytest.mark.parametrize("size, depth", [("B/2", 4), ("L/2", 8), ("XL/2", 8), ("S/2", None)])
def test_published_align_depths(size, depth):
    """B aligns block 4, L and XL block 8 (REPA issue 5 corrects the paper's table); S was never published."""
    with torch.device("meta"):
        model = DiT(dit_settings(size))
        projectors = torch.nn.ModuleList([Projector(model.settings.width, 768)])
    state = export_published(model, "repa", projectors)
    if depth is None:
        with pytest.raises(CheckpointError, match="give align_depth="):
            load_published(state, "repa")
    else:
        published = load_published(state, "repa")
        assert published.align_depth == depth and published.settings.heads == model.settings.heads


def test_parameter_counts_of_every_published_row(reference):
    case = reference("state_keys_full")
    rows = [
        r for r in case.meta["info"] if r.startswith(("facebookresearch/DiT", "willisma/SiT", "sihyun-yu/REPA:SiT"))
    ]
    assert len(rows) == 16
    for row in rows:
        family, name = row.split(":")
        size = re.sub(r"^\w+-", "", name)
        source = {"DiT": "dit", "SiT": "sit", "REPA": "repa"}[family.split("/")[1]]
        variance = {"dit": "learned", "sit": "dropped", "repa": "none"}[source]
        scale, offset = TIMES[source]
        with torch.device("meta"):
            model = DiT(dit_settings(size, variance=variance, time_scale=scale, time_offset=offset))
            projectors = torch.nn.ModuleList([Projector(model.settings.width, 768)]) if source == "repa" else None
        state = export_published(model, source, projectors)
        info = case.meta["info"][row]
        count = sum(v.numel() for v in state.values())
        assert (count, len(state)) == (info["parameters"], info["tensors"]), row
        assert count - state["pos_embed"].numel() == info["trainable"], row
        case.close(f"params.{row}", torch.tensor(count))


def test_paths_and_predictions(reference):
    for name, source, shape in RECORDED:
        published = load_published(recorded_state(reference, name), source, **shape)
        expected = ("ddpm", "noise") if source in ("dit", "diffusers-dit") else ("linear", "velocity")
        assert (published.path.kind, published.prediction) == expected


def test_legacy_repa_keys(reference):
    case = reference("repa_forward_1enc")
    legacy = {re.sub(r"^blocks\.2\.", "decoder_blocks.0.", k): v for k, v in case.state.items()}
    assert "decoder_blocks.0.attn.qkv.weight" in legacy
    published = load_published(legacy, "repa", heads=4)  # two encoder blocks: the depth is told by the keys
    assert published.align_depth == 2
    assert equal(export_published(published.model, "repa", published.projectors), case.state)
    with pytest.raises(CheckpointError, match="align_depth=1"):
        load_published(legacy, "repa", heads=4, align_depth=1)


def test_recorded_legacy_key_map(reference):
    from ditkit.checkpoints.repa import modern_keys

    recorded = reference("state_keys_full").meta["info"]["repa_legacy_key_map(encoder_depth=8)"]
    others = {f"blocks.{i}.mlp.fc1.bias": torch.zeros(()) for i in range(8)}
    state = {**others, **{old: torch.tensor(float(i)) for i, old in enumerate(recorded)}}
    modern, depth = modern_keys(state)
    assert depth == 8
    for i, new in enumerate(recorded.values()):
        assert modern[new] == i


def test_repa_without_projectors(reference):
    state = {k: v for k, v in reference("repa_forward_1enc").state.items() if not k.startswith("projectors.")}
    published = load_published(state, "repa", heads=4)
    assert published.projectors is None and published.align_depth is None
    assert equal(export_published(published.model, "repa"), state)
    with pytest.raises(CheckpointError, match="no projectors"):
        load_published(state, "repa", heads=4, align_depth=1)


def test_label_table_without_null_row():
    state = export_published(tiny("dit", null_label=False), "dit")
    assert load_published(state, "dit", heads=4, null=False).settings.num_classes == 5
    one = export_published(tiny("dit", null_label=False, num_classes=1), "dit")
    assert load_published(one, "dit", heads=4, null=False).settings.num_classes == 1
    with pytest.raises(CheckpointError, match="null=False"):
        load_published(one, "dit", heads=4)


def test_one_class_and_null_label():
    state = export_published(tiny("sit", num_classes=1), "sit")
    model = load_published(state, "sit", heads=4).model
    assert model.null(Condition(label=torch.tensor([0]))).label.tolist() == [1]


def test_initialisation_and_memory_settings_are_no_part_of_a_ddt_file():
    model = tiny("ddt", adaln_zero=True, checkpointing=True)
    again = load_published(export_published(model, "ddt"), "ddt", size=(8, 8), encoder_blocks=1)
    assert again.settings == model.settings.with_({"adaln_zero": False, "checkpointing": False})


@pytest.mark.parametrize("width, ratio", [(32, 2.0), (48, 4.0), (64, 3.5), (1024, 4.0), (32, 1.0), (48, 8 / 3)])
def test_mlp_ratio_of_a_ddt_is_found_again(width, ratio):
    model = tiny("improved-dit", width=width, mlp_ratio=ratio)
    found = load_published(export_published(model, "improved-dit"), "improved-dit").settings
    assert found.hidden == model.settings.hidden and found.mlp_ratio == pytest.approx(ratio, abs=1e-9)


@pytest.mark.parametrize(
    "source, overrides, reason",
    [
        ("ddt", {"encoder_blocks": 0, "decoder_blocks": 2}, "no 'ddt': it has no encoder blocks; use 'improved-dit'"),
        ("improved-dit", {"encoder_blocks": 1}, "it has 1 encoder blocks; use 'ddt'"),
        ("ddt", {"time_scale": 1.0, "time_offset": 0.0}, r"network time 1 t \+ 0, the family -1 t \+ 1.*time_scale=-1"),
        ("improved-dit", {"time_scale": 1000.0, "time_offset": 0.0}, r"network time 1000 t \+ 0"),
        ("ddt", {"num_classes": 0}, "unconditional"),
        ("sit", {"time_scale": 1.0, "time_offset": 0.0}, r"network time 1 t \+ 0.*-1 t \+ 1.*train with time_scale=-1"),
        ("dit", {"time_scale": 1.0}, "train with time_scale=999"),
        ("repa", {"time_scale": 1000.0}, "train with time_scale=1"),
        ("dit", {"conditioning": "in_context"}, "only adaln_zero was released"),
        ("sit", {"num_classes": 0}, "unconditional"),
        ("sit", {"variance": "learned"}, "variance is learned"),
        ("repa", {"variance": "dropped"}, "variance is dropped; the family has none$"),
        ("dit", {"qk_norm": "layer"}, "qk_norm is layer"),
        ("repa", {"qk_norm": "rms"}, "qk_norm is rms"),
        ("diffusers-dit", {"size": (8, 12)}, "8 x 12 is not square"),
    ],
)
def test_export_refuses_what_the_official_class_cannot_be(source, overrides, reason):
    with pytest.raises(CheckpointError, match=reason):
        export_published(tiny(source, **overrides), source)


def test_export_refuses_other_objects():
    with pytest.raises(CheckpointError, match="takes a DiT, not a Linear"):
        export_published(torch.nn.Linear(2, 2), "dit")
    for source, model in (("ddt", tiny("sit")), ("improved-dit", torch.nn.Linear(2, 2))):
        with pytest.raises(CheckpointError, match=f"source '{source}' takes a DDT, not a {type(model).__name__}"):
            export_published(model, source)
    with pytest.raises(CheckpointError, match="takes a DiT, not a DDT"):
        export_published(tiny("improved-dit"), "sit")
    with pytest.raises(CheckpointError, match="predicts velocity, not noise"):
        export_published(tiny("ddt"), "ddt", prediction="noise")
    with pytest.raises(CheckpointError, match="has no projectors"):
        export_published(tiny("sit"), "sit", torch.nn.ModuleList([Projector(32, 6, 8)]))
    with pytest.raises(CheckpointError, match="no source 'edm'; choose from dit, sit"):
        export_published(tiny("sit"), "edm")
    for misfit in ([Projector(16, 6, 8)], [Projector(32, 6, 8), Projector(32, 6, 12)]):
        with pytest.raises(CheckpointError, match="all must read the model's tokens of width 32 through one hidden"):
            export_published(tiny("repa"), "repa", torch.nn.ModuleList(misfit))
    with pytest.raises(CheckpointError, match="'ddt' has one projector, not 2"):
        export_published(tiny("ddt"), "ddt", torch.nn.ModuleList([Projector(32, 6, 8), Projector(32, 6, 8)]))
    with pytest.raises(CheckpointError, match="width 32 through one hidden"):
        export_published(tiny("ddt"), "ddt", torch.nn.ModuleList([Projector(16, 6, 8)]))
