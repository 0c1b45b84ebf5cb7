"""Training: the loop, its state on disk, and what guards it."""

from ditkit.training.settings import TrainSettings

__all__ = ["TrainSettings"]
