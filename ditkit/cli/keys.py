"""Options beyond those that a verb declares: `--seed 3` is another spelling of `seed=3`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from typer.core import TyperCommand

# --KEY -> the dotted key that it sets; a verb's own options come first
SAME = (
    *("seed", "weights", "step", "interval", "size", "chunk", "uint8", "codec", "guidance", "classes", "real"),
    *("sharing", "prompt", "prompts", "negative", "text", "without", "geneval", "detector", "clip"),
    *("exact", "rows"),
)
KEYS = {
    **{key: key for key in SAME},
    "labels": "classes",
    "steps": "sampling.steps",
    "solver": "sampling.solver",
    "shift": "sampling.shift",
    "heads": "shape.heads",
    "patch": "shape.patch",
    "encoder-blocks": "shape.encoder_blocks",
    "align-depth": "shape.align_depth",
    "split": "data.split",
}
FAMILIES = "dit, sit, repa, ddt, improved-dit, diffusers-dit, sd3, diffusers-sd3, repa-mmdit"  # of published files
FLAGS = {
    "geneval": "geneval=auto",
    "exact": "exact=true",
    "per-class": "per-class=true",
    "compare": "compare=true",
}  # --KEY alone
BOTH = ("out", "device", "source", "extractor", "against")  # options that may be written as KEY=VALUE too
WORDS = ("prompt", "negative")  # texts, which may be empty


class Keyed(TyperCommand):
    """A verb that takes [KEY=VALUE]... and reads `--KEY VALUE` and `--KEY=VALUE` for the names in `keys` too."""

    keys: ClassVar[Mapping[str, str]] = KEYS

    def parse_args(self, ctx, args):
        declared = {name for parameter in self.params for name in parameter.opts}
        return super().parse_args(ctx, respell(as_options(args, declared), declared, self.keys))


def as_options(words: Sequence[str], declared: set[str]) -> list[str]:
    """["out=x"] -> ["--out", "x"], for declared options that are no keys of anything: KEY=VALUE is promised for all."""
    result: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        result += [f"--{name}", value] if equals and name in BOTH and f"--{name}" in declared else [word]
    return result


def respell(words: list[str], declared: set[str], keys: Mapping[str, str] = KEYS) -> list[str]:
    """["--seed", "3"] -> ["seed=3"], but for declared options. ValueError for a key without a value."""
    result: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.removeprefix("--").partition("=")
        if word == "--":
            return [*result, word, *rest]
        if not word.startswith("--") or f"--{name}" in declared or (name := name.replace("_", "-")) not in keys:
            result.append(word)
            continue
        if not equals and name in FLAGS:
            result.append(FLAGS[name])
            continue
        given = value if equals else next(rest, None)
        if not given and (given is None or keys[name] not in WORDS):  # key= would mean none
            raise ValueError(f"--{name}: its value is missing")
        result.append(f"{keys[name]}={given}")
    return result
