"""One group at a time is cut and measured; the model that was given never changes."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from secateur import Budget, Limits, Plan, mask, prune, sensitivity, shrink, trace
from secateur.catalogue import find
from secateur.errors import BudgetError, MethodError, NothingToPrune, SurgeryError, TrainingError, UnknownName
from secateur.methods import Decision, L1Filter, Problem, Random, Sensitivity
from secateur.methods import _sensitivity_measure as measuring
from secateur.methods._sensitivity_measure import Bench, Treatment, measure
from secateur.recovery.batchnorm import reestimate_batchnorm
from secateur.train import ClassificationTask, FunctionTask, Recipe, evaluate

from ..networks import QUICK, build, networks
from ..train.cases import Killed, random_numbers

ONES = torch.ones(1, 4)
# How far the sum of the outputs is from 10: a metric where lower is better.
DISTANCE = FunctionTask(
    inputs=lambda batch: batch,
    loss=lambda output, batch: 2 * (output - 10).abs().mean(),
    metric=lambda output, batch: (output - 10).abs().flatten(1).sum(1),
    name="distance",
    higher_is_better=False,
)
SQUARES = FunctionTask(
    inputs=lambda batch: batch,
    loss=lambda output, batch: output.square().mean(),
    metric=lambda output, batch: output.flatten(1).sum(1),
    name="sum",
)
LABELS = ClassificationTask()


def diagonal(values: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0)) -> nn.Module:
    """Its output is the sum of what is left of `values` when the input is ones."""
    width = len(values)
    model = nn.Sequential(nn.Linear(4, width, bias=False), nn.ReLU(), nn.Linear(width, 1, bias=False))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[:, 0] = torch.tensor(values)
        model[2].weight.fill_(1.0)
    return model.eval()


def convolutions(seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 10, 3, padding=1),
        nn.BatchNorm2d(10),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(10, 3),
    )
    for layer in (model[1], model[4]):
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
        nn.init.normal_(layer.bias)
    return model.eval()


def image_batches(count: int = 2, size: int = 6) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [
        (torch.randn(size, 3, 6, 6, generator=generator), torch.randint(3, (size,), generator=generator))
        for _ in range(count)
    ]


IMAGES = image_batches()
IMAGE = IMAGES[0][0][:1]
SHORT = Recipe(epochs=1, lr=0.01)


def test_the_curve_of_a_sum_is_what_is_left_of_it():
    curves = sensitivity(diagonal(), ONES, data=[ONES], task=DISTANCE, removes=(0.25, 0.3, 0.5, 0.75))
    curve = curves.groups["0"]
    assert curve.removes == (0.0, 0.25, 0.3, 0.5, 0.75)
    assert curve.removed == (0, 1, 1, 2, 3), "fractions are rounded down to channels"
    assert curve.metric == (0.0, 1.0, 1.0, 3.0, 6.0), "the smallest of 1, 2, 3, 4 go first"
    assert curve.loss == (0.0, 2.0, 2.0, 6.0, 12.0)
    assert curve.macs_saved == curve.params_saved == (0, 5, 5, 10, 15), "a channel has 4 weights in and 1 out"
    assert (curves.base_metric, curves.base_macs, curves.sample_count) == (0.0, 20, 1)
    assert curve.fractions == (0.0, 0.25, 0.25, 0.5, 0.75)


def test_fractions_round_down_to_channels_without_rounding_error():
    curves = sensitivity(diagonal(tuple(range(1, 101))), ONES, data=[ONES], task=DISTANCE, removes=(0.29, 0.57))
    assert curves.groups["0"].removed == (0, 29, 57)


def test_the_first_row_of_every_group_is_the_evaluated_model():
    model = convolutions()
    curves = sensitivity(model, IMAGE, data=IMAGES, task=LABELS, removes=(0.5,))
    assert curves.base_metric == evaluate(model, IMAGES, LABELS)
    for curve in curves.groups.values():
        assert (curve.metric[0], curve.loss[0]) == (curves.base_metric, curves.base_loss)


def test_the_loss_weighs_every_sample_the_same():
    curves = sensitivity(diagonal(), ONES, data=[ONES, torch.zeros(3, 4)], task=DISTANCE, removes=(0.25,))
    assert curves.base_loss == (0 * 1 + 20 * 3) / 4


def test_dead_channels_keep_the_curve_flat_up_to_their_fraction():
    model = convolutions()
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias, model[1].weight, model[1].bias):
            tensor[:4] = 0
    curves = sensitivity(model, IMAGE, data=IMAGES, task=LABELS, removes=(0.25, 0.5, 0.625), groups=["0"])
    loss = curves.groups["0"].loss
    assert loss[:3] == pytest.approx([loss[0]] * 3, abs=1e-6)
    assert abs(loss[3] - loss[0]) > 1e-3


@settings(QUICK, max_examples=20)
@given(networks(max_blocks=4))
def test_every_number_is_that_of_the_shrunk_model(spec):
    network = build(spec)
    graph = trace(network.model, network.args)
    bench = Bench(network.model, graph, [network.args[0]], SQUARES, Treatment())
    for name, group in list(graph.groups.items())[:3]:
        gone = range(1, 1 + group.width // 2)
        try:
            small = shrink(network.model, graph, Plan.from_removed({name: gone}, graph.widths))
        except SurgeryError:
            continue  # what cannot be cut has no number; test_a_group_that_cannot_be_cut says what happens then
        expected = measure(small, [network.args[0]], SQUARES)
        assert bench.without(name, gone).loss == pytest.approx(expected.loss, rel=1e-9)
        assert bench.without(name, gone).metric == pytest.approx(expected.metric, rel=1e-9)


def test_a_mean_over_channels_is_taken_over_those_that_are_left():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 2)).double()
    inputs, graph = torch.randn(3, 4, dtype=torch.float64), trace(model, torch.zeros(1, 4, dtype=torch.float64))
    plan = Plan.from_removed({"0": [0, 3]}, graph.widths)
    found = Bench(model, graph, [inputs], SQUARES, Treatment()).without("0", [0, 3]).loss
    assert found == pytest.approx(measure(shrink(model, graph, plan), [inputs], SQUARES).loss, rel=1e-12)
    assert abs(found - measure(mask(model, graph, plan), [inputs], SQUARES).loss) > 1e-3, "masking would be wrong here"


def test_a_group_is_measured_alone():
    model, options = convolutions(), {"data": IMAGES, "task": LABELS, "removes": (0.3, 0.6)}
    treated = options | {"recalibrate": 1, "train_data": image_batches(3)}
    for each in (options, treated):
        whole = sensitivity(model, IMAGE, **each)
        alone = sensitivity(model, IMAGE, **each, groups=["3"])
        assert alone.groups["3"] == whole.groups["3"], "the group before it left something behind"


class Breaks(ClassificationTask):
    """Fails in one of its methods, at one of its calls."""

    def __init__(self, method: str, call: int) -> None:
        super().__init__()
        object.__setattr__(self, "left", {method: call})

    def _count(self, method: str) -> None:
        self.left[method] = self.left.get(method, 0) - 1
        if self.left[method] == 0:
            raise Killed

    def metric(self, output, batch):
        self._count("metric")
        return super().metric(output, batch)

    def loss(self, output, batch):
        self._count("loss")
        return super().loss(output, batch)


@pytest.mark.parametrize("call", [None, 1, 4])
@pytest.mark.parametrize(
    "treatment", [{}, {"recalibrate": 2, "train_data": IMAGES}, {"retrain": SHORT, "train_data": IMAGES}]
)
def test_the_model_and_the_random_numbers_are_as_before(call, treatment):
    model = convolutions().train()
    model[3].weight.grad = torch.ones_like(model[3].weight)
    model[0].weight.requires_grad_(False)
    before, numbers = copy.deepcopy(model.state_dict()), random_numbers()
    task = LABELS if call is None else Breaks("loss", call)
    try:
        sensitivity(model, IMAGE, data=IMAGES, task=task, removes=(0.5,), **treatment)
    except Killed:
        assert call is not None
    else:
        assert call is None
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert torch.equal(model[3].weight.grad, torch.ones_like(model[3].weight))
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 9
    assert random_numbers() == numbers


def test_the_working_copy_is_whole_again_after_a_failed_measurement():
    model = convolutions()
    bench = Bench(model, trace(model, IMAGE), IMAGES, LABELS, Treatment())
    before = bench.intact()
    bench.task = Breaks("metric", 1)
    with pytest.raises(Killed):
        bench.without("0", [0, 1])
    bench.task = LABELS
    assert bench.intact() == before


def test_groups_where_nothing_goes_are_reported_and_have_no_curve():
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 5), nn.Linear(5, 8), nn.Linear(8, 1))
    options = {"data": [ONES], "task": DISTANCE, "removes": (0.25, 0.4)}
    curves = sensitivity(model, ONES, **options, limits=Limits(protect=("3",), min_keep=2))
    assert list(curves.groups) == ["1"]
    assert curves.unremovable == {"0": "2 channels, and min_keep and round_to need 3", "2": "protected"}
    assert "nothing can be removed: 2 (protected)" in str(curves)
    assert list(curves.fractions_within(1e9)) == ["1"]
    narrow = sensitivity(model, ONES, **options).unremovable
    assert narrow == {"0": "no whole channel of 2 at any of 0, 0.25, 0.4"}


def test_groups_without_scores_are_reported():
    @dataclass(frozen=True)
    class OnlyFirst:
        def decide(self, problem: Problem) -> Decision:
            return Decision(Plan(), scores={"0": torch.arange(8.0)})

    curves = sensitivity(convolutions(), IMAGE, data=IMAGES, task=LABELS, removes=(0.5,), scores=OnlyFirst())
    assert list(curves.groups) == ["0"]
    assert curves.unremovable == {"3": "OnlyFirst does not score it"}


def test_min_keep_ends_a_curve():
    curves = sensitivity(
        diagonal(), ONES, data=[ONES], task=DISTANCE, removes=(0.25, 0.5, 0.75), limits=Limits(min_keep=2)
    )
    assert curves.groups["0"].removes == (0.0, 0.25, 0.5)


def test_nothing_to_prune_says_why_of_each_group():
    with pytest.raises(NothingToPrune, match=r"0: no whole channel of 4 at any of 0, 0.1"):
        sensitivity(diagonal(), ONES, data=[ONES], task=DISTANCE, removes=(0.1,))


def test_channels_are_scored_once_and_equal_counts_are_measured_once():
    calls = {"scores": 0, "metric": 0}

    class Counting(L1Filter):
        def decide(self, problem: Problem) -> Decision:
            calls["scores"] += 1
            return super().decide(problem)

    def metric(output, batch):
        calls["metric"] += 1
        return DISTANCE.metric(output, batch)

    task = FunctionTask(DISTANCE.inputs, DISTANCE.loss, metric, "distance", higher_is_better=False)
    sensitivity(diagonal(), ONES, data=[ONES], task=task, scores=Counting())
    assert calls == {"scores": 1, "metric": 4}, "ten fractions of 4 channels are 0, 1, 2 or 3 channels"


def test_the_scores_decide_which_channels_go():
    drawn = Random().decide(Problem(m := diagonal(), trace(m, ONES), Budget(0.0), seed=4)).scores["0"]
    curves = sensitivity(m, ONES, data=[ONES], task=DISTANCE, scores="random", seed=4, removes=(0.25,))
    assert curves.groups["0"].metric[1] == float(drawn.argmin() + 1)


def test_recalibration_measures_the_shrunk_model_with_new_statistics():
    model, training = convolutions(), image_batches(3, size=5)
    curves = sensitivity(
        model, IMAGE, data=IMAGES, task=LABELS, removes=(0.5,), groups=["0"], recalibrate=2, train_data=training
    )
    graph = trace(model, IMAGE)
    lowest = model[0].weight.abs().flatten(1).sum(1).argsort()[:4].tolist()
    small = shrink(model, graph, Plan.from_removed({"0": lowest}, graph.widths))
    expected = measure(reestimate_batchnorm(small, training, LABELS, batch_count=2), IMAGES, LABELS)
    assert curves.groups["0"].loss[1] == pytest.approx(expected.loss, rel=1e-5)
    intact = measure(reestimate_batchnorm(model, training, LABELS, batch_count=2), IMAGES, LABELS)
    assert curves.base_loss == curves.groups["0"].loss[0] == pytest.approx(intact.loss, rel=1e-6)


@pytest.mark.parametrize("scope", ["local", "all"])
def test_retraining_repairs_some_of_the_damage(scope):
    model, recipe = diagonal(), Recipe(epochs=30, lr=0.0005, momentum=0.0, weight_decay=0.0, schedule="constant")
    options = {"data": [ONES], "task": DISTANCE, "removes": (0.25, 0.5)}
    cut = sensitivity(model, ONES, **options)
    retrained = sensitivity(model, ONES, **options, retrain=recipe, retrain_scope=scope, train_data=[ONES])
    assert all(b < a for a, b in zip(cut.groups["0"].metric[1:], retrained.groups["0"].metric[1:], strict=True))
    assert retrained.groups["0"].metric[0] == retrained.base_metric
    assert "retrained for 30 epochs" in retrained.treatment


def test_local_retraining_trains_the_layer_its_norm_and_its_consumers(monkeypatch):
    trained = []

    def remember(model, *args, **kwargs):
        trained.append({name for name, p in model.named_parameters() if p.requires_grad})

    monkeypatch.setattr(measuring, "fit", remember)
    model = convolutions()
    model[1].bias.requires_grad_(False)
    options = {"data": IMAGES, "task": LABELS, "removes": (0.5,), "retrain": SHORT, "train_data": IMAGES}
    sensitivity(model, IMAGE, **options, groups=["0"])
    everything = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == [everything, {"0.weight", "0.bias", "1.weight", "3.weight", "3.bias"}]
    trained.clear()
    sensitivity(model, IMAGE, **options, groups=["0"], retrain_scope="all")
    assert trained == [everything, everything]


def test_groups_are_found_by_the_modules_that_make_them():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 6), nn.ReLU()), nn.Linear(6, 4), nn.Linear(4, 1))
    options = {"data": [ONES], "task": DISTANCE, "removes": (0.5,)}
    assert list(sensitivity(model, ONES, **options, groups="1").groups) == ["1"]
    with pytest.raises(UnknownName, match=r"no group of channels is called '2'"):
        sensitivity(model, ONES, **options, groups=["2"])


BUDGETS = [Budget(0.3), Budget(0.5, of="macs"), Budget(0.4, of="params"), Budget(0.6, of="macs")]


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_a_budget_is_met_exactly(budget):
    model = convolutions()
    result = prune(model, IMAGE, budget=budget, method="sensitivity", data=IMAGES, task=LABELS, repair=())
    costs = result.graph.costs
    target = (1 - budget.remove) * result.before.of(budget.of)
    assert result.after.of(budget.of) <= target
    one_more = []
    for k in range(len(costs.widths)):
        counts = costs.counts(result.plan)
        counts[k] += 1
        one_more.append(costs.value(budget.of, counts))
    assert max(one_more) > target, "less would have done"


def test_a_group_that_costs_nothing_goes_before_one_that_does():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0])))
        model[1].weight.copy_(torch.eye(4) + 0.5)
        model[1].weight[2:] = 100
        model[2].weight.copy_(torch.tensor([[10 / 13, 10 / 13, 0.0, 0.0]]))  # the output is 10
    decision = Sensitivity(scores=LastFirst()).decide(problem_of(model, Budget(0.25)))
    assert decision.plan.removed("1") == (2, 3)
    assert decision.plan.removed("0") == ()


def test_a_group_that_cannot_be_cut_is_reported_and_the_others_are_measured(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 4), nn.Linear(4, 1))

    def refuse(*_):
        raise SurgeryError("no attribute holds 6")

    monkeypatch.setattr(measuring, "shrink", refuse)
    curves = sensitivity(model, ONES, data=[ONES], task=DISTANCE, removes=(0.5,))
    assert list(curves.groups) == ["3"]
    assert curves.unremovable == {"0": "it cannot be cut: no attribute holds 6"}
    with pytest.raises(NothingToPrune, match=r"0: it cannot be cut"):
        sensitivity(model, ONES, data=[ONES], task=DISTANCE, removes=(0.5,), groups="0")


@dataclass(frozen=True)
class LastFirst:
    """Scores that let the last channel go first."""

    def decide(self, problem: Problem) -> Decision:
        scores = {name: -torch.arange(group.width).double() for name, group in problem.graph.groups.items()}
        return Decision(Plan(), scores=scores)


def problem_of(model: nn.Module, budget: Budget, **options) -> Problem:
    settings = {"args": (ONES,), "data": [ONES], "task": DISTANCE} | options
    return Problem(model, trace(model, ONES), budget, **settings)


def test_a_bigger_budget_contains_the_smaller_one():
    model = convolutions()
    plans = [
        Sensitivity().decide(problem_of_images(model, Budget(remove, of="macs"))).plan
        for remove in (0.2, 0.4, 0.6, 0.8)
    ]
    for small, large in pairwise(plans):
        for name in ("0", "3"):
            assert set(small.removed(name)) <= set(large.removed(name))


def problem_of_images(model: nn.Module, budget: Budget, **options) -> Problem:
    return Problem(model, trace(model, IMAGE), budget, args=(IMAGE,), data=IMAGES, task=LABELS, **options)


def test_a_tolerance_removes_what_the_curves_allow():
    decision = Sensitivity(tolerance=3.0).decide(problem_of(diagonal(), Budget(0.9)))
    assert decision.plan.removed("0") == (0, 1), "1 + 2 is within 3, 1 + 2 + 3 is not"
    assert Sensitivity(tolerance=0.5).decide(problem_of(diagonal(), Budget(0.9))).plan.removed_count == 0


def test_the_budget_is_the_upper_limit_of_a_tolerance():
    decision = Sensitivity(tolerance=3.0).decide(problem_of(diagonal(), Budget(0.25)))
    assert decision.plan.removed("0") == (0,)
    assert Sensitivity(tolerance=3.0).decide(problem_of(diagonal(), Budget(0.0))).plan.removed_count == 0


def test_steps_never_go_beyond_the_tolerance():
    model = diagonal((0.1,) * 10 + (1.5,) * 6)
    stepped = problem_of(model, Budget(0.9), limits=Limits(round_to=4))
    method = Sensitivity(tolerance=1.0, removes=tuple(k / 16 for k in range(1, 16)))
    assert method.curves(stepped).fractions_within(1.0) == {"0": 10 / 16}
    assert method.decide(stepped).plan.removed_count == 8, "12 would be the step beyond 10"


def test_a_budget_out_of_reach_says_what_is_reachable():
    with pytest.raises(BudgetError, match=r"at most 75\.0% can go"):
        Sensitivity().decide(problem_of(diagonal(), Budget(0.8)))


def test_the_catalogue_makes_it():
    assert find("sensitivity").make(tolerance=0.1) == Sensitivity(tolerance=0.1)


def test_it_is_quiet_without_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("secateur.train.progress.PATIENCE_SECONDS", -1.0)
    sensitivity(diagonal(), ONES, data=[ONES], task=DISTANCE)
    assert capsys.readouterr() == ("", "")
    sensitivity(diagonal(), ONES, data=[ONES], task=DISTANCE, progress=True)
    assert capsys.readouterr().err != ""


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"removes": (0.5, 1.0)}, r"removes holds 1\.0: expected fractions in \[0, 1\)"),
        ({"removes": (30,)}, r"removes holds 30"),
        ({"removes": (0.0,)}, r"no fraction above 0"),
        ({"retrain_scope": "most"}, r"retrain_scope='most'"),
        ({"recalibrate": 0, "train_data": []}, r"recalibrate=0: expected a number of batches"),
        ({"recalibrate": 2}, r"need train_data="),
        ({"retrain": SHORT}, r"need train_data="),
        ({"train_data": []}, r"train_data= is only read with"),
        ({"retrain": SHORT, "train_data": iter([])}, r"train_data= can be read once only"),
        ({"tolerance": -0.1}, r"tolerance=-0\.1"),
        ({"tolerance": math.nan}, r"tolerance=nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(MethodError, match=message):
        Sensitivity(**wrong)


def test_data_that_are_missing_or_gone_are_refused():
    for missing in ({"data": None}, {"task": None}):
        with pytest.raises(MethodError, match=r"give data= \(a labelled validation split\) and task="):
            Sensitivity().decide(problem_of(diagonal(), Budget(0.5), **missing))
    with pytest.raises(MethodError, match=r"data= can be read once only"):
        sensitivity(diagonal(), ONES, data=iter([ONES]), task=DISTANCE)
    with pytest.raises(TrainingError, match=r"gave no sample"):
        sensitivity(diagonal(), ONES, data=[], task=DISTANCE)


def test_a_method_without_scores_is_refused():
    @dataclass(frozen=True)
    class Silent:
        def decide(self, problem: Problem) -> Decision:
            return Decision(Plan())

    with pytest.raises(MethodError, match=r"Silent\(\) gives no score per channel"):
        sensitivity(diagonal(), ONES, data=[ONES], task=DISTANCE, scores=Silent())
    for name in ("l1_fliter", "sensitivity"):
        with pytest.raises(UnknownName, match=rf"no method that scores is called '{name}'"):
            sensitivity(diagonal(), ONES, data=[ONES], task=DISTANCE, scores=name)


def test_a_base_that_is_no_number_is_refused():
    model = diagonal()
    model[2].weight.data.fill_(3e38)
    with pytest.raises(MethodError, match=r"the intact model's distance is inf"):
        sensitivity(model, ONES, data=[ONES], task=DISTANCE)


def test_any_method_can_take_its_allocation_from_sensitivity():
    """The first layer's channels matter to the answer, the second's are all alike: the second loses them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    with torch.no_grad():
        for layer in (model[0], model[2], model[4]):
            layer.weight.zero_()
            layer.bias.zero_()
        model[0].weight.copy_(torch.eye(4))
        model[2].weight.copy_(torch.eye(4).repeat(2, 1))
        model[4].weight.copy_(torch.eye(4).roll(1, 0).repeat(1, 2))
    data, graph = [(torch.eye(4), torch.tensor([1, 2, 3, 0]))], trace(model, torch.eye(4))
    problem = Problem(model, graph, Budget(4 / 12), args=(torch.eye(4),), data=data, task=ClassificationTask())
    plan = L1Filter(allocation="sensitivity").decide(problem).plan
    assert {name: len(plan.removed(name)) for name in graph.groups} == {"0": 0, "2": 4}
    uniform = L1Filter().decide(problem).plan
    assert len(uniform.removed("0")) > 0


def test_allocation_by_sensitivity_needs_data():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    problem = Problem(model, trace(model, torch.eye(4)), Budget(0.5), args=(torch.eye(4),))
    with pytest.raises(MethodError, match="allocation='sensitivity' evaluates the model"):
        L1Filter(allocation="sensitivity").decide(problem)
