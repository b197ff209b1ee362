"""Time from model to shrunk model against Torch-Pruning, in the same run.

    pip install --no-deps torch-pruning==1.6.1
    python -m benchmarks.graph_speed [--rounds 3] [--threads 2] [--only NAME ...]

Both sides get a model in evaluation mode and an example batch of one, copy the model, find the coupled channels, remove
half of every layer's channels by L1 norm (residual streams too) and return the smaller copy. Ours is trace, decide and
shrink without verification; theirs is DependencyGraph, MagnitudeImportance(p=1) and MagnitudePruner.step, with the
classifier ignored. The fastest of the rounds counts, interleaved. Models on which theirs fails or runs past 100 s are
timed for us alone, as are the shapes that show how the cost grows.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import multiprocessing
import resource
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur import Budget, Limits, shrink, trace
from secateur.methods import L1Filter, Problem

RACE = (
    "resnet18",
    "resnet50",
    "vgg16_bn",
    "mobilenet_v2",
    "densenet121",
    "efficientnet_b0",
    "convnext_tiny",
    "regnet_y_400mf",
    "inception_v3",
    "googlenet",
)
ALONE = ("shufflenet_v2_x1_0", "swin_t", "swin_v2_t", "maxvit_t", "vit_b_16")
RESULTS = Path(__file__).with_name("results") / "graph_speed.json"


def ours(model: nn.Module, x: torch.Tensor) -> nn.Module:
    graph = trace(model, x)
    decision = L1Filter(residual="prune").decide(Problem(model, graph, Budget(0.5), Limits(), (x,)))
    return shrink(model, graph, decision.plan)


def theirs(model: nn.Module, x: torch.Tensor) -> nn.Module:
    import torch_pruning as tp

    model = copy.deepcopy(model)
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    pruner = tp.pruner.MagnitudePruner(
        model, x, importance=tp.importance.MagnitudeImportance(p=1), pruning_ratio=0.5, ignored_layers=[last]
    )
    pruner.step()
    return model


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    import torchvision

    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, **extra).eval()
    if hasattr(model, "aux_logits"):
        model.aux_logits = False
        model.AuxLogits = model.aux1 = model.aux2 = None
    return model, torch.zeros(1, 3, *(2 * [299 if name == "inception_v3" else 224]))


def race(name: str, rounds: int) -> dict[str, Any]:
    model, x = build(name)
    ours(model, x)
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        for side, run in (("ours", ours), ("theirs", theirs)):
            started = time.perf_counter()
            run(model, x)
            seconds[side].append(time.perf_counter() - started)
    best = {side: min(times) for side, times in seconds.items()}
    return {
        "name": name,
        **{f"{k}_s": round(v, 3) for k, v in best.items()},
        "ours_over_theirs": best["ours"] / best["theirs"],
    }


def alone(name: str, rounds: int) -> dict[str, Any]:
    from secateur.surgery.feasible import feasible

    model, x = build(name)

    def run() -> nn.Module:
        graph = feasible(model, trace(model, x))
        problem = Problem(model, graph, Budget(0.5), Limits(), (x,))
        return shrink(model, graph, L1Filter(residual="prune").decide(problem).plan)

    return {"name": name, "ours_s": round(_fastest(run, rounds), 3)}


def graph_only(name: str, rounds: int) -> dict[str, Any]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model, args = GROWTH[name]()
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = _fastest(lambda: trace(model, args), rounds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    graph = trace(model, args)
    return {
        "name": name,
        "graph_s": round(seconds, 3),
        "peak_over_model_gib": round((peak - held) / 2**20, 3),
        "groups": len(graph.groups),
        "channels": graph.channel_count,
        "process_before_gib": round(before / 2**20, 3),
    }


def llama_3_8b() -> tuple[nn.Module, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        use_cache=False,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).eval()
    return model, torch.zeros(1, 16, dtype=torch.long)


def wide_mlp() -> tuple[nn.Module, Any]:
    width = 16384
    with torch.device("meta"):
        layers = [nn.Linear(width, width) for _ in range(4)]
    return nn.Sequential(*[m for layer in layers for m in (layer, nn.ReLU())], nn.Identity()).eval(), torch.zeros(
        1, width
    )


GROWTH = {"llama_3_8b (meta)": llama_3_8b, "mlp_4x16384": wide_mlp, "densenet201": lambda: build("densenet201")}


def _fastest(run: Any, rounds: int) -> float:
    run()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def _child(work: Any, name: str, rounds: int, threads: int, pipe: Any) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    try:
        pipe.send(work(name, rounds))
    except Exception as error:
        pipe.send({"name": name, "error": f"{type(error).__name__}: {error}"[:300]})


def apart(work: Any, name: str, rounds: int, threads: int) -> dict[str, Any]:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=_child, args=(work, name, rounds, threads, there))
    child.start()
    row = here.recv() if here.poll(600) else {"name": name, "error": "past 600 s"}
    child.kill()
    child.join()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[""])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    from . import _torchvision_support as support

    support.prepare()
    import torch_pruning  # noqa: F401
    import torchvision  # noqa: F401
    import transformers  # noqa: F401

    rows = []
    for work, names in ((race, RACE), (alone, ALONE), (graph_only, tuple(GROWTH))):
        for name in names:
            if any(part in name for part in options.only):
                rows.append(apart(work, name, options.rounds, options.threads))
                print(rows[-1], flush=True)
    ratios = [row["ours_over_theirs"] for row in rows if "ours_over_theirs" in row]
    summary: dict[str, Any] = {"threads": options.threads, "rounds": options.rounds, "torch": torch.__version__}
    if ratios:
        summary["geometric_mean"] = math.exp(statistics.fmean(map(math.log, ratios)))
        summary["worst"] = max(ratios)
    print(summary)
    options.out.write_text(json.dumps({**summary, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
