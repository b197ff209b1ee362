"""The catalogue of the zoo: what it promises to hold, and that its entries can tell right from wrong."""

import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from benchmarks import _torchvision_support
from benchmarks.zoo_models import all_models, default_twelve, measured, numeric_inputs, randomise_
from benchmarks.zoo_models.check import check
from torch import nn

ROOT = Path(__file__).parents[2]


def needs(library):
    """Skip without `library`; unlike pytest.importorskip this imports nothing before torchvision is prepared."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")


def test_importing_the_catalogue_imports_no_model_library():
    code = (
        "import sys; from benchmarks.zoo_models import all_models; all_models();"
        "print(sorted({'torchvision', 'timm', 'transformers'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_catalogue_is_as_wide_as_promised():
    entries = all_models().values()
    classifiers = [e for e in entries if e.source == "torchvision" and e.kind == "image"]
    assert len(classifiers) == 80
    assert len({e.family for e in entries if e.source == "timm"}) >= 100
    assert len({e.family for e in entries if e.source == "transformers"}) >= 25
    kinds = Counter(e.kind for e in entries)
    assert all(kinds[kind] for kind in ("encoder", "decoder", "encoder-decoder", "audio", "segmentation", "detection"))


def test_every_entry_was_measured_without_faults_in_under_twenty_seconds():
    rows = measured()
    assert rows.keys() == all_models().keys()
    assert [name for name, row in rows.items() if row["faults"] or row["forward_seconds"] > 20] == []


def test_every_torchvision_classifier_is_listed():
    needs("torchvision")
    _torchvision_support.prepare()
    from torchvision import models

    listed = {e.name.removeprefix("torchvision:") for e in all_models().values() if e.source == "torchvision"}
    assert set(models.list_models(module=models)) <= listed


@pytest.mark.parametrize("entry", default_twelve(), ids=lambda entry: entry.name)
def test_default_entry_runs_and_no_weight_is_blind(entry):
    needs(entry.source)
    assert check(entry)["faults"] == []


def test_building_twice_gives_the_same_model_and_leaves_the_global_seed():
    needs("transformers")
    entry = all_models()["transformers:qwen3"]
    state = torch.random.get_rng_state()
    first, second = entry.build(), entry.build()
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first[2]["input_ids"], second[2]["input_ids"])
    assert all(map(torch.equal, first[0].state_dict().values(), second[0].state_dict().values()))


def test_randomise_replaces_constants_keeps_ties_and_draws_no_global_random_numbers():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear, self.tied = nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.scale = nn.Parameter(torch.full((8,), 1e-6))
            nn.init.zeros_(self.linear.weight)
            self.tied.weight = self.linear.weight

    model, state = Block(), torch.random.get_rng_state()
    randomise_(model, seed=3)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(float(value.float().std()) > 0.01 for value in model.state_dict().values() if value.dim())
    assert model.tied.weight is model.linear.weight
    assert float(model.scale.detach().abs().min()) >= 0.1
    assert float(model.norm.running_var.min()) > 0


def test_randomise_raises_timid_linear_weights_to_unit_gain():
    model = nn.Linear(64, 64)
    nn.init.normal_(model.weight, std=0.01)
    randomise_(model, seed=0)
    assert float(model.weight.detach().std()) == pytest.approx(1 / 8, rel=0.01)


def test_numeric_inputs_convert_floats_only():
    ids, mask, x = torch.tensor([1]), torch.tensor([True]), torch.zeros(1)
    out = numeric_inputs({"ids": ids, "rest": (mask, [x], None)})
    assert out["ids"].dtype == torch.int64
    assert (out["rest"][0].dtype, out["rest"][1][0].dtype, out["rest"][2]) == (torch.bool, torch.float64, None)
    assert x.dtype == torch.float32


def test_plain_nms_keeps_the_best_of_each_cluster():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30], [0, 0, 10, 5]])
    scores = torch.tensor([0.8, 0.9, 0.1, 0.95])
    # Box 1 overlaps box 0 by 81/119 and box 3 by 36/114; box 0 overlaps box 3 by exactly one half.
    assert _torchvision_support.nms(boxes, scores, 0.5).tolist() == [3, 1, 2]
    assert _torchvision_support.nms(boxes, scores, 0.7).tolist() == [3, 1, 0, 2]
    assert _torchvision_support.nms(boxes, scores, 0.3).tolist() == [3, 2]


def test_roi_align_averages_the_box():
    needs("torchvision")
    _torchvision_support.prepare()
    from torchvision.ops import roi_align

    ramp = torch.arange(8.0).expand(1, 1, 8, 8)  # the value of a pixel is its column
    pooled = roi_align(ramp, [torch.tensor([[1.0, 1.0, 5.0, 5.0]])], output_size=2, sampling_ratio=2, aligned=True)
    torch.testing.assert_close(pooled, torch.tensor([1.5, 3.5]).expand(1, 1, 2, 2))
