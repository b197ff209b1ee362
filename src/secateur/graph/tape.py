"""Run the model once on tensors without data and write down every operation.

A ``TorchDispatchMode`` sees each ATen operation after composite ones are decomposed, so few kinds remain and any
Python control flow is fine. Three carriers are tried in this order: plain meta tensors (lightest), fake tensors (for
models that ask tensors for their device or mix in constants), real tensors (for models with ``.item()`` or NumPy
inside). Nothing of the model changes: parameters are swapped in its dictionaries and put back, and so is all the
rest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from copy import copy as shallow_copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from ..errors import TraceError, first_line
from .kernels import SHAPES, SUBSTITUTES
from .untouched import untouched as untouched
from .walk import modules_of, parameters_of, state_of

log = logging.getLogger(__name__)

CARRIERS = ("meta", "fake", "real")


class Ref:
    """A tensor on the tape: its number and its shape."""

    __slots__ = ("dtype", "number", "shape")

    def __init__(self, number: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.number, self.shape, self.dtype = number, shape, dtype

    def __repr__(self) -> str:
        return f"%{self.number}{list(self.shape)}"


@dataclass(slots=True)
class Op:
    """One ATen operation of the forward pass.

    Attributes:
        index: position on the tape.
        func: the operation, e.g. ``aten.view.default``.
        name: its name without namespace, overload and the underscore of in-place variants, e.g. ``"view"``.
        args: positional arguments; every tensor is a `Ref`.
        kwargs: keyword arguments; every tensor is a `Ref`.
        out: what it returned; every tensor is a `Ref`.
        module: path of the module that ran it ("" = the model itself).
        is_scaled: part of an attention call that derives its scale from the width of the queries.
        call: number of the composite call (a linear layer, an einsum) that it is part of; 0 = none.
        literals: numbers of Python that became tensors since the operation before it (a list used as an index).
    """

    index: int
    func: Any
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    module: str
    is_scaled: bool = False
    call: int = 0
    literals: tuple[Any, ...] = ()
    _refs: list[Ref] | None = field(default=None, repr=False, compare=False)
    _outs: list[Ref] | None = field(default=None, repr=False, compare=False)

    def refs(self) -> list[Ref]:
        """Tensors among the arguments, in order."""
        if self._refs is None:
            self._refs = [*leaves(self.args), *leaves(self.kwargs)]
        return self._refs

    def outs(self) -> list[Ref]:
        """Tensors among the results, in order."""
        if self._outs is None:
            self._outs = leaves(self.out)
        return self._outs


@dataclass
class Tape:
    """What happened in one forward pass.

    Attributes:
        ops: the operations in order.
        state: tensor number -> name of the parameter or buffer (the first name of a tied one).
        outputs: the tensors the model returned.
        carrier: "meta", "fake" or "real".
    """

    carrier: str
    ops: list[Op] = field(default_factory=list)
    state: dict[int, str] = field(default_factory=dict)
    outputs: list[Ref] = field(default_factory=list)


def leaves(value: Any) -> list[Ref]:
    """Every `Ref` inside nested lists, tuples and dictionaries."""
    if isinstance(value, Ref):
        return [value]
    if isinstance(value, (list, tuple)):
        return [ref for item in value for ref in leaves(item)]
    if isinstance(value, dict):
        return [ref for item in value.values() for ref in leaves(item)]
    return []


def tensors(value: Any) -> list[Tensor]:
    """Every tensor in nested lists, tuples, mappings and dataclasses; other objects (caches) are not looked into."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [t for item in value for t in tensors(item)]
    if isinstance(value, Mapping):
        return [t for item in value.values() for t in tensors(item)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [t for f in dataclasses.fields(value) for t in tensors(getattr(value, f.name, None))]
    return []


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Return `value` with every tensor replaced by ``function(tensor)``; containers keep their type where it is
    plain.
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(function, item) for item in value))
    if type(value) in (list, tuple):
        return type(value)(map_tensors(function, item) for item in value)
    if isinstance(value, dict):
        copy = {key: map_tensors(function, item) for key, item in value.items()}
        if type(value) is dict:
            return copy
        with contextlib.suppress(TypeError):
            return type(value)(**copy)
        return copy
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        twin = shallow_copy(value)
        for f in dataclasses.fields(value):
            object.__setattr__(twin, f.name, map_tensors(function, getattr(value, f.name)))
        return twin
    return value


# Calls that torch carries out by different operations depending on layout and on axes of size 1.
COMPOSITE = frozenset(
    "linear matmul __matmul__ __rmatmul__ einsum tensordot bilinear scaled_dot_product_attention "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d".split()
)


# Calls that make a tensor of Python numbers, without an operation that would show them, and where the numbers stand.
LITERAL = {"tensor": 0, "as_tensor": 0, "asarray": 0, "new_tensor": 1, "__getitem__": 1, "__setitem__": 1}


class CallWatch(TorchFunctionMode):
    """Knows in which composite call the pass is, and whether it is attention scaled by 1 / sqrt(query width).

    And the numbers that were made tensors since `take_literals` was last called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_scaled = False
        self.current = self.count = 0
        self.literals: list[Any] = []

    def take_literals(self) -> tuple[Any, ...]:
        """Return the numbers that were made tensors, and forget them."""
        found, self.literals = tuple(self.literals), []
        return found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        position = LITERAL.get(name)
        if position is not None and len(args) > position:
            self.literals += _literals(args[position], bare=not name.startswith("__"))
        if self.current or name not in COMPOSITE:
            return func(*args, **kwargs)
        is_attention = func is torch.nn.functional.scaled_dot_product_attention
        self.is_scaled = is_attention and kwargs.get("scale") is None
        self.count += 1
        self.current = self.count
        try:
            return func(*args, **kwargs)
        finally:
            self.is_scaled, self.current = False, 0


def _literals(value: Any, *, bare: bool) -> Iterator[Any]:
    """Yield the numbers in nested lists; a bare one in an index (`bare` = False) is a place, which `select` shows.

    >>> list(_literals((slice(0, 3), [4, 5], 6), bare=False))
    [4, 5]
    """
    if type(value) in (int, float, bool, complex):
        if bare:
            yield value if value == value else "nan"
    elif isinstance(value, np.ndarray):
        yield from _literals(value.tolist(), bare=bare)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _literals(item, bare=bare or not isinstance(value, tuple))


class Recorder(TorchDispatchMode):
    """Writes down every operation that runs inside it, and numbers the tensors."""

    def __init__(self, tape: Tape, state: dict[int, str], watch: ModuleWatch, calls: CallWatch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape, self.watch, self.calls = tape, watch, calls
        self.kernels = SHAPES if tape.carrier == "meta" else SUBSTITUTES
        self.names = state  # id(tensor) -> name
        self.numbers: dict[int, int] = {}
        self.passing = WeakIdKeyDictionary()  # real tensors are let go of as the model does
        self.alive: list[Tensor] = []  # numbered tensors without a place of their own to keep the number
        self.count = 0
        self.opnames: dict[Any, str] = {}

    def note_kwargs(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Keyword arguments with every tensor replaced by its `Ref`."""
        return {key: self.note(value) for key, value in kwargs.items()} if kwargs else {}

    def note(self, value: Any) -> Any:
        """Return an argument with every tensor replaced by its `Ref`."""
        if isinstance(value, Tensor):
            return self.ref(value)
        kind = type(value)
        if kind is list or kind is tuple:
            return kind([self.note(item) for item in value])
        return value

    def ref(self, tensor: Tensor) -> Ref:
        """Return the number of a tensor, a new one for a new tensor."""
        key = id(tensor)
        number = self.numbers.get(key)
        if number is None and self.passing:
            number = self.passing.get(tensor)
        if number is None:
            number = self.count
            self.count += 1
            name = self.names.get(key)
            if name is not None:
                self.tape.state[number] = name
                self.numbers[key] = number
            elif self.tape.carrier == "real":
                self.passing[tensor] = number
            else:
                self.numbers[key] = number
                self.alive.append(tensor)
        return Ref(number, tuple(tensor.shape), tensor.dtype)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        noted = self.note(args)
        noted_kwargs = self.note_kwargs(kwargs)
        out = self.kernels.get(func, func)(*args, **kwargs)
        if func.namespace == "prim":
            return out
        name = self.opnames.get(func)
        if name is None:
            name = self.opnames[func] = op_name(func)
        ops = self.tape.ops
        calls, path = self.calls, self.watch.path
        op = Op(len(ops), func, name, noted, noted_kwargs, self.note(out), path, calls.is_scaled, calls.current)
        if calls.literals:
            op.literals = calls.take_literals()
        ops.append(op)
        return out


def op_name(func: Any) -> str:
    """Name of an operation without namespace, overload and in-place underscore; other namespaces keep theirs.

    >>> op_name(torch.ops.aten.add_.Tensor)
    'add'
    """
    namespace, _, name = func._schema.name.partition("::")
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return str(name) if namespace == "aten" else f"{namespace}::{name}"


class ModuleWatch:
    """Knows the path of the running module, and of the one that raised."""

    def __init__(self, model: nn.Module) -> None:
        self.names = {id(module): name for name, module in modules_of(model).items()}
        self.stack: list[str] = [""]
        self.path = ""
        self.failed: str | None = None

    def _enter(self, module: nn.Module, _args: Any) -> None:
        self.path = self.names.get(id(module), self.path)
        self.stack.append(self.path)

    def _leave(self, _module: nn.Module, _args: Any, _out: Any) -> None:
        if self.failed is None and sys.exc_info()[0] is not None:
            self.failed = self.path
        if len(self.stack) > 1:
            self.stack.pop()
        self.path = self.stack[-1]

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Follow every forward inside the block."""
        before = nn.modules.module.register_module_forward_pre_hook(self._enter)
        after = nn.modules.module.register_module_forward_hook(self._leave, always_call=True)
        try:
            yield
        finally:
            before.remove()
            after.remove()


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """Make composite operations decompose: no fused attention, no fused encoder layer, no packed recurrent kernels."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fastpath = torch.backends.mha.get_fastpath_enabled()
    # the public context managers also touch TF32, and warn
    onednn, cudnn = torch._C._get_mkldnn_enabled(), torch._C._get_cudnn_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    torch._C._set_mkldnn_enabled(False)
    torch._C._set_cudnn_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        torch._C._set_mkldnn_enabled(onednn)
        torch._C._set_cudnn_enabled(cudnn)


def state_names(model: nn.Module) -> dict[int, str]:
    """id(tensor) -> first name, for every parameter and buffer of the model."""
    names: dict[int, str] = {}
    for name, tensor in state_of(model).items():
        names.setdefault(id(tensor), name)
    return names


@torch.inference_mode(False)  # which takes operations apart in another way
def record(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None, *, carrier: str | None = None
) -> Tape:
    """Record one forward pass in evaluation mode.

    Args:
        model: any module; it is as before when this returns or raises.
        args: positional inputs of one example batch.
        kwargs: keyword inputs.
        carrier: "meta", "fake" or "real"; None tries them in this order.

    Returns:
        The tape.

    Raises:
        TraceError: the model rejects the input, or returns no tensor.
    """
    check_module(model)
    _check_device(model, (args, kwargs))
    carriers = [carrier] if carrier else [kind for kind in CARRIERS if kind != "real" or _has_data(model)]
    last: Exception | None = None
    for kind in carriers:
        try:
            return _record_on(model, args, dict(kwargs or {}), kind)
        except TraceError:
            raise
        except Exception as error:
            log.debug("recording on %s tensors failed: %s", kind, error)
            last = error
    assert last is not None
    raise TraceError(_rejection(args, dict(kwargs or {}), carriers[-1], last)) from last


def _rejection(args: tuple[Any, ...], kwargs: dict[str, Any], carrier: str, error: Exception) -> str:
    given = ", ".join([_summary(value) for value in args] + [f"{key}={_summary(v)}" for key, v in kwargs.items()])
    where = getattr(error, "_module_path", None)
    return (
        f"the model cannot be run on ({given}): {f'module {where!r}' if where else 'it'} raised "
        f"{type(error).__name__}: {first_line(error)} (on {carrier} tensors). "
        "Give an example that model(*args, **kwargs) accepts in evaluation mode."
    )


def _summary(value: Any) -> str:
    """Short form of an input for messages.

    >>> _summary([torch.zeros(2, 3), 5])
    '[tensor [2, 3], 5]'
    """
    if isinstance(value, Tensor):
        return f"tensor {list(value.shape)}"
    if isinstance(value, (list, tuple)):
        inner = ", ".join(map(_summary, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {_summary(item)}' for key, item in value.items())}}}"
    text = repr(value)
    return text if len(text) <= 40 else type(value).__name__


def _has_data(model: nn.Module) -> bool:
    return not any(t.device.type == "meta" for t in parameters_of(model).values())


def check_module(model: nn.Module) -> None:
    """Refuse what is no module, has parameters without a shape, or tables of tensors that are not Python's.

    Raises:
        TraceError: it is such a model.
    """
    if not isinstance(model, nn.Module):
        raise TraceError(f"the model is {type(model).__name__}; expected a torch.nn.Module.")
    for name, module in modules_of(model).items():
        if isinstance(module, torch.jit.ScriptModule):
            raise TraceError(  # what is swapped into its tables stays there
                f"{f'module {name!r}' if name else 'the model'} is compiled by torch.jit, with code and tensors "
                "that are not Python's: build the model with the Python module instead, and script what comes out."
            )
    for name, parameter in parameters_of(model).items():
        if nn.parameter.is_lazy(parameter):
            raise TraceError(f"{name!r} has no shape yet: run the model once on an input first.")


def _check_device(model: nn.Module, inputs: Any) -> None:
    found = {t.device.type for t in tensors(inputs)} - {"meta"}
    own = {p.device.type for p in parameters_of(model).values()} - {"meta"}
    if len(own) == 1 and len(found) == 1 and own != found:
        raise TraceError(f"the model is on {own.pop()!r} and the example input on {found.pop()!r}: move one of them.")


def replay(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, carrier: str
) -> tuple[Tape, Exception | None, str | None]:
    """Record as far as the model runs. Returns the tape, the error that ended it, and the module that raised it."""
    tape = Tape(carrier)
    try:
        _record_on(model, args, dict(kwargs), carrier, tape)
    except Exception as error:
        return tape, error, getattr(error, "_module_path", None)
    return tape, None, None


def _record_on(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], carrier: str, tape: Tape | None = None
) -> Tape:
    from torch._subclasses import FakeTensorMode

    tape = tape or Tape(carrier)
    watch = ModuleWatch(model)
    with contextlib.ExitStack() as stack:
        stack.enter_context(untouched(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(plain_kernels())
        set_training(model, False)
        if carrier == "fake":
            stack.enter_context(_quiet())
            mode = FakeTensorMode(allow_non_fake_inputs=True)
            convert = _to_fake(mode, (args, kwargs))
            stack.enter_context(mode)
        elif carrier == "real" and not _has_data(model):
            raise RuntimeError("the parameters are on the meta device and hold no data")
        else:  # forward may write into buffers, weights (an embedding's max_norm) and inputs
            convert = to_meta if carrier == "meta" else _copied
        names = swap_state_(model, convert)
        args, kwargs = map_tensors(convert, args), map_tensors(convert, kwargs)
        if carrier == "meta":
            stack.enter_context(torch.device("meta"))
        stack.enter_context(watch.watching())
        recorder = Recorder(tape, names, watch, stack.enter_context(CallWatch()))
        try:
            with recorder:
                out = model(*args, **kwargs)
        except Exception as error:
            error._module_path = watch.failed  # type: ignore[attr-defined]  # says where, to whoever repairs attributes
            raise
        found = tensors(out)
        if not found:
            raise TraceError(f"the model returned {type(out).__name__}, which holds no tensor: nothing to keep exact.")
        tape.outputs = [recorder.ref(t) for t in found]
    return tape


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from logging what does not run on fake tensors; it is raised as well."""
    noisy = logging.getLogger("torch._subclasses.fake_tensor")
    was_disabled, noisy.disabled = noisy.disabled, True
    try:
        yield
    finally:
        noisy.disabled = was_disabled


def to_meta(tensor: Tensor) -> Tensor:
    """Return a tensor like this one without data."""
    if tensor.device.type == "meta":
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _to_fake(mode: Any, inputs: Any) -> Callable[[Tensor], Tensor]:
    """Conversion to fake tensors; tensors without data are taken to be where the inputs are."""
    device = next((t.device for t in tensors(inputs) if t.device.type != "meta"), torch.device("cpu"))

    def convert(tensor: Tensor) -> Tensor:
        if tensor.device.type != "meta":
            return mode.from_tensor(tensor)  # type: ignore[no-any-return]
        with mode:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)

    return convert


def set_training(model: nn.Module, training: bool) -> None:
    """Set every module's own flag, without calling a ``train`` that a class may have overridden."""
    for module in modules_of(model).values():
        module.__dict__["training"] = training


def swap_state_(model: nn.Module, convert: Callable[[Tensor], Tensor]) -> dict[int, str]:
    """Replace every parameter and buffer by ``convert`` of it, in place; tied ones stay tied. Returns id -> name."""
    made: dict[int, Tensor] = {}
    names: dict[int, str] = {}
    for path, module in modules_of(model).items():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for table in tables:
            for key, tensor in table.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    new = convert(tensor)
                    if isinstance(tensor, nn.Parameter):
                        new = nn.Parameter(new, requires_grad=False)
                    made[id(tensor)] = new
                    names.setdefault(id(new), f"{path}.{key}" if path else key)
                table[key] = made[id(tensor)]
        if isinstance(module, nn.RNNBase):  # keeps a list of its weights beside the dictionary
            module.__dict__["_flat_weights"] = [module._parameters.get(n) for n in module._flat_weights_names]
    return names
