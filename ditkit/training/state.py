"""What a run is given (Job) and what it changes (State). A checkpoint is a State on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ditkit.checkpoints import CheckpointError
from ditkit.protocols import Condition, Features, Noise
from ditkit.ranks import ALONE, Ranks
from ditkit.training.adapters import NAME as ADAPTER
from ditkit.training.adapters import adapter_layers, adapter_tensors
from ditkit.training.ahead import Draws
from ditkit.training.alarms import Alarms, Spikes
from ditkit.training.checkpoint import read_tensors
from ditkit.training.ema import Averages, Ema, file_of
from ditkit.training.guard import Guard, guard_numbers
from ditkit.training.log import Meter
from ditkit.training.muon import MuonAdamW
from ditkit.training.optim import make_optimizer, moments_of
from ditkit.training.parallel import Team, fill, local, placed
from ditkit.training.readings import Readings
from ditkit.training.settings import TrainSettings

PARTS = (("model", ""), ("align", "align_"))  # each module's raw file in a checkpoint, the prefix of its averages
ATTEMPT = 2**40  # between the seeds of a run before and after a rollback; users' seeds are smaller


class TrainBatch(Protocol):
    """What the loop reads of a batch: this process's rows of the global batch.

    images (b, C, H, W) uint8, or what a cache holds of them, which `Job.encode` takes too. A batch of a cache brings
    `features`, one Features a teacher, with it, and no teacher is asked.
    """

    @property
    def images(self) -> Tensor: ...


@dataclass
class Job:
    """Everything that `fit` needs, as live objects; it never sees a recipe.

    model: a Denoiser on `device`. objective(model, x, cond, noise, auxiliary) -> Loss with total, terms and t.
    encode(images of a batch on device, noise) -> normalised latents (b, C, H, W) float32.
    batches(start_step) -> iterator over this process's rows of step start_step, start_step + 1, ...
    condition(batch) -> Condition of these rows. aligner: has the surface of align.Aligner; targets(images uint8) -> one
    Features a teacher, for batches that bring none. validate(model) -> named losses. evaluate(model, step) -> named
    scores of the averaged weights, asked for every `evaluate_every` steps (None: at the end only) and at the end; it
    changes nothing that training sees. check_latents: warn if the first latents are not normalised (False for pixels).
    identity: JSON values that must not change when a run is resumed, such as the data's fingerprint. ranks: this
    process among all that train.
    """

    model: nn.Module
    objective: Callable[..., Any]
    encode: Callable[[Tensor, Noise], Tensor]
    batches: Callable[[int], Iterator[Any]]
    condition: Callable[[Any], Condition]
    settings: TrainSettings
    folder: Path
    device: torch.device | str = "cpu"
    aligner: Any = None
    targets: Callable[[Tensor], Sequence[Features] | None] | None = None
    validate: Callable[[nn.Module], dict[str, float]] | None = None
    evaluate: Callable[[nn.Module, int], dict[str, float]] | None = None
    evaluate_every: int | None = None
    check_latents: bool = True
    identity: dict = field(default_factory=dict)
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        self.device, self.folder = torch.device(self.device), Path(self.folder)
        if self.settings.batch % self.world:
            raise ValueError(f"batch {self.settings.batch} does not divide over {self.world} processes")
        if self.aligner is None and self.targets is not None:
            raise ValueError("a Job with targets needs an aligner")

    @property
    def rank(self) -> int:
        """The number of this process."""
        return self.ranks.rank

    @property
    def world(self) -> int:
        """How many processes train together."""
        return self.ranks.world

    @property
    def modules(self) -> list[nn.Module]:
        """The network, and the projectors beside it."""
        return [self.model] if self.aligner is None else [self.model, self.aligner]


@dataclass
class State:
    """A run at one moment: `step` updates done, raw and averaged weights, optimizer, counters.

    team: the processes that train together; shared: what is called instead of the job's modules, so that gradients are
    the global batch's. emas: the averages that are sampled; averages: those beside them. readings: numbers that the
    host has not seen yet. attempt: rollbacks so far; the draws of a step depend on it, so that what failed is not
    repeated.
    """

    job: Job
    team: Team
    shared: list[nn.Module]
    emas: list[Ema]
    averages: Averages
    optimizer: torch.optim.AdamW | MuonAdamW
    guard: Guard
    alarms: Alarms
    readings: Readings
    source: Draws
    meter: Meter = field(default_factory=Meter)
    step: int = 0
    attempt: int = 0
    saved: int | None = None  # the step of the checkpoint that equals this state
    seconds: float = 0.0

    @classmethod
    def fresh(cls, job: Job) -> State:
        """The state before the first step; averages start as copies."""
        job.model.train()
        settings = job.settings
        team = Team(job.ranks, settings.parallel, precision=settings.precision, device=job.device)
        emas = [Ema(module, settings.ema) for module in job.modules]  # copies are made before anything is cut
        for ema in emas:
            team.spread(ema.model)
        return cls(
            job,
            team,
            shared=[team.share(module) for module in job.modules],
            emas=emas,
            averages=Averages(job.modules, settings),
            optimizer=make_optimizer(job.modules, settings),
            guard=Guard(settings.max_nonfinite),
            alarms=Alarms(Spikes(settings.spike)),
            readings=Readings(torch.device(job.device)),
            source=Draws(settings.seed, settings.batch, torch.device(job.device)),
        )

    @property
    def model(self) -> nn.Module:
        """The network with its raw weights."""
        return self.job.model

    @property
    def ema(self) -> nn.Module:
        """The network with its averaged weights."""
        return self.emas[0].model

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that the optimizer updates."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @torch.no_grad()
    def finite(self) -> bool:
        """Whether every weight that the optimizer updates is a number."""
        good = bool(torch.stack([local(p).isfinite().all() for p in self.parameters]).all())
        return not self.team.any(not good)

    def draws(self, start: int, stop: int) -> Noise:
        """The noise of rows [start, stop) of this step's global batch; of another stream after a rollback."""
        return self.source(self.step, start, stop, seed=self.job.settings.seed + ATTEMPT * self.attempt)

    def files(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of a checkpoint: file name -> tensors. Where they are cut: gathered in the first process."""
        return self.team.whole(self.tensors())

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The same as they are: of weights that are cut, this process's parts (DTensors)."""
        weights = {}
        for (raw, prefix), module, ema in zip(PARTS, self.job.modules, self.emas, strict=False):
            weights[raw], weights[f"{prefix}ema"] = kept(module), kept(ema.model)
        moments = {
            f"{key}.{name}": value
            for name, parameter in self._named()
            for key, value in self.optimizer.state.get(parameter, {}).items()
        }
        return {**weights, **self.averaged(self.averages.tensors), "optimizer": moments}

    def averaged(self, names: Iterable[str]) -> dict[str, dict[str, Tensor]]:
        """The tensors of some averages beside the first: file name -> what a checkpoint holds of these weights."""
        found = {}
        for number, ((_, prefix), module) in enumerate(zip(PARTS, self.job.modules, strict=False)):
            for name in names:
                own = self.averages.of(name, number)
                found[f"{prefix}{name}"] = kept(module) | {kept_name(module, k): v for k, v in own.items()}
        return found

    def trained(self) -> set[str]:
        """What checkpoints call the parameters that are averaged, of all modules."""
        return {kept_name(m, n) for m in self.job.modules for n, p in m.named_parameters() if p.requires_grad}

    def numbers(self) -> dict:
        """The rest of a checkpoint: JSON values."""
        return {
            "settings": self.job.settings.model_dump(mode="json"),
            "identity": self.job.identity,
            "images": self.step * self.job.settings.batch,
            "attempt": self.attempt,
            "guard": self.guard.numbers(),
            "alarms": self.alarms.numbers(),
            "meter": self.meter.numbers(),
            "seconds": self.seconds,
            **({"averagings": int(self.averages.count.item())} if self.averages.powers else {}),
        }

    def restore(self, step: int, numbers: dict) -> list[str]:
        """Become the state of a checkpoint; lines for the log. CheckpointError if it does not fit; names the keys."""
        folder = self.job.folder
        for (raw, prefix), module, ema in zip(PARTS, self.job.modules, self.emas, strict=False):
            _load(module, read_tensors(folder, step, raw, kept(module)), raw)
            _load(ema.model, read_tensors(folder, step, f"{prefix}ema", kept(ema.model)), f"{prefix}ema")
        lines = self._restore_averages(step, numbers)
        self._restore_moments(step)
        self.step = self.saved = step
        self.seconds, self.attempt = numbers["seconds"], numbers.get("attempt", 0)
        self.readings.clear()
        self.guard.restore(guard_numbers(numbers))
        self.alarms.restore(numbers.get("alarms", {}))
        self.meter = Meter(**numbers["meter"])
        return lines

    def _restore_averages(self, step: int, numbers: dict) -> list[str]:
        """Averages that the checkpoint has not begin as copies; a power function cannot, its profile begins at 0."""
        before, lines = numbers["settings"], []
        held = {file_of("ema", decay) for decay in before.get("ema_also", [])}
        held |= {file_of("power", width) for width in before.get("ema_power", [])}
        for name in self.averages.tensors:
            if name in held:
                for number, ((_, prefix), module) in enumerate(zip(PARTS, self.job.modules, strict=False)):
                    found = read_tensors(self.job.folder, step, f"{prefix}{name}", kept(module))
                    own = self.averages.of(name, number)
                    for key, value in own.items():
                        fill(value, found[kept_name(module, key)])
            elif name in self.averages.powers and step:
                raise CheckpointError(
                    f"{self.job.folder}: a power-function average begins with the run, and {name} is not in the "
                    f"checkpoint of step {step}: leave it out of training.ema_power, or begin another run"
                )
            else:
                self.averages.begin(name)
                lines.append(f"the average {name} begins at step {step}, as a copy of the raw weights")
        self.averages.count.fill_(numbers.get("averagings", 0))
        return lines

    def _restore_moments(self, step: int) -> None:
        kinds = moments_of(self.optimizer)
        cut = {f"{k}.{name}": p for name, p in self._named() for k in kinds(p) if k != "step"}
        moments = read_tensors(self.job.folder, step, "optimizer", cut)
        self.optimizer.state.clear()  # of a run that is rolled back
        stored = {key.partition(".")[2] for key in moments}
        for name, parameter in self._named():
            if name not in stored:
                continue
            keys = {k: f"{k}.{name}" for k in kinds(parameter)}
            if missing := keys.values() - moments.keys():
                raise CheckpointError(
                    f"{self.job.folder}: the checkpoint of step {step} has no {_few(sorted(missing))}: it is "
                    "another optimizer's; set training.muon as it was, or begin another run with --start"
                )
            # a copy: the loaded tensors are a mapped file, which may be removed while the run goes on
            self.optimizer.state[parameter] = {k: placed(moments[full], parameter) for k, full in keys.items()}

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return [
            (f"{part}.{name}", parameter)
            for (part, _), module in zip(PARTS, self.job.modules, strict=False)
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        ]


def kept(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module that a checkpoint holds: its adapter's where it has one, for the base never changes."""
    return adapter_tensors(module) or module.state_dict()


def kept_name(module: nn.Module, name: str) -> str:
    """What `kept` calls a trained parameter of the module."""
    return name.replace(f".{ADAPTER}.weight", ".weight") if adapter_layers(module) else name


def _load(module: nn.Module, tensors: dict[str, Tensor], name: str) -> None:
    own = kept(module)
    wrong = [k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape]
    for what, keys in (("missing", own.keys() - tensors.keys()), ("unknown", tensors.keys() - own.keys())):
        if keys:
            raise CheckpointError(f"{name}.safetensors does not fit this model: {what} {_few(sorted(keys))}")
    if wrong:
        raise CheckpointError(f"{name}.safetensors does not fit this model: other shapes of {_few(sorted(wrong))}")
    for key, value in own.items():
        fill(value, tensors[key])


def _few(keys: list[str]) -> str:
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
