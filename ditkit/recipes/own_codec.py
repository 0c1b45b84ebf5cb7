"""A codec of one's own: train it on one's images, normalise its latents, and say how well it gives images back."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditkit.config import flatten
from ditkit.data import DataSettings, ImageSource, Subset, open_source, read_rejects, stratified_split
from ditkit.data.cache import Cache
from ditkit.evaluation import Panel, Report, read_rows, series_of, write_report
from ditkit.evaluation.images import read_png
from ditkit.evaluation.sections import curves, facts, json_block, sheets
from ditkit.files import write_text
from ditkit.pretrained import KLCodec, SelfTaught, VisionTeacher, load_codec
from ditkit.pretrained.toy import ToyExtractor
from ditkit.recipes.place import check_new, check_writable
from ditkit.recipes.reconstruct import PICTURE, Bar, Reconstruction, Say, reconstruct, write
from ditkit.training.checkpoint import checkpoints
from ditkit.training.codec import measure, pooled, train_codec
from ditkit.training.codec_settings import CodecTraining
from ditkit.training.guard import Stop

BEGUN, CARD, REPORT = "training.json", "codec.json", "report.html"
MAY_CHANGE = {"workers", "save_every", "log_every"}  # of a training that goes on
TESTED = 2000  # held-out images that are scored
SEEN = "the codec trained on these images too"
UNSEEN = "the codec never saw these images"

Teacher = SelfTaught | VisionTeacher | ToyExtractor


def open_images(
    data: str | DataSettings, training: CodecTraining, size: int | tuple[int, int] | None
) -> tuple[ImageSource, CodecTraining]:
    """The images in colour, at a size that the factor divides, and the settings with that factor.

    DataError, or ValueError for a size of one's own that it does not divide; one line.
    """
    settings = DataSettings(source=data) if isinstance(data, str) else data.single()
    size = settings.size if size is None else size
    settings = settings.model_copy(update={"channels": 3, "buckets": None, "size": size})
    source = open_source(settings)
    if isinstance(source, Cache):
        raise source.no_pictures()
    training = training.fitted(source.size)
    assert training.factor is not None
    if any(side % training.factor for side in source.size):
        if settings.size is not None:
            sides = "x".join(map(str, source.size))
            raise ValueError(f"codec: images of {sides}; both sides must be multiples of factor={training.factor}")
        source = open_source(settings, multiple=training.factor)
    return source, training


def make_codec(
    source: ImageSource, training: CodecTraining, folder: Path, *, teacher: Teacher | None = None,
    device: torch.device, bar: Bar, say: Say, progress: Callable[[int, dict[str, float]], None] | None = None,
) -> dict:  # fmt: skip
    """Train a codec on `source` in `folder` and return its card, which is also in codec.json.

    A folder where it has begun is gone on with; one where it has ended is left as it is. Ctrl-C and SIGTERM save.
    FileExistsError for a folder of something else, ValueError for one that was begun otherwise; one line.
    """
    begin(source, training, folder, teacher)
    if (folder / CARD).is_file():
        say(f"{folder} is finished already")
        return json.loads((folder / CARD).read_text(encoding="utf-8"))
    parts = [source, source]
    if training.hold_out:
        parts = [Subset(source, stratified_split(source.labels, part)) for part in ("train", "test")]
    vae = train_codec(parts[0], training, folder, teacher=teacher, device=device, progress=progress, say=say)
    with Stop() as stop:
        stop.patient = False  # what follows is short, and begins again
        mean, std = measure(vae, parts[0], training, lambda done, total: bar("scale and shift", done, total))
        save(vae, affine_config(mean, std, training), folder)
        codec = load_codec(str(folder), device)
        assert isinstance(codec, KLCodec)
        scores = test(codec, parts[1], folder, device, bar, say)
        card = {
            "id": codec.id,
            "channels": codec.channels, "factor": codec.factor, "scale": codec.scale, "shift": codec.shift,
            "parameters": sum(p.numel() for p in vae.parameters()),
            "latents": {"mean": mean.tolist(), "std": std.tolist()},
            "test": scores | {"seen": UNSEEN if training.hold_out else SEEN},
            **begun(source, training, teacher),
            "images": len(parts[0]), "rejects": len(read_rejects(folder / "rejects.jsonl")),
        }  # fmt: skip
        card = json.loads(json.dumps(card))  # as it is read back
        write_page(card, folder)
        write_text(folder / CARD, json.dumps(card, indent=2) + "\n")
        shutil.rmtree(checkpoints(folder))
    return card


def begun(source: ImageSource, training: CodecTraining, teacher: Teacher | None) -> dict:
    """What must stay the same when a training goes on, and stands on its card."""
    return {
        "training": training.model_dump(mode="json"),
        "data": source.fingerprint,
        "size": list(source.size),
        "teacher": teacher.id if teacher else None,
    }


def begin(source: ImageSource, training: CodecTraining, folder: Path, teacher: Teacher | None) -> None:
    """Write training.json into a new folder, or compare with the one that is there."""
    now, path = begun(source, training, teacher), folder / BEGUN
    if not path.is_file():
        check_new(folder)
        write_text(path, json.dumps(now, indent=2) + "\n")
        return
    check_writable(folder)
    before, after = flatten(json.loads(path.read_text(encoding="utf-8"))), flatten(now)
    names = [key for key in {**before, **after} if key.removeprefix("training.") not in MAY_CHANGE]
    if wrong := [f"{key.removeprefix('training.')}={before.get(key)}, now {after.get(key)}" for key in names
                 if before.get(key) != after.get(key)]:  # fmt: skip
        raise ValueError(f"{folder} was begun with {'; '.join(wrong)}: name another folder with --out")


def affine_config(mean: Tensor, std: Tensor, training: CodecTraining) -> dict[str, Any]:
    """What config.json says of scale and shift, in the words that diffusers has for them."""
    if training.normalise == "channel":
        statistics = {"latents_mean": mean.tolist(), "latents_std": std.tolist()}
        return {"scaling_factor": 1.0, "shift_factor": None, **statistics}
    together, deviation = pooled(mean, std)
    return {"scaling_factor": 1 / deviation, "shift_factor": together}


def save(vae: Any, affine: dict[str, Any], folder: Path) -> None:
    """The network as diffusers writes it, with its scale and shift; config.json comes last and whole."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as draft:
        vae.save_pretrained(draft)
        config = json.loads(Path(draft, "config.json").read_text(encoding="utf-8"))
        Path(draft, "config.json").write_text(json.dumps(config | affine, indent=2) + "\n", encoding="utf-8")
        for name in sorted(os.listdir(draft), key=lambda name: name == "config.json"):
            os.replace(Path(draft, name), folder / name)


def test(
    codec: KLCodec, source: ImageSource, folder: Path, device: torch.device, bar: Bar, say: Say
) -> dict[str, float | int]:
    """PSNR, and SSIM where it fits, on up to 2,000 of these images; writes scores.json and reconstructions.png."""
    asked = Reconstruction(what=str(folder), batch=64)
    scores = reconstruct(codec, source, asked, extractors={}, n=TESTED, device=device, bar=bar, say=say)
    write(scores, codec, source, folder, asked, device=device)
    found = {score.metric: score.value for space in scores.spaces.values() for score in space.scores}
    return found | {"images": min(TESTED, len(source))}


def write_page(card: dict, folder: Path) -> None:
    """report.html: pictures, scores, curves, settings."""
    rows = read_rows(folder / "metrics.jsonl")
    names = {"loss_pixels": "Pixels", "loss_kl": "KL a image value (nats)", "loss_features": "Teacher: 1 - cosine"}
    panels = [
        Panel(title, [series_of(rows, key, "training", smooth=True)], y_label="loss")
        for key, title in names.items()
        if any(key in row for row in rows)
    ]
    training, test = card["training"], card["test"]
    summary = [
        f"AutoencoderKL, {card['channels']} latent channels, factor {card['factor']}, {card['parameters']:,} "
        f"parameters: {training['steps']:,} steps of {training['batch']} images out of {card['images']:,}.",
        f"PSNR {test['psnr']:.2f} dB on {test['images']:,} images; {test['seen']}.",
    ]
    numbers = {name.upper(): test[name] for name in ("psnr", "ssim") if name in test}
    latents = {"scale": str(card["scale"]), "shift": str(card["shift"])}
    sections = [
        sheets("Reconstructions", {"": read_png(folder / PICTURE)[0][None]}, columns=1,
               note="A row an image: original, reconstruction, 4 times their difference."),
        curves("Curves", panels, "Means over the steps from one point to the next, smoothed; each before its weight."),
        facts("Scores and scale", numbers | latents),
        json_block("Card", card, "Show codec.json"),
    ]  # fmt: skip
    write_report(Report("A codec of one's own", summary, sections), folder / REPORT)
