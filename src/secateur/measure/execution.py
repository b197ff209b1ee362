"""What zeros are worth where they run: one model with zeros in every form of execution that there is, in one run.

Dense kernels multiply by zero as slowly as by anything else. Sparse ones skip zeros and pay for finding the rest; torch
has them for linear layers only, so convolutions stay dense in every form here.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import first_line
from ..extras import require
from ..graph.walk import modules_of
from ._inference import as_call
from .latency import Latency, in_turns

BLOCKS = (16, 8, 4, 2)  # edges of the square blocks of BSR, the largest that fits is taken (our choice)
CLEAR = 1.05  # a form helped if it is faster than dense by more than this (our choice: less is noise)


@dataclass(frozen=True)
class Execution:
    """One form of execution.

    Attributes:
        form: its name.
        latency: how long a forward pass takes; None = it cannot run here.
        speed_up: time of the dense model / its time, median over rounds; below 1 = slower.
        note: what to know, or why it cannot run.
    """

    form: str
    latency: Latency | None
    speed_up: float | None
    note: str = ""


@dataclass(frozen=True)
class Executions:
    """All forms, timed in turns.

    Attributes:
        rows: one for each form, the dense model first.
        zeros: fraction of the sparse model's parameters that are zero.
    """

    rows: tuple[Execution, ...]
    zeros: float

    def __str__(self) -> str:
        lines = []
        for row in self.rows:
            figure = "-" if row.speed_up is None else f"{row.speed_up:.2f}x"
            lines.append(f"{row.form:<12} {figure:>7}  {'' if row.latency is None else row.latency}{_aside(row)}")
        return "\n".join([*lines, self.in_words])

    @property
    def in_words(self) -> str:
        """What helped, in a sentence or two."""
        timed = {row.form: row.speed_up for row in self.rows[1:] if row.speed_up is not None}
        masked = timed.pop("zeros", 1.0)
        start = f"{self.zeros:.0%} of the parameters are zero; dense kernels run them at {masked:.2f}x the dense speed."
        if not timed:
            return f"{start} No other form can run here, so the zeros save room and no time."
        best = max(timed, key=lambda form: timed[form])
        if timed[best] > CLEAR:
            return f"{start} What helped is {best}: {timed[best]:.2f}x."
        return f"{start} Nothing helped: the best of the others, {best}, runs at {timed[best]:.2f}x."


def _aside(row: Execution) -> str:
    return f"  ({row.note})" if row.note else ""


def executions(
    dense: nn.Module,
    sparse: nn.Module,
    args: Any,
    *,
    threads: int,
    kwargs: Mapping[str, Any] | None = None,
    min_run_time_s: float = 1.0,
) -> Executions:
    """Time a dense model, one with zeros as it is, and its zeros in every sparse form that runs here, in turns.

    Models are timed where they are, in evaluation mode; nothing of them changes.

    Args:
        dense: the model before.
        sparse: the same with zeros.
        args: their positional arguments as a tuple or list, or one argument.
        threads: CPU threads within an operation.
        kwargs: their keyword arguments.
        min_run_time_s: time each for so many seconds at least.

    Raises:
        ValueError: `threads` or `min_run_time_s` is not positive.

    >>> dense, sparse = nn.Linear(64, 64), nn.Linear(64, 64)
    >>> _ = sparse.weight.data.mul_(torch.eye(64))
    >>> found = executions(dense, sparse, torch.randn(8, 64), threads=1, min_run_time_s=0.01)
    >>> [row.form for row in found.rows]
    ['dense', 'zeros', 'CSR', 'BSR', '2:4', 'ONNX Runtime']
    """
    positional, named = as_call(args, kwargs)
    made: dict[str, tuple[nn.Module, str]] = {"dense": (dense, ""), "zeros": (sparse, "the same kernels")}
    refused: dict[str, str] = {}
    for form, make in FORMS.items():
        try:
            made[form] = make(sparse, positional, named, threads)
        except CannotRun as error:
            refused[form] = str(error)
    found, rounds_ms = in_turns(
        [model for model, _ in made.values()], args, threads=threads, kwargs=kwargs, min_run_time_s=min_run_time_s
    )
    timed = {
        form: Execution(form, found[k], float(np.median(rounds_ms[:, 0] / rounds_ms[:, k])), made[form][1])
        for k, form in enumerate(made)
    }
    rows = [timed[f] if f in timed else Execution(f, None, None, refused[f]) for f in ("dense", "zeros", *FORMS)]
    return Executions(tuple(rows), zero_fraction(sparse))


def zero_fraction(model: nn.Module) -> float:
    """Return the fraction of a model's parameters that are zero.

    >>> zero_fraction(nn.BatchNorm2d(4))
    0.5
    """
    counts = [(p.numel(), int(p.count_nonzero())) for p in model.parameters()]
    whole = sum(size for size, _ in counts)
    return 1 - sum(left for _, left in counts) / whole if whole else 0.0


class CannotRun(Exception):
    """A form of execution is not to be had here; says why. Never leaves this file."""


class SparseLinear(nn.Module):
    """A linear layer whose weight is a sparse tensor, for inference."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, source: Tensor) -> Tensor:
        """Return (…, out) for (…, in)."""
        flat = F.linear(source.reshape(-1, source.shape[-1]), self.weight)
        result = flat.reshape(*source.shape[:-1], flat.shape[-1])
        return result if self.bias is None else result + self.bias


Made = tuple[nn.Module, str]


def _csr(model: nn.Module, args: Any, kwargs: Any, threads: int) -> Made:
    return _with_linear(model, args, kwargs, lambda weight: weight.to_sparse_csr())


def _bsr(model: nn.Module, args: Any, kwargs: Any, threads: int) -> Made:
    def convert(weight: Tensor) -> Tensor | None:
        edge = next((b for b in BLOCKS if not any(size % b for size in weight.shape)), None)
        return None if edge is None else weight.to_sparse_bsr((edge, edge))

    return _with_linear(model, args, kwargs, convert)


def _semi_structured(model: nn.Module, args: Any, kwargs: Any, threads: int) -> Made:
    first = next(iter(model.parameters()), torch.zeros(()))
    if first.device.type != "cuda":
        raise CannotRun("needs a GPU with sparse tensor cores")
    if first.dtype not in (torch.float16, torch.bfloat16):
        raise CannotRun(f"needs float16 or bfloat16, the model is {first.dtype}")

    def convert(weight: Tensor) -> Tensor | None:
        if weight.shape[1] % 4 or bool(((weight.unflatten(1, (-1, 4)) != 0).sum(dim=2) > 2).any()):
            return None
        made: Tensor = torch.sparse.to_sparse_semi_structured(weight)
        return made

    return _with_linear(model, args, kwargs, convert)


def _with_linear(model: nn.Module, args: Any, kwargs: Any, convert: Callable[[Tensor], Tensor | None]) -> Made:
    """Return a copy whose linear layers hold sparse weights, after a call that shows that it runs.

    Raises:
        CannotRun: no layer can be converted, or the kernels are not there.
    """
    twin = copy.deepcopy(model).eval()
    paths = [path for path, module in modules_of(twin).items() if type(module) is nn.Linear]
    changed = 0
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", category=UserWarning)  # torch calls its sparse layouts beta and prototype
        try:
            for path in paths:
                layer: Any = twin.get_submodule(path)
                weight = convert(layer.weight.detach())
                if weight is not None:
                    changed += 1
                    twin = _replaced(twin, path, SparseLinear(weight, layer.bias))
            twin(*args, **kwargs)
        except (RuntimeError, NotImplementedError, TypeError) as error:
            raise CannotRun(f"torch has no kernel for it here: {first_line(error)[:120]}") from error
    if not changed:
        raise CannotRun("no linear layer fits the format" if paths else "there is no linear layer, torch has no others")
    convolutions = sum(isinstance(m, nn.modules.conv._ConvNd) for m in twin.modules())
    rest = f", {convolutions} convolutions stay dense: torch has no sparse ones" if convolutions else ""
    return twin, f"{changed} of {len(paths)} linear layers{rest}"


def _replaced(model: nn.Module, path: str, new: nn.Module) -> nn.Module:
    if not path:
        return new
    above, _, leaf = path.rpartition(".")
    model.get_submodule(above)._modules[leaf] = new
    return model


class _Session(nn.Module):
    """A model in ONNX Runtime, called like the model."""

    def __init__(self, session: Any) -> None:
        super().__init__()
        self.session = session
        self.names = [given.name for given in session.get_inputs()]

    def forward(self, *args: Tensor) -> list[Any]:
        """Return the outputs as arrays."""
        given = {name: tensor.numpy() for name, tensor in zip(self.names, args, strict=True)}
        found: list[Any] = self.session.run(None, given)
        return found


def _onnx(model: nn.Module, args: Any, kwargs: Any, threads: int) -> Made:
    if missing := [n for n in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(n) is None]:
        raise CannotRun(f'{missing[0]} is not installed: pip install "secateur[onnx]"')
    if kwargs or any(not isinstance(given, Tensor) or given.device.type != "cpu" for given in args):
        raise CannotRun("timed on the CPU for models that take tensors by position only")
    runtime: Any = require("onnxruntime", extra="onnx", purpose="timing ONNX Runtime")
    twin, file = copy.deepcopy(model).eval(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program: Any = torch.onnx.export(twin, args, dynamo=True, verbose=False)
        except Exception as error:  # the exporter has a tree of its own
            raise CannotRun(f"the exporter refuses the model: {first_line(error)[:120]}") from error
        program.save(file)
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = runtime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    return _Session(session), "it stores zeros densely"


FORMS: dict[str, Callable[[nn.Module, Any, Any, int], Made]] = {
    "CSR": _csr,
    "BSR": _bsr,
    "2:4": _semi_structured,
    "ONNX Runtime": _onnx,
}
