"""Errors become one clear line and an exit code: 2 bad input, 130 Ctrl-C, 143 SIGTERM; never a traceback.

Set DITKIT_TRACEBACK=1 to see the whole traceback.
"""

from __future__ import annotations

import os
import sys

import typer
from typer.core import TyperGroup


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
        except (ValueError, OSError, RuntimeError, ImportError) as error:
            if os.environ.get("DITKIT_TRACEBACK"):
                raise
            raise typer.Exit(_say(_line(error), 2)) from None


def _line(error: BaseException) -> str:
    """The error as one line per problem; a foreign error names its kind, since its text alone may say little."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, FileNotFoundError) and error.filename and error.errno:
        return f"no such file or folder: {error.filename}"
    if isinstance(error, OSError) and error.filename and error.errno:
        return f"{error.strerror}: {error.filename}"
    if not type(error).__module__.startswith("ditkit") and not isinstance(error, ValueError):
        text = f"{type(error).__name__}: {text}"
    return text


def _say(text: str, code: int) -> int:
    typer.echo(f"ditkit: {text}", err=True)
    sys.stderr.flush()
    return code
