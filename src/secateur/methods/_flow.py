"""Synaptic flow on any architecture: one recorded pass, run again with flows in place of activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import MethodError, first_line
from ..graph.tape import ModuleWatch, map_tensors, op_name, plain_kernels, set_training, state_names, tensors
from ..surgery.shrink import cut_copy
from ..train.batches import device_of
from ..train.randomness import same_randomness_after
from ._flow_rules import FLOW_RULES, MADE_ANEW, WITHOUT, Flow


@dataclass(frozen=True, eq=False)
class Step:
    """One operation of the recorded pass, with the tensors it was run on.

    Attributes:
        func: the operation.
        args: positional arguments.
        kwargs: keyword arguments.
        out: its tensors, in order.
        module: path of the module that ran it.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: list[Tensor]
    module: str


class _Steps(TorchDispatchMode):
    def __init__(self, watch: ModuleWatch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.watch, self.found = watch, list[Step]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace != "prim" and tensors(out):
            self.found.append(Step(func, args, kwargs or {}, tensors(out), self.watch.path))
        return out


class SynapticFlow:
    """The network of a model's paths: R = sum of the strengths of all paths from the inputs to the outputs.

    Args:
        model: nothing of it changes.
        args: positional inputs of an example; only its shapes count, and which inputs are whole numbers.
        kwargs: keyword inputs.

    Raises:
        MethodError: there is no example, or the model cannot be run on it.
    """

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not tensors((args, dict(kwargs))):
            raise MethodError("synflow follows an example through the model: give args= (one sample is enough).")
        copied = cut_copy(model, {})
        set_training(copied, False)
        watch = ModuleWatch(copied)
        inputs, named = map_tensors(lambda t: t.detach().clone(), (tuple(args), dict(kwargs)))
        self._steps = _Steps(watch)
        with ExitStack() as stack:
            device = device_of(model)
            stack.enter_context(same_randomness_after(device))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            stack.enter_context(torch.autocast(device.type, enabled=False))
            stack.enter_context(plain_kernels())
            stack.enter_context(watch.watching())
            try:
                with self._steps:
                    out = copied(*inputs, **named)
            except Exception as error:
                raise MethodError(
                    f"synflow: the model cannot be run on args=, {type(error).__name__}: {first_line(error)}."
                ) from error
        self._inputs, self._outputs = tensors((inputs, named)), tensors(out)
        self._state = state_names(copied)
        self._known = {**dict(copied.named_parameters()), **dict(copied.named_buffers())}

    def scores(self, names: Sequence[str], kept: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], float]:
        """Return |w dR/dw| for the weights of these parameters, and R.

        Args:
            names: of the parameters.
            kept: parameter -> mask; weights outside carry nothing.

        Raises:
            MethodError: an operation on activations has no rule, or the outputs hang on no path.
        """
        leaves = {
            name: self._known[name].detach().double() for name in self._known if self._known[name].is_floating_point()
        }
        leaves = {name: leaf * kept[name].to(leaf.device) if name in kept else leaf for name, leaf in leaves.items()}
        for name in names:
            leaves[name] = leaves[name].clone().requires_grad_(True)
        with torch.inference_mode(False), torch.enable_grad():
            found = self._total(leaves)
            if not found.requires_grad:
                raise MethodError("synflow: no path from the inputs to the outputs goes over a weight that can go.")
            slopes = torch.autograd.grad(found, [leaves[name] for name in names], materialize_grads=True)
        total = float(found.detach())
        if not total < float("inf"):
            raise MethodError("synflow: the paths add up to more than float64 holds: the network is too deep and wide.")
        return {n: (leaves[n].detach() * g).abs() for n, g in zip(names, slopes, strict=True)}, total

    def _total(self, leaves: Mapping[str, Tensor]) -> Tensor:
        run = _Run({key: leaves[name] for key, name in self._state.items() if name in leaves}, self._inputs)
        for step in self._steps.found:
            run.take(step)
        flows = [run.flow_of(t) for t in self._outputs]
        reached = [flow.value.sum() for flow in flows if flow is not None]
        if not reached:
            raise MethodError(
                "synflow: no path that can be followed leads from the inputs to the outputs. Whole numbers are "
                "followed into embeddings only."
            )
        return torch.stack(reached).sum()


class _Run:
    """One pass of flows over the recorded steps; tensors are known by identity, and the steps keep them alive."""

    def __init__(self, weights: dict[int, Tensor], inputs: Sequence[Tensor]) -> None:
        self.weights = dict(weights)  # and what is computed from weights alone
        self.flows: dict[int, Flow] = {}
        self.given = {id(t) for t in inputs}  # and what is computed from whole numbers given
        self.sharing: dict[int, dict[int, Tensor]] = {}  # memory -> flows in it
        self.lost: set[int] = set()
        for tensor in inputs:
            if tensor.is_floating_point():
                self._set(tensor, Flow(torch.ones(tensor.shape, dtype=torch.float64, device=tensor.device)))

    def flow_of(self, tensor: Tensor) -> Flow | None:
        return self.flows.get(id(tensor))

    def take(self, step: Step) -> None:
        """Follow one operation."""
        inputs = tensors((step.args, step.kwargs))
        name = op_name(step.func)
        if any(id(t) in self.lost for t in inputs):
            raise _unknown(name, step, "reads what was written into in part")
        if name in MADE_ANEW:
            return
        if any(id(t) in self.flows for t in inputs):
            self._follow(name, step)
        elif name == "embedding" and id(step.args[1]) in self.given:
            table = self._filled(step.args[0]).abs().sum(0)
            self._set(step.out[0], Flow(table.expand(step.out[0].shape)))
        elif any(id(t) in self.weights for t in inputs):
            self._compute(step)
        if any(id(t) in self.given for t in inputs):
            self.given |= {id(t) for t in step.out if id(t) not in self.flows}

    def _follow(self, name: str, step: Step) -> None:
        if not any(t.is_floating_point() or t.is_complex() for t in step.out):
            return
        rule = FLOW_RULES.get(name)
        if rule is None:
            raise _unknown(name, step, "has no rule")
        try:
            result = rule(step.func, *self._filled(step.args), **self._filled(step.kwargs))
        except (AttributeError, TypeError, RuntimeError, ValueError) as error:
            raise _unknown(name, step, f"has no rule for these arguments ({error})") from error
        if step.func._schema.is_mutable:
            self._overwritten(step.out[0])
        for out, value in zip(step.out, result if isinstance(result, list) else [result], strict=False):
            if isinstance(value, Flow):
                self._set(out, value)
            elif isinstance(value, Tensor) and value.is_floating_point():
                self.weights[id(out)] = value
                self.flows.pop(id(out), None)
        if result is None:
            raise _unknown(name, step, "has no rule for these arguments")

    def _set(self, tensor: Tensor, flow: Flow) -> None:
        if flow.value.shape != tensor.shape:
            flow = Flow(flow.value.expand(tensor.shape))
        self.flows[id(tensor)] = flow
        self.sharing.setdefault(tensor.untyped_storage().data_ptr(), {})[id(tensor)] = tensor

    def _overwritten(self, tensor: Tensor) -> None:
        """Forget every other view of memory that is written into."""
        memory = tensor.untyped_storage()
        views = self.sharing.get(memory.data_ptr(), {})
        others = [view for key, view in views.items() if key != id(tensor)]
        if others:
            written = torch.zeros(memory.nbytes() // tensor.element_size(), dtype=torch.bool)
            _seen_in(written, tensor).fill_(True)
            self.lost |= {id(view) for view in others if bool(_seen_in(written, view).any())}
        if id(tensor) not in self.flows and tensor.numel() * tensor.element_size() < memory.nbytes():
            raise MethodError(
                "synflow: activations are written into a part of a constant tensor, which is not followed."
            )

    def _compute(self, step: Step) -> None:
        """Run an operation on weights as it is, so that gradients go through."""
        if step.func._schema.is_mutable or not any(t.is_floating_point() for t in step.out):
            return
        named = {key: value for key, value in step.kwargs.items() if key not in WITHOUT}
        out = tensors(step.func(*self._filled(step.args), **self._filled(named)))
        self.weights.update({id(t): value.double() for t, value in zip(step.out, out, strict=True)})

    def _filled(self, value: Any) -> Any:
        """Put flows, weights and float64 constants in place of tensors."""
        if isinstance(value, Tensor):
            if id(value) in self.flows:
                return self.flows[id(value)]
            found = self.weights.get(id(value), value)
            return found.double() if found.is_floating_point() else found
        if isinstance(value, (list, tuple)):
            return [self._filled(item) for item in value]
        if isinstance(value, dict):
            return {key: self._filled(item) for key, item in value.items()}
        return value


def _seen_in(memory: Tensor, view: Tensor) -> Tensor:
    """Return the elements of a flat tensor that a view of such memory covers."""
    return memory.as_strided(view.shape, view.stride(), view.storage_offset())


def _unknown(name: str, step: Step, why: str) -> MethodError:
    return MethodError(
        f"synflow: {name} in module {step.module!r} {why}, so paths cannot be followed through it. Take a method that "
        "reads weights or data: lamp, magnitude, snip."
    )
