"""A decoder of transformers whose weights stay on disk: its embedding and its blocks are run one at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError, StoreError
from ..extras import require
from ..graph.walk import modules_of
from ..train.randomness import same_randomness_after
from ..train.task import Inputs
from .shards import Shards


@dataclass(frozen=True)
class Call:
    """How the decoder calls a block besides with its hidden states: masks, positions, rotary angles."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def inputs(self, hidden: Tensor) -> Inputs:
        """Return what to call the block with."""
        return (hidden, *self.args), dict(self.kwargs)


class Decoder:
    """A causal language model without weights.

    Attributes:
        config: of transformers.
        path: of the list of blocks in the model: "model.layers", "transformer.h".
        block_count: number of blocks.
        dtype: in which it runs: the configuration's, or else that of its first block on disk.

    Raises:
        ModelError: the configuration cannot be read, or is of no model made of a list of blocks.
        StoreError: the checkpoint lacks tensors.
        MissingExtra: transformers is not installed.
    """

    def __init__(self, folder: Path, shards: Shards) -> None:
        transformers = require("transformers", extra="hf", purpose="a language model on disk")
        self.shards = shards
        try:
            with same_randomness_after(torch.device("cpu")), _parameters_without_memory():
                self.config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
                model = transformers.AutoModelForCausalLM.from_config(self.config).eval()
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"no causal language model can be built from {folder}/config.json: {error}") from error
        self.model: nn.Module = model
        self.base: nn.Module = model.base_model
        self.path, blocks = _blocks_of(model, self.base, self.config)
        self.block_count = len(blocks)
        self._blocks = [blocks[i] for i in range(len(blocks))]
        self._parent = model.get_submodule(self.path.rpartition(".")[0])
        self._base_path = next(name for name, module in modules_of(model, shared=True).items() if module is self.base)
        self._prefix = self._prefix_on_disk()
        first = shards.read([self._name(0, next(iter(self._blocks[0].state_dict())))]).values()
        stated = getattr(self.config, "dtype", None) or getattr(self.config, "torch_dtype", None)
        self.dtype: torch.dtype = stated if isinstance(stated, torch.dtype) else next(iter(first)).dtype

    def block(self, number: int, tensors: Mapping[str, Tensor]) -> nn.Module:
        """Return a block with these weights (names on disk), in eval mode."""
        made = copy.deepcopy(self._blocks[number])
        own = {name: tensors[self._name(number, name)] for name in made.state_dict()}
        made.load_state_dict({name: self._as_run(tensor) for name, tensor in own.items()}, assign=True)
        return made.requires_grad_(False).eval()

    def names_on_disk(self, number: int) -> list[str]:
        """Return the names of everything on disk that belongs to a block."""
        start = self._name(number, "")
        return [name for name in self.shards.files if name.startswith(start)]

    def on_disk(self, number: int, name: str) -> str:
        """Return the name on disk of a block's parameter."""
        return self._name(number, name)

    def embedded(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """Return what the first block gets for each (1, length) batch of tokens."""
        with self._embedding():
            return [self._run(batch, None)[0][0] for batch in tokens]

    def calls(self, tokens: Tensor, first: nn.Module) -> list[Call]:
        """Return how each block is called on a batch of tokens; the first block, with weights, shows what one gives."""
        with self._embedding(), torch.no_grad():
            hidden, call = self._run(tokens, None)[0]
            args, kwargs = call.inputs(hidden)
            made = first(*args, **kwargs)
            extra = (None,) * (len(made) - 1) if isinstance(made, tuple) else None
            return [call for _, call in self._run(tokens, lambda h: h if extra is None else (h, *extra))]

    def _as_run(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def _name(self, number: int, name: str) -> str:
        return f"{self._prefix}.{number}.{name}"

    def _prefix_on_disk(self) -> str:
        inner = self._inner_path
        wanted = list(self._blocks[0].state_dict())
        lacking: dict[str, list[str]] = {}
        for prefix in (self.path, inner):
            names = [f"{prefix}.{number}.{name}" for number in range(self.block_count) for name in wanted]
            lacking[prefix] = [name for name in names if name not in self.shards.files]
            if not lacking[prefix]:
                return prefix
        fewest = min(lacking.values(), key=len)
        raise StoreError(
            f"{self.shards.folder} holds no tensor {fewest[0]!r}, which {type(self.model).__name__} needs "
            f"({len(fewest)} are missing in all): its tensors are named in another way, or a shard is missing."
        )

    @contextmanager
    def _embedding(self) -> Iterator[None]:
        """Have everything of the decoder but its blocks in memory."""
        wanted = [name for name in self.base.state_dict() if not self._is_of_blocks(name)]
        is_full = self._prefix == self.path
        on_disk = {name: f"{self._base_path}.{name}" if is_full and self._base_path else name for name in wanted}
        if missing := [name for name in on_disk.values() if name not in self.shards.files]:
            raise StoreError(f"{self.shards.folder} holds no tensor {missing[0]!r}: the checkpoint is not complete.")
        tensors = self.shards.read(on_disk.values())
        own = {name: self._as_run(tensors.pop(where)) for name, where in on_disk.items()}
        before = {name: self.base.get_parameter(name) for name in own if name in dict(self.base.named_parameters())}
        self.base.load_state_dict(own, strict=False, assign=True)
        try:
            yield
        finally:
            self.base.load_state_dict(before, strict=False, assign=True)

    def _is_of_blocks(self, name: str) -> bool:
        return name.startswith(f"{self._inner_path}.")

    @property
    def _inner_path(self) -> str:
        """Path of the list of blocks in the base model, which some checkpoints save by itself."""
        return self.path.removeprefix(f"{self._base_path}.") if self._base_path else self.path

    def _run(self, tokens: Tensor, result: Callable[[Tensor], Any] | None) -> list[tuple[Tensor, Call]]:
        """Run the decoder with stand-ins for its blocks; None = stop at the first of them."""
        seen: list[tuple[Tensor, Call]] = []
        leaf = self.path.rpartition(".")[2]
        blocks = self._parent._modules[leaf]
        self._parent._modules[leaf] = nn.ModuleList([_StandIn(block, seen, result) for block in self._blocks])
        try:
            with torch.no_grad():
                self.base(tokens, use_cache=False)
        except _Stop:
            pass
        finally:
            self._parent._modules[leaf] = blocks
        return seen


class _Stop(BaseException):
    """Ends a pass before the first block; never leaves this file."""


class _StandIn(nn.Module):
    """Takes a block's place, writes down how it is called, and has its attributes."""

    def __init__(
        self, block: nn.Module, seen: list[tuple[Tensor, Call]], result: Callable[[Tensor], Any] | None
    ) -> None:
        super().__init__()
        self.__dict__.update(stood_in_for=block, seen=seen, result=result)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["stood_in_for"], name)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.seen.append((hidden, Call(args, kwargs)))
        if self.result is None:
            raise _Stop
        return self.result(hidden)


def _blocks_of(model: nn.Module, base: nn.Module, config: Any) -> tuple[str, nn.ModuleList]:
    """Return the path and the list of a decoder's blocks."""
    count = getattr(config.get_text_config(), "num_hidden_layers", 0)
    inside = {id(module) for module in modules_of(base).values()}
    for path, module in modules_of(model).items():
        if isinstance(module, nn.ModuleList) and len(module) == count > 0 and id(module) in inside:
            return path, module
    raise ModelError(
        f"{type(model).__name__} has no list of {count} blocks: models of the Llama, Qwen, Mistral, GPT-2 and like "
        "families can be pruned block by block; load this one and call secateur.sparsify."
    )


@contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """Make modules inside the block register their parameters on the meta device; buffers are made for real."""
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None:
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
