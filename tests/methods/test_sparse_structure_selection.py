"""Sparse Structure Selection: the exact update, factors held in the weights, and whole blocks that go."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from secateur import Budget, Limits, Plan, finetune, prune, prune_iteratively, shrink, trace, verify
from secateur.data import digits
from secateur.errors import BudgetError, MethodError, NothingToPrune
from secateur.methods import Problem, SparseStructureSelection
from secateur.methods._history import EpochView
from secateur.methods.sparse_structure_selection import apg_step
from secateur.models import ResNet
from secateur.surgery.mask import mask
from secateur.train import ClassificationTask, Recipe, evaluate, fit, recipe

from .. import residual_models as models
from ..train.cases import KillAt, Killed
from .attached_runs import moment_of
from .scale_runs import chain, moment, step_with

TASK = ClassificationTask()
RECIPE = Recipe(epochs=2, lr=0.05, nesterov=True, schedule="constant", seed=3)


def batches(shape, count=3):
    generator = torch.Generator().manual_seed(5)
    return [
        (torch.randn(4, *shape, generator=generator), torch.randint(3, (4,), generator=generator)) for _ in range(count)
    ]


def problem_of(build, *, remove=0.3, of="macs", **limits):
    model, example = models.made(build)
    data = batches(tuple(example.shape[1:]))
    return Problem(model, trace(model, example), Budget(remove, of), Limits(**limits), (example,), {}, data, TASK)


def run(problem, method, recipe=RECIPE, *others, **options):
    attached = method.attach(problem)
    fit(problem.model, problem.data, TASK, recipe, attachments=[*others, attached], progress=False, **options)
    return attached


# -- the update --------------------------------------------------------------------------------------------------------


def test_without_a_penalty_it_is_sgd_with_nesterov_momentum():
    torch.manual_seed(0)
    wanted = nn.Parameter(torch.randn(5, dtype=torch.float64))
    found, velocity = wanted.detach().clone(), torch.zeros(5, dtype=torch.float64)
    optimizer = torch.optim.SGD([wanted], lr=0.1, momentum=0.9, nesterov=True)
    for _ in range(20):
        wanted.grad = wanted.detach().sin()
        found, velocity = apg_step(found, found.sin(), velocity, lr=0.1, momentum=0.9, penalty=0.0)
        optimizer.step()
        torch.testing.assert_close(found, wanted.detach(), atol=1e-13, rtol=0)


@pytest.mark.parametrize("nonnegative", [False, True])
def test_a_parabola_ends_at_its_soft_threshold(nonnegative):
    centre, curve, penalty = torch.tensor([2.0, 0.3, -0.2, -2.0]).double(), 2.0, 0.8
    found, velocity = torch.ones(4).double(), torch.zeros(4).double()
    for _ in range(400):
        slope = curve * (found - centre)
        found, velocity = apg_step(
            found, slope, velocity, lr=0.1, momentum=0.5, penalty=penalty, nonnegative=nonnegative
        )
    wanted = centre.sign() * (centre.abs() - penalty / curve).clamp_min(0)
    torch.testing.assert_close(found, wanted.clamp_min(0) if nonnegative else wanted)
    assert (found == 0).tolist() == [False, True, True, nonnegative]


def test_the_threshold_comes_before_the_momentum():
    """One step by hand: z = 1 - 0.1 * 2 = 0.8, s = 0.8 - 0.05, v = (0.75 - 1) + 0.9 * 0.5, lambda = 0.75 + 0.9 v."""
    found, velocity = apg_step(
        torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([0.5]), lr=0.1, momentum=0.9, penalty=0.5
    )
    assert velocity.item() == pytest.approx(0.2)
    assert found.item() == pytest.approx(0.93)


# -- factors in weights ------------------------------------------------------------------------------------------------


class Gated(nn.Module):
    """The basic blocks with factors as a user would write them in."""

    def __init__(self, model):
        super().__init__()
        self.model, self.factors = model, nn.Parameter(torch.ones(len(model.blocks), dtype=torch.float64))

    def forward(self, x):
        x = self.model.stem(x)
        for factor, block in zip(self.factors, self.model.blocks, strict=True):
            out = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu())) * factor
            x = (out + (x if block.project is None else block.project(x))).relu()
        return self.model.head(x.mean((2, 3)))


def test_training_with_factors_in_the_weights_is_training_with_factors_in_the_forward_pass():
    torch.manual_seed(0)
    model, example = models.post_activation().double(), torch.zeros(2, 3, 7, 7, dtype=torch.float64)
    written = Gated(copy.deepcopy(model))
    attached = SparseStructureSelection(penalty=0.5).attach(
        Problem(model, trace(model, example), Budget(0.1, "macs"), args=(example,))
    )
    settings = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-2}
    here = moment_of(model, optimizer=torch.optim.SGD(model.parameters(), **settings), lr=0.05)
    other = torch.optim.SGD(written.model.parameters(), **settings)
    velocity = torch.zeros(2, dtype=torch.float64)
    for images, labels in batches((3, 7, 7), 6):
        for network in (model, written):
            network.zero_grad()
            nn.functional.cross_entropy(network(images.double()), labels).backward()
        attached.after_backward(here)
        here.optimizer.step()
        attached.after_step(here)
        other.step()
        factors, velocity = apg_step(
            written.factors.detach(),
            written.factors.grad,
            velocity,
            lr=0.05,
            momentum=0.9,
            penalty=0.5,
            nonnegative=True,
        )
        written.factors.data = factors
    assert attached.factors.min() < 0.9
    torch.testing.assert_close(attached.factors, written.factors.detach(), atol=1e-11, rtol=0)
    images = torch.randn(4, 3, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(model.eval()(images), written.eval()(images), atol=1e-11, rtol=0)


def test_the_gradient_of_a_channels_factor_is_that_of_scaling_what_is_read():
    model = chain().double()
    images = torch.randn(4, 1, 4, 4, dtype=torch.float64)
    scale = torch.ones(4, 1, 1, dtype=torch.float64, requires_grad=True)
    out = model[3:](model[:3](images) * scale)
    (wanted,) = torch.autograd.grad(out.square().sum(), scale)
    attached = SparseStructureSelection(penalty=0.0, momentum=0.0, nonnegative=False).attach(
        Problem(model, trace(model, images), Budget(0.1), args=(images,))
    )
    model(images).square().sum().backward()
    here = moment(model, lr=1.0)
    attached.after_backward(here)
    attached.after_step(here)
    torch.testing.assert_close(1 - attached.factors[:4], wanted.flatten(), atol=1e-10, rtol=1e-10)


def test_weight_decay_sees_the_weights_without_factors():
    model = chain()
    attached = SparseStructureSelection(penalty=5.0, momentum=0.0).attach(
        Problem(model, trace(model, torch.zeros(2, 1, 4, 4)), Budget(0.1), args=(torch.zeros(2, 1, 4, 4),))
    )
    before = model[3].weight.detach().clone()
    here = moment(model, lr=0.1, weight_decay=0.5)
    step_with(attached, here)
    step_with(attached, here)
    assert attached.factors.eq(0).all()  # 1 - 2 * 0.1 * 5
    torch.testing.assert_close(attached.state_dict()["weights"]["3.weight"], before * 0.95**2)
    assert model[3].weight.eq(0).all()


# -- what comes out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", models.EVERY)
def test_what_is_cut_is_what_was_trained_where_factors_reached_zero(build):
    problem = problem_of(build, remove=0.3)
    method = SparseStructureSelection(penalty=6.0)
    attached = run(problem, method)
    decision = attached.finish()
    assert attached.factors.eq(0).any()
    assert decision.plan.removed_branches
    small = shrink(problem.model, problem.graph, decision.plan)
    assert verify(problem.model, small, decision.plan, problem.args).is_exact
    gone = attached.structures.of_branches(attached.factors)
    assert all(gone[name] == 0 for name in decision.plan.removed_branches)
    model, images = problem.model.eval(), torch.randn_like(problem.args[0])
    torch.testing.assert_close(small.eval()(images), model(images), atol=1e-5, rtol=1e-4)


def test_the_budget_is_met_with_the_fewest_branches():
    problem = problem_of(models.norm_first, remove=0.25)
    plan = run(problem, SparseStructureSelection(penalty=0.1)).finish().plan
    costs = problem.graph.costs
    whole = costs().macs
    assert costs(plan).macs <= 0.75 * whole
    ordered = plan.removed_branches
    assert all(costs(Plan(removed_branches=[n for n in ordered if n != one])).macs > 0.75 * whole for one in ordered)


def test_both_kinds_of_structure_are_ranked_together():
    problem = problem_of(models.post_activation, remove=0.5, of="params")
    attached = run(problem, SparseStructureSelection(structures="both", penalty=0.3))
    attached.factors[:] = torch.linspace(0.5, 1, len(attached.factors))
    attached.factors[1] = 0.0  # the second block, then one channel after another
    attached.factors[0] = 2.0
    plan = attached.finish().plan
    assert plan.removed_branches == ("blocks.1",)
    assert problem.graph.costs(plan).params <= 0.5 * problem.graph.costs().params


def test_dear_structures_are_penalised_more_where_asked():
    problem = problem_of(models.post_activation, remove=0.1)
    attached = SparseStructureSelection(penalty=1.0, weigh_by_cost=True).attach(problem)
    costs = problem.graph.costs
    saved = [costs().macs - costs(Plan(removed_branches=(name,))).macs for name in problem.graph.branches]
    step_with(attached, moment(problem.model, lr=1e-3))
    found = 1 - attached.factors
    assert saved[0] != saved[1]
    assert (found[0] / found[1]).item() == pytest.approx(saved[0] / saved[1], rel=1e-3)


@pytest.mark.parametrize("build", [models.post_activation, models.norm_first])
def test_a_run_killed_at_a_step_resumes_to_the_same_plan(build, tmp_path):
    method = SparseStructureSelection(penalty=0.2, structures="both")
    wanted = run(problem_of(build), method)
    options = {"checkpoint_dir": tmp_path, "checkpoint_steps": 1}
    with pytest.raises(Killed):
        run(problem_of(build), method, RECIPE, KillAt("after_step", 4), **options)
    found = run(problem_of(build), method, RECIPE, KillAt("never", 0), **options)
    assert torch.equal(found.factors, wanted.factors)
    assert found.finish().plan == wanted.finish().plan


def test_protected_blocks_stay():
    problem = problem_of(models.post_activation, remove=0.1, protect=("blocks.0.conv2",))
    attached = run(problem, SparseStructureSelection(penalty=0.1))
    assert list(attached.structures.branches) == ["blocks.1"]


def test_what_training_did_not_bring_to_zero_is_told(caplog):
    run(problem_of(models.post_activation), SparseStructureSelection(penalty=0.0)).finish()
    assert "training brought 0 of the" in caplog.text
    assert "raise penalty=0" in caplog.text


def test_what_a_cut_would_leave_now_counts_branches_too():
    problem = problem_of(models.norm_first, remove=0.3)
    attached = run(problem, SparseStructureSelection(penalty=6.0))
    view = EpochView.of(1, attached.standing(), problem.graph)
    assert view.if_cut == problem.graph.costs(attached.finish().plan)
    zeros = [name for name, size in attached.structures.of_branches(attached.factors).items() if size == 0]
    assert view.so_far == problem.graph.costs(Plan(removed_branches=tuple(zeros)))


# -- whole groups of grouped convolutions ------------------------------------------------------------------------------


def resnext(*, remove=0.4, of="macs"):
    model, example = models.made(models.resnext)
    model, example = model.double(), example.double()
    graph = trace(model, example, conv_groups="whole")
    return Problem(model, graph, Budget(remove, of), args=(example,), task=TASK)


class GatedGroups(nn.Module):
    """ResNeXt with factors as the paper has them: a group's behind the second normalisation, before its activation."""

    def __init__(self, model):
        super().__init__()
        self.model, self.factors = model, nn.Parameter(torch.ones(2 + 2 * 4, dtype=torch.float64))

    def forward(self, x):
        x, own = self.model.stem(x), self.factors[2:].view(2, 4, 1).expand(2, 4, 2).reshape(2, 8, 1, 1)
        for factor, gates, block in zip(self.factors[:2], own, self.model.blocks, strict=True):
            out = block.branch[5:](block.branch[:5](x) * gates)
            x = (x + out * factor).relu()
        return self.model.head(x.mean((2, 3)))


def test_a_factor_of_a_group_multiplies_what_the_group_gives_once():
    problem = resnext()
    written = GatedGroups(copy.deepcopy(problem.model))
    attached = SparseStructureSelection(structures="both").attach(problem)
    assert attached.structures.count == 2 + 2 * 4
    with torch.no_grad():
        factors = torch.rand(10, dtype=torch.float64) * 2
        factors[[3, 8]] = 0.0
        written.factors.copy_(factors)
    attached._gates.put_in_(factors)
    images = torch.randn(3, 3, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(problem.model(images), written(images), atol=1e-12, rtol=1e-12)


def test_training_with_factors_of_groups_is_training_with_gates_behind_the_grouped_convolution():
    problem = resnext()
    model = problem.model
    written = GatedGroups(copy.deepcopy(model))
    attached = SparseStructureSelection(structures="both", penalty=0.2).attach(problem)
    settings = {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-2}
    here = moment_of(model, optimizer=torch.optim.SGD(model.parameters(), **settings), lr=0.02)
    other = torch.optim.SGD(written.model.parameters(), **settings)
    velocity = torch.zeros(10, dtype=torch.float64)
    for images, labels in batches((3, 7, 7), 4):
        for network in (model, written):
            network.zero_grad()
            nn.functional.cross_entropy(network(images.double()), labels).backward()
        attached.after_backward(here)
        here.optimizer.step()
        attached.after_step(here)
        other.step()
        slopes = written.factors.grad
        point, velocity = apg_step(
            *(written.factors.detach(), slopes, velocity), lr=0.02, momentum=0.9, penalty=0.2, nonnegative=True
        )
        written.factors.data = point
    assert 0 < attached.factors.min() < 0.98
    torch.testing.assert_close(attached.factors, written.factors.detach(), atol=1e-11, rtol=0)
    images = torch.randn(4, 3, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(model.eval()(images), written.eval()(images), atol=1e-11, rtol=0)


@pytest.mark.parametrize(
    ("structures", "removed", "branches"),
    [("channels", {0: [0, 2], 1: [1, 2, 3]}, ()), ("both", {0: [0, 2]}, ("blocks.1.branch",))],
)
def test_groups_and_blocks_at_zero_leave_without_a_trace(structures, removed, branches):
    problem = resnext()
    costs, widths = problem.graph.costs, problem.graph.widths
    wanted = Plan.from_removed({f"blocks.{k}.branch.0": own for k, own in removed.items()}, widths, branches)
    budget = Budget(1 - costs(wanted).macs / costs().macs, "macs")
    attached = SparseStructureSelection(structures=structures).attach(replace(problem, budget=budget))
    for name, own in attached.structures.of_groups(attached.factors).items():
        own[list(wanted.removed(name))] = 0.0
    if branches:
        attached.factors[: len(attached.structures.branches)] = torch.tensor([1.0, 0.0])
    attached._gates.put_in_(attached.factors)
    attached._step_count = 1
    plan = attached.finish().plan
    assert plan == wanted
    small = shrink(problem.model, problem.graph, plan)
    assert small.blocks[0].branch[3].groups == 2
    images = torch.randn(3, 3, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(small(images), problem.model(images), atol=1e-12, rtol=1e-12)
    assert verify(problem.model, small, plan, problem.args, **problem.graph.options).is_exact


def test_training_removes_whole_groups_and_meets_the_budget():
    model, example = models.made(models.resnext)
    graph = trace(model, example, conv_groups="whole")
    method = SparseStructureSelection(structures="channels", penalty=1.0, recipe=RECIPE)
    data = batches((3, 7, 7))
    result = prune(
        *(model, example), method=method, budget=Budget(0.3, "macs"), data=data, task=TASK, repair=(), graph=graph
    )
    assert result.removed >= 0.3
    assert result.verification.is_exact
    left = {name: len(result.plan.kept.get(name, range(4))) for name in ("blocks.0.branch.0", "blocks.1.branch.0")}
    assert sum(left.values()) < 8
    assert [block.branch[3].groups for block in result.model.blocks] == list(left.values())


# -- errors ------------------------------------------------------------------------------------------------------------


def test_blocks_of_a_plain_network_are_refused_with_what_would_do():
    model, example = chain(), torch.zeros(2, 1, 4, 4)
    problem = Problem(model, trace(model, example), Budget(0.3), args=(example,))
    with pytest.raises(MethodError, match=r"no residual branch.*structures='channels'"):
        SparseStructureSelection(structures="branches").attach(problem)


def test_a_budget_that_blocks_cannot_meet_says_how_far_they_go():
    with pytest.raises(BudgetError, match=r"at most \d+\.\d% can go with the 2 residual branches"):
        SparseStructureSelection().attach(problem_of(models.post_activation, remove=0.999))


def test_everything_protected_leaves_nothing():
    with pytest.raises(NothingToPrune, match="protect"):
        SparseStructureSelection(structures="branches").attach(problem_of(models.post_activation, protect=("blocks",)))


def test_an_optimizer_that_does_not_hold_the_weights_is_refused():
    problem = problem_of(models.post_activation, remove=0.1)
    attached = SparseStructureSelection().attach(problem)
    optimizer = torch.optim.SGD(problem.model.head.parameters(), lr=0.1)
    with pytest.raises(MethodError, match=r"blocks\.0\.bn2\.weight"):
        attached.after_backward(moment_of(problem.model, optimizer=optimizer))


def test_states_of_others_are_refused():
    problem = problem_of(models.post_activation, remove=0.1)
    attached = SparseStructureSelection().attach(problem)
    with pytest.raises(MethodError, match="global_dynamic"):
        attached.load_state_dict({"method": "global_dynamic"})
    with pytest.raises(MethodError, match="resume with the same settings"):
        attached.load_state_dict(SparseStructureSelection(penalty=0.5).attach(problem).state_dict())


@pytest.mark.parametrize("settings", [{"penalty": -1.0}, {"momentum": 1.0}, {"structures": "blocks"}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(MethodError, match=next(iter(settings))):
        SparseStructureSelection(**settings)


class Fixed(nn.Module):
    """A block whose code counts on the width inside its branch."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(5, 6), nn.Linear(6, 5)
        self.other, self.head = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 5)), nn.Linear(5, 3)

    def forward(self, x):
        x = x + self.two(self.one(x).view(len(x), 6))
        return self.head(x + self.other(x))


def test_a_branch_that_the_code_cannot_do_without_has_no_factor():
    torch.manual_seed(0)
    model, example = Fixed(), torch.randn(2, 5)
    problem = Problem(model, trace(model, example), Budget(0.2, "macs"), args=(example,))
    assert len(problem.graph.branches) == 2
    assert list(SparseStructureSelection().attach(problem).structures.branches) == ["other"]


def test_several_rounds_remove_several_branches():
    model, example = models.made(models.norm_first)
    method = SparseStructureSelection(penalty=0.1, recipe=RECIPE)
    result = prune_iteratively(
        *(model, example),
        budget=Budget(0.45, "macs"),
        method=method,
        data=batches((6, 5)),
        task=TASK,
        steps=2,
        recipe=RECIPE.replace(epochs=1),
        progress=False,
    )
    assert len(result.plan.removed_branches) >= 2
    assert result.after.macs <= 0.55 * result.before.macs
    assert result.after.params == sum(p.numel() for p in result.model.parameters())


def test_a_masked_model_is_what_was_cut_after_prune():
    model, example = models.made(models.post_activation)
    method = SparseStructureSelection(penalty=0.5, recipe=RECIPE)
    data = batches((3, 7, 7))
    result = prune(model, example, method=method, budget=Budget(0.3, "macs"), data=data, task=TASK, repair=())
    assert result.removed >= 0.3
    assert result.verification.is_exact
    dead = mask(result.decision.model, result.graph, result.plan).eval()
    torch.testing.assert_close(result.model.eval()(example), dead(example), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("remove", "settings"),
    [(0.3, {"penalty": 0.03}), (0.4, {"structures": "channels", "penalty": 0.02})],
    ids=["blocks", "channels"],
)
def test_on_digits_the_budget_is_reached_within_two_points_of_dense(remove, settings):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    loaders, schedule = digits().loaders(64), recipe("digits").replace(nesterov=True)
    torch.manual_seed(0)
    model = ResNet(2, in_channels=1)
    metric = fit(model, loaders.train, TASK, schedule, eval_loader=loaders.test, progress=False).metric
    method = SparseStructureSelection(recipe=schedule, **settings)
    example = next(iter(loaders.test))[0][:2]
    result = prune(model, example, budget=Budget(remove, "macs"), method=method, data=loaders.train, task=TASK)
    assert result.removed >= remove
    tuned, _ = finetune(result.model, loaders.train, TASK, schedule.finetuning(3), progress=False)
    assert evaluate(tuned, loaders.test, TASK, progress=False) >= metric - 0.02
