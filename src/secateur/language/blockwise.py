"""Prune a language model block by block, from shards on disk to shards on disk.

Memory holds one block, what its calibration sums up, and the hidden states of the calibration tokens. Every finished
block is on disk at once, under the name that it keeps, in a folder beside the one asked for; a run that was killed goes
on behind the last of them, and the folder gets its name when everything is there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..budget import Budget
from ..catalogue import CATALOGUE, find
from ..errors import BudgetError, MethodError, NothingPruned, StoreError, UnknownName
from ..files import drop_partials, flush, flush_files, replacing
from ..graph.walk import modules_of, parameters_of
from ..methods._weights import Pattern, WeightDecision, WeightMethod, WeightProblem
from ..sparsify import weight_method
from ..train.randomness import same_randomness_after
from ..train.task import FunctionTask
from .decoder import Call, Decoder
from .shards import INDEX, WEIGHT_ENDINGS, Shards, notes_of, read_file, write_file

log = logging.getLogger(__name__)
RECORD = "secateur-sparsity.json"


@dataclass(frozen=True)
class SparseLanguageModel:
    """What `sparsify_language_model` returns.

    Attributes:
        folder: the pruned checkpoint; ``AutoModelForCausalLM.from_pretrained(folder)`` loads it.
        weight_count: weights of the blocks that could go.
        removed_count: of these, how many are zero now.
    """

    folder: Path
    weight_count: int
    removed_count: int

    @property
    def removed(self) -> float:
        """Fraction of `weight_count` that went."""
        return self.removed_count / self.weight_count if self.weight_count else 0.0


def sparsify_language_model(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    tokens: Tensor | None = None,
    method: str | WeightMethod = "wanda",
    budget: Budget | None = None,
    pattern: str | Pattern | None = None,
    protect: Sequence[str] = (),
    seed: int = 0,
) -> SparseLanguageModel:
    """Set single weights of a causal language model on disk to zero, one block in memory at a time.

    Embeddings, norms, biases and the head stay; each block loses what the budget asks. A block is calibrated on what
    the pruned blocks before it give.

    Args:
        folder: checkpoint of transformers: config.json and safetensors, sharded or not. Only read.
        out: folder that the pruned checkpoint is written to, with configuration and tokenizer; must not exist. After a
            crash the same call goes on with the first unfinished block.
        tokens: (sequences, length) token ids to calibrate on, without padding. Methods that read no data need none.
        method: from the catalogue (family "unstructured", needing no labels), or with settings of your own. Named ones
            that would rank all layers together rank within each ("layer").
        budget: ``Budget(remove=0.5, of="weights")``, of every block. May be left out with a pattern.
        pattern: "2:4" or another N:M.
        protect: module paths and parameter names, as in the model, whose weights all stay.
        seed: makes random choices repeatable.

    Raises:
        BudgetError: the budget is malformed or not reachable.
        MethodError: the method or the tokens cannot be used block by block.
        MissingExtra: transformers is not installed.
        ModelError: this is no decoder with a list of blocks.
        StoreError: a shard is damaged (names it), `out` exists, or an unfinished run of another kind is there.
        UnknownName: no such method, module or parameter.
    """
    blocks = Pattern.parse(pattern) if isinstance(pattern, str) else pattern
    if budget is None and blocks is None:
        raise BudgetError("nothing says how much goes: give budget=Budget(remove=0.5, of='weights') or pattern='2:4'.")
    asked = budget if budget is not None else Budget(blocks.remove if blocks else 0.0, "weights")
    if isinstance(asked, Budget) and asked.of != "weights":
        raise BudgetError(f"{asked}: every block is pruned by itself, so of='weights' is what can be asked.")
    chosen = _method(method)
    source, target = Path(folder), Path(out)
    if target.exists():
        raise StoreError(f"{target} exists: name another folder, or remove it first.")
    shards = Shards.open(source)
    decoder = Decoder(source, shards)
    kept = _local_names(decoder, [protect] if isinstance(protect, str) else protect)
    sequences = _sequences(chosen, tokens, decoder)
    about = {
        "method": repr(chosen),
        "budget": repr(asked),
        "pattern": repr(blocks),
        "protect": sorted(name for names in kept for name in names),
        "seed": seed,
        "tokens": hashlib.sha256(b"".join(s.numpy().tobytes() for s in sequences)).hexdigest() if sequences else None,
        "source": shards.identity(),
    }
    staging = _staging(target, about)
    problem = WeightProblem(nn.Module(), asked, blocks, seed=seed)
    with same_randomness_after(torch.device("cpu")):
        _Run(shards, decoder, chosen, problem, kept, staging).go(sequences)
    return _finish(shards, decoder, staging, target)


@dataclass
class _Run:
    """One way through the blocks."""

    shards: Shards
    decoder: Decoder
    method: WeightMethod
    problem: WeightProblem
    protect: list[tuple[str, ...]]
    staging: Path

    def go(self, sequences: list[Tensor]) -> None:
        """Prune every block that is not on disk yet."""
        hidden = self.decoder.embedded(sequences) if sequences else []
        calls: list[Call] = []
        is_left = [not self._file(n).exists() for n in range(self.decoder.block_count)]
        for number in range(self.decoder.block_count):
            if not any(is_left[number:]):
                return
            if not calls and hidden:
                first = self.decoder.block(0, self.shards.read(self.decoder.names_on_disk(0)))
                calls = self.decoder.calls(sequences[0], first)
                del first
            if is_left[number]:
                self._prune(number, hidden, calls[number] if calls else Call((), {}))
            if hidden and any(is_left[number + 1 :]):
                hidden = self._passed_on(number, hidden, calls[number])

    def _prune(self, number: int, hidden: list[Tensor], call: Call) -> None:
        tensors = self.shards.read(self.decoder.names_on_disk(number))
        notes = {"weights": 0, "removed": 0}
        if "" not in self.protect[number]:
            decision = self._decide(number, tensors, hidden, call)
            changed = parameters_of(decision.model) if decision.model is not None else {}
            for name, mask in decision.plan.kept.items():
                where = self.decoder.on_disk(number, name)
                new = changed[name].detach().to(tensors[where].dtype) if changed else tensors[where]
                if bool(mask.all()):
                    continue
                tensors[where] = new.masked_fill(~mask, 0.0)
            notes = {"weights": decision.plan.weight_count, "removed": decision.plan.removed_count}
        write_file(self._file(number), tensors, {f"secateur_{key}": str(count) for key, count in notes.items()})
        log.info("block %d of %d: %s", number + 1, self.decoder.block_count, notes)

    def _decide(self, number: int, tensors: Mapping[str, Tensor], hidden: list[Tensor], call: Call) -> WeightDecision:
        task = FunctionTask(inputs=call.inputs, loss=_no_loss, metric=_no_loss)
        mixed = int(np.random.SeedSequence((self.problem.seed, number)).generate_state(1)[0])
        problem = replace(
            self.problem,
            model=self.decoder.block(number, tensors),
            protect=self.protect[number],
            data=hidden or None,
            task=task if hidden else None,
            seed=mixed,
        )
        try:
            return self.method.choose(problem)
        except MethodError as error:
            raise MethodError(f"{self.decoder.path}.{number}: {error}") from error

    def _passed_on(self, number: int, hidden: list[Tensor], call: Call) -> list[Tensor]:
        """Return what the next block gets from this one, as it is now."""
        block = self.decoder.block(number, read_file(self._file(number)))
        with torch.no_grad():
            for k, own in enumerate(hidden):
                args, kwargs = call.inputs(own)
                made = block(*args, **kwargs)
                hidden[k] = made[0] if isinstance(made, tuple) else made
        return hidden

    def _file(self, number: int) -> Path:
        return self.staging / f"model-block-{number:05d}.safetensors"


def _no_loss(output: Any, batch: Any) -> Tensor:
    raise MethodError("language models are pruned block by block without labels or losses.")


def _method(method: str | WeightMethod) -> WeightMethod:
    """Return a method that can do with one block at a time."""
    made = weight_method(method)
    entry = next(
        (e for e in CATALOGUE.values() if e.class_name == type(made).__name__ and e.removes == "weights"), None
    )
    if entry is not None and {"labels", "training"} & set(entry.needs):
        raise MethodError(f"{entry.name} needs {', '.join(entry.needs)}: block by block there is no loss. Take wanda.")
    scope = getattr(made, "scope", "layer")
    if scope == "global" and isinstance(method, str):
        made = find(method).make(scope="layer")
    elif scope == "global" or isinstance(scope, Mapping):
        raise MethodError(f"scope={scope!r} speaks of all layers at once; block by block take scope='layer' or 'row'.")
    together = getattr(made, "together", None)
    if together == "model":
        raise MethodError("together='model' calibrates on the whole original; block by block take 'block' or 'layer'.")
    if together == "block" and is_dataclass(made):
        made = replace(made, together="model")  # the block is the model that the method sees
    return made


def _needs_data(method: WeightMethod) -> bool:
    entry = next((e for e in CATALOGUE.values() if e.class_name == type(method).__name__), None)
    return entry is None or "data" in entry.needs


def _sequences(method: WeightMethod, tokens: Tensor | None, decoder: Decoder) -> list[Tensor]:
    """Return batches of one sequence each, as many as the method reads.

    Raises:
        MethodError: they are no token ids of this model.
    """
    if not _needs_data(method):
        return []
    name = type(method).__name__
    if tokens is None:
        raise MethodError(f"{name} looks at activations: give tokens=, (sequences, length) token ids.")
    if not isinstance(tokens, Tensor) or tokens.ndim != 2 or not tokens.numel() or tokens.is_floating_point():
        found = f"{tokens.dtype} {list(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise MethodError(f"tokens= is {found}: expected token ids, (sequences, length), one of each at least.")
    config = decoder.config.get_text_config()
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= config.vocab_size:
        raise MethodError(f"tokens= go from {low} to {high}, and the model knows 0 to {config.vocab_size - 1}.")
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and tokens.shape[1] > longest:
        raise MethodError(f"tokens= are {tokens.shape[1]} long, and the model reads at most {longest}: cut them.")
    limit = getattr(method, "max_samples", None) if "max_samples" in {f.name for f in fields(method)} else None  # type: ignore[arg-type]
    return list(tokens[:limit].cpu().long().split(1))


def _local_names(decoder: Decoder, protect: Sequence[str]) -> list[tuple[str, ...]]:
    """Return for each block the protected names inside it; "" = all of it.

    Raises:
        UnknownName: a name does not exist.
    """
    modules, parameters = modules_of(decoder.model, shared=True), parameters_of(decoder.model, shared=True)
    found: list[list[str]] = [[] for _ in range(decoder.block_count)]
    for name in protect:
        if name not in modules and name not in parameters:
            raise UnknownName("module or parameter", name, [*filter(None, modules), *parameters])
        for number, own in enumerate(found):
            block = f"{decoder.path}.{number}"
            if not name or block == name or block.startswith(f"{name}."):
                own.append("")
            elif name.startswith(f"{block}."):
                own.append(name.removeprefix(f"{block}."))
    return [tuple(own) for own in found]


def _staging(target: Path, about: Mapping[str, Any]) -> Path:
    """Return the folder of the unfinished run, made or found.

    Raises:
        StoreError: an unfinished run with other settings is there, or the folder cannot be made.
    """
    staging = target.with_name(f".{target.name}.unfinished")
    record = staging / RECORD
    text = json.dumps(about, indent=1, sort_keys=True)
    try:
        staging.mkdir(parents=True, exist_ok=True)
        if not record.exists() and not any(staging.glob("*.safetensors")):
            with replacing(record) as partial:
                partial.write_text(text, encoding="utf-8")
        if record.read_text(encoding="utf-8") != text:
            raise StoreError(
                f"{staging} is an unfinished run with another model, tokens or settings: repeat that call to finish "
                "it, or remove the folder."
            )
    except OSError as error:
        raise StoreError(f"cannot write to {staging}: {error}. Free some space or name another folder.") from error
    return staging


def _finish(shards: Shards, decoder: Decoder, staging: Path, target: Path) -> SparseLanguageModel:
    """Write what belongs to no block, the index and the other files; give the folder its name."""
    files: dict[str, str] = {}
    weights = removed = 0
    for number in range(decoder.block_count):
        path = staging / f"model-block-{number:05d}.safetensors"
        files.update(dict.fromkeys(decoder.names_on_disk(number), path.name))
        notes = notes_of(path)
        weights += int(notes["secateur_weights"])
        removed += int(notes["secateur_removed"])
    for number, names in enumerate(_rest(shards, files)):
        path = staging / f"model-rest-{number:05d}.safetensors"
        if not path.exists():
            write_file(path, shards.read(names))
        files.update(dict.fromkeys(names, path.name))
    index = {"metadata": {"total_size": sum(shards.sizes.values())}, "weight_map": dict(sorted(files.items()))}
    try:
        (staging / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        for path in sorted(shards.folder.iterdir()):
            if path.is_file() and path.name != RECORD and not path.name.endswith(WEIGHT_ENDINGS):
                shutil.copyfile(path, staging / path.name)
        drop_partials(staging)
        flush_files(staging)
        staging.replace(target)
        flush(target.parent)
    except OSError as error:
        raise StoreError(f"cannot write to {staging}: {error}. Call again to go on.") from error
    if not removed:
        warnings.warn(f"{target}: nothing was removed.", NothingPruned, stacklevel=3)
    return SparseLanguageModel(target, weights, removed)


def _rest(shards: Shards, written: Mapping[str, str]) -> list[list[str]]:
    """Return what is not written yet in portions no larger than the largest block, a tensor at least in each."""
    by_file: dict[str, int] = {}
    for name, file in written.items():
        by_file[file] = by_file.get(file, 0) + shards.sizes[name]
    limit, filled = max(by_file.values()), 0
    portions: list[list[str]] = []
    for name in sorted(set(shards.files) - set(written)):
        if not portions or filled + shards.sizes[name] > limit:
            portions.append([])
            filled = 0
        portions[-1].append(name)
        filled += shards.sizes[name]
    return portions
