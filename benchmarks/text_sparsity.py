"""Half of a character model's weights gone in one shot: which method loses least?

    python -m benchmarks.text_sparsity --text PATH [--steps 240] [--threads 1] [--checkpoints FOLDER]

A Llama of 4 blocks of width 128 (context 128, one token a character) is trained by `secateur.train.fit` on the first
nine tenths of a text and read on the next 16,384 characters. Then weights of its blocks go, freely or 2:4, without
training, and the perplexity for each character is taken on the held-out text. Data-driven methods see 32
windows of 128 characters of the training text, other ones for each of 3 seeds; random pruning draws other weights.
The rows "each row" and "each layer" tell what competes in magnitude and Wanda apart from what is scored.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur import Budget, sparsify
from secateur.methods import Magnitude, RandomWeights, SparseGPT, Wanda, WeightMethod
from secateur.train import NextTokenTask, evaluate, fit
from secateur.train.schedules import Recipe

from ._torchvision_support import prepare

CONTEXT, BATCH, WINDOWS, SEEDS = 128, 16, 32, (0, 1, 2)
HELD_OUT = 128 * 128  # characters
RESULTS = Path(__file__).with_name("results") / "text_sparsity.json"
METHODS: dict[str, WeightMethod] = {
    "random": RandomWeights(),
    "magnitude, global": Magnitude(),
    "magnitude, each layer": Magnitude(scope="layer"),
    "magnitude, each row": Magnitude(scope="row"),
    "wanda": Wanda(),
    "wanda, each layer": Wanda(scope="layer"),
    "sparsegpt": SparseGPT(),
}
FORMS: dict[str, dict[str, Any]] = {
    "50 %": {"budget": Budget(0.5, "weights")},
    "60 %": {"budget": Budget(0.6, "weights")},
    "2:4": {"pattern": "2:4"},
}


def encoded(path: Path) -> tuple[Tensor, Tensor, int]:
    """Return training and held-out text as numbers, and how many different characters there are."""
    text = path.read_text(encoding="utf-8")
    known = {letter: number for number, letter in enumerate(sorted(set(text)))}
    numbers = torch.tensor([known[letter] for letter in text])
    cut = len(numbers) * 9 // 10
    return numbers[:cut], numbers[cut : cut + HELD_OUT], len(known)


def windows(text: Tensor, count: int, seed: int) -> Tensor:
    """Draw (count, CONTEXT) windows."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - CONTEXT, (count,), generator=generator)
    return torch.stack([text[start : start + CONTEXT] for start in starts.tolist()])


def built(letters: int) -> nn.Module:
    prepare()
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=letters,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )
    torch.manual_seed(0)
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
    return model


def perplexity(model: nn.Module, text: Tensor) -> float:
    """Return exp of the mean loss for each character, over windows that do not overlap."""
    whole = text[: len(text) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    return math.exp(evaluate(model, list(whole.split(64)), NextTokenTask()))


def rows(model: nn.Module, train: Tensor, held_out: Tensor) -> list[dict[str, Any]]:
    found = []
    for form, given in FORMS.items():
        for name, method in METHODS.items():
            if "pattern" in given and ", " in name and name != "magnitude, each layer":
                continue  # a pattern leaves no choice of what competes
            seeds = SEEDS[:1] if name.startswith("magnitude") else SEEDS
            values, seconds = [], []
            for seed in seeds:
                data = list(windows(train, WINDOWS, 1000 + seed).split(8))
                started = time.perf_counter()
                result = sparsify(
                    model, method=method, data=data, task=NextTokenTask(), protect=["lm_head"], seed=seed, **given
                )
                seconds.append(time.perf_counter() - started)
                values.append(perplexity(result.model, held_out))
            spread = statistics.stdev(values) if len(values) > 1 else None
            mean = statistics.mean(values)
            row = {"form": form, "method": name, "perplexity": mean, "std": spread, "seeds": values}
            found.append({**row, "seconds": statistics.median(seconds)})
            print(f"{form:5} {name:22} {mean:8.3f} +- {spread or 0:.3f}", flush=True)
    return found


def training_seconds(checkpoints: Path | None, wall: float, cpu: float) -> dict[str, float]:
    """Return what training took; beside checkpoints, what it took when it ran."""
    kept = checkpoints / "seconds.json" if checkpoints else None
    if kept is not None and kept.exists():
        known: dict[str, float] = json.loads(kept.read_text())
        return known
    found = {"wall": round(wall, 1), "cpu": round(cpu, 1)}
    if kept is not None:
        kept.write_text(json.dumps(found))
    return found


def is_ordered(found: list[dict[str, Any]], form: str) -> bool:
    """Whether SparseGPT <= Wanda < magnitude."""
    by = {row["method"]: row["perplexity"] for row in found if row["form"] == form}
    return bool(by["sparsegpt"] <= by["wanda"] < min(v for name, v in by.items() if name.startswith("magnitude")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoints", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    train, held_out, letters = encoded(asked.text)
    model, epochs = built(letters), 4
    recipe = Recipe(
        epochs, 3e-3, "adamw", weight_decay=0.1, warmup_epochs=0.2, clip_norm=1.0, batch_size=BATCH, schedule="cosine"
    )
    batches = list(windows(train, asked.steps // epochs * BATCH, 0).split(BATCH))
    started, cpu = time.perf_counter(), time.process_time()
    fit(model, batches, NextTokenTask(), recipe, checkpoint_dir=asked.checkpoints, progress=False)
    seconds = training_seconds(asked.checkpoints, time.perf_counter() - started, time.process_time() - cpu)
    model.eval()
    dense = perplexity(model, held_out)
    print(f"dense {dense:.3f} after {seconds}", flush=True)
    found = rows(model, train, held_out)
    report = {
        "command": f"python -m benchmarks.text_sparsity --text tinyshakespeare.txt --steps {asked.steps}",
        "model": "Llama, 4 blocks x 128, context 128, characters",
        "steps": len(batches) * epochs,
        "training_seconds": seconds,
        "calibration": f"{WINDOWS} windows of {CONTEXT} characters of the training text, {len(SEEDS)} seeds",
        "threads": asked.threads,
        "torch": torch.__version__,
        "load_average": list(os.getloadavg()),
        "dense_perplexity": dense,
        "is_ordered": {form: is_ordered(found, form) for form in FORMS},
        "rows": found,
    }
    asked.out.parent.mkdir(exist_ok=True)
    asked.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
