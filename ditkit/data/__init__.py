"""Sources of images, their order, and the loader that turns them into batches."""

from ditkit.data.digits import Digits
from ditkit.data.loader import Batch, Loader
from ditkit.data.open import open_source
from ditkit.data.order import Order
from ditkit.data.rejects import Rejects, read_rejects
from ditkit.data.settings import DataSettings
from ditkit.data.source import DataError, ImageSource, Subset, stratified_split
from ditkit.data.transforms import adm_crop, to_float, to_uint8

__all__ = [
    "Batch",
    "DataError",
    "DataSettings",
    "Digits",
    "ImageSource",
    "Loader",
    "Order",
    "Rejects",
    "Subset",
    "adm_crop",
    "open_source",
    "read_rejects",
    "stratified_split",
    "to_float",
    "to_uint8",
]
