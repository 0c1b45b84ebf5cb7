"""`ditkit codec`: train a small KL autoencoder on your own images, for `ditkit train --codec`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ditkit.cli.train import Device, Size


def codec(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="channels=16 factor=4 width=64 normalise=channel ...", metavar="[KEY=VALUE]..."),
    ] = None,
    data: Annotated[str, typer.Option("--data", help="A folder of images, a .parquet file, digits.")] = "digits",
    out: Annotated[Path, typer.Option("--out", help="Folder of the codec; one begun there goes on.")] = Path(
        "runs/codec"
    ),
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Optimizer steps; default 1000.")] = None,
    size: Size = None,
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", help="Decoded images must have its features of the originals (feature_weight)."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Train a small KL autoencoder (diffusers' AutoencoderKL) on your own images; labels are not looked at.

    Its latents are then normalised by the images it trained on, and it is tested on one fifth that it never saw. The
    folder serves as --codec everywhere. Ctrl-C saves; the same command goes on.

    Keys, among others: channels (of the latents), factor (pixels a latent cell), width, blocks, batch, lr, loss (l1,
    l2), kl_weight, feature_weight, ema, normalise (global, channel), hold_out, seed.

    Example: ditkit codec --data ./my_images --out runs/codec channels=16 factor=8
    """
    from ditkit.cli.progress import bars
    from ditkit.config import override
    from ditkit.pretrained import load_teacher
    from ditkit.recipes.build import pick_device
    from ditkit.recipes.choose import agreeing, parse_size
    from ditkit.recipes.own_codec import begin, make_codec, open_images
    from ditkit.training.codec_settings import CodecTraining

    before = CodecTraining() if steps is None else CodecTraining().with_({"steps": steps})
    asked = agreeing(before, override(before, overrides or []), overrides or [], {"--steps": steps})
    where = pick_device(device)
    source, training = open_images(data, asked, None if size is None else parse_size(size))
    seen = None if teacher in (None, "none") else load_teacher(str(teacher), where)
    begin(source, training, out, seen)
    with bars() as bar:
        for note in source.notes:
            bar.say(note)
        height, width = source.size
        bar.say(
            f"training a codec on {len(source):,} images of {height}x{width}, on {where}: {training.channels} channels "
            f"of {height // (training.factor or 1)}x{width // (training.factor or 1)}"
        )

        def on_step(step: int, values: dict[str, float]) -> None:
            bar("codec", step, training.steps, f"loss {values['loss']:.4f}")

        card = make_codec(source, training, out, teacher=seen, device=where, bar=bar, say=bar.say, progress=on_step)
    typer.echo(describe(card))
    sized = "" if size is None else f" --size {size}"
    typer.echo(f"codec: {out}   picture: {out / 'reconstructions.png'}   report: {out / 'report.html'}")
    typer.echo(f"next: ditkit train sit.s_2 --data {data}{sized} --codec {out}")


def describe(card: dict) -> str:
    """Scores, scale and shift in a few lines."""
    test = card["test"]
    scores = f"PSNR {test['psnr']:.2f} dB" + (f", SSIM {test['ssim']:.3f}" if "ssim" in test else "")
    lines = [f"{scores} on {test['images']:,} images; {test['seen']}"]
    if isinstance(card["scale"], list):
        means, deviations = (", ".join(f"{v:.3g}" for v in card["latents"][key]) for key in ("mean", "std"))
        lines.append(f"latents: a scale and shift for each channel (means {means}; deviations {deviations})")
    else:
        lines.append(f"latents: scale {card['scale']:.5g}, shift {card['shift']:.5g}")
    if card["rejects"]:
        lines.append(f"left out: {card['rejects']:,} images that cannot be used (rejects.jsonl)")
    return "\n".join(lines)
