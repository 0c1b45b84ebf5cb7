"""The command line answers at once: no torch before a verb runs, every verb explains itself."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from ditkit.cli import VERBS


def run(*command: str) -> str:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True).stdout


def processor_seconds(*command: str) -> tuple[float, str]:
    """What a command costs in processor time, since other tests run beside this one; and what it prints."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    out = run(*command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, out


def test_help_takes_less_than_a_second():
    took, out = processor_seconds("-m", "ditkit", "--help")
    assert all(verb in out for verb in VERBS)
    assert took < 1.0


def test_help_imports_no_torch():
    code = "import sys, ditkit.cli; print([m for m in ('torch', 'numpy', 'PIL', 'pydantic') if m in sys.modules])"
    assert run("-c", code).strip() == "[]"


def test_import_with_torch_takes_less_than_three_seconds():
    code = (
        "import time, torch; began = time.process_time(); import ditkit; ditkit.load; ditkit.sample; "
        "print(time.process_time() - began)"
    )
    assert float(run("-c", code)) < 3.0


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(ditkit, verb):
    result = ditkit(verb, "--help")
    assert result.exit_code == 0
    assert f"Example: ditkit {verb}" in " ".join(result.stdout.replace("│", " ").split())


def test_version(ditkit):
    from ditkit import __version__

    assert ditkit("--version").stdout.strip() == f"ditkit {__version__}"
