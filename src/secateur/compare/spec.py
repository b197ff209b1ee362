"""What an experiment is: models, methods, budgets, recoveries and seeds, as a value that is checked as a whole.

It is written as TOML or made from flags. All that is wrong with it is told at once, with line numbers, before anything
runs.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_serializer

from .. import data as data_sets
from .. import models as networks
from ..budget import WEIGHTS, Budget
from ..catalogue import CATALOGUE, Entry
from ..errors import ExperimentError, SecateurError, UnknownName
from ..source import changed
from ..train import RECIPES, Recipe, recipe

CONTROLS = {"channels": "random", "weights": "random_weights"}
RECOVERIES = {
    "none": "nothing but the repair that comes with the cut",
    "finetune": "trained on at a tenth of the rate",
    "lr_rewind": "the last epochs of the original schedule again",
    "weight_rewind": "those epochs again, from the weights that stay as they were at their beginning",
    "distill": "trained on, with the dense network as teacher",
    "scratch_e": "fresh weights, as many epochs as the dense network",
    "scratch_b": "fresh weights, as many multiply-adds as the dense network",
}
LATER = (
    "sensitivity",
    "processes",
)  # settings that came later; at their default an experiment has the digest it had before
BATCH = 128  # where a recipe does not say
Name = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelPart(_Part):
    """A network, its data, and how it is trained.

    Attributes:
        name: as the command line takes it, e.g. "resnet20".
        data: as the command line takes it, e.g. "cifar10".
        recipe: name of the recipe of the dense network.
        changes: values of that recipe that differ.
        finetune_epochs: of the dense network after the cut, and of everything that takes its place.
        finetune: values that differ from the recipe's when fine-tuning.
        weights: file with trained weights, in place of training the dense network.
        conv_groups: what every method does with grouped convolutions, see `secateur.trace`.
    """

    name: Name
    data: Name
    recipe: Name = "cifar"
    changes: dict[str, JsonValue] = Field(default_factory=dict)
    finetune_epochs: int = Field(default=40, ge=1)
    finetune: dict[str, JsonValue] = Field(default_factory=dict)
    weights: str | None = None
    conv_groups: Literal["narrow", "whole"] = "narrow"

    @model_serializer(mode="wrap")
    def _without_later(self, plain: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """A setting that came later is left out at its default, so that digests are those that they were."""
        values = plain(self)
        if values.get("conv_groups") == "narrow":
            del values["conv_groups"]
        return values

    def base_recipe(self, seed: int) -> Recipe:
        """Return how the dense network is trained."""
        return changed(recipe(self.recipe), {"seed": seed} | dict(self.changes))

    @property
    def batch_size(self) -> int:
        """Images in a batch, of all processes together."""
        return self.base_recipe(0).batch_size or BATCH

    def finetune_recipe(self, seed: int) -> Recipe:
        """Return how the pruned network is trained on."""
        return changed(self.base_recipe(seed).finetuning(self.finetune_epochs), dict(self.finetune))


class BudgetPart(_Part):
    """How much goes; see `secateur.Budget`."""

    remove: float = Field(ge=0, lt=1)
    of: str = "macs"

    def budget(self) -> Budget:
        """Return it as the methods take it."""
        return Budget(self.remove, self.of)


class MethodPart(_Part):
    """A method with its settings.

    Attributes:
        name: in the catalogue.
        settings: that differ from the paper's.
        budgets: in place of the experiment's.
        recoveries: in place of the experiment's.
        repair: what mends the cut; None = what `prune` does by itself.
        label: what it is called in tables; two entries of one method need different ones.
    """

    name: Name
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    budgets: tuple[BudgetPart, ...] | None = Field(default=None, min_length=1, strict=False)
    recoveries: tuple[str, ...] | None = Field(default=None, min_length=1, strict=False)
    repair: tuple[str, ...] | None = Field(default=None, strict=False)
    label: str = ""

    @property
    def title(self) -> str:
        """What it is called in tables."""
        return self.label or self.name


class Experiment(_Part):
    """Everything that is run.

    Attributes:
        name: of the experiment.
        models: networks.
        methods: what prunes them. The random control of each kind is added where it is missing.
        budgets: how much goes.
        recoveries: keys of `RECOVERIES`.
        seeds: each trains a dense network of its own and draws its own data order.
        hold_out: share of the training images that nothing trains on; every choice is made on it.
        scratch_cap: most epochs of scratch_b, as a multiple of the dense network's; None = no cap.
        control: add the random controls.
        latency: time each cut network against the dense one, alone on the machine, once all else is done.
        sensitivity: cut one group at a time of each dense network of the first seed, and measure it on held-out images.
        processes: that share each training run, under `accelerate launch`; each gets its part of every batch.
    """

    name: Name = "comparison"
    models: tuple[ModelPart, ...] = Field(min_length=1, strict=False)
    methods: tuple[MethodPart, ...] = Field(min_length=1, strict=False)
    budgets: tuple[BudgetPart, ...] = Field(min_length=1, strict=False)
    recoveries: tuple[str, ...] = Field(default=("finetune", "scratch_e", "scratch_b"), min_length=1, strict=False)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0, 1, 2), min_length=1, strict=False)
    hold_out: float = Field(default=0.1, gt=0, lt=1)
    scratch_cap: float | None = Field(default=None, ge=1)
    control: bool = True
    latency: bool = False
    sensitivity: bool = False
    processes: int = Field(default=1, ge=1)

    @property
    def compared(self) -> tuple[MethodPart, ...]:
        """The methods, with the random control of each kind that is among them."""
        named = {method.name for method in self.methods}
        kinds = dict.fromkeys(CATALOGUE[method.name].removes for method in self.methods)
        missing = [kind for kind in kinds if CONTROLS[kind] not in named] if self.control else []
        return (*self.methods, *(self._control(kind) for kind in missing))

    def _control(self, kind: str) -> MethodPart:
        """The control takes every budget that a method of its kind takes."""
        own = [m for m in self.methods if CATALOGUE[m.name].removes == kind]
        budgets = dict.fromkeys(b for m in own for b in self.budgets_of(m))
        return MethodPart(name=CONTROLS[kind], budgets=tuple(budgets))

    def budgets_of(self, method: MethodPart) -> tuple[BudgetPart, ...]:
        """Return the budgets that a method is asked to meet."""
        return self.budgets if method.budgets is None else method.budgets

    def recoveries_of(self, method: MethodPart) -> tuple[str, ...]:
        """Return what follows a method's cuts."""
        return self.recoveries if method.recoveries is None else method.recoveries

    @property
    def every_recovery(self) -> tuple[str, ...]:
        """What follows the cuts of any method."""
        return tuple(dict.fromkeys(name for method in self.compared for name in self.recoveries_of(method)))

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that stand for all of it."""
        values = self.model_dump(mode="json")
        fields = type(self).model_fields
        return digest_of({k: v for k, v in values.items() if k not in LATER or v != fields[k].default})


def digest_of(value: Any) -> str:
    """Return sixteen hexadecimal digits that stand for a value of JSON, whatever the order of its keys.

    >>> digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_experiment(path: str | Path) -> Experiment:
    """Read an experiment from a TOML file.

    Raises:
        ExperimentError: it cannot be read, or something in it is wrong; names everything that is, with line numbers.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        raw = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ExperimentError(f"{path} cannot be read as an experiment: {error}.") from error
    return made(raw, where=f"{path}", lines=Lines(text))


def made(raw: Mapping[str, Any], *, where: str = "the experiment", lines: Lines | None = None) -> Experiment:
    """Check values and return the experiment.

    Args:
        raw: as TOML has it.
        where: what messages call the source.
        lines: where in the text each value is, if there is a text.

    Raises:
        ExperimentError: something is wrong; names everything that is.
    """
    problems: list[tuple[tuple[str | int, ...], str]] = []
    experiment: Experiment | None = None
    try:
        experiment = Experiment.model_validate(dict(raw))
    except ValidationError as error:
        problems = list(_malformed(error))
    if experiment is not None:
        problems = list(_problems(experiment))
    if problems:
        told = sorted(((lines.of(place) if lines else 0, place, said) for place, said in problems), key=lambda p: p[0])
        rows = [
            f"  {f'line {line}: ' if line else ''}{'.'.join(str(part) for part in place)}: {said}"
            for line, place, said in told
        ]
        raise ExperimentError(
            f"{where}: {len(rows)} thing{'s are' if len(rows) > 1 else ' is'} wrong:\n" + "\n".join(rows)
        )
    assert experiment is not None
    return experiment


def to_toml(experiment: Experiment) -> str:
    r"""Return an experiment as TOML that `read_experiment` takes; what has its default is left out.

    >>> text = 'seeds = [1]\n\n[[models]]\nname = "digits_resnet"\ndata = "digits"\nrecipe = "digits"\n\n'
    >>> text += '[[methods]]\nname = "l1_filter"\n\n[[budgets]]\nremove = 0.5\n'
    >>> to_toml(made(tomllib.loads(text))) == text
    True
    """
    values = experiment.model_dump(mode="json", exclude_defaults=True)
    tables = {key: values.pop(key) for key in ("models", "methods", "budgets")}
    blocks = ["".join(f"{key} = {_toml(value)}\n" for key, value in values.items())]
    for name, rows in tables.items():
        for row in rows:
            lines = "".join(f"{key} = {_toml(value)}\n" for key, value in row.items() if value is not None)
            blocks.append(f"[[{name}]]\n{lines}")
    return "\n".join(block for block in blocks if block)


def _toml(value: Any) -> str:
    """A value in TOML; its strings, numbers and lists are those of JSON. It has no null: such a setting is left out."""
    if isinstance(value, Mapping):
        inside = ", ".join(f"{json.dumps(str(k))} = {_toml(v)}" for k, v in value.items() if v is not None)
        return f"{{ {inside} }}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return json.dumps(value, ensure_ascii=False)


Problem = tuple[tuple[str | int, ...], str]


def _malformed(error: ValidationError) -> Iterator[Problem]:
    """Yield what pydantic found, with the values that it found."""
    for found in error.errors():
        place, value, said = tuple(found["loc"]), found["input"], found["msg"][0].lower() + found["msg"][1:]
        if found["type"] == "too_short" and value:
            continue  # a list whose entries are all wrong counts as empty; each is told by itself
        if place[-1:] == ("remove",):
            try:
                Budget(value)
            except SecateurError as why:
                said = str(why).removesuffix(".")
        elif type(value) in (bool, int, float, str) and found["type"] != "extra_forbidden":
            said += f", not {value!r}"
        yield place, said


def _problems(experiment: Experiment) -> Iterator[Problem]:
    """Yield everything that a well-formed experiment asks for and that cannot be."""
    for i, model in enumerate(experiment.models):
        yield from _of_model(model, ("models", i))
    for i, method in enumerate(experiment.methods):
        yield from _of_method(experiment, method, ("methods", i))
    yield from _of_recoveries(experiment.recoveries, ())
    for i, method in enumerate(experiment.methods):
        yield from _of_recoveries(method.recoveries or (), ("methods", i))
    if experiment.processes > 1:
        yield from _of_processes(experiment)
    yield from _repeated("seeds", experiment.seeds)
    yield from _repeated("budgets", experiment.budgets)
    yield from _repeated("models", [(m.name, m.data) for m in experiment.models])
    yield from _repeated("methods", [m.title for m in experiment.methods])


def _repeated(part: str, values: Iterable[Any]) -> Iterator[Problem]:
    seen = set()
    for i, value in enumerate(values):
        if value in seen:
            yield (part, i), f"{value} is there twice"
        seen.add(value)


def _of_recoveries(names: Sequence[str], place: tuple[str | int, ...]) -> Iterator[Problem]:
    for i, name in enumerate(names):
        if name not in RECOVERIES:
            yield (*place, "recoveries", i), str(UnknownName("recovery", name, RECOVERIES))
    yield from (((*place, *where), said) for where, said in _repeated("recoveries", names))


def _of_model(model: ModelPart, place: tuple[str | int, ...]) -> Iterator[Problem]:
    if ":" not in model.name and model.name not in networks.names():
        yield (*place, "name"), str(UnknownName("network of this package", model.name, networks.names()))
    if model.recipe not in RECIPES:
        yield (*place, "recipe"), str(UnknownName("recipe", model.recipe, RECIPES))
        return
    for key, make in (("changes", model.base_recipe), ("finetune", model.finetune_recipe)):
        try:
            make(0)
        except SecateurError as error:
            yield (*place, key), str(error)
            return
    kind = model.data.partition(":")[0]
    if kind not in data_sets.names():
        yield (*place, "data"), str(UnknownName("data set", kind, data_sets.names()))


def _of_processes(experiment: Experiment) -> Iterator[Problem]:
    count = experiment.processes
    if find_spec("accelerate") is None:
        yield ("processes",), 'training by several processes needs Accelerate: pip install "secateur[train]"'
    if not torch.distributed.is_available():
        yield ("processes",), "this torch was built without torch.distributed: leave processes out"
    for i, model in enumerate(experiment.models):
        try:
            size = model.batch_size
        except SecateurError:
            continue  # told with the model
        if size % count:
            said = f"batches of {size} cannot be shared out evenly to {count} processes"
            yield ("models", i, "changes"), f"{said}; set changes = {{ batch_size = {size - size % count or count} }}"


def _of_method(experiment: Experiment, method: MethodPart, place: tuple[str | int, ...]) -> Iterator[Problem]:
    if method.name not in CATALOGUE:
        yield (*place, "name"), str(UnknownName("method", method.name, CATALOGUE))
        return
    entry = CATALOGUE[method.name]
    try:
        entry.make(**method.settings)
    except (SecateurError, TypeError) as error:
        yield (*place, "settings"), str(error)
    for budget in experiment.budgets_of(method):
        yield from _of_budget(entry, budget, (*place, *(("budgets",) if method.budgets else ())))
    if entry.removes == "weights" and method.repair:
        yield (*place, "repair"), f"{method.name} removes single weights, and repairs are for removed channels"


def _of_budget(entry: Entry, budget: BudgetPart, place: tuple[str | int, ...]) -> Iterator[Problem]:
    try:
        budget.budget()
    except SecateurError as error:
        yield place, str(error)
        return
    if entry.removes == "channels" and budget.of == WEIGHTS:
        yield (
            place,
            f"{entry.name} removes channels and cannot meet a budget of single weights; give it budgets = [...]",
        )
    if entry.removes == "weights" and budget.of not in (WEIGHTS, "params"):
        said = f"{entry.name} removes single weights and cannot meet a budget of {budget.of}"
        yield place, f'{said}; give it budgets = [{{remove = {budget.remove}, of = "weights"}}]'


class Lines:
    """Finds the line of a value in a TOML text by its place, e.g. ("methods", 1, "name")."""

    def __init__(self, text: str) -> None:
        self.places: dict[tuple[str | int, ...], int] = {}
        table: tuple[str | int, ...] = ()
        counts: dict[str, int] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            bare = line.strip()
            if found := re.match(r"\[\[\s*([\w.-]+)\s*\]\]", bare):
                name = found[1]
                counts[name] = counts.get(name, -1) + 1
                table = (name, counts[name])
                self.places.setdefault(table, number)
            elif found := re.match(r"\[\s*([\w.-]+)\s*\]", bare):
                parts = found[1].split(".")
                head: tuple[str | int, ...] = (parts[0], counts[parts[0]]) if parts[0] in counts else (parts[0],)
                table = (*head, *parts[1:])
                self.places.setdefault(table, number)
            elif found := re.match(r"([\w-]+|\"[^\"]+\")\s*=", bare):
                self.places.setdefault((*table, found[1].strip('"')), number)

    def of(self, place: tuple[str | int, ...]) -> int:
        """Return the line of a value, or of the nearest thing around it that has one; 0 if there is none."""
        for length in range(len(place), 0, -1):
            if (line := self.places.get(place[:length])) is not None:
                return line
        return 0
