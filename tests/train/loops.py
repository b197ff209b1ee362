"""One small method, one small network and the same batches, trained by each kind of loop."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

import secateur as sc
from secateur.catalogue import CATALOGUE
from secateur.methods._attached import Attached, TrainingMethod
from secateur.methods._attached_weights import TrainingWeightMethod
from secateur.methods._problem import Decision, Problem
from secateur.methods._scores import per_channel, plan_from_scores, producers
from secateur.train import ClassificationTask, HuggingFaceCallback, LightningCallback, Moment, Recipe, fit

EPOCHS, STEPS_PER_EPOCH = 3, 4
RECIPE = Recipe(epochs=EPOCHS, lr=0.05, schedule="constant", clip_norm=0.5, seed=0)
IMAGES = torch.zeros(1, 3, 4, 4)


class FrozenNorm(nn.BatchNorm2d):
    """Normalises by statistics that stay, so that a batch cut in two means what it meant."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.train()

    def train(self, mode: bool = True) -> FrozenNorm:
        return super().train(False)


class Network(nn.Module):
    """Two convolutions; called with labels it returns the loss too, as the trainers of transformers expect."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), norm(8), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), norm(6), nn.ReLU()
        )
        self.head = nn.Linear(6, 3)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.head(self.body(images).mean(dim=(2, 3)))
        return logits if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def network(norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> Network:
    torch.manual_seed(7)
    return Network(norm)


def samples(count: int = 32) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(3, 4, 4, generator=generator), torch.randint(3, (), generator=generator)) for _ in range(count)
    ]


class Batches:
    """The same batches in each epoch; knows how to go on from the middle of one, as Lightning asks of a loader."""

    def __init__(self) -> None:
        self.given = samples()
        self.start = self.done = 0

    def __len__(self) -> int:
        return STEPS_PER_EPOCH

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        start, self.start = self.start, 0
        for step in range(start, STEPS_PER_EPOCH):
            self.done = step + 1
            images, labels = zip(*self.given[8 * step : 8 * step + 8], strict=True)
            yield torch.stack(images), torch.stack(labels)

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done % STEPS_PER_EPOCH}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start = state["done"]


class Killed(BaseException):
    """What a kill looks like from inside."""


@dataclass(frozen=True)
class ShrinkFilters:
    """A made-up method that uses all four points: pulls filters to zero, ever stronger, and keeps what resists.

    Attributes:
        penalty: of the norm of all filters' weights, times the epochs that are over.
        through_activations: also penalise what the first convolution gives, so that the extra loss needs the batch.
        kill_at: step after which the run dies.
    """

    penalty: float = 0.05
    through_activations: bool = False
    kill_at: int | None = None
    recipe: Recipe = RECIPE

    def attach(self, problem: Problem) -> Shrinking:
        return Shrinking(problem, self)

    def decide(self, problem: Problem) -> Decision:
        raise AssertionError("only attached in these tests")


class Shrinking(Attached):
    """A run of `ShrinkFilters`; `log` has each call with its moment, `resistance` all gradients that it saw."""

    def __init__(self, problem: Problem, method: ShrinkFilters) -> None:
        super().__init__(problem)
        self.method = method
        self.strength = 1.0
        self.resistance = {name: torch.zeros_like(weight) for name, weight in self._weights().items()}
        self.log: list[tuple[Any, ...]] = []
        self.activations: Tensor | None = None
        if method.through_activations:
            self.model.body[0].register_forward_hook(self._remember)

    def _remember(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.activations = output

    def _weights(self) -> dict[str, Tensor]:
        graph = self.problem.graph
        names = [member.tensor for group in graph.groups.values() for member in producers(graph, group)]
        return {name: self.model.get_parameter(name) for name in names}

    def _note(self, point: str, moment: Moment) -> None:
        assert moment.model is self.model
        assert type(moment.optimizer) is torch.optim.SGD
        self.log.append((point, moment.epoch, moment.epoch_count, moment.step, moment.lr))

    def extra_loss(self, moment: Moment) -> Tensor:
        self._note("extra_loss", moment)
        norms = sum(weight.flatten(1).norm(dim=1).sum() for weight in self._weights().values())
        extra = self.method.penalty * self.strength * norms
        if self.method.through_activations:
            extra = extra + 0.5 * self.activations.square().mean()
        return extra

    def after_backward(self, moment: Moment) -> None:
        self._note("after_backward", moment)
        for name, weight in self._weights().items():
            self.resistance[name] += (weight.grad * weight.detach()).abs()
            weight.grad.mul_(1.5)

    def after_step(self, moment: Moment) -> None:
        self._note("after_step", moment)
        for weight in self._weights().values():
            weight.data.mul_(1 - 0.1 * moment.lr)
        if moment.step == self.method.kill_at:
            raise Killed

    def after_epoch(self, moment: Moment) -> None:
        self._note("after_epoch", moment)
        self.strength += 1.0

    def state_dict(self) -> dict[str, Any]:
        return {"strength": self.strength, "resistance": self.resistance, "log": self.log}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.strength, self.resistance, self.log = state["strength"], state["resistance"], state["log"]

    def scores(self) -> dict[str, Tensor]:
        graph = self.problem.graph
        return {
            name: sum(per_channel(graph, group, m, self.resistance[m.tensor]) for m in producers(graph, group))
            for name, group in graph.groups.items()
        }

    def finish(self) -> Decision:
        scores = self.scores()
        return Decision(plan_from_scores(self.problem, scores, "global"), scores=scores)


@dataclass
class Outcome:
    """What a loop ended with; a loop that died has none."""

    attached: Any
    weights: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Dying:
    """A method of the catalogue, by name, whose run dies after a step."""

    method: str
    kill_at: int


def start(method: Any, processes: int | None = None) -> tuple[Network, Any, torch.optim.Optimizer]:
    """Return a network with a method attached, by name or as an object, and an optimizer."""
    model = network(nn.BatchNorm2d if processes is None else FrozenNorm)
    attached = attached_to(model, method.method if isinstance(method, Dying) else method)
    if isinstance(method, Dying):
        step_before = attached.after_step

        def after_step(moment: Moment) -> None:
            step_before(moment)
            if moment.step == method.kill_at:
                raise Killed

        attached.after_step = after_step
    return model, attached, RECIPE.make_optimizer(model.parameters())


def attached_to(model: Network, method: Any) -> Any:
    made = CATALOGUE[method].make() if method in CATALOGUE else method
    if method == HELD_ZEROS:
        plan = sc.sparsify(model, budget=sc.Budget(0.4, "weights")).plan
        plan.apply_(model)
        return sc.HeldZeros(plan)
    if isinstance(made, TrainingWeightMethod):
        return sc.attach(model, method=method, budget=sc.Budget(0.4, "weights"))
    given = {"data": list(Batches()), "task": ClassificationTask()}
    return sc.attach(model, IMAGES, method=method, budget=sc.Budget(remove=0.4), **given)


def plan_of(attached: Any) -> Any:
    """Return what a run decided, as text and numbers."""
    plan = attached.plan if isinstance(attached, sc.HeldZeros) else attached.finish().plan
    return plan.to_json() if isinstance(plan, sc.Plan) else {name: mask.tolist() for name, mask in plan.kept.items()}


def shuffled(processes: int) -> DataLoader:
    # Without a generator of its own a loader shuffles by the global one, which is another for several processes.
    return DataLoader(samples(), batch_size=8 // processes, shuffle=True, generator=torch.Generator())


def own_share(processes: int) -> DataLoader:
    # Lightning would deal out the samples itself, and shuffle them.
    rank = int(os.environ["RANK"]) if processes > 1 else 0
    return DataLoader(samples()[rank::processes], batch_size=8 // processes)


def our_loop(method: Any, folder: Path, *, processes: int | None = None) -> Outcome:
    model, attached, _ = start(method, processes)
    loader = list(Batches()) if processes is None else shuffled(processes)
    fit(model, loader, ClassificationTask(), RECIPE, attachments=[attached], checkpoint_dir=folder)
    return Outcome(attached, model.state_dict())


def own_loop(method: Any, folder: Path, *, resume: bool = False) -> Outcome:
    model, attached, optimizer = start(method)
    step, path = 0, folder / "run.pt"
    if resume:
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        attached.load_state_dict(saved["attached"])
        step = saved["step"]
    for epoch in range(step // STEPS_PER_EPOCH, EPOCHS):
        for images, labels in Batches():
            lr = optimizer.param_groups[0]["lr"]
            moment = Moment(model, optimizer, epoch, EPOCHS, step, lr, EPOCHS * STEPS_PER_EPOCH)
            optimizer.zero_grad()
            loss, extra = F.cross_entropy(model(images), labels), attached.extra_loss(moment)
            (loss if extra is None else loss + extra).backward()
            attached.after_backward(moment)
            nn.utils.clip_grad_norm_(model.parameters(), RECIPE.clip_norm)
            optimizer.step()
            attached.after_step(moment)
            step += 1
        attached.after_epoch(moment)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "attached": attached.state_dict()}
        torch.save(state | {"step": step}, path)
    return Outcome(attached, model.state_dict())


@contextlib.contextmanager
def same_accelerate_after() -> Iterator[None]:
    """A Hugging Face trainer fixes Accelerate's settings for the whole process, and other tests want others."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    kept = [(state, dict(state._shared_state)) for state in (AcceleratorState, GradientState, PartialState)]
    try:
        yield
    finally:
        for state, before in kept:
            state._shared_state.clear()
            state._shared_state.update(before)


@contextlib.contextmanager
def others_quiet() -> Iterator[None]:
    """Warnings and log lines of the frameworks about themselves are not what these tests are about."""
    loggers = [logging.getLogger(name) for name in ("lightning", "lightning.pytorch", "transformers")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def lightning_loop(
    method: Any, folder: Path, *, resume: bool = False, processes: int | None = None, **options: Any
) -> Outcome:
    with others_quiet():
        import lightning.pytorch as pl
        from lightning.pytorch.callbacks import ModelCheckpoint

        model, attached, optimizer = start(method, processes)

        class Module(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.network = model

            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                images, labels = batch
                return F.cross_entropy(self.network(images), labels)

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return optimizer

        saver = ModelCheckpoint(folder, save_last=True, every_n_train_steps=3, save_top_k=0)
        settings = {"max_epochs": EPOCHS, "gradient_clip_val": RECIPE.clip_norm, "callbacks": []} | options
        named = None if hasattr(attached, "model") else model  # held zeros know no model, and the module is another
        settings["callbacks"] = [saver, LightningCallback(attached, model=named), *settings["callbacks"]]
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        where = {"accelerator": "cpu", "devices": processes or 1, "strategy": "ddp" if processes == 2 else "auto"}
        where["use_distributed_sampler"] = False
        trainer = pl.Trainer(default_root_dir=folder, **where, **quiet, **settings)
        loader = Batches() if processes is None else own_share(processes)
        trainer.fit(Module(), loader, ckpt_path=folder / "last.ckpt" if resume else None)
    return Outcome(attached, model.state_dict())


def hugging_face_loop(
    method: Any, folder: Path, *, resume: bool = False, processes: int | None = None, **options: Any
) -> Outcome:
    with others_quiet(), same_accelerate_after():
        from transformers import Trainer, TrainingArguments
        from transformers.trainer_callback import PrinterCallback

        model, attached, optimizer = start(method, processes)
        given = {"output_dir": str(folder), "num_train_epochs": EPOCHS}
        given |= {"per_device_train_batch_size": 8 // (processes or 1), "dataloader_pin_memory": False}
        given |= {"max_grad_norm": 0, "save_strategy": "steps", "save_steps": 3, "use_cpu": True}
        given |= {"report_to": "none", "disable_tqdm": True, "logging_strategy": "no"}
        given |= {"train_sampling_strategy": "sequential"}
        trainer = Trainer(
            model,
            TrainingArguments(**(given | options)),
            train_dataset=[{"images": images, "labels": label} for images, label in samples()],
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)),
            callbacks=[HuggingFaceCallback(attached, clip_norm=RECIPE.clip_norm)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=resume)
    return Outcome(attached, model.state_dict())


HELD_ZEROS = "held_zeros"  # no method of the catalogue, and held to the same
WEIGHT_METHODS = [
    HELD_ZEROS,
    *(name for name, row in CATALOGUE.items() if isinstance(row.make(), TrainingWeightMethod)),
]
TRAINING_METHODS = [name for name, row in CATALOGUE.items() if isinstance(row.make(), TrainingMethod)] + WEIGHT_METHODS
LOOPS = {"ours": our_loop, "lightning": lightning_loop, "transformers": hugging_face_loop}
