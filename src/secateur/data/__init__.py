"""Data sets to train and test on: embedded, from a hub or from files, all of one type."""

from .augment import Augmentation as Augmentation
from .batches import Loaders as Loaders
from .cifar import cifar10 as cifar10
from .digits import digits as digits
from .folder import image_folder as image_folder
from .images import ImageData as ImageData
from .images import channel_statistics as channel_statistics
from .resolve import names as names
from .resolve import resolve as resolve
from .split import stratified_split as stratified_split

__all__ = [
    "Augmentation",
    "ImageData",
    "Loaders",
    "channel_statistics",
    "cifar10",
    "digits",
    "image_folder",
    "names",
    "resolve",
    "stratified_split",
]
