"""Do one job. What it makes lies in a folder of its own; the result is written last, so a folder with one is done."""

from __future__ import annotations

import fcntl
import json
import logging
import platform
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from .. import data as data_sets
from ..budget import Budget
from ..catalogue import CATALOGUE
from ..data import ImageData
from ..errors import ExperimentError
from ..files import drop_partials, flush_files, replacing
from ..graph.groups import ChannelGraph, trace
from ..measure.latency import compare
from ..measure.macs import nonzero_macs
from ..methods._attached import TrainingMethod
from ..methods.sensitivity import sensitivity
from ..models import initialise_, names
from ..plan import Plan
from ..prune import prune
from ..recovery.distill import DistillationTask
from ..recovery.scratch import redrawn, scratch_b, scratch_e
from ..source import Source
from ..sparsify import sparsify
from ..surgery.shrink import shrink
from ..train import Attachment, Recipe, Task, TrainResult, evaluate, fit
from ..train.held_zeros import HeldZeros
from ..train.snapshots import Snapshots
from ..weight_plan import WeightPlan
from .jobs import Job, is_weight_job
from .launch import launched
from .spec import MethodPart, ModelPart, digest_of

log = logging.getLogger(__name__)
RESULT, MODEL, REWIND, PLAN, MASKS = (
    "result.json",
    "model.safetensors",
    "rewind.safetensors",
    "plan.json",
    "masks.safetensors",
)
CHECKPOINTS, LOCK = "checkpoints", ".lock"
TEST_BATCH = 512
TIMED_BATCHES = (1, 64)
TIMED_S = 0.5  # of each model at each batch
TRIED = tuple(k / 8 for k in range(1, 8))  # fractions of a group, in an analysis of sensitivity
INHERITED = ("costs", "costs_before", "removed", "widths", "verification_error", "metric_as_cut")  # from the cut


@dataclass(frozen=True)
class Place:
    """Where the jobs of a store lie: one folder each, by digest."""

    root: Path

    def of(self, digest: str) -> Path:
        """Return the folder of a job."""
        return self.root / "jobs" / digest

    def result(self, digest: str) -> dict[str, Any] | None:
        """Return what a job found; None if it is not done, or its result is no whole JSON."""
        try:
            found: dict[str, Any] = json.loads((self.of(digest) / RESULT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found

    @contextmanager
    def alone(self, digest: str) -> Iterator[Path]:
        """Have the folder of a job, made if it is not there, to oneself; another process that is at it is waited for.

        A worker whose driver was killed may take a moment to end, while the next driver starts another at the same job.
        """
        folder = self.of(digest)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOCK).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield folder

    def tidy(self, digest: str) -> None:
        """Drop what only a job that is not done needs."""
        shutil.rmtree(self.of(digest) / CHECKPOINTS, ignore_errors=True)
        drop_partials(self.of(digest))


def perform(job: Job, place: Place) -> dict[str, Any]:
    """Do a job whose needs are done, and return its result; one that is done already is not done again.

    Training goes on from the job's own checkpoints if there are any.

    Raises:
        ExperimentError: something that it needs is not there.
        SecateurError: from whatever it does.
    """
    with place.alone(job.digest) as folder:
        done = place.result(job.digest)
        if done is not None:
            return done
        start = time.perf_counter()
        if job.processes > 1:
            result, warned = launched(job, place.root, folder)
        else:
            result, warned = do(job, place, folder)
        result["seconds"] = round(time.perf_counter() - start, 3)
        result["test_count"] = len(_data_of(str(job.model["data"])).test_labels)
        result["warnings"] = warned
        result["machine"] = _machine()
        flush_files(folder)
        write_json(folder / RESULT, result)
        place.tidy(job.digest)
        return result


def do(job: Job, place: Place, folder: Path, *, is_main: bool = True) -> tuple[dict[str, Any], list[str]]:
    """Do a job in this process, and return its result and what was warned of.

    Args:
        job: the job.
        place: where what it needs lies.
        folder: of the job.
        is_main: write files; not so in the further ones of several processes that share a job.
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = _Work(job, place, folder, is_main=is_main).run()
    return result, sorted({str(warning.message) for warning in told})


class _Work:
    """One job being done."""

    def __init__(self, job: Job, place: Place, folder: Path, *, is_main: bool) -> None:
        self.job, self.place, self.folder, self.is_main = job, place, folder, is_main
        self.model_part = ModelPart.model_validate(job.model)
        self.source = source_of(job)
        self.base_recipe = self.model_part.base_recipe(job.seed)

    def run(self) -> dict[str, Any]:
        kinds = {
            "dense": self.dense,
            "cut": self.cut,
            "recover": self.recover,
            "latency": self.latency,
            "sensitivity": self.sensitivity,
        }
        return kinds[self.job.kind]()

    def dense(self) -> dict[str, Any]:
        model = self._fresh()
        graph = self._graph(model)
        found: dict[str, Any] = {"epochs": 0, "history": []}
        if self.model_part.weights is not None:
            model.load_state_dict(load_file(Path(self.model_part.weights).expanduser()))
        else:
            found = self._train_dense(model)
        self._keep(MODEL, model.state_dict())
        return found | {"metric": self._test(model), "costs": asdict(graph.costs())}

    def _train_dense(self, model: nn.Module) -> dict[str, Any]:
        """Train, and keep the weights that rewinding goes back to."""
        epoch = _rewind_epoch(self.model_part, self.base_recipe)
        start = _contiguous(model.state_dict())
        kept = Snapshots(epochs=(epoch,) if epoch else ())
        found = self._train(model, self.base_recipe, [kept])
        self._keep(REWIND, kept.states[epoch] if epoch else start)
        return found

    def cut(self) -> dict[str, Any]:
        dense = self._dense_model()
        graph = self._graph(dense)
        return self._sparsify(dense, graph) if is_weight_job(self.job) else self._prune(dense, graph)

    def _prune(self, dense: nn.Module, graph: ChannelGraph) -> dict[str, Any]:
        part = self._method()
        loader, task = self._loader(augment=False), self.source.task
        method = CATALOGUE[part.name].make(**part.settings)
        result = prune(
            dense,
            self.source.example(dense),
            budget=self._budget(),
            method=method,
            data=loader,
            task=task,
            repair=part.repair,
            seed=self.job.seed,
            graph=graph,
            checkpoint_dir=self.folder / CHECKPOINTS if isinstance(method, TrainingMethod) else None,
        )
        raw = shrink(result.decision.model or dense, result.graph, result.plan)
        if self.is_main:
            result.plan.save(self.folder / PLAN)
        self._keep(MODEL, result.model.state_dict())
        check = result.verification
        return {
            "metric": self._test(result.model),
            "metric_as_cut": self._test(raw),
            "costs": asdict(result.after),
            "costs_before": asdict(result.before),
            "removed": result.removed,
            "widths": {name: [result.graph.widths[name], len(kept)] for name, kept in result.plan.kept.items()},
            "verification_error": None if check is None else check.max_relative_error,
            "structure": structure_of(result.model),
        }

    def _sparsify(self, dense: nn.Module, graph: ChannelGraph) -> dict[str, Any]:
        part = self._method()
        result = sparsify(
            dense,
            self.source.example(dense),
            budget=self._budget(),
            method=CATALOGUE[part.name].make(**part.settings),
            data=self._loader(augment=False),
            task=self.source.task,
            seed=self.job.seed,
        )
        if self.is_main:
            result.plan.save(self.folder / MASKS)
        self._keep(MODEL, result.model.state_dict())
        before = asdict(graph.costs())
        params = before["params"] - result.plan.removed_count
        metric = self._test(result.model)
        return {
            "metric": metric,
            "metric_as_cut": metric,
            "costs": before | {"macs": nonzero_macs(graph, result.plan), "params": params},
            "costs_before": before,
            "removed": result.removed,
            "widths": {name: [m.numel(), int(m.count_nonzero())] for name, m in result.plan.kept.items()},
            "verification_error": None,
        }

    def latency(self) -> dict[str, Any]:
        cut = self._needed(self.job.needs[0])
        dense, small = self._dense_model(), self._cut_model()[0]
        timed = [
            compare(
                dense,
                small,
                self.source.example(dense, batch),
                threads=torch.get_num_threads(),
                min_run_time_s=TIMED_S,
            )
            for batch in TIMED_BATCHES
        ]
        kept = {key: cut[key] for key in ("costs", "costs_before", "removed")}
        return kept | {"metric": None, "latency": [asdict(one) for one in timed]}

    def sensitivity(self) -> dict[str, Any]:
        dense = self._dense_model()
        graph = self._graph(dense)
        curves = sensitivity(
            dense,
            self.source.example(dense),
            data=self.source.validation("an analysis of sensitivity"),
            task=self.source.task,
            removes=TRIED,
            graph=graph,
            seed=self.job.seed,
            progress=False,
        )
        return {"metric": None, "costs": asdict(graph.costs()), "sensitivity": json.loads(curves.to_json())}

    def recover(self) -> dict[str, Any]:
        cut = self._needed(self.job.needs[0])
        small, masks = self._cut_model()
        task: Task = self.source.task
        name = self.job.recovery
        recipe = recipe_of(self.job, macs_before=cut["costs_before"]["macs"], macs_after=cut["costs"]["macs"])
        if name in ("scratch_e", "scratch_b"):
            init = initialise_ if self.model_part.name in names() else None
            small = redrawn(small, seed=self.job.seed, init=init, plan=masks)
        elif name == "weight_rewind":
            small = self._rewound()
        elif name == "distill":
            task = DistillationTask(task, self._dense_model())
        held = [] if masks is None else [HeldZeros(masks)]
        found = self._train(small, recipe, held, task)
        self._keep(MODEL, small.state_dict())
        inherited = {key: cut[key] for key in INHERITED}
        return found | inherited | {"metric": self._test(small)}

    def _train(
        self, model: nn.Module, recipe: Recipe, attachments: Sequence[Attachment], task: Task | None = None
    ) -> dict[str, Any]:
        result: TrainResult = fit(
            model,
            self._loader(augment=True),
            task if task is not None else self.source.task,
            recipe,
            attachments=attachments,
            checkpoint_dir=self.folder / CHECKPOINTS,
            run_id=self.job.digest,
            progress=False,
        )
        history = [[record.epoch, record.loss, record.lr, round(record.seconds, 3)] for record in result.history]
        found = {"epochs": recipe.epochs - recipe.first_epoch, "history": history, "recipe": asdict(recipe)}
        return found | {"resumed_from": result.resumed_from}

    def _loader(self, *, augment: bool) -> Any:
        size = self.model_part.batch_size // self.job.processes
        return self.source.loaders("comparing", size, augment=augment).train

    def _keep(self, name: str, state: Mapping[str, torch.Tensor]) -> None:
        if self.is_main:
            save_file(_contiguous(state), self.folder / name)

    def _test(self, model: nn.Module) -> float:
        loader = self.source.needed_data("comparing").loaders(TEST_BATCH).test
        return float(evaluate(model, loader, self.source.task, progress=False))

    def _fresh(self) -> nn.Module:
        return self.source.model().eval()

    def _graph(self, model: nn.Module) -> ChannelGraph:
        return trace(model, self.source.example(model), conv_groups=self.model_part.conv_groups)

    def _dense_model(self) -> nn.Module:
        digest = self.job.needs[-1]
        self._needed(digest)
        model = self._fresh()
        model.load_state_dict(load_file(self.place.of(digest) / MODEL))
        return model

    def _cut_model(self) -> tuple[nn.Module, WeightPlan | None]:
        folder = self.place.of(self.job.needs[0])
        model = self._fresh()
        if is_weight_job(self.job):
            model.load_state_dict(load_file(folder / MODEL))
            return model, WeightPlan.load(folder / MASKS)
        small = shrink(model, self._graph(model), Plan.load(folder / PLAN))
        small.load_state_dict(load_file(folder / MODEL))
        return small, None

    def _rewound(self) -> nn.Module:
        """The weights that stay, as they were at the epoch that rewinding goes back to."""
        early = self.place.of(self.job.needs[1]) / REWIND
        if not early.exists():
            raise ExperimentError(
                f"{self.job}: the dense network came with weights and was not trained here, so there are no earlier "
                "ones to go back to: leave weight_rewind out, or leave weights out of the model."
            )
        model = self._fresh()
        model.load_state_dict(load_file(early))
        folder = self.place.of(self.job.needs[0])
        if is_weight_job(self.job):
            WeightPlan.load(folder / MASKS).apply_(model)
            return model
        return shrink(model, self._graph(model), Plan.load(folder / PLAN))

    def _needed(self, digest: str) -> dict[str, Any]:
        found = self.place.result(digest)
        if found is None:
            raise ExperimentError(f"{self.job} needs job {digest}, and {self.place.of(digest)} holds no result of it.")
        return found

    def _method(self) -> MethodPart:
        return MethodPart.model_validate(self.job.method)

    def _budget(self) -> Budget:
        assert self.job.budget is not None
        return Budget(self.job.budget["remove"], self.job.budget["of"])


def recipe_of(job: Job, *, macs_before: int, macs_after: int) -> Recipe:
    """Return how a job of the kind "recover" trains.

    Args:
        job: the job.
        macs_before: of the dense network, for one sample.
        macs_after: of the cut one.
    """
    part = ModelPart.model_validate(job.model)
    base, tuning = part.base_recipe(job.seed), part.finetune_epochs
    if job.recovery == "scratch_e":
        return scratch_e(base, finetune_epochs=tuning)
    if job.recovery == "scratch_b":
        return scratch_b(base, macs_before, macs_after, finetune_epochs=tuning, cap=job.scratch_cap)
    if job.recovery in ("lr_rewind", "weight_rewind"):
        return base.rewound(base.epochs - _rewind_epoch(part, base))
    return part.finetune_recipe(job.seed)


def _rewind_epoch(part: ModelPart, base: Recipe) -> int:
    """The epoch that rewinding goes back to: as many from the end as fine-tuning has, if there are as many."""
    return max(base.epochs - part.finetune_epochs, 0)


def structure_of(model: nn.Module) -> str:
    """Return a digest of a network's modules, shapes and whole numbers: all of it but what training changes."""
    state = model.state_dict()
    fixed = [name for name in state if not name.endswith("num_batches_tracked")]  # a norm's count of its batches
    whole = {name: state[name].tolist() for name in fixed if not state[name].is_floating_point()}
    return digest_of([str(model), {name: list(tensor.shape) for name, tensor in state.items()}, whole])


class _Source(Source):
    """A source that shares its data set with all others of this process: a worker reads it once."""

    @cached_property
    def data(self) -> ImageData | None:
        """The data set."""
        return None if self.data_name is None else _data_of(self.data_name)


def source_of(job: Job) -> Source:
    """Return the model and the data of a job."""
    model = job.model
    return _Source(str(model["name"]), data_name=str(model["data"]), hold_out=job.hold_out, seed=job.seed)


def images_of(job: Job) -> tuple[int, int]:
    """Return how many images a job trains on, and how many are held out."""
    images = source_of(job).training("comparing")
    return len(images.train_labels), len(images.test_labels)


@cache
def _data_of(name: str) -> ImageData:
    return data_sets.resolve(name)


def _contiguous(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one step: a kill leaves no file or a whole one."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(value), encoding="utf-8")


def _version() -> str:
    try:
        return version("secateur")
    except PackageNotFoundError:
        return "unknown"


def _processor() -> str:
    """Return the CPU's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "not known"
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "not known")


@cache
def _machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "secateur": _version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "threads": torch.get_num_threads(),
    }
