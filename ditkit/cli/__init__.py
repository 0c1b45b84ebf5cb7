"""The command line: one small file per verb. Nothing here imports torch before a verb runs."""

from __future__ import annotations

import importlib
import os
import sys

import typer

from ditkit.cli.errors import Verbs

app = typer.Typer(
    cls=Verbs,
    name="ditkit",
    help="Train, sample, evaluate and understand diffusion transformers.",
    epilog="Start with: ditkit demo   |   ditkit show   |   ditkit train repa.sit_s_2 --data ./my_images",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

VERBS = (
    "show",
    "train",
    "teacher",
    "codec",
    "data",
    "encode",
    "sample",
    "sweep",
    "evaluate",
    "analyze",
    "convert",
    "doctor",
    "estimate",
    "bench",
    "reproduce",
    "demo",
)

for _verb in VERBS:
    _module = importlib.import_module(f"ditkit.cli.{_verb}")
    if isinstance(_group := getattr(_module, "app", None), typer.Typer):  # a verb with sub-commands
        app.add_typer(_group, name=_verb)
    else:
        app.command(_verb, cls=getattr(_module, "Command", None))(getattr(_module, _verb))


@app.callback(invoke_without_command=True)
def _version(
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
) -> None:
    if version:
        from ditkit import __version__

        typer.echo(f"ditkit {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point of the `ditkit` command."""
    try:
        app()
    except SystemExit as stop:
        if stop.code == 130:  # once Ctrl-C has passed through an exec() of some library, Python's own exit would
            sys.stdout.flush()  # end by the signal instead of with this code
            sys.stderr.flush()
            os._exit(130)
        raise
