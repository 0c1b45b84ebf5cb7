"""`ditkit data caption`: tiny random image-to-text models of every kind write captions that training finds."""

from __future__ import annotations

import json
import sys

import pytest

transformers = pytest.importorskip("transformers")

SPECIAL = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", "<image>"]
WORDS = [*SPECIAL, "a", "red", "blue", "square", "circle", "of", "the", "photo", "describe", "user", "assistant", ":"]
VISION = {"image_size": 16, "patch_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TOKENS = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
TALK = (
    "{% for m in messages %}{{ m['role'] }} : {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}assistant : "
)


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", bos_token="[BOS]", eos_token="[EOS]",
        cls_token="[BOS]", sep_token="[EOS]", additional_special_tokens=["<image>"],
    )  # fmt: skip


def blip():
    text = SMALL | TOKENS | {"sep_token_id": 3, "encoder_hidden_size": 16, "max_position_embeddings": 64}
    config = transformers.BlipConfig(text_config=text, vision_config=SMALL | VISION, projection_dim=16)
    images = transformers.BlipImageProcessor(size={"height": 16, "width": 16})
    return transformers.BlipForConditionalGeneration(config), [transformers.BlipProcessor(images, tokenizer())]


def vit_gpt2():
    encoder = transformers.ViTConfig(**SMALL | VISION)
    decoder = transformers.GPT2Config(**TOKENS, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    model = transformers.VisionEncoderDecoderModel(config)
    model.generation_config.decoder_start_token_id = 2
    return model, [transformers.ViTImageProcessor(size={"height": 16, "width": 16}), tokenizer()]


def llava():
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**SMALL | VISION | {"num_hidden_layers": 2}, projection_dim=16),
        text_config=transformers.LlamaConfig(**SMALL, **TOKENS, num_key_value_heads=2),
        image_token_index=4, vision_feature_layer=-1,
    )  # fmt: skip
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = transformers.LlavaProcessor(
        images, tokenizer(), patch_size=8, vision_feature_select_strategy="default", chat_template=TALK,
        num_additional_image_tokens=1,
    )  # fmt: skip
    return transformers.LlavaForConditionalGeneration(config), [processor]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of tiny random models by name."""
    import torch

    from ditkit.pretrained.hub import quiet

    folders = {}
    torch.manual_seed(0)
    with quiet():
        for make in (blip, vit_gpt2, llava):
            model, processors = make()
            model.generation_config.suppress_tokens = list(range(len(SPECIAL)))  # random models would say little else
            for weight in model.parameters():
                weight.data.normal_(0, 0.5)
                if weight.shape == (len(WORDS),):  # BLIP's decoder asks no such list, but has a bias
                    weight.data[: len(SPECIAL)] = -100
            folders[make.__name__] = folder = tmp_path_factory.mktemp(make.__name__)
            for part in (model, *processors):
                part.save_pretrained(folder)
    return folders


@pytest.fixture
def data(tmp_path, pictures):
    """Class folders of five pictures and one that is none."""
    root = pictures(tmp_path / "data", n=2)
    (root / "dog" / "bad.png").write_bytes(b"junk")
    pictures(root, ("cat",), n=3, size=(9, 30))
    return root


def rows(table):
    return [json.loads(line) for line in table.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("name", ["blip", "vit_gpt2", "llava"])
def test_every_kind_of_model(name, models, data, ditkit):
    result = ditkit("data", "caption", data, "--model", models[name], "--batch", 2, "--max-tokens", 6)
    assert result.exit_code == 0, result.output
    table = data / "synthetic.jsonl"
    assert "5 of 6 images" in result.stdout and "bad.png: not a picture" in result.stdout
    assert [row["file_name"] for row in rows(table)] == [f"cat/00{i}.png" for i in range(3)] + [
        "dog/000.png",
        "dog/001.png",
    ]
    for row in rows(table):
        said = row["synthetic"].split()
        assert 0 < len(said) <= 6 and set(said) <= set(WORDS) - set(SPECIAL)
    assert [row["path"] for row in rows(data / "synthetic.rejects.jsonl")] == [str(data / "dog" / "bad.png")]
    from ditkit.data import open_source

    source = open_source(str(data))
    assert source.classes == ("cat", "dog") and source[0].captions.synthetic == (rows(table)[0]["synthetic"],)


def test_batches_do_not_change_captions(models, data, ditkit, tmp_path):
    for batch in (1, 4):
        words = ["--batch", batch, "--out", tmp_path / f"{batch}.jsonl", "--beams", 2, "--prompt", "describe a"]
        assert ditkit("data", "caption", data, "--model", models["llava"], *words).exit_code == 0
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "4.jsonl").read_bytes()


def test_the_picture_decides(models):
    from PIL import Image

    from ditkit.pretrained import load_captioner

    captioner = load_captioner(str(models["blip"]), max_tokens=4)
    seen = []
    captioner.model.vision_model.register_forward_hook(lambda module, inputs, out: seen.append(out.pooler_output))
    captioner([Image.new("L", (20, 9), 255), Image.new("RGB", (7, 30))])
    assert seen[0].shape[0] == 2 and (seen[0][0] - seen[0][1]).abs().max() > 1e-3
    assert captioner.id.startswith("blip-") and captioner.id == load_captioner(str(models["blip"])).id


def test_parquet(models, tmp_path, pictures, ditkit):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files = sorted(pictures(tmp_path / "data", ("",), n=2).glob("*.png"))
    pq.write_table(pa.table({"image": [file.read_bytes() for file in files]}), tmp_path / "a.parquet")
    result = ditkit("data", "caption", tmp_path / "a.parquet", "--model", models["vit_gpt2"], "--max-tokens", 3)
    assert result.exit_code == 0, result.output
    assert [row["file_name"] for row in rows(tmp_path / "a.synthetic.jsonl")] == ["a.parquet#0", "a.parquet#1"]


def test_what_cannot_be_done_is_one_line(models, data, tmp_path, refused, ditkit):
    model = models["vit_gpt2"]
    assert "takes no prompt" in last_line(ditkit, "data", "caption", data, "--model", model, "--prompt", "a")
    assert "captions are written for a folder" in refused("data", "caption", "digits", "--model", model)
    assert "no folder of that name here" in refused("data", "caption", data, "--model", tmp_path / "none")
    (data / "synthetic.jsonl").write_text('{"file_name": "cat/000.png", "synthetic": "x"}\n')
    assert "exists already" in refused("data", "caption", data, "--model", tmp_path / "none")


def last_line(ditkit, *words):
    """The last line on stderr of a command that is refused after it has begun."""
    result = ditkit(*words)
    assert result.exit_code == 2 and "Traceback" not in result.output
    return result.stderr.splitlines()[-1]


def test_without_transformers_the_extra_is_named(models, data, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    line = refused("data", "caption", data, "--model", models["blip"])
    assert "pip install 'ditkit[hf]'" in line and "NAME.synthetic.txt" in line


def test_a_model_that_lacks_weights_is_refused(models, data, tmp_path, refused):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(models["blip"], tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    lost = next(key for key in state if key.startswith("vision_model.encoder"))
    save_file(
        {key: value for key, value in state.items() if key != lost}, folder / "model.safetensors", {"format": "pt"}
    )
    assert f"weights are missing: {lost}" in refused("data", "caption", data, "--model", folder)
