"""A language model of 1.3 billion parameters, pruned by Wanda on disk: how much memory does it take?

    python -m benchmarks.language_model_memory [--folder /tmp] [--sequences 4] [--length 128] [--source FOLDER]

A Llama of the shape of Sheared-LLaMA-1.3B (24 blocks of width 2048, 5504 neurons, 32,000 tokens) is written with random
bfloat16 weights, a shard for each block, and half of the weights of its blocks are removed. Writing and pruning run in
processes of their own; `peak_gib` is ru_maxrss of the one that prunes, from its start to its end, interpreter and
libraries included (`imported_gib` is what these take alone). Both folders are deleted afterwards; `--source` takes one
that `--role write FOLDER` wrote before, and leaves it. A token's hidden state takes 4 KiB
while the blocks are gone through; more sequences add nothing else, longer ones what they take inside one block.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results") / "language_model_memory.json"
SHAPE = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5504,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
GOAL_GIB = 2.0


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def write(folder: Path) -> None:
    """Write the checkpoint, shard by shard."""
    import torch
    from safetensors.torch import save_file

    generator, hidden, inner = torch.Generator().manual_seed(0), SHAPE["hidden_size"], SHAPE["intermediate_size"]
    files: dict[str, str] = {}
    count = 0

    def shard(file: str, shapes: dict[str, tuple[int, ...]]) -> None:
        nonlocal count
        tensors = {
            name: torch.ones(shape, dtype=torch.bfloat16)
            if len(shape) == 1
            else torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
            for name, shape in shapes.items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        files.update(dict.fromkeys(shapes, file))
        count += sum(t.numel() for t in tensors.values())

    total = SHAPE["num_hidden_layers"] + 2
    for number in range(SHAPE["num_hidden_layers"]):
        start = f"model.layers.{number}"
        shapes: dict[str, tuple[int, ...]] = {
            f"{start}.self_attn.{k}_proj.weight": (hidden, hidden) for k in ("q", "k", "v", "o")
        }
        shapes |= {f"{start}.mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        shapes[f"{start}.mlp.down_proj.weight"] = (hidden, inner)
        shapes |= {f"{start}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
        shard(f"model-{number + 1:05d}-of-{total:05d}.safetensors", shapes)
    table = (SHAPE["vocab_size"], hidden)
    shard(f"model-{total - 1:05d}-of-{total:05d}.safetensors", {"model.embed_tokens.weight": table})
    shard(f"model-{total:05d}-of-{total:05d}.safetensors", {"lm_head.weight": table, "model.norm.weight": (hidden,)})
    index = {"metadata": {"total_size": 2 * count}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    about = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", **SHAPE}
    (folder / "config.json").write_text(json.dumps(about))
    print(json.dumps({"written": str(folder)}))


def prune(folder: Path, out: Path, sequences: int, length: int) -> None:
    """Prune the checkpoint and say what it took."""
    from ._torchvision_support import prepare

    prepare()
    import torch
    import transformers

    from secateur import Budget, sparsify_language_model

    assert transformers.LlamaConfig
    assert transformers.AutoModelForCausalLM
    imported = peak_gib()
    tokens = torch.randint(SHAPE["vocab_size"], (sequences, length), generator=torch.Generator().manual_seed(0))
    started, cpu = time.perf_counter(), time.process_time()
    result = sparsify_language_model(folder, out, tokens=tokens, method="wanda", budget=Budget(0.5, "weights"))
    found = {
        "peak_gib": peak_gib(),
        "imported_gib": imported,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        "removed": result.removed,
        "weights": result.weight_count,
    }
    print(json.dumps(found))


def child(role: str, *arguments: Any, threads: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.language_model_memory", "--role", role, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.role:
        role, *given = asked.role
        if role == "write":
            write(Path(given[0]))
        else:
            prune(Path(given[0]), Path(given[1]), int(given[2]), int(given[3]))
        return
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        source, out = asked.source or Path(folder, "dense"), Path(folder, "sparse")
        if asked.source is None:
            source.mkdir()
            child("write", source, threads=asked.threads)
        found = child("prune", source, out, asked.sequences, asked.length, threads=asked.threads)
        total = json.loads((source / "model.safetensors.index.json").read_text())["metadata"]["total_size"]
    report = {
        "command": f"python -m benchmarks.language_model_memory --sequences {asked.sequences} --length {asked.length}",
        "method": "wanda, 50 %",
        "shape": SHAPE,
        "params": total // 2,
        "checkpoint_gib": round(total / 2**30, 3),
        "tokens": asked.sequences * asked.length,
        **{name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()},
        "goal_gib": GOAL_GIB,
        "goal_is_met": found["peak_gib"] < GOAL_GIB,
        "threads": asked.threads,
        "load_average": list(os.getloadavg()),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
