"""From names to a model with its weights, an example input, data and a task."""

from __future__ import annotations

import dataclasses
import logging
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from . import data as data_sets
from . import models, store
from .data import ImageData, Loaders
from .errors import DataError, ModelError, TrainingError, UnknownName, first_line
from .store.folder import RECORD
from .train import ClassificationTask, Recipe, Tracking
from .train import recipe as recipe_named

log = logging.getLogger(__name__)
WEIGHTS_FILE = "model.safetensors"
TOKEN_COUNT = 16  # length of the example that a language model is traced with, unless told
LIBRARY_IMAGE = (3, 224, 224)


@dataclass(frozen=True)
class Source:
    """What the options say about model and data.

    Attributes:
        name: of the model.
        weights: file or folder with its state dict.
        pretrained: ask its library for trained weights.
        shape: of one input, without the batch.
        class_count: its outputs.
        data_name: of the data set.
        hold_out: share of the training images that nothing trains on.
        device: where model and data are.
        seed: of fresh weights and of the order of the data.
    """

    name: str
    weights: str | None = None
    pretrained: bool = False
    shape: tuple[int, ...] | None = None
    class_count: int | None = None
    data_name: str | None = None
    hold_out: float = 0.0
    device: str = "cpu"
    seed: int = 0
    task: ClassificationTask = field(default_factory=ClassificationTask)

    @cached_property
    def data(self) -> ImageData | None:
        """The data set, if one was named.

        Raises:
            DataError: it cannot be read, or its images are not of the shape that was given.
            UnknownName: there is no such data set.
        """
        if self.data_name is None:
            return None
        sizes: dict[str, Any] = {}
        if self.shape is not None and len(self.shape) == 3 and self.data_name.startswith("folder:"):
            sizes = {"size": self.shape[1], "channels": self.shape[0]}
        found = data_sets.resolve(self.data_name, **sizes)
        if self.shape is not None and found.image_shape != self.shape:
            raise DataError(
                f"{self.data_name} has images of {_by(found.image_shape)}, and --input-shape asks for "
                f"{_by(self.shape)}; leave --input-shape out."
            )
        return found

    def needed_data(self, purpose: str) -> ImageData:
        """Return the data set.

        Raises:
            DataError: none was named.
        """
        if self.data is None:
            raise DataError(f"{purpose} needs data: give --data, e.g. --data digits or --data folder:PATH.")
        return self.data

    def training(self, purpose: str) -> ImageData:
        """Return the part of the training images to train on, as `train`, and what is held out, as `test`.

        Without a hold-out, `test` is the training images themselves, and only `train` may be used.
        """
        data = self.needed_data(purpose)
        return data.split_validation(fraction=self.hold_out, seed=0) if self.hold_out else data

    def loaders(self, purpose: str, batch_size: int, *, augment: bool) -> Loaders:
        """Return loaders of the training part, and of the TEST part for final figures."""
        train = self.training(purpose).loaders(batch_size, seed=self.seed, augment=augment, device=self.device).train
        test = self.needed_data(purpose).loaders(max(batch_size, 256), device=self.device).test
        return Loaders(train, test)

    def validation(self, purpose: str) -> Any:
        """Return a loader of the held-out images.

        Raises:
            DataError: nothing is held out.
        """
        if not self.hold_out:
            raise DataError(f"{purpose} chooses on held-out images, and --hold-out is 0: give e.g. --hold-out 0.1.")
        return self.training(purpose).loaders(256, device=self.device).test

    def model(self) -> nn.Module:
        """Build the model with its weights, on the device.

        Raises:
            ModelError: it cannot be built, the weights cannot be read or do not fit, or there is no such device.
            StoreError: the weights are a saved model that is damaged or of another class.
            UnknownName: there is no such model.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            built = models.resolve(self.name, pretrained=self.pretrained, **self._wanted())
        if self.weights is not None:
            built = _with_weights(built, Path(self.weights).expanduser())
        try:
            return built.to(self.device)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"--device {self.device}: the model cannot be put there ({first_line(error)}).") from error

    def _wanted(self) -> dict[str, int]:
        """Sizes that the data or the options ask of the model; a user's own function decides by itself."""
        if ".py" in self.name:
            return {} if self.class_count is None else {"class_count": self.class_count}
        wanted = {}
        class_count = self.class_count or (self.data.class_count if self.data is not None else None)
        if class_count is not None:
            wanted["class_count"] = class_count
        shape = self.data.image_shape if self.data is not None else self.shape
        if shape is not None and len(shape) == 3:
            wanted["in_channels"] = shape[0]
        return wanted

    def example(self, model: nn.Module, batch: int = 1) -> Tensor:
        """Return an input of the model, (batch, …): noise for images, zeros for tokens.

        Raises:
            ModelError: its shape is known from nowhere.
        """
        generator = torch.Generator().manual_seed(0)
        if getattr(model, "main_input_name", None) == "input_ids":
            length = self.shape[0] if self.shape else TOKEN_COUNT
            return torch.zeros(batch, length, dtype=torch.int64, device=self.device)
        return torch.randn(batch, *self._input_shape(model), generator=generator).to(self.device)

    def _input_shape(self, model: nn.Module) -> tuple[int, ...]:
        if self.shape is not None:
            return self.shape
        if self.data is not None:
            return self.data.image_shape
        if self.name in models.names():
            return models.default_input(self.name)
        if self.name.startswith("timm:"):
            return tuple(getattr(model, "pretrained_cfg", {}).get("input_size", LIBRARY_IMAGE))
        config = getattr(model, "config", None)
        if config is not None and hasattr(config, "image_size"):
            size = config.image_size
            return (config.num_channels, *((size, size) if isinstance(size, int) else size))
        if self.name.startswith("torchvision:"):
            return LIBRARY_IMAGE
        raise ModelError(f"what {self.name} takes is not known: give --input-shape, e.g. 3x32x32, or --data.")


def tracking_of(trackers: list[str] | None, folder: str, run: str) -> Tracking | None:
    """Return where to show training; None where nothing was said.

    Raises:
        MissingExtra: a tracker's package is not installed.
        UnknownName: no such tracker.
    """
    return Tracking(tuple(trackers), folder, re.sub(r"[^\w.-]", "_", run).lstrip(".-") or "run") if trackers else None


def recipe_for(source: Source, name: str | None, changes: dict[str, Any]) -> Recipe:
    """Return the recipe to train with.

    Raises:
        TrainingError: a change makes no sense.
        UnknownName: there is no such recipe, or a recipe has no such value.
    """
    chosen = recipe_named(name or ("digits" if source.data_name == "digits" else "cifar"))
    return changed(chosen, {"seed": source.seed} | changes)


def changed(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """Return the recipe with these values; see `recipe_for`."""
    known = [item.name for item in dataclasses.fields(recipe)]
    for key in changes:
        if key not in known:
            raise UnknownName("value of a recipe", key, known)
    try:
        return recipe.replace(**changes)
    except TypeError as error:
        raise TrainingError(f"--with {changes}: {error}; numbers, true, false and words are expected.") from error


def _with_weights(model: nn.Module, path: Path) -> nn.Module:
    """Return the model with these weights; of a folder that `secateur.save` wrote, the model that was saved."""
    if (path / RECORD).is_file():
        return store.load(path, model=model)
    _load_(model, path)
    return model


def _load_(model: nn.Module, path: Path) -> None:
    file = path / WEIGHTS_FILE if path.is_dir() else path
    if not file.is_file():
        raise ModelError(f"--weights {path}: there is no file {file}; give what `secateur train` wrote.")
    try:
        state = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"--weights {file} is no readable safetensors file ({error}).") from error
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(
            f"--weights {file} do not fit the model: {' '.join(str(error).split())[:300]}. "
            "Were they saved from another model, or with another number of classes (--classes, --data)?"
        ) from error
    log.info("loaded %d tensors from %s", len(state), file)


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape)
