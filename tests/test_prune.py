"""`prune`: what was asked comes out, checked, and the model that went in is as it was."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import logging
import warnings

import pytest
import torch
from torch import nn

from secateur.attach import attach
from secateur.budget import Budget, Limits
from secateur.errors import BudgetError, NothingPruned, NothingToPrune, PlanError, VerificationError
from secateur.graph import trace
from secateur.methods._problem import Decision
from secateur.methods.l1_filter import L1Filter
from secateur.methods.random import Random
from secateur.plan import Plan
from secateur.prune import REPAIRS, prune
from secateur.surgery.shrink import shrink
from secateur.train import ClassificationTask

from .contract import snapshot

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net(*, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Conv2d(12, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A method that decides what it is told."""

    plan: Plan
    model: nn.Module | None = None
    repair: str = "refit"

    def decide(self, problem):
        return Decision(self.plan, self.model, repair=self.repair)


@pytest.mark.parametrize("of", ["channels", "macs", "params", "bytes"])
def test_what_is_left_is_at_most_what_was_asked_and_within_one_channel(of):
    result = prune(net(), IMAGE, budget=Budget(0.4, of))
    assert 0.4 <= result.removed < 0.5
    assert result.after.of(of) == trace(result.model, IMAGE).costs().of(of)
    assert result.verification.is_exact


def test_the_result_says_what_was_asked_and_what_came_of_it():
    result = prune(net(), IMAGE, budget=Budget(0.25, "channels"))
    assert (result.before.channels, result.after.channels) == (28, 21)
    text = str(result)
    assert "asked: remove 25.0% of channels; got 25.0%" in text
    assert "28" in text
    assert "exact" in text
    assert set(result.decision.scores) == {"0", "3"}


@pytest.mark.parametrize("is_training", [True, False])
def test_the_model_and_the_process_are_as_before(is_training):
    model = net().train(is_training)
    model(IMAGE.expand(2, -1, -1, -1)).sum().backward()
    model[0].weight.requires_grad_(False)
    before, around = snapshot.of_model(model), snapshot.of_process()
    result = prune(
        model,
        IMAGE,
        budget=Budget(0.5),
        data=list(images(2)),
        task=ClassificationTask(),
        repair=REPAIRS,
        method="random",
    )
    assert snapshot.differences(before, snapshot.of_model(model)) == []
    assert snapshot.differences(around, snapshot.of_process()) == []
    assert result.model.training is is_training
    assert not {t.data_ptr() for t in model.parameters()} & {t.data_ptr() for t in result.model.parameters()}


def images(count):
    generator = torch.Generator().manual_seed(4)
    for _ in range(count):
        yield torch.randn(6, 3, 8, 8, generator=generator), torch.randint(5, (6,), generator=generator)


def test_removing_nothing_is_a_bit_identical_copy_without_a_warning():
    model = net().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = prune(model, IMAGE, budget=Budget(0.0))
    assert torch.equal(result.model(IMAGE), model(IMAGE))
    assert result.plan == Plan()


def test_a_budget_under_which_nothing_went_is_told():
    with pytest.warns(NothingPruned, match=r"remove 30\.0% of channels: nothing was removed") as told:
        prune(net(), IMAGE, budget=Budget(0.3), method=Fixed(Plan()))
    assert told[0].filename == __file__, "where the call stands"


def test_a_method_may_be_named_or_made():
    plans = [prune(net(), IMAGE, budget=Budget(0.4), method=m).plan for m in ("l1_filter", L1Filter())]
    assert plans[0] == plans[1]
    made = prune(net(), IMAGE, budget=Budget(0.4), method=L1Filter(allocation="global"))
    assert made.plan != plans[0]


def test_limits_reach_the_method():
    one = prune(net(), IMAGE, budget=Budget(0.3), protect=["0"], min_keep=2, round_to=4)
    other = prune(net(), IMAGE, budget=Budget(0.3), limits=Limits(("0",), 2, 4))
    assert one.plan == other.plan
    assert not one.plan.removed("0")
    assert one.model[3].out_channels == 4
    assert prune(net(), IMAGE, budget=Budget(0.3), protect="0").plan.removed("0") == ()


def test_the_seed_makes_random_choices_repeatable():
    plans = [prune(net(), IMAGE, budget=Budget(0.5), method="random", seed=s, check=False).plan for s in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]


def test_a_graph_may_be_handed_in():
    model = net()
    graph = trace(model, IMAGE)
    result = prune(model, IMAGE, budget=Budget(0.4), graph=graph)
    assert result.graph is graph
    assert result.plan == prune(model, IMAGE, budget=Budget(0.4)).plan


def test_keyword_inputs_reach_the_model():
    class Keyed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = net()

        def forward(self, *, image, scale=1.0):
            return self.body(image) * scale

    result = prune(Keyed(), None, kwargs={"image": IMAGE, "scale": 2.0}, budget=Budget(0.5))
    assert result.verification.is_exact
    assert result.plan.removed_count == 14


def test_a_method_that_trained_is_cut_from_its_own_weights():
    model, trained = net(), net(seed=1)
    graph = trace(model, IMAGE)
    plan = Plan.from_removed({"0": [0, 5]}, graph.widths)
    result = prune(model, IMAGE, budget=Budget(0.05), method=Fixed(plan, trained))
    keep = list(plan.kept["0"])
    assert torch.equal(result.model[0].weight, trained[0].weight[keep])


def test_a_wrong_result_is_refused(monkeypatch):
    module = importlib.import_module("secateur.prune")

    def wrong(model, graph, plan, **options):
        small = shrink(model, graph, plan, **options)
        with torch.no_grad():
            small[0].weight += 1e-3
        return small

    shrink = module.shrink
    monkeypatch.setattr(module, "shrink", wrong)
    with pytest.raises(VerificationError, match="not the masked one"):
        prune(net(), IMAGE, budget=Budget(0.5))
    assert prune(net(), IMAGE, budget=Budget(0.5), check=False).verification is None


def test_what_is_made_in_inference_mode_can_be_trained():
    with torch.inference_mode():
        result = prune(net(), IMAGE, budget=Budget(0.5))
    result.model(IMAGE).sum().backward()
    assert result.plan == prune(net(), IMAGE, budget=Budget(0.5)).plan


class Rigid(nn.Module):
    """One width is written into the code, in a form that no attribute holds."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(x.reshape(len(x), int("6"))))
        return self.head(x)


def test_what_the_code_cannot_narrow_stays_whole_and_the_rest_goes(caplog):
    with caplog.at_level(logging.WARNING):
        result = prune(Rigid(), torch.randn(2, 4), budget=Budget(0.3, "channels"))
    assert "left whole" in caplog.text
    assert set(result.graph.rigid) == {"first"}
    assert not result.plan.removed("first")
    assert result.plan.removed_count == 3, "30 % of the eight channels that are free to go, rounded up"


def test_a_budget_out_of_reach_names_what_code_and_method_leave_whole():
    with pytest.raises(BudgetError, match=r"at most .*The model's code cannot narrow: first\.$"):
        prune(Rigid(), torch.randn(2, 4), budget=Budget(0.7, "params"))
    model = nn.Sequential(nn.Linear(4, 6), Skip(6), nn.Linear(6, 2))
    with pytest.raises(BudgetError, match=r"The method leaves whole: 0 \(residual streams: see residual= .*\)\.$"):
        prune(model, torch.randn(2, 4), budget=Budget(0.5, "params"))


class Masked(nn.Module):
    """A transformer block with a padding mask and GPT-2's activation."""

    def __init__(self):
        super().__init__()
        self.embed, self.attention = nn.Linear(3, 16), nn.MultiheadAttention(16, 4, batch_first=True)
        self.up, self.down, self.head = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 2)
        self.register_buffer("future", torch.ones(5, 5).triu(1).bool())

    def forward(self, x, padding):
        x = self.embed(x)
        x = x + self.attention(x, x, x, key_padding_mask=padding, attn_mask=self.future, need_weights=False)[0]
        h = self.up(x)
        return self.head(x + self.down(0.5 * h * (1 + torch.tanh(0.8 * (h + 0.04 * h**3)))))


def test_a_mask_or_a_function_of_itself_added_makes_no_residual_stream():
    """Heads under key_padding_mask, and neurons behind x + x**3 (GPT-2), were taken for one and stayed whole."""
    model, args = Masked(), (torch.randn(2, 5, 3), torch.zeros(2, 5).bool())
    are_streams = {name: group.is_residual for name, group in trace(model, args).groups.items()}
    assert are_streams == {"embed": True, "attention": False, "up": False}
    plan = prune(model, args, budget=Budget(0.3, "channels")).plan
    assert [name for name in plan if plan.removed(name)] == ["attention", "up"]


class Skip(nn.Module):
    """A residual block."""

    def __init__(self, width):
        super().__init__()
        self.one, self.two = nn.Linear(width, 3), nn.Linear(3, width)

    def forward(self, x):
        return x + self.two(self.one(x).relu())


def test_nothing_to_prune_names_what_the_code_cannot_narrow():
    model = Rigid()
    model.second = nn.Identity()
    model.head = nn.Linear(6, 2)
    with pytest.raises(NothingToPrune, match=r"Its code cannot narrow: first\.$"):
        prune(model, torch.randn(2, 4), budget=Budget(0.3, "channels"))


def test_a_method_is_attached_only_to_what_can_be_cut_after_training():
    model, example = Rigid(), torch.randn(2, 4)
    attached = attach(model, example, method="depgraph_group_norm", budget=Budget(0.3, "channels"))
    assert set(attached.problem.graph.rigid) == {"first"}
    plan = attached.finish().plan
    assert shrink(model, attached.problem.graph, plan).second.out_features == 5


def test_a_method_that_insists_on_it_is_told_why():
    plan = Plan.from_removed({"first": [0]}, {"first": 6})
    with pytest.raises(PlanError, match=r"cuts 'first', which has to stay whole: .*Make it an attribute"):
        prune(Rigid(), torch.randn(2, 4), budget=Budget(0.1), method=Fixed(plan))


def test_statistics_are_estimated_anew_where_asked():
    data, task = list(images(3)), ClassificationTask()
    model = net()
    options = {"budget": Budget(0.5), "data": data, "task": task}
    asked = prune(model, IMAGE, repair="batchnorm", **options)
    left = prune(model, IMAGE, repair=(), **options)
    kept = list(left.plan.kept["0"])
    assert torch.equal(left.model[1].running_mean, model[1].running_mean[kept])
    assert not torch.allclose(asked.model[1].running_mean, left.model[1].running_mean)


def test_folding_keeps_what_removed_channels_contribute():
    model = net().eval()
    with torch.no_grad():
        for norm in (model[1], model[4]):
            norm.bias.copy_(torch.rand(norm.num_features, generator=torch.Generator().manual_seed(1)))
            norm.weight[: norm.num_features // 2] = 0.0
    plan = Plan.from_removed({"0": range(6), "3": range(8)}, {"0": 12, "3": 16})
    gaps = {}
    for repair in ((), ("fold",)):
        result = prune(model, IMAGE, budget=Budget(0.5), method=Fixed(plan), repair=repair)
        assert result.verification.is_exact
        gaps[repair] = (result.model(IMAGE) - model(IMAGE)).abs().max().item()
    assert gaps[("fold",)] < 1e-6 < 1e-2 < gaps[()]


def test_folding_starts_from_what_the_method_trained():
    trained = net(seed=1).eval()
    with torch.no_grad():
        trained[4].bias += 1.0
        trained[4].weight[:8] = 0.0
    plan = Plan.from_removed({"3": range(8)}, {"3": 16})
    result = prune(net().eval(), IMAGE, budget=Budget(0.2), method=Fixed(plan, trained), repair="fold")
    torch.testing.assert_close(result.model(IMAGE), trained(IMAGE), rtol=0, atol=1e-6)


def test_the_random_control_costs_what_the_method_costs():
    results = [prune(net(), IMAGE, budget=Budget(0.5, "macs"), method=m, check=False) for m in (L1Filter(), Random())]
    assert results[0].after == results[1].after


def test_data_bring_the_repair_that_the_method_leaves_to_do():
    """What `prune` does by itself is what it does when asked for just that."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)
    ).eval()
    images = torch.randn(16, 3, 7, 7)
    options = {"budget": Budget(0.5), "data": [(images, None)], "task": ClassificationTask()}
    plan = Plan.from_removed({"0": [0, 1, 2]}, {"0": 6})
    trained = copy.deepcopy(model)
    trained[3].weight.data.mul_(1.5)
    cases = {
        "l1_filter": ("refit",),
        "thinet": ("refit",),  # it only scales
        "lasso_channels": (),
        Fixed(plan, trained, "batchnorm"): ("batchnorm",),
    }
    for method, expected in cases.items():
        itself = prune(model, images, method=method, **options).model
        for repair in ((), ("refit",), ("batchnorm",)):
            asked = prune(model, images, method=method, repair=repair, **options).model
            assert torch.equal(itself(images), asked(images)) == (repair == expected), (method, repair)
