"""Residual branches: what is added to a shortcut, and can be taken away as a whole.

At an addition ``y = shortcut + F(x)`` the branch F is every operation whose results nothing but this addition uses. It
is found on the tape, so it does not matter how the model's code is written: basic and bottleneck blocks, activated
before or after, and the attention and feed-forward branches of transformers all come out.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .branch_parts import Part, parts_of
from .norms import Flow
from .rules import RULES
from .rules.pointwise import constant
from .switches import NoSwitch, Switch, switch_of
from .tape import Op, Ref

if TYPE_CHECKING:
    from .groups import ChannelGraph

Version = tuple[int, int]  # the operation that wrote a tensor last (-1 = none), and the tensor's number


@dataclass(frozen=True, eq=False)
class Branch:
    """Operations that compute what is added to a shortcut, and nothing else.

    Attributes:
        name: the module that runs its products, if it is one; else the module that adds.
        add: position of the addition on the tape.
        ops: positions of its operations.
        modules: paths of the modules that run nothing but these operations, outermost ones, in the order of running.
        switch: names of the parameters that turn it off: with zeros there its result is zero.
        is_proportional: whether its result is proportional to these parameters.
        result: what is added.
        shortcut: what it is added to.
        parts: its modules, with where channels lie in them and which hand out its result.
        loose: positions of operations of its that code around its modules runs before its result leaves these.
        obstacle: why it cannot be removed; empty if it can.
    """

    name: str
    add: int
    ops: frozenset[int]
    modules: tuple[str, ...]
    switch: tuple[str, ...]
    is_proportional: bool
    result: Ref
    shortcut: Ref
    parts: tuple[Part, ...] = ()
    loose: frozenset[int] = frozenset()
    obstacle: str = ""


class Versions:
    """Who writes and who reads each tensor, with writing in place told apart, also through views."""

    def __init__(self, graph: ChannelGraph) -> None:
        self.ops = graph.tape.ops
        self.now: dict[int, Version] = {}
        self.reads: list[list[Version]] = []
        self.writes: list[list[Version]] = []
        self.readers: dict[Version, set[int]] = {}
        self._root: dict[int, int] = {}
        self._sharing: dict[int, list[int]] = {}
        for op in self.ops:
            self._take(op)
        self.final = {self.version(ref.number) for ref in graph.tape.outputs}
        self.dead = self._dead()

    def version(self, number: int) -> Version:
        """Return the version of a tensor as it is now."""
        return self.now.get(number, (-1, number))

    def read(self, op: Op, number: int) -> Version:
        """Return which version of a tensor an operation read."""
        return next(version for version in self.reads[op.index] if version[1] == number)

    def _take(self, op: Op) -> None:
        schema = op.func._schema
        given = [ref.number for ref in op.refs()]
        made = [ref.number for ref in op.outs()]
        written = [n for n in made if n in given] if schema.is_mutable else []
        if not schema.is_mutable and made and set(made) <= set(given):  # hands on what it was given
            self.reads.append([])
            self.writes.append([])
            return
        touched = [m for n in written for m in self._sharing.get(self._root.get(n, n), [n])]
        read = [self.version(n) for n in dict.fromkeys([*given, *touched])]
        for version in read:
            self.readers.setdefault(version, set()).add(op.index)
        is_view = any(value.alias_info is not None and not value.alias_info.is_write for value in schema.returns)
        for number in made:
            if is_view and given and number not in given:
                self._root[number] = root = self._root.get(given[0], given[0])
                self._sharing.setdefault(root, [root]).append(number)
        wrote = list(dict.fromkeys([*made, *touched]))
        for number in wrote:
            self.now[number] = op.index, number
        self.reads.append(read)
        self.writes.append([(op.index, number) for number in wrote])

    def _dead(self) -> set[int]:
        """Operations whose results nothing uses."""
        dead: set[int] = set()
        for op in reversed(self.ops):
            written = self.writes[op.index]
            if not self.final.intersection(written) and all(self.readers.get(v, set()) <= dead for v in written):
                dead.add(op.index)
        return dead

    def only_for(self, result: Version, end: int) -> set[int]:
        """Return the operations that nothing but a result needs, which operation `end` reads."""
        found: set[int] = set()
        waiting = [-result[0]]
        seen = {result[0]}
        while waiting:
            index = -heapq.heappop(waiting)
            if index < 0 or not self._is_only_for(index, result, end, found):
                continue
            found.add(index)
            for version in self.reads[index]:
                if version[0] not in seen:
                    seen.add(version[0])
                    heapq.heappush(waiting, -version[0])
        return found

    def _is_only_for(self, index: int, result: Version, end: int, found: set[int]) -> bool:
        for version in self.writes[index]:
            if version in self.final:
                return False
            left = self.readers.get(version, set()) - found - self.dead
            if left - {end} or (left and version != result):
                return False
        return True

    def reaches(self, sources: set[Version], target: Version) -> bool:
        """Whether a tensor is one of these, or computed from one."""
        first = min(version[0] for version in sources)
        waiting, seen = [target], {target}
        while waiting:
            version = waiting.pop()
            if version in sources:
                return True
            if version[0] > first:
                fresh = [v for v in self.reads[version[0]] if v not in seen]
                seen.update(fresh)
                waiting += fresh
        return False


def branches_of(graph: ChannelGraph) -> dict[str, Branch]:
    """Return the residual branches of a model by name, in the order in which they are added.

    >>> from torch import nn, zeros
    >>> from secateur.graph import trace
    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.branch = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))
    ...     def forward(self, x):
    ...         return x + self.branch(x)
    >>> {name: branch.switch for name, branch in branches_of(trace(Block(), zeros(1, 3, 4, 4))).items()}
    {'branch': ('branch.2.weight', 'branch.2.bias')}
    """
    finder = _Finder(graph)
    found: dict[str, Branch] = {}
    for op in graph.tape.ops:
        branch = finder.at(op, found)
        if branch is not None:
            found[branch.name] = branch
    return found


class _Finder:
    def __init__(self, graph: ChannelGraph) -> None:
        self.graph, self.ops = graph, graph.tape.ops
        self.uses = Versions(graph)
        self.flow = Flow(graph)
        self.products = {product.op.index for product in self.flow.products}
        self.blank = self._blank()
        self.of_module: Counter[str] = Counter(path for op in self.ops for path in _around(op.module))

    def _blank(self) -> set[Version]:
        """Tensors made of nothing but constants, such as the zeros that stand for a branch removed earlier."""
        blank: set[Version] = set()
        for op in self.ops:
            read = [v for v in self.uses.reads[op.index] if v[1] not in self.graph.labels.static]
            if RULES.get(op.name) is constant or (read and blank.issuperset(read)):
                blank.update(self.uses.writes[op.index])
        return blank

    def at(self, add: Op, taken: Iterable[str]) -> Branch | None:
        """Return the branch that an addition adds, if it is one and adds one."""
        pair = add.args[:2]
        if add.name != "add" or not all(isinstance(ref, Ref) for ref in pair):
            return None
        if pair[0].shape != pair[1].shape or pair[0].number == pair[1].number:
            return None
        found = [self._only_for(add, ref, other) for ref, other in (pair, pair[::-1])]
        counts = [len(ops & self.products) for ops in found]
        if counts[0] == counts[1]:
            return None
        which = counts.index(max(counts))
        return self._branch(add, frozenset(found[which]), pair[which], pair[1 - which], set(taken))

    def _only_for(self, add: Op, ref: Ref, other: Ref) -> set[int]:
        """Operations that only `ref` needs; none unless they read what the other summand is, or is made of."""
        static = self.graph.labels.static
        if any(r.number in static or self.uses.read(add, r.number) in self.blank for r in (ref, other)):
            return set()
        ops = self.uses.only_for(self.uses.read(add, ref.number), add.index)
        outside = {v for k in ops for v in self.uses.reads[k] if v[0] not in ops and v[1] not in static}
        return ops if outside and self.uses.reaches(outside, self.uses.read(add, other.number)) else set()

    def _branch(self, add: Op, ops: frozenset[int], result: Ref, shortcut: Ref, taken: set[str]) -> Branch:
        modules = self._modules(ops)
        working = [path for path in modules if any(_inside(self.ops[k].module, path) for k in ops & self.products)]
        base = working[0] if len(working) == 1 else add.module or (working[0] if working else "branch")
        name, number = base, 1
        while name in taken:
            number += 1
            name = f"{base}#{number}"
        owners = {k: path for k in sorted(ops) for path in modules if _inside(self.ops[k].module, path)}
        switch, obstacle = Switch((), False), self._obstacle(ops, owners)
        try:
            switch = switch_of(self.graph, self.flow, self.uses, ops, self.uses.read(add, result.number))
        except NoSwitch as error:
            obstacle = obstacle or str(error)
        obstacle = obstacle or self._used_elsewhere(ops, switch)
        parts, tail = parts_of(self.graph, self.uses, ops, owners, self.uses.read(add, result.number))
        return Branch(
            name,
            add=add.index,
            ops=ops,
            modules=modules,
            switch=switch.names,
            is_proportional=switch.is_proportional,
            result=result,
            shortcut=shortcut,
            parts=parts,
            loose=(ops | self.uses.dead) - owners.keys() - tail,
            obstacle=obstacle,
        )

    def _modules(self, ops: frozenset[int]) -> tuple[str, ...]:
        """Outermost modules that run nothing but these operations, in the order of running."""
        inside = Counter(path for k in ops | self.uses.dead for path in _around(self.ops[k].module))
        whole = {path for path, count in inside.items() if path and count == self.of_module[path]}
        found = [next((p for p in _around(self.ops[k].module) if p in whole), "") for k in sorted(ops)]
        return tuple(dict.fromkeys(path for path in found if path))

    def _obstacle(self, ops: frozenset[int], owners: dict[int, str]) -> str:
        work = self.products | {contraction.op for contraction in self.graph.labels.contractions}
        loose = [self.ops[k] for k in sorted(ops & work) if k not in owners]
        if loose:
            where = f"module {loose[0].module!r}" if loose[0].module else "the model"
            return f"{where}, which also does other work, runs a product of it ({loose[0].name}) in its own code"
        read = {
            (owners[v[0]], v)
            for k in ops
            for v in self.uses.reads[k]
            if owners.get(v[0], owners.get(k)) != owners.get(k)
        }
        several = [path for path, count in Counter(path for path, _ in read).items() if count > 1]
        return f"module {several[0]!r} hands out more than one result that is used" if several else ""

    def _used_elsewhere(self, ops: frozenset[int], switch: Switch) -> str:
        wanted, state = set(switch.names), self.graph.tape.state
        for op in self.ops:
            for ref in op.refs() if op.index not in ops else ():
                if state.get(ref.number) in wanted:
                    return f"{state[ref.number]!r}, which would turn it off, is also used by {op.module or 'the model'}"
        return ""


def _around(path: str) -> list[str]:
    """A module's path and those of the modules around it, from the outside in, without the model itself.

    >>> _around("layer1.0.conv")
    ['layer1', 'layer1.0', 'layer1.0.conv']
    """
    parts = path.split(".") if path else []
    return [".".join(parts[: k + 1]) for k in range(len(parts))]


def _inside(path: str, module: str) -> bool:
    return path == module or path.startswith(f"{module}.")


def _within(path: str, modules: Iterable[str]) -> bool:
    return any(_inside(path, module) for module in modules)


def tensors_inside(graph: ChannelGraph, modules: Iterable[str]) -> set[str]:
    """Return every name of the parameters and buffers that lie in these modules and, where tied, nowhere else."""
    inside = set(names_inside(graph.aliases, modules))
    elsewhere = {own for name, own in graph.aliases.items() if name not in inside}
    return {name for name in inside if graph.aliases[name] not in elsewhere}


def names_inside(names: Iterable[str], modules: Iterable[str]) -> list[str]:
    """Return those of some tensor or module names that lie in these modules."""
    known: Any = tuple(modules)
    return [name for name in names if _within(name, known)]
