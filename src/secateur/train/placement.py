"""Where a run happens: Accelerate without its lasting marks, the model's place, the data of each process."""

from __future__ import annotations

import collections.abc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from secateur.errors import TrainingError
from secateur.train.batches import device_of
from secateur.train.tracking import Tracking


@contextmanager
def accelerator(tracking: Tracking | None = None) -> Iterator[Any]:
    """Give an `Accelerator` that does what the recipe says, whatever the environment or another one is set to.

    Precision, placement and accumulation are the loop's own. Accelerate keeps them for the whole process, so what
    it kept before the block is put back after it: a later `Accelerator(mixed_precision="bf16")` still works.

    Raises:
        TrainingError: Accelerate is not installed.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, GradientState
        from accelerate.utils import DataLoaderConfiguration, GradientAccumulationPlugin
    except ImportError as error:
        raise TrainingError(f'training needs Accelerate ({error}); pip install "secateur[train]".') from error
    shared = [(state, dict(state)) for state in (AcceleratorState._shared_state, GradientState._shared_state)]
    try:
        made = Accelerator(
            device_placement=False,
            mixed_precision=None if AcceleratorState._shared_state else "no",
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=False),
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            log_with=None if tracking is None else list(tracking.trackers),
            project_dir=None if tracking is None else str(tracking.folder),
        )
        made.native_amp, made.scaler = False, None
        yield made
    finally:
        for state, before in shared:
            state.clear()
            state.update(before)


def check_distribution(made: Any) -> None:
    """Refuse a launch whose weights are not whole on every process.

    Raises:
        TrainingError: the launch shards the weights.
    """
    kind = str(made.distributed_type.value)
    if kind != "NO" and not kind.startswith("MULTI_"):
        raise TrainingError(
            f"this run was launched as {kind}, where no process holds the whole model; "
            "launch with plain data parallelism, e.g. accelerate launch --multi_gpu."
        )


def check_iterable(loader: Iterable[Any], epoch_count: int) -> None:
    """Refuse an iterator where more than one epoch is asked for.

    Raises:
        TrainingError: the loader can be read once only.
    """
    if epoch_count > 1 and isinstance(loader, collections.abc.Iterator):
        raise TrainingError(
            f"{epoch_count} epochs were asked for, and the loader is a {type(loader).__name__}, which can be read "
            "once only; pass a list, a DataLoader or an object whose __iter__ starts anew."
        )


def dealt(made: Any, loader: Any, *, even: bool) -> Any:
    """Return this process's share of a loader; the loader itself where there is one process.

    Args:
        made: the accelerator.
        loader: a loader or None.
        even: repeat some samples so that every process gets as many batches. Training needs it, a metric must not.

    Raises:
        TrainingError: there are several processes, and the loader cannot be dealt out.
    """
    if loader is None or made.num_processes == 1 or getattr(loader, "_is_accelerate_prepared", False):
        return loader
    if not isinstance(loader, DataLoader):
        raise TrainingError(
            f"{made.num_processes} processes share the data, and a {type(loader).__name__} cannot be dealt out; "
            "pass a torch.utils.data.DataLoader."
        )
    from accelerate.data_loader import prepare_data_loader

    return prepare_data_loader(
        loader,
        num_processes=made.num_processes,
        process_index=made.process_index,
        even_batches=even,
        put_on_device=False,
        dispatch_batches=False,
        rng_types=["generator"],
        use_seedable_sampler=False,
    )


@contextmanager
def placed(model: nn.Module, device: torch.device, *, channels_last: bool) -> Iterator[None]:
    """Have the model on `device`, and its 4-D weights channels last, during the block; no gradients after it."""
    home = device_of(model)
    if device != home:
        model.to(device)
    moved = [parameter for parameter in model.parameters() if parameter.ndim == 4 and parameter.is_contiguous()]
    if channels_last:
        _lay_out_(moved, torch.channels_last)
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        if channels_last:
            _lay_out_(moved, torch.contiguous_format)
        if device != home:
            model.to(home)


def equal_buffers_(model: nn.Module, process_count: int) -> None:
    """Give every process the buffers of the first: batch statistics differ between them within a step."""
    if process_count > 1:
        for tensor in model.buffers():
            torch.distributed.broadcast(tensor, 0)


def _lay_out_(parameters: list[nn.Parameter], memory_format: torch.memory_format) -> None:
    for parameter in parameters:
        parameter.data = parameter.data.contiguous(memory_format=memory_format)
