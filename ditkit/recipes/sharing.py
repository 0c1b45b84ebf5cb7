"""Encoder sharing of a loaded DDT: the rules that name a schedule, and the measurements that some of them stand on.

Measurements belong to one model and one sampler (weights, solver, steps, grid, guidance, size): they are kept in
HOME/sharing/DIGEST, and found again by that digest only.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ditkit.analysis.schedule import optimal_schedule, sharing_schedule
from ditkit.config import SettingsError, dump, nearest, read_file, read_settings
from ditkit.diffusion import SamplerSettings, SharedEncoder, Sharing, every_schedule, uniform_schedule
from ditkit.diffusion.sharing import check_budget
from ditkit.evaluation.generate import weights_fingerprint
from ditkit.files import write_atomic, write_text
from ditkit.recipes.load import Loaded

STORE, STATISTICS = "sharing", "statistics.npz"
SOLVED = {"dp": "similarity of s", "velocity": "error of the velocity"}  # rules that need measurements of a model
RULES = (*SOLVED, "uniform", "every")
SPELLING = "write dp:K, velocity:K, uniform:K, every:r, none, or a schedule's .json file"


@dataclass(frozen=True)
class Place:
    """Where a model's measurements are kept. size: latent (H, W); words: those that name model and sampler."""

    home: Path
    size: tuple[int, int]
    words: tuple[str, ...] = ()

    def folder(self, loaded: Loaded, sampling: SamplerSettings) -> Path:
        """The folder of this model and sampler, there or not."""
        return self.home / STORE / digest(loaded, sampling, self.size)

    def measure_first(self, rule: str) -> str:
        """The end of an error line: how to get what `rule` ("dp:5") needs."""
        return f"measure it first: {self.command('analyze', 'sharing')} --budget {rule.partition(':')[2]}"

    def command(self, *verb: str) -> str:
        """The command line of a verb on this model with this sampler."""
        return shlex.join(["ditkit", *verb, *self.words])


@dataclass(frozen=True)
class Measured:
    """What `ditkit analyze sharing` found along unshared runs of N evaluations.

    similarity (N, N): mean cosine similarity of s. error (N, N): what the velocity errors of an older s do to the final
    sample, `velocity_error`; infinite beyond `reach`. times (N,): t of each evaluation. branches: name -> (N,), of
    sharing between the guidance branches: `between` and `branch_error`; empty without guidance. facts: how it was
    measured.
    """

    similarity: np.ndarray
    error: np.ndarray
    times: np.ndarray
    branches: dict[str, np.ndarray]
    facts: dict

    @property
    def evaluations(self) -> int:
        """N."""
        return len(self.times)

    @property
    def reach(self) -> int:
        """For how many evaluations after its own the error of an s was measured: N - 1, or less."""
        return int(np.isfinite(self.error[:, 0]).sum()) - 1

    def schedule(self, kind: str, budget: int) -> Sharing:
        """The schedule of `budget` runs that is best by this measurement.

        ValueError, one line, for a budget not in 1 ... N, or so small that reuse beyond `reach` is needed.
        """
        check_budget(self.evaluations, budget)
        if kind == "velocity" and (longest := -(-self.evaluations // budget)) > self.reach + 1:
            raise ValueError(
                f"sharing velocity:{budget}: some s has to serve {longest} of the {self.evaluations} evaluations, and "
                f"the error was measured for {self.reach + 1} at most"
            )
        solved = sharing_schedule(self.similarity, budget) if kind == "dp" else optimal_schedule(self.error, budget)
        return Sharing(rule=f"{kind}:{budget}", evaluations=self.evaluations, encode=tuple(solved))

    def save(self, folder: Path) -> Path:
        """Write statistics.npz into the folder."""
        arrays = {f"branch_{name}": values for name, values in self.branches.items()}
        arrays |= {"similarity": self.similarity, "error": self.error, "times": self.times}
        arrays["facts"] = np.array(json.dumps(self.facts))
        return write_atomic(folder / STATISTICS, lambda file: np.savez(file, allow_pickle=False, **arrays))

    @classmethod
    def load(cls, folder: Path) -> Measured | None:
        """What `save` wrote, None where there is nothing. ValueError, one line, for a file that is damaged."""
        file = folder / STATISTICS
        if not file.is_file():
            return None
        try:
            with np.load(file, allow_pickle=False) as data:
                branches = {k.removeprefix("branch_"): data[k] for k in data.files if k.startswith("branch_")}
                facts = json.loads(str(data["facts"]))
                return cls(data["similarity"], data["error"], data["times"], branches, facts)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{file}: not readable ({error}); remove it and measure again") from None


def digest(loaded: Loaded, sampling: SamplerSettings, size: tuple[int, int]) -> str:
    """12 hex digits of everything that decides how s moves: network, path, sampler (but its sharing), latent size."""
    asked = {
        "model": loaded.settings.model_dump(mode="json", exclude={"size", "checkpointing"}),  # heads, split
        "weights": weights_fingerprint(loaded.model),
        "path": loaded.path.model_dump(mode="json"),
        "prediction": loaded.prediction,
        "sampler": sampling.model_dump(mode="json", exclude={"sharing"}),
        "size": list(size),
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]


def check_shareable(loaded: Loaded, sampling: SamplerSettings) -> int:
    """The evaluations N of a run. ValueError, one line, for a model without an encoder, or an adaptive solver."""
    SharedEncoder(loaded.model, Sharing(rule="every:1", evaluations=1, encode=(0,)))  # type: ignore[arg-type]
    return sampling.evaluations(loaded.path, loaded.prediction)


def parse_sharing(
    text: str, loaded: Loaded, sampling: SamplerSettings, place: Place, keep: bool = True
) -> Sharing | None:
    """A rule of the command line as the schedule of this model and sampler; "none" is None.

    uniform:K and every:r follow from the sampler's evaluations; dp:K and velocity:K are solved from what
    `ditkit analyze sharing` stored for this model and sampler; else `text` is a schedule's file. Raises ValueError or
    SettingsError, one line.
    """
    if text == "none":
        return None
    steps = check_shareable(loaded, sampling)
    kind, colon, value = text.partition(":")
    if kind not in RULES or not colon:
        found = read_schedule(Path(text))
        if found.evaluations != steps:
            raise ValueError(f"{text}: made for {found.evaluations} evaluations, this sampler makes {steps}")
    else:
        found = _by_rule(kind, _whole(text, value), steps, loaded, sampling, place)
    return found.model_copy(update={"keep": found.keep and keep})


def _by_rule(kind: str, number: int, steps: int, loaded: Loaded, sampling: SamplerSettings, place: Place) -> Sharing:
    rule = f"{kind}:{number}"
    if kind == "every":
        return Sharing(rule=rule, evaluations=steps, encode=tuple(every_schedule(steps, number)))
    if kind == "uniform":
        return Sharing(rule=rule, evaluations=steps, encode=tuple(uniform_schedule(steps, number)))
    check_budget(steps, number)
    measured = Measured.load(place.folder(loaded, sampling))
    if measured is None:
        raise ValueError(f"sharing {rule}: {SOLVED[kind]} was not measured here; {place.measure_first(rule)}")
    try:
        return measured.schedule(kind, number)
    except ValueError as error:
        raise ValueError(f"{error}; {place.measure_first(rule)}") from None


def _whole(text: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"sharing {text!r}: {value!r} is no whole number; {SPELLING}") from None


def read_schedule(file: Path) -> Sharing:
    """A schedule file: {"evaluations": N, "encode": [0, ...]}, by hand or of `analyze`. SettingsError, one line."""
    if not file.exists():
        hint = f"; {SPELLING}" if ":" not in str(file) else f"{nearest(str(file).partition(':')[0], RULES)}"
        raise SettingsError(f"sharing {str(file)!r}: no such rule or file{hint}")
    try:
        return read_settings(Sharing, {"rule": file.name, **read_file(file)}, str(file))
    except SettingsError as error:
        raise SettingsError("; ".join(str(error).splitlines())) from None


def write_schedule(sharing: Sharing, folder: Path) -> Path:
    """Write a schedule as FOLDER/dp-5.json and the like; `read_schedule` reads it back equal."""
    return write_text(folder / f"{sharing.rule.replace(':', '-')}.json", dump(sharing, "json"))
