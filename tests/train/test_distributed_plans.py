"""Two processes and one see the same global batches and come to the same plan, in every kind of loop.

Slow: each process imports everything anew. Launched with `torchrun`, as `accelerate launch` starts several processes on
a CPU through MPI only. The two sum their gradients in another order than one process does, so scores agree to 1e-4 of
their size, and plans are equal where no two scores at the cut are nearer than that. A batch norm that is not frozen
takes its statistics from half a batch in any data-parallel training, and no tolerance is promised for that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .loops import LOOPS, TRAINING_METHODS, ShrinkFilters, plan_of

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, os, sys
from pathlib import Path
import tests.conftest
import torch
from tests.train.loops import LOOPS, ShrinkFilters, plan_of

torch.set_num_threads(1)
folder, name, through_activations = sys.argv[1], sys.argv[2], sys.argv[3] == "True"
report = {"processes": int(os.environ["WORLD_SIZE"])}
if name in LOOPS:
    outcome = LOOPS[name](ShrinkFilters(through_activations=through_activations), Path(folder), processes=2)
    report["scores"] = {group: scores.tolist() for group, scores in outcome.attached.scores().items()}
    report["log"] = outcome.attached.log
    report["weights"] = {name: weight.tolist() for name, weight in outcome.weights.items()}
    report["plan"] = outcome.attached.finish().plan.to_json()
else:
    for method in name.split():
        outcome = LOOPS["ours"](method, Path(folder) / method, processes=2)
        weights = {name: weight.tolist() for name, weight in outcome.weights.items()}
        report[method] = {"weights": weights, "plan": plan_of(outcome.attached)}
with open(f"{folder}/{os.environ['RANK']}.json", "w") as file:
    json.dump(report, file)
"""


def launch(folder: Path, *arguments: str) -> list[dict]:
    """Run the script in two processes and return what each reports."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    settings = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [*command, str(folder), *arguments],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
@pytest.mark.parametrize("through_activations", [False, True])
@pytest.mark.parametrize("name", LOOPS)
def test_two_processes_come_to_one_plan_which_is_that_of_one_process(name, through_activations, tmp_path):
    """An extra loss through activations differs between processes, so its gradient has to be averaged as the loss's."""
    if name != "ours":
        pytest.importorskip(name)
    first, second = launch(tmp_path, name, str(through_activations))
    assert first["processes"] == 2
    assert first == second
    alone = LOOPS[name](ShrinkFilters(through_activations=through_activations), tmp_path / "alone", processes=1)
    assert first["log"] == [list(entry) for entry in alone.attached.log]
    for group, scores in alone.attached.scores().items():
        assert first["scores"][group] == pytest.approx(scores.tolist(), rel=1e-4)
    assert first["plan"] == alone.attached.finish().plan.to_json()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
@pytest.mark.skipif(not TRAINING_METHODS, reason="no method of the catalogue trains")
def test_every_method_of_the_catalogue_comes_to_one_plan_in_two_processes(tmp_path):
    """Weights agree with one process to 1e-3 of their size: some methods take roots and signs of what they sum."""
    first, second = launch(tmp_path, " ".join(TRAINING_METHODS), "False")
    assert first == second
    for method in TRAINING_METHODS:
        alone = LOOPS["ours"](method, tmp_path / "alone" / method, processes=1)
        for name, weight in alone.weights.items():
            torch.testing.assert_close(torch.tensor(first[method]["weights"][name]), weight, rtol=1e-3, atol=1e-5)
        assert first[method]["plan"] == plan_of(alone.attached), method
