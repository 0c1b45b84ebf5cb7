"""Errors become one clear line and an exit code: 2 bad input, 130 Ctrl-C, 143 SIGTERM; no traceback.

Set DITKIT_TRACEBACK=1 to see the whole traceback. A kind of error that nobody foresaw keeps its own: it is a defect.
"""

from __future__ import annotations

import os
import sys

import typer
from typer.core import TyperGroup

EXPECTED = (ValueError, OSError, RuntimeError, ImportError, ArithmeticError, MemoryError)
UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # click's, which typer carries under changing names


class Verbs(TyperGroup):
    """The group of verbs; turns what a verb raises into a line on stderr and an exit code."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):  # Exit is a RuntimeError
            raise
        except KeyboardInterrupt as interrupt:
            code = getattr(interrupt, "exit_code", 130)
            raise typer.Exit(_say(str(interrupt) or "interrupted", code)) from None
        except UsageError as error:
            raise typer.Exit(_say(_usage(error), 2)) from None
        except EXPECTED as error:
            if os.environ.get("DITKIT_TRACEBACK"):
                raise
            raise typer.Exit(_say(_line(error), 2)) from None


def _usage(error) -> str:
    """A mistyped option or verb: what is wrong, and where help is."""
    context, words = error.ctx, ["--help"]
    while context is not None and context.parent is not None:  # the outermost is ditkit itself
        words.insert(0, context.info_name)
        context = context.parent
    return f"{error.format_message()} (see ditkit {' '.join(words)})"


def _line(error: BaseException) -> str:
    """The error as one line per problem; a foreign error names its kind, since its text alone may say little."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, OSError) and error.errno and error.filename:
        if isinstance(error, FileNotFoundError):
            return f"no such file or folder: {error.filename}"
        return f"{error.strerror}: {error.filename}"
    ours = type(error).__module__.startswith("ditkit") or isinstance(error, (ValueError, OSError))
    return text if ours else f"{type(error).__name__}: {text.splitlines()[0]}"


def _say(text: str, code: int) -> int:
    typer.echo(f"ditkit: {text}", err=True)
    sys.stderr.flush()
    return code
