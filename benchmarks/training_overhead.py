"""What methods that take part in training add to a step of ResNet-20, against the same step without them.

    python -m benchmarks.training_overhead [--steps 12] [--warmup 3] [--threads 1] [--only NAME ...]

Two copies of one network train side by side in one process, on the same batch of 128 random images of 3x32x32 in fp32
with the recipe "cifar": one as it is, one with the method attached and called at the four points as our own loop does.
Plain and attached steps take turns, and which of the two goes first does too. `ratio` is the median over pairs of the
attached step by the plain one beside it, `cpu_ratio` the same of CPU seconds. `points` is the median time inside the
method's calls by the median plain step, which other work on the machine disturbs less. `with_rare` adds to the larger
of `ratio` and 1 + `points` what does not happen in every step, spread over the steps between: what is updated every so
many steps, and the end of an epoch of 391 steps (50,000 images). It is what goals are compared with. `late_points`
is `points` after the end of the last epoch, when filters are chosen or gone (those of greg still shrink). The row
"nothing" is an attachment that does nothing: what its ratio is off 1 by is noise.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur import Budget, attach
from secateur.models import resnet20
from secateur.train.attachment import Attachment, Moment
from secateur.train.schedules import recipe
from secateur.train.task import ClassificationTask

BATCH, EPOCH_STEPS, EPOCHS = 128, 391, 10
RESULTS = Path(__file__).with_name("results") / "training_overhead.json"
GOALS = {
    "nothing": None,
    "autopruner": 1.3,
    "network_slimming": 1.05,
    "ista_bn": 1.05,
    "sparse_structure_selection": 1.05,
    "soft_filter": 1.05,
    "structured_sparsity": 1.05,
    "centripetal_sgd": 1.15,
    "global_dynamic": 1.3,
    "greg": None,
}
# What is updated every so many steps: how many, and the entry of the state that counts them; None = the loop's count.
UPDATES: dict[str, tuple[int, str | None]] = {
    "autopruner": (20, "step_count"),
    "structured_sparsity": (200, "steps"),
    "global_dynamic": (500, None),
    "greg": (10, "step_count"),
}


class Nothing(Attachment):
    """Does nothing."""


class Timed(Attachment):
    """An attachment, and the seconds spent in its calls since they were last asked for."""

    def __init__(self, inner: Attachment) -> None:
        self.inner, self.seconds = inner, 0.0

    def _call(self, point: Callable[[Moment], Any], moment: Moment) -> Any:
        started = time.perf_counter()
        found = point(moment)
        self.seconds += time.perf_counter() - started
        return found

    def extra_loss(self, moment: Moment) -> Tensor | None:
        loss: Tensor | None = self._call(self.inner.extra_loss, moment)
        return loss

    def after_backward(self, moment: Moment) -> None:
        self._call(self.inner.after_backward, moment)

    def after_step(self, moment: Moment) -> None:
        self._call(self.inner.after_step, moment)

    def after_epoch(self, moment: Moment) -> None:
        self._call(self.inner.after_epoch, moment)

    def taken(self) -> float:
        seconds, self.seconds = self.seconds, 0.0
        return seconds


@dataclass
class Run:
    """A model in training, stepped as `secateur.train.fit` does."""

    model: nn.Module
    batch: tuple[Tensor, Tensor]
    attachments: tuple[Attachment, ...] = ()
    step: int = 0

    def __post_init__(self) -> None:
        self.task, self.recipe = ClassificationTask(), recipe("cifar")
        self.optimizer = self.recipe.make_optimizer(self.model.parameters())
        self.model.train()

    def moment(self, epoch: int = 0) -> Moment:
        return Moment(self.model, self.optimizer, epoch, EPOCHS, self.step, 0.01)

    def train(self) -> tuple[float, float]:
        """Take a step; return its wall and CPU seconds."""
        wall, cpu = time.perf_counter(), time.process_time()
        moment = self.moment()
        for group in self.optimizer.param_groups:
            group["lr"] = moment.lr
        self.optimizer.zero_grad()
        (args, kwargs), losses = self.task.to_inputs(self.batch), []
        losses.append(self.task.loss(self.model(*args, **kwargs), self.batch))
        losses += [e for each in self.attachments if (e := each.extra_loss(moment)) is not None]
        loss = sum(losses[1:], losses[0])
        assert math.isfinite(loss.detach().item())
        loss.backward()
        for each in self.attachments:
            each.after_backward(moment)
        self.optimizer.step()
        for each in self.attachments:
            each.after_step(moment)
        self.step += 1
        return time.perf_counter() - wall, time.process_time() - cpu

    def end_epoch(self, epoch: int) -> None:
        for each in self.attachments:
            each.after_epoch(self.moment(epoch))


def attached_run(name: str, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Run, Attachment, Timed]:
    method: Attachment = Nothing()
    if name != "nothing":
        method = attach(model, batch[0][:1], method=name, budget=Budget(0.4, of="macs"))
    timed = Timed(method)
    return Run(model, batch, (timed,)), method, timed


def make_due(name: str, run: Run, method: Attachment) -> None:
    """Bring a run to the step whose end has an update; one step goes before, since a state taken up costs time too."""
    if name in UPDATES:
        period, counter = UPDATES[name]
        run.step = period - 2
        if counter is not None:
            method.load_state_dict({**method.state_dict(), counter: period - 2})
        run.train()


def spread(values: list[float], scale: float = 1.0) -> dict[str, float]:
    low, middle, high = (round(scale * each, 4) for each in statistics.quantiles(values, n=4, method="inclusive"))
    return {"median": middle, "q1": low, "q3": high}


def measure(name: str, steps: int, warmup: int) -> dict[str, Any]:
    torch.manual_seed(0)
    batch = (torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,)))
    model = resnet20()
    plain = Run(copy.deepcopy(model), batch)
    attached, method, timed = attached_run(name, model, batch)
    attached.train()
    make_due(name, attached, method)  # so that masks and the like are in place while we measure
    for _ in range(warmup):
        plain.train(), attached.train()
    timed.taken()
    times: dict[str, list[tuple[float, float]]] = {"plain": [], "attached": []}
    points = []
    for k in range(steps):
        sides = [("plain", plain), ("attached", attached)]
        for side, run in sides if k % 2 else reversed(sides):
            times[side].append(run.train())
        points.append(timed.taken())
    return {"name": name, "goal": GOALS[name], **summary(times, points), **rare(name, attached, method, timed, points)}


def summary(times: dict[str, list[tuple[float, float]]], points: list[float]) -> dict[str, Any]:
    pairs = list(zip(times["plain"], times["attached"], strict=True))
    return {
        "plain_ms": spread([wall for wall, _ in times["plain"]], 1e3),
        "attached_ms": spread([wall for wall, _ in times["attached"]], 1e3),
        "points_ms": spread(points, 1e3),
        "ratio": spread([with_it[0] / without[0] for without, with_it in pairs]),
        "cpu_ratio": spread([with_it[1] / without[1] for without, with_it in pairs]),
        "points": statistics.median(points) / statistics.median(wall for wall, _ in times["plain"]),
    }


def rare(name: str, run: Run, method: Attachment, timed: Timed, points: list[float]) -> dict[str, Any]:
    """Time what does not happen in every step: an update, the end of an epoch, and steps after the last one."""
    update, period = 0.0, 1
    if name in UPDATES:
        period = UPDATES[name][0]
        make_due(name, run, method)
        timed.taken()
        run.train()
        run.train()  # what an update only marks is laid out here
        update = max(timed.taken() - 2 * statistics.median(points), 0.0)
    run.train()
    timed.taken()
    run.end_epoch(0)
    end = timed.taken()
    run.train()
    run.end_epoch(EPOCHS - 1)
    run.train()
    late = []
    for _ in range(3):
        timed.taken()
        run.train()
        late.append(timed.taken())
    return {"update_s": update, "update_steps": period, "epoch_end_s": end, "late_s": statistics.median(late)}


def finished(row: dict[str, Any]) -> dict[str, Any]:
    """Set all in relation to the plain step."""
    update, end, late, period = (row.pop(key) for key in ("update_s", "epoch_end_s", "late_s", "update_steps"))
    plain = row["plain_ms"]["median"]
    row |= {"update_ms": 1e3 * update, "update_steps": period} if row["name"] in UPDATES else {}
    row |= {"epoch_end_ms": 1e3 * end, "late_points": 1e3 * late / plain}
    row["rare"] = 1e3 * (update / period + end / EPOCH_STEPS) / plain
    row["with_rare"] = max(row["ratio"]["median"], 1 + row["points"]) + row["rare"]
    row["goal_is_met"] = None if row["goal"] is None else row["with_rare"] <= row["goal"]
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=list(GOALS), choices=list(GOALS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    logging.getLogger("secateur").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    rows, load = [], os.getloadavg()[0]
    for name in options.only:
        rows.append(finished(measure(name, options.steps, options.warmup)))
        print(rows[-1], flush=True)
    setting = {"model": "resnet20", "batch": BATCH, "steps": options.steps, "warmup": options.warmup}
    versions: dict[str, Any] = {"precision": "fp32", "threads": options.threads, "torch": torch.__version__}
    versions |= {"load_average": [round(each, 2) for each in (load, os.getloadavg()[0])]}
    options.out.write_text(json.dumps({**setting, **versions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
