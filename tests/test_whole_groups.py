"""Whole groups of grouped convolutions: what a channel is, what goes and what that saves, and that it is stored."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from secateur import Budget, Plan, compact, load, prune, prune_iteratively, save, shrink, trace, verify
from secateur.cli.app import app
from secateur.compare.jobs import jobs_of
from secateur.compare.run import run
from secateur.compare.spec import made, to_toml
from secateur.compare.store import ResultStore
from secateur.compare.work import Place, perform
from secateur.errors import ExperimentError, PlanError
from secateur.graph.products import products, readers
from secateur.measure.macs import measured_macs
from secateur.measure.params import parameter_count
from secateur.methods._memory import memory_costs
from secateur.train import ClassificationTask, Recipe

from .compare.experiments import OwnWorkers
from .compare.quick import quick
from .networks import randomise

TASK = ClassificationTask()


class Bottleneck(nn.Module):
    """ResNeXt: 1x1, grouped 3x3, 1x1."""

    def __init__(self, width: int, inner: int, groups: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, padding=1, groups=groups, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        return (x + self.bn3(self.conv3(y))).relu()


class ResNeXt(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 6, 3), nn.Sequential(Bottleneck(6, 12, 4), Bottleneck(6, 12, 6))
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def resnext() -> tuple[nn.Module, torch.Tensor]:
    model = ResNeXt().eval()
    randomise(model, torch.Generator().manual_seed(1))
    return model, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(4)
    return [(torch.randn(4, 3, 8, 8, generator=generator), torch.arange(4) % 3) for _ in range(2)]


# -- what a channel is -------------------------------------------------------------------------------------------------


def test_a_group_of_the_convolution_is_one_channel_of_several_places():
    model, x = resnext()
    graph = trace(model, x, conv_groups="whole")
    assert graph.widths == {"stem": 6, "blocks.0.conv1": 4, "blocks.1.conv1": 6}
    places = {(m.label, m.per_channel) for m in graph.groups["blocks.0.conv1"].members if m.tensor.endswith("weight")}
    layers = ("conv1:out", "bn1:out", "conv2:out", "conv2:in", "bn2:out", "conv3:in")
    assert places == {(f"blocks.0.{layer}", 3) for layer in layers}


def test_without_the_option_groups_are_narrowed_alike():
    model, x = resnext()
    assert trace(model, x).widths == trace(model, x, conv_groups="narrow").widths
    widths = {"stem": 6, "blocks.0.conv1": 3, "blocks.0.conv2": 3, "blocks.1.conv1": 2, "blocks.1.conv2": 2}
    assert trace(model, x).widths == widths


def test_the_grouped_convolution_sums_over_no_channel_of_its_own():
    model, x = resnext()
    graph = trace(model, x, conv_groups="whole")
    reading = readers(graph, graph.groups["blocks.0.conv1"])
    assert [product.module for product in reading] == ["blocks.0.conv3"]
    grouped = next(p for p in products(graph) if p.module == "blocks.0.conv2")
    assert grouped.reads_one
    columns = grouped.channels_of(graph, graph.groups["blocks.0.conv1"])
    assert columns.tolist() == [[unit] * 3 for unit in range(4)]


def test_memory_of_a_group_counts_its_own_filters_once():
    model, x = resnext()
    graph = trace(model, x, conv_groups="whole")
    made, grouped, read, maps = 3 * 6, 3 * 3 * 9, 6 * 3, 2 * 3 * 36
    found = memory_costs(graph)["blocks.0.conv1"]
    torch.testing.assert_close(found, torch.full((4,), (made + grouped + read + maps) / 64, dtype=torch.float64))


def test_another_word_is_refused():
    model, x = resnext()
    with pytest.raises(ValueError, match=r"conv_groups='all': expected 'narrow' or 'whole'"):
        trace(model, x, conv_groups="all")


# -- what goes ---------------------------------------------------------------------------------------------------------


def test_whole_groups_are_cut_out_of_all_three_convolutions():
    model, x = resnext()
    graph = trace(model, x, conv_groups="whole")
    plan = Plan.from_removed({"blocks.0.conv1": [1, 3]}, graph.widths)
    small = shrink(model, graph, plan).blocks[0]
    rows = [0, 1, 2, 6, 7, 8]
    assert (small.conv2.groups, small.conv2.in_channels, small.conv2.out_channels) == (2, 6, 6)
    assert torch.equal(small.conv1.weight, model.blocks[0].conv1.weight[rows])
    assert torch.equal(small.conv2.weight, model.blocks[0].conv2.weight[rows])
    assert torch.equal(small.conv3.weight, model.blocks[0].conv3.weight[:, rows])


@pytest.mark.parametrize("of", ["channels", "macs", "params", "bytes"])
def test_prune_meets_the_budget_and_is_exact(of):
    model, x = resnext()
    result = prune(model, x, budget=Budget(0.4, of), graph=trace(model, x, conv_groups="whole"))
    assert result.removed >= 0.4
    assert result.verification.is_exact
    assert result.after.macs == measured_macs(result.model, (x,))
    assert result.after.params == parameter_count(result.model)
    kept = [len(result.plan.kept.get(f"blocks.{k}.conv1", range(width))) for k, width in enumerate((4, 6))]
    assert [block.conv2.groups for block in result.model.blocks] == kept
    assert [block.conv2.weight.shape[1] for block in result.model.blocks] == [3, 2]


def test_a_repair_with_data_re_fits_what_reads_the_groups_that_stay():
    model, x = resnext()
    graph, data = trace(model, x, conv_groups="whole"), batches()
    result = prune(model, x, budget=Budget(0.4, "macs"), graph=graph, data=data, task=TASK, repair=("refit",))
    bare = prune(model, x, budget=Budget(0.4, "macs"), graph=graph)
    wanted = [torch.cat([network(images) for images, _ in data]) for network in (model, result.model, bare.model)]
    assert result.plan == bare.plan
    assert (wanted[1] - wanted[0]).norm() < (wanted[2] - wanted[0]).norm()


def test_dead_groups_are_compacted_away():
    model, x = resnext()
    with torch.no_grad():
        model.blocks[0].conv3.weight[:, 3:6] = 0
    result = compact(model, x, graph=trace(model, x, conv_groups="whole"))
    assert result.plan.removed("blocks.0.conv1") == (1,)
    assert result.model.blocks[0].conv2.groups == 3


@pytest.mark.parametrize("schedule", ["together", "layer_by_layer"])
def test_cutting_in_steps_takes_whole_groups_at_every_step(schedule):
    model, x = resnext()
    result = prune_iteratively(
        *(model, x),
        budget=Budget(0.45, "macs"),
        steps=2,
        schedule=schedule,
        data=batches(),
        task=TASK,
        recipe=Recipe(epochs=1, lr=1e-3, schedule="constant"),
        graph=trace(model, x, conv_groups="whole"),
        progress=False,
    )
    assert result.removed >= 0.45
    assert result.verification.is_exact
    kept = [len(result.plan.kept[f"blocks.{k}.conv1"]) for k in range(2)]
    assert [block.conv2.groups for block in result.model.blocks] == kept
    assert [block.conv2.weight.shape[1] for block in result.model.blocks] == [3, 2]


def test_cutting_in_steps_narrows_all_sides_of_a_grouped_convolution_at_every_step():
    model = ResNeXt()
    model.blocks = nn.Sequential(Bottleneck(6, 32, 2))
    randomise(model.eval(), torch.Generator().manual_seed(1))
    result = prune_iteratively(
        *(model, torch.randn(2, 3, 8, 8)),
        budget=Budget(0.6, "macs"),
        steps=3,
        data=batches(),
        task=TASK,
        recipe=Recipe(epochs=1, lr=1e-3, schedule="constant"),
        progress=False,
    )
    assert result.removed >= 0.6
    assert [set(step.layers) for step in result.history] == [{"blocks.0.conv1", "blocks.0.conv2"}] * 3


# -- what comes back ---------------------------------------------------------------------------------------------------


def test_saved_and_loaded_it_gives_the_same_bits_also_when_cut_twice(tmp_path):
    model, x = resnext()
    once = prune(model, x, budget=Budget(0.3, "macs"), graph=trace(model, x, conv_groups="whole")).model
    twice = prune(once, x, budget=Budget(0.3, "macs"), graph=trace(once, x, conv_groups="whole")).model
    mixed = prune(once, x, budget=Budget(0.2, "macs")).model  # narrowed after whole groups went
    for number, small in enumerate((once, twice, mixed)):
        save(small, tmp_path / str(number))
        back = load(tmp_path / str(number), ResNeXt)
        assert torch.equal(back(x), small(x))
        assert [block.conv2.groups for block in back.blocks] == [block.conv2.groups for block in small.blocks]


# -- tracing again -----------------------------------------------------------------------------------------------------


def test_prune_checks_a_graph_of_head_dimensions_by_its_own_options():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads, self.q, self.k = 2, nn.Linear(5, 12), nn.Linear(5, 12)
            self.v, self.proj = nn.Linear(5, 12), nn.Linear(12, 2)

        def forward(self, x):
            q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
            return self.proj(((q @ k.transpose(-2, -1) * 0.4).softmax(-1) @ v).transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    model, x = Attention(), torch.randn(2, 6, 5)
    graph = trace(model, x, granularity="head_dims")
    assert graph.options == {"granularity": "head_dims", "conv_groups": "narrow"}
    result = prune(model, x, budget=Budget(0.4), graph=graph)
    assert result.verification.is_exact
    assert result.model.heads == 2


def test_a_plan_of_whole_groups_is_not_taken_for_one_of_narrow_groups():
    model, x = resnext()
    graph = trace(model, x, conv_groups="whole")
    plan = Plan.from_removed({"blocks.0.conv1": [0]}, graph.widths)
    small = shrink(model, graph, plan)
    assert verify(model, small, plan, x, **graph.options).is_exact
    with pytest.raises(PlanError, match="another model"):
        verify(model, small, plan, x)


# -- on the command line and in experiments ----------------------------------------------------------------------------

NETWORK = """
from torch import nn

def make():
    return nn.Sequential(
        nn.Conv2d(3, 12, 8, stride=8), nn.ReLU(), nn.Conv2d(12, 8, 3, groups=4), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
    )
"""


def told(*args: object) -> dict:
    result = CliRunner().invoke(app, [*map(str, args), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_command_line_takes_whole_groups(tmp_path):
    (tmp_path / "net.py").write_text(NETWORK)
    name, size = f"{tmp_path / 'net.py'}:make", ("--input-shape", "3x64x64")
    assert [group["width"] for group in told("groups", name, *size)["groups"]] == [3, 2]
    assert [group["width"] for group in told("groups", name, *size, "--conv-groups", "whole")["groups"]] == [4]
    out = tmp_path / "small"
    found = told("prune", name, *size, "--remove", 0.5, "--conv-groups", "whole", "--out", out)
    assert found["widths"] == {"0": {"before": 4, "after": 2}}
    namespace: dict = {}
    exec(NETWORK, namespace)
    assert load(out, namespace["make"])[2].groups == 2
    (tmp_path / "digits.py").write_text(
        NETWORK.replace("(3, 12, 8, stride=8)", "(1, 12, 1)").replace("8, 2)", "8, 10)")
    )
    options = ("--out", tmp_path / "curves", "--conv-groups", "whole", "--hold-out", 0.1, "--dry-run")
    assert told("sensitivity", f"{tmp_path / 'digits.py'}:make", *options)["groups"] == ["0"]
    result = CliRunner().invoke(app, ["groups", name, *size, "--conv-groups", "all"])
    assert result.exit_code == 2
    assert "neither narrow nor whole" in result.output


def test_an_experiment_takes_whole_groups_for_all_its_methods(tmp_path):
    plain = quick(tmp_path, recoveries=["scratch_e"])
    (tmp_path / "network.py").write_text(NETWORK)
    raw = plain.model_dump(mode="json", exclude_defaults=True)
    raw["models"][0]["conv_groups"] = "whole"
    experiment = made(raw)
    assert 'conv_groups = "whole"' in to_toml(experiment)
    assert "conv_groups" not in json.dumps([job.to_json() for job in jobs_of(plain)])
    with torch.random.fork_rng():
        summary = run(experiment, tmp_path, OwnWorkers(lambda job: perform(job, Place(tmp_path))), progress=False)
    assert summary.is_complete, summary.failed
    with ResultStore(tmp_path) as store:
        rows = store.rows(kind="cut")
        assert {row.label for row in rows} == {"l1_filter", "random"}
        assert [store.detail(row.digest)["widths"] for row in rows] == [{"0": [4, 2]}] * 2


def test_an_unknown_word_in_an_experiment_is_told():
    raw = {"models": [{"name": "digits_resnet", "data": "digits", "conv_groups": "all"}], "methods": [], "budgets": []}
    with pytest.raises(ExperimentError, match=r"models\.0\.conv_groups: input should be 'narrow' or 'whole'"):
        made(raw)
