"""Training: the loop, its state on disk, and what guards it."""

from ditkit.checkpoints import CheckpointError
from ditkit.training.checkpoint import list_steps, read
from ditkit.training.ema import Ema
from ditkit.training.files import SaveError, Unwritable
from ditkit.training.guard import Interrupted, NonFinite
from ditkit.training.log import Row, read_metrics
from ditkit.training.loop import fit
from ditkit.training.precision import compile_blocks
from ditkit.training.settings import TrainSettings
from ditkit.training.state import Job, State
from ditkit.training.validation import ValidationLoss

__all__ = [
    "CheckpointError",
    "Ema",
    "Interrupted",
    "Job",
    "NonFinite",
    "Row",
    "SaveError",
    "State",
    "TrainSettings",
    "Unwritable",
    "ValidationLoss",
    "compile_blocks",
    "fit",
    "list_steps",
    "read",
    "read_metrics",
]
