"""Every case in cases/: its groups, and that cutting them is exact and costs what the closed form says.

A case is a module with `Model` and `example` (a shape, or a tuple of shapes and tensors), `groups` (member labels of
each group, in any order) and, where they say more than the labels, `widths` (one per group). `kwargs` holds keyword
inputs, `options` goes to `trace`, `unknown` names the operations without a rule. `macs_need` is the least width at
which torch still computes the products as products, so that they can be counted.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.graph import ChannelGraph, trace
from secateur.measure.macs import measured_macs
from secateur.measure.params import parameter_count, size_bytes
from secateur.plan import Plan
from secateur.surgery.shrink import shrink
from secateur.surgery.verify import verify

from . import cases

NAMES = sorted(found.name for found in pkgutil.iter_modules(cases.__path__))


def load(name: str) -> Any:
    return importlib.import_module(f"{cases.__name__}.{name}")


def as_input(value: Any, generator: torch.Generator) -> Any:
    """A shape becomes noise; anything else is taken as it is."""
    is_shape = isinstance(value, tuple) and all(isinstance(item, int) for item in value)
    return torch.randn(value, generator=generator, dtype=torch.float64) if is_shape else value


@torch.no_grad()
def randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Give every number of the model a value of its own, so that a wrong cut shows."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not tensor.is_floating_point():
            continue
        if name.endswith(("running_var", "original0", "weight_g")) or (name.endswith("weight") and tensor.dim() == 1):
            tensor.uniform_(0.5, 1.5, generator=generator)
        else:
            fan_in = max(1, tensor[0].numel()) if tensor.dim() > 1 else 4
            tensor.normal_(0.1 / fan_in, fan_in**-0.5, generator=generator)


@cache
def prepared(name: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any], ChannelGraph]:
    case, generator = load(name), torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        model = case.Model().double().eval()
    randomise(model, generator)
    is_one = not isinstance(case.example, tuple) or all(isinstance(item, int) for item in case.example)
    args = tuple(as_input(value, generator) for value in ((case.example,) if is_one else case.example))
    kwargs = {key: as_input(value, generator) for key, value in getattr(case, "kwargs", {}).items()}
    graph = trace(model, args, kwargs, **getattr(case, "options", {}))
    return model, args, kwargs, graph


def random_plan(graph: ChannelGraph, remove: float, seed: int, keep: int = 1) -> Plan:
    generator = torch.Generator().manual_seed(seed)
    removed = {}
    for name, width in graph.widths.items():
        count = min(width - keep, max(1, round(remove * width)))
        removed[name] = torch.randperm(width, generator=generator)[:count].tolist()
    return Plan.from_removed(removed, graph.widths)


def as_comparable(groups: list[set[str]], widths: list[int]) -> list[tuple[list[str], int]]:
    return sorted((sorted(labels), width) for labels, width in zip(groups, widths, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_groups_are_those_of_the_case(name):
    case, (*_, graph) = load(name), prepared(name)
    found = [group.labels for group in graph.groups.values()]
    widths = [group.width for group in graph.groups.values()]
    if hasattr(case, "widths"):
        assert as_comparable(found, widths) == as_comparable(case.groups, case.widths)
    else:
        assert sorted(map(sorted, found)) == sorted(map(sorted, case.groups))


@pytest.mark.parametrize("name", NAMES)
def test_operations_without_a_rule_are_reported(name):
    *_, graph = prepared(name)
    assert [op for op, _ in graph.unknown] == getattr(load(name), "unknown", [])


@pytest.mark.parametrize("remove", [0.4, 0.7])
@pytest.mark.parametrize("name", NAMES)
def test_shrunk_equals_masked(name, remove):
    model, args, kwargs, graph = prepared(name)
    plan = random_plan(graph, remove, seed=int(10 * remove))
    small = shrink(model, graph, plan)
    assert (plan.removed_count == 0) == (parameter_count(small) == parameter_count(model))
    found = verify(model, small, plan, args, kwargs, **graph.options)
    assert found.is_exact, f"{plan}\n{found}"


@pytest.mark.parametrize("remove", [0.0, 0.6])
@pytest.mark.parametrize("name", NAMES)
def test_closed_form_costs_are_those_of_the_shrunk_model(name, remove):
    model, args, kwargs, graph = prepared(name)
    keep = getattr(load(name), "macs_need", 1)
    plan = random_plan(graph, remove, seed=3, keep=keep) if remove else Plan()
    small, costs = shrink(model, graph, plan), graph.costs(plan)
    assert costs.params == parameter_count(small)
    assert costs.bytes == size_bytes(small)
    assert costs.macs == measured_macs(small, args, kwargs=kwargs)
    assert costs.channels == graph.channel_count - plan.removed_count


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_plan_gives_the_same_bits(name):
    model, args, kwargs, graph = prepared(name)
    from secateur.graph.tape import tensors

    small = shrink(model, graph, Plan())
    with torch.no_grad():
        wanted, got = tensors(model(*args, **kwargs)), tensors(small(*args, **kwargs))
    assert all(map(same_bits, got, wanted))


def same_bits(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
