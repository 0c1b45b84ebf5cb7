"""Training: the loop, its state on disk, and what guards it."""

from ditkit.checkpoints import CheckpointError
from ditkit.training.adapter_files import load_adapter, save_adapter, save_diffusers
from ditkit.training.adapters import Adapter, AdapterSettings, adapter_off, add_adapter, merge
from ditkit.training.checkpoint import list_steps
from ditkit.training.ema import Ema
from ditkit.training.files import SaveError, Unwritable
from ditkit.training.guard import Interrupted, NonFinite
from ditkit.training.log import Row, read_metrics
from ditkit.training.loop import fit
from ditkit.training.precision import compile_blocks
from ditkit.training.preference import Preference
from ditkit.training.settings import TrainSettings
from ditkit.training.state import Job, State
from ditkit.training.validation import ValidationLoss
from ditkit.training.weights import read

__all__ = [
    "Adapter",
    "AdapterSettings",
    "CheckpointError",
    "Ema",
    "Interrupted",
    "Job",
    "NonFinite",
    "Preference",
    "Row",
    "SaveError",
    "State",
    "TrainSettings",
    "Unwritable",
    "ValidationLoss",
    "adapter_off",
    "add_adapter",
    "compile_blocks",
    "fit",
    "list_steps",
    "load_adapter",
    "merge",
    "read",
    "read_metrics",
    "save_adapter",
    "save_diffusers",
]
