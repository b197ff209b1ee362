"""What a user can get wrong: each ends in an error that says what was asked, what was found and what to do."""

from __future__ import annotations

import re
import threading

import pytest
import torch
from torch import nn

from secateur.attach import attach
from secateur.budget import Budget, Limits
from secateur.errors import (
    BudgetError,
    MethodError,
    NothingToPrune,
    PlanError,
    SecateurError,
    SurgeryError,
    TraceError,
    TrainingError,
    UnknownName,
)
from secateur.graph import trace
from secateur.methods import RandomWeights, erk_scope
from secateur.methods.l1_filter import L1Filter
from secateur.plan import Plan
from secateur.prune import prune
from secateur.sparsify import sparsify
from secateur.surgery.mask import mask
from secateur.surgery.shrink import shrink
from secateur.surgery.verify import verify
from secateur.train import ClassificationTask

from .contract import snapshot

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
HALF = Budget(0.5)


def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 4, 1))


def with_value(index, value):
    model = net()
    tensor = model[index].running_mean if index == 1 else model[index].weight
    tensor.data.flatten()[0] = value
    return model


def refuse(kind, words, model, *args, **options):
    """The call raises, and the model and the process are as before."""
    options = {"budget": HALF, **options}
    before, around = snapshot.of_model(model), snapshot.of_process()
    with pytest.raises(kind, match=words) as caught:
        prune(model, *(args or (IMAGE,)), **options)
    assert isinstance(caught.value, SecateurError)
    assert snapshot.differences(before, snapshot.of_model(model)) == []
    assert snapshot.differences(around, snapshot.of_process()) == []


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"budget": 0.5}, BudgetError, r"budget=0\.5: expected Budget\(remove=0\.5"),
        ({"budget": Budget(0.95, "macs"), "min_keep": 4}, BudgetError, r"95\.0% of macs; at most \d+\.\d% can go .*=4"),
        ({"min_keep": 0}, BudgetError, "min_keep=0: expected a whole number"),
        ({"round_to": 2.5}, BudgetError, r"round_to=2\.5: expected a whole number"),
        ({"limits": {"min_keep": 2}}, BudgetError, r"limits=\{'min_keep': 2\}: expected Limits\("),
        ({"limits": Limits(), "protect": ["0"]}, BudgetError, "in one place"),
        ({"method": "l1_fliter"}, UnknownName, "no method is called 'l1_fliter'; did you mean 'l1_filter'"),
        ({"method": L1Filter}, MethodError, r"expected a name from the catalogue or a method such as L1Filter\(\)"),
        ({"method": 3}, MethodError, "method=3: expected a name"),
        ({"protect": ["33"]}, UnknownName, "no module is called '33'; did you mean '3'"),
        ({"protect": ["nine"]}, UnknownName, "no module is called 'nine'; known: 0, 1"),
        ({"protect": [""]}, NothingToPrune, "2 groups of channels, 2 of them protected.*protect less"),
        ({"protect": ["0", "3"]}, NothingToPrune, "2 of them protected"),
        ({"round_to": 64}, NothingToPrune, "none left with at least 64 channels.*lower min_keep and round_to"),
        ({"repair": "batchnrom"}, MethodError, "repair='batchnrom': expected some of fold, refit, batchnorm"),
        ({"repair": "batchnorm"}, MethodError, "needs data= and task="),
        ({"data": [IMAGE]}, MethodError, "data= needs task="),
    ],
)
def test_settings_without_sense(options, kind, words):
    refuse(kind, words, net(), **options)


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (torch.zeros(1, 4, 8, 8), r"\(tensor \[1, 4, 8, 8\]\).*expected input.* to have 3 channels"),
        (torch.zeros(1, 3, 2, 2), r"\(tensor \[1, 3, 2, 2\]\).*Kernel size"),
        (torch.zeros(1, 3, 8, 8).long(), "Give an example that model"),
        (None, "missing 1 required positional argument"),
        ((IMAGE, IMAGE), "takes 2 positional arguments but 3 were given"),
    ],
)
def test_an_example_that_the_model_rejects(example, words):
    refuse(TraceError, words, net(), example)


def test_a_model_that_returns_no_tensor():
    class Number(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = net()

        def forward(self, x):
            self.body(x)
            return 3

    refuse(TraceError, "returned int, which holds no tensor", Number())


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("place", ["", "1"])
def test_a_scripted_module_is_refused_and_keeps_its_weights(place):
    part = torch.jit.script(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)))
    model = nn.Sequential(nn.Conv2d(3, 3, 1), part) if place else part
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(TraceError, match=rf"{place or 'the model'}.* is compiled by torch\.jit.*build the model with"):
        trace(model, IMAGE)
    with pytest.raises(TraceError, match=r"compiled by torch\.jit"):
        sparsify(model, budget=Budget(0.5, "weights"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


OTHER_SHAPE = [(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.long))]
FAR_LABEL = [(IMAGE, torch.full((2,), 99))]


@pytest.mark.parametrize(
    ("method", "data", "repair"),
    [
        ("l1_filter", OTHER_SHAPE, None),
        ("l1_filter", OTHER_SHAPE, "batchnorm"),
        ("l1_filter", "text", None),
        ("thinet", OTHER_SHAPE, None),
        ("sensitivity", OTHER_SHAPE, None),
        ("sensitivity", FAR_LABEL, None),
        ("influence", FAR_LABEL, None),
    ],
)
def test_batches_that_do_not_fit(method, data, repair):
    model = nn.Sequential(*net(), nn.Flatten(), nn.Linear(64, 4))
    words = r"a batch of data= cannot be run: \w+Error: .*Batches have to be what task= expects"
    refuse(TrainingError, words, model, method=method, data=data, task=ClassificationTask(), repair=repair)


def test_a_class_in_place_of_a_task():
    refuse(MethodError, r"expected a task such as ClassificationTask\(\)", net(), data=[IMAGE], task=ClassificationTask)


def test_a_model_that_is_no_module():
    with pytest.raises(TraceError, match=r"the model is str; expected a torch\.nn\.Module"):
        prune("resnet18", IMAGE, budget=HALF)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan.from_removed({"00": [1]}, {"00": 8}), "of another model.*'00'.*"),
        (Plan.from_removed({"0": [1]}, {"0": 9}), "of another model.*'0'"),
    ],
)
def test_a_plan_of_another_model(plan, words):
    model = net()
    graph = trace(model, IMAGE)
    before = snapshot.of_model(model)
    uses = (
        lambda: shrink(model, graph, plan),
        lambda: mask(model, graph, plan),
        lambda: verify(model, model, plan, IMAGE),
        lambda: graph.costs(plan),
        lambda: graph.alive(plan),
    )
    for use in uses:
        with pytest.raises(PlanError, match=words):
            use()
    assert snapshot.differences(before, snapshot.of_model(model)) == []


def test_a_graph_of_another_model():
    other = nn.Sequential(nn.Conv2d(3, 9, 3), nn.Conv2d(9, 4, 1))
    graph = trace(net(), IMAGE)
    refuse(PlanError, "the graph is of another model: '.*' has shape .* Trace this model", other, graph=graph)
    with pytest.raises(PlanError, match="Trace this model"):
        shrink(other, graph, Plan())


@pytest.mark.parametrize("method", ["l1_filter", "random"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize(("index", "name"), [(0, "parameter '0.weight'"), (4, "parameter '4.weight'"), (1, "buffer")])
def test_weights_and_statistics_that_are_not_finite(index, name, value, method):
    refuse(MethodError, f"{re.escape(name)}.*holds NaN or infinite values", with_value(index, value), method=method)


class Quantised(nn.Module):
    """A scale per channel kept in eight bits."""

    def __init__(self):
        super().__init__()
        self.first, self.other, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)
        scales = torch.randint(-4, 5, (8, 1, 1), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
        self.scale = nn.Parameter(scales, requires_grad=False)

    def forward(self, x):
        return self.last(torch.relu(self.other(self.first(x) * self.scale.float())))


@pytest.mark.parametrize("method", ["l1_filter", "random"])
def test_integer_parameters_are_not_scored_and_the_message_says_what_to_protect(method):
    refuse(
        MethodError,
        r"'scale' is torch\.int8: only real.*protect=\['first'\]",
        Quantised(),
        budget=Budget(0.2),
        method=method,
    )
    result = prune(Quantised(), IMAGE, budget=Budget(0.2), method=method, protect=["first"])
    assert result.verification.is_exact
    assert result.model.scale.dtype is torch.int8


def test_integer_parameters_are_traced_and_cut_like_others():
    model = Quantised()
    graph = trace(model, IMAGE)
    assert graph.groups["first"].labels == {"first:out", "scale:0", "other:in"}
    plan = Plan.from_removed({"first": [0, 3]}, graph.widths)
    small = shrink(model, graph, plan)
    assert torch.equal(small.scale, model.scale[list(plan.kept["first"])])
    assert small.scale.dtype is torch.int8
    assert not small.scale.requires_grad
    assert verify(model, small, plan, IMAGE).is_exact
    assert mask(model, graph, plan).scale[[0, 3]].eq(0).all()


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_complex_weights_are_cut_exactly_but_not_scored():
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2)).to(torch.complex64)
    example = torch.randn(2, 3, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    refuse(MethodError, r"'0\.weight' is torch\.complex64: only real", model, example)
    graph = trace(model, example)
    plan = Plan.from_removed({"0": [1, 6]}, graph.widths)
    assert verify(model, shrink(model, graph, plan), plan, example).is_exact


@pytest.mark.parametrize("method", ["l1_filter", "random"])
@pytest.mark.parametrize("example", [IMAGE, IMAGE.to("meta")], ids=["cpu", "meta"])
def test_weights_without_data_are_not_verified(method, example):
    refuse(MethodError, r"'0\.weight' is on the meta device.*Load the weights", meta(), example, method=method)


def meta():
    with torch.device("meta"):
        return net()


def test_weights_without_data_are_not_scored_but_can_be_cut_at_random():
    with pytest.raises(MethodError, match="meta device and holds no data to score"):
        prune(meta(), IMAGE, budget=HALF, check=False)
    small = prune(meta(), IMAGE, budget=HALF, check=False, method="random").model
    assert small[0].weight.device.type == "meta"
    assert small[0].out_channels == 4


@pytest.mark.parametrize("method", ["magnitude", "synflow", "snip", "wanda", "gradual_magnitude"])
def test_single_weights_without_data_are_not_scored(method):
    options = {"method": method, "data": [(IMAGE, torch.zeros(2, dtype=torch.long))], "task": ClassificationTask()}
    with pytest.raises(MethodError, match=r"'0\.weight' is on the meta device and holds no data to score"):
        sparsify(meta(), IMAGE, budget=Budget(0.5, "weights"), **options)


def test_single_weights_without_data_can_go_at_random():
    budget = Budget(0.5, "weights")
    scope = erk_scope(meta(), budget)
    assert sparsify(meta(), budget=budget, method=RandomWeights(scope=scope)).removed == 0.5


def test_weights_without_a_shape_are_named():
    with pytest.raises(TraceError, match=r"'weight' has no shape yet: run the model once"):
        sparsify(nn.LazyLinear(4), budget=Budget(0.5, "weights"))


def test_an_example_without_data_is_enough():
    result = prune(net(), IMAGE.to("meta"), budget=HALF)
    assert result.verification.is_exact


def test_a_model_in_two_places_says_which_parameter_lacks_data():
    model = net()
    model[3] = model[3].to("meta")
    refuse(MethodError, r"'3\.weight' is on the meta device and holds no data \(2 are\)", model)


def test_a_masked_model_is_not_attached_to():
    model = net()
    torch.nn.utils.prune.l1_unstructured(model[0], "weight", 0.5)
    with pytest.raises(MethodError, match=r"call secateur\.finalize"):
        attach(model, IMAGE, method="soft_filter", budget=HALF)


def test_an_attribute_that_cannot_be_copied_is_named():
    model = net()
    model[3].guard = threading.Lock()
    refuse(SurgeryError, r"attribute 'guard' of module '3', a lock, cannot be copied \(cannot pickle", model)
