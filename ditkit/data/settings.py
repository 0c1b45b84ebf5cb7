"""What to train on: one settings object for every kind of source."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from ditkit.config import Settings
from ditkit.data.buckets import BucketSettings
from ditkit.data.mixing import CLASS


class DataSettings(Settings):
    """Where the images are and how they are read. What is left None is taken from the data, and said so."""

    source: str = Field(
        "digits", description="'digits', 'scenes', a folder of images, .zip, .tar, .parquet, a folder of those, hub:ID"
    )
    part: str | None = Field(None, description="hub data sets: which of their splits; None: 'train', or the only one")
    index: str | None = Field(None, description="use the images this file keeps (`ditkit data filter`, `duplicates`)")
    split: Literal["all", "train", "test"] = Field("all", description="fixed stratified four fifths / one fifth")
    size: int | tuple[int, int] | None = Field(None, description="pixels: one side, or (height, width)")
    channels: Literal[1, 3] | None = Field(None, description="1 = greyscale; None: 1 for digits, else 3 (RGB)")
    flip: bool = Field(False, description="mirror each visit of an image with probability 1/2")
    workers: int = Field(0, ge=0, description="processes that decode ahead; the order is the same for any number")
    cache: bool | None = Field(None, description="keep decoded images in RAM; None: where they take <= 256 MB")
    corrupt: Literal["stop", "skip"] = Field(
        "stop", description="a damaged shard of a cache: end, or leave its images out"
    )
    table: str | None = Field(None, description="CSV, JSONL or COCO JSON with file_name and label or text")
    image_column: str | None = Field(None, description="parquet, hub: column of images; None: found by its type")
    label_column: str | None = Field(
        None, description="column of labels in a table, parquet, tar's .json; None: 'label'"
    )
    text_column: str | None = Field(None, description="as label_column, of captions; None: 'text', 'caption'")

    synthetic_column: str | None = Field(None, description="column of captions that a model wrote; None: 'synthetic'")
    synthetic_table: str | None = Field(None, description="table of synthetic captions; None: found beside the images")
    synthetic_share: float = Field(0.5, ge=0, le=1, description="of the visits of an image with both kinds of captions")
    empty_share: float = Field(0.0, ge=0, le=1, description="of the visits, shown with an empty caption (REPA: 0.1)")
    text_cache: str | None = Field(
        None, description="folder that keeps encoded captions from run to run, in half precision (SD3); None: memory"
    )
    caption: str | None = Field(None, description="for images without one, such as 'a photo of a {class}'")
    pairs: Literal["both", "winners"] | None = Field(None, description="pairs of images: both, for objective.kind=dpo")
    buckets: BucketSettings | None = Field(None, description="keep aspect ratios: batches of sizes of about one area")

    @field_validator("size")
    @classmethod
    def _positive(cls, size):
        if size is not None and min(size if isinstance(size, tuple) else (size,)) < 1:
            raise ValueError(f"size must be positive, got {size}")
        return size

    @field_validator("caption")
    @classmethod
    def _template(cls, caption):
        if caption is not None and (not caption.strip() or set("{}") & set(caption.replace(CLASS, ""))):
            raise ValueError(f"caption {caption!r} must be a text whose only placeholder is {CLASS}")
        return caption

    @model_validator(mode="after")
    def _one_size(self) -> DataSettings:
        if self.buckets is not None and self.size is not None and self.shape() != (self.buckets.side,) * 2:
            raise ValueError(f"size {self.size} and buckets.side {self.buckets.side}: leave one out")
        return self

    def single(self) -> DataSettings:
        """The same data with one image an item: of pairs the winners."""
        return self if self.pairs is None else self.model_copy(update={"pairs": "winners"})

    def shape(self) -> tuple[int, int] | None:
        """`size` as (H, W), or None where the data decide."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size
