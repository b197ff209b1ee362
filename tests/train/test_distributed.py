"""Two processes share the data and end with one model. Slow: each process imports everything anew."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = """
    import json, os, sys, warnings
    import torch
    from torch.utils.data import DataLoader, TensorDataset
    from secateur.errors import TrainingError
    from secateur.train import ClassificationTask, Recipe, evaluate, fit
    from tests.train.cases import Killed, KillAt, tiny_model

    warnings.simplefilter("error")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder, task, recipe = sys.argv[1], ClassificationTask(), Recipe(epochs=2, lr=0.05)
    images, labels = torch.randn(22, 3, 4, 4), torch.randint(3, (22,))
    data = TensorDataset(images, labels)

    def run(kill, folder):
        model = tiny_model()
        loader, evaluation = DataLoader(data, batch_size=4, shuffle=True), DataLoader(data, batch_size=4)
        before = loader.sampler.generator
        result = fit(model, loader, task, recipe, eval_loader=evaluation, attachments=[kill],
                     checkpoint_dir=folder, checkpoint_steps=None if folder is None else 1)
        assert loader.sampler.generator is before
        return model, result

    whole, result = run(KillAt("never", 0), None)
    try:
        run(KillAt("after_step", 4), folder)
    except Killed:
        pass
    resumed, again = run(KillAt("never", 0), folder)
    try:
        fit(tiny_model(), [(images, labels)], task, recipe)
        refusal = ""
    except TrainingError as error:
        refusal = str(error)
    rank = int(os.environ["RANK"])
    report = {
        "same": all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values())),
        "history": [[r.loss, r.metric] for r in result.history] == [[r.loss, r.metric] for r in again.history],
        "resumed_from": again.resumed_from,
        "metric": result.metric,
        "evaluated": evaluate(whole, [(images, labels)], task),
        "weights": [value.double().sum().item() for value in whole.state_dict().values()],
        "steps": result.step_count,
        "refusal": refusal,
    }
    with open(f"{folder}.{rank}.json", "w") as file:
        json.dump(report, file)
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_two_processes_end_with_one_model_an_exact_metric_and_an_exact_resume(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    settings = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    settings |= {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "run")],
            env=os.environ | settings | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=300)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    first, second = (json.loads((tmp_path / f"run.{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["same"]
    assert first["history"]
    assert first["resumed_from"] == 4
    assert first["steps"] == 6
    assert first["metric"] == first["evaluated"]
    assert "2 processes share the data, and a list cannot be dealt out" in first["refusal"]


@pytest.mark.slow
def test_importing_the_loop_does_not_import_what_only_a_run_needs():
    check = (
        "import sys, secateur.train, secateur.recovery.finetune, secateur.recovery.batchnorm;"
        "print({name.partition('.')[0] for name in sys.modules} & {'accelerate', 'rich', 'torchmetrics', 'datasets'})"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", check], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
