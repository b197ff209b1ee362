"""Soft filter pruning: what is zeroed and when, that it may come back, and that taking it out changes nothing."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from secateur import shrink
from secateur.errors import BudgetError, MethodError
from secateur.methods import SoftFilter
from secateur.methods.soft_filter import at_zero_count, growing_share
from secateur.train import Attachment, ClassificationTask, Recipe, fit

from .attached_runs import (
    POINTS,
    RECIPE,
    assert_resumes,
    assert_same,
    batches,
    lost_on_digits,
    moment_of,
    problem_of,
    run,
    run_by_hand,
    small_net,
    tensors,
)
from .test_l1_filter import chain


def zero_rows(weight):
    return [i for i, row in enumerate(weight.detach().flatten(1)) if not row.any()]


def attach(method, problem):
    """Attach, and come to the end of the first of many epochs."""
    attached = method.attach(problem)
    attached.after_epoch(moment_of(problem.model, epoch=0, epoch_count=9))
    return attached


def test_the_filters_of_smallest_euclidean_norm_are_zeroed_after_an_epoch():
    filters = [[3.0, 0.0], [2.0, -2.0], [0.1, 5.0], [4.0, 4.0]]  # L2: 3, 2.83, 5, 5.7; L1 would take 0; the sum, 1
    model = chain(filters, [[1.0] * 4])
    attached = SoftFilter().attach(problem_of(model, 1, 2, 1, 1, remove=0.25, dtype=torch.float32))
    assert zero_rows(model[0].weight) == []
    attached.after_epoch(moment_of(model))
    assert zero_rows(model[0].weight) == [1]
    assert model[0].weight[0].flatten().tolist() == [3.0, 0.0]
    assert zero_rows(model[1].weight) == [], "what reads the filters stays"


def test_an_epoch_of_training_comes_before_the_first_zeroing():
    """As in the paper's algorithm; the authors' code zeroes before training too, which a ReLU makes final."""
    found, method = [], SoftFilter()

    class Look(Attachment):
        def after_backward(self, moment):
            found.append((moment.epoch, len(zero_rows(moment.model[0].weight))))

    model = small_net()
    attached = method.attach(problem_of(model, remove=0.5))
    fit(model, batches(), ClassificationTask(), RECIPE, attachments=[Look(), attached], progress=False)
    assert {zeros for epoch, zeros in found if epoch == 0} == {0}
    assert found[4] == (1, 4), "the first step after the zeroing still sees it"


@pytest.mark.parametrize(("remove", "count"), [(0.1, 1), (0.3, 3), (0.5, 5)])
def test_each_layer_loses_the_whole_part_of_its_fraction(remove, count):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 10, 3), nn.ReLU(), nn.Conv2d(10, 20, 3), nn.ReLU(), nn.Conv2d(20, 2, 1))
    attach(SoftFilter(), problem_of(model, 1, 2, 6, 6, remove=remove, dtype=torch.float32))
    assert [len(zero_rows(model[k].weight)) for k in (0, 2, 4)] == [count, 2 * count, 0]


def one_step(model, optimizer):
    model.zero_grad()
    nn.functional.cross_entropy(model(batches()[0][0]), batches()[0][1]).backward()
    optimizer.step()


def test_zeroed_filters_move_again_by_their_gradient():
    model = small_net()
    nn.init.constant_(model[1].bias, 0.5)  # the ReLU behind is open
    attached = attach(SoftFilter(), problem_of(model))
    assert len(zero_rows(model[0].weight)) == 4
    one_step(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert zero_rows(model[0].weight) == [], "gradients are not masked"
    assert attached.finish().plan.removed_count == 7


def test_zeroed_filters_move_again_by_momentum_where_the_gradient_is_blocked():
    model = small_net()
    nn.init.constant_(model[1].bias, -0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    one_step(model, optimizer)
    attach(SoftFilter(), problem_of(model))
    gone = zero_rows(model[0].weight)
    assert len(gone) == 4
    one_step(model, optimizer)
    assert not model[0].weight.grad[gone].any()
    assert zero_rows(model[0].weight) == []


def test_a_filter_that_grew_comes_back_and_another_goes():
    model = chain([[1.0], [2.0], [3.0], [4.0]], [[1.0] * 4])
    attached = attach(SoftFilter(), problem_of(model, 1, 1, 1, 1, remove=0.25, dtype=torch.float32))
    assert zero_rows(model[0].weight) == [0]
    with torch.no_grad():
        model[0].weight[0] = 2.5
    attached.after_step(moment_of(model))
    attached.after_epoch(moment_of(model))
    assert zero_rows(model[0].weight) == [1]
    decision = attached.finish()
    assert decision.plan.removed("0") == (1,)
    assert decision.scores["0"].tolist() == [2.5, 2.0, 3.0, 4.0], "the norms before the last zeroing"


def test_normalisations_biases_and_the_optimizer_are_not_touched_while_training():
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    attached = SoftFilter().attach(problem_of(model))
    model(batches()[0][0]).square().sum().backward()
    optimizer.step()
    moment = moment_of(model, optimizer=optimizer)
    attached.after_step(moment)
    before, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    attached.after_epoch(moment)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed == ["0.weight", "3.weight"]
    now = optimizer.state_dict()["state"]
    assert all(torch.equal(now[k]["momentum_buffer"], state["state"][k]["momentum_buffer"]) for k in now)


def test_the_cut_computes_what_the_zeroed_model_did_with_what_its_normalisations_make_of_zeros():
    model = small_net()
    attached = SoftFilter().attach(problem_of(model))
    fit(model, batches(), ClassificationTask(), Recipe(epochs=2, lr=0.1), attachments=[attached], progress=False)
    zeroed = copy.deepcopy(model).eval()
    assert len(zero_rows(zeroed[0].weight)) == 4
    constants = zeroed[1](zeroed[0](batches()[0][0]))[:, zero_rows(zeroed[0].weight)]
    assert constants.abs().max() > 0.01, "there is something to lose"
    decision = attached.finish()
    small = shrink(model, attached.problem.graph, decision.plan).eval()
    torch.testing.assert_close(small(batches()[0][0]), zeroed(batches()[0][0]), rtol=0, atol=1e-12)


def test_finishing_twice_gives_the_same():
    model, attached, decision = run(SoftFilter())
    before = copy.deepcopy(tensors(model))
    assert_same(decision, attached.finish())
    assert all(torch.equal(one, other) for one, other in zip(before, tensors(model), strict=True))


def test_with_nothing_to_remove_nothing_is_touched():
    model = small_net()
    before = copy.deepcopy(tensors(model))
    attached = SoftFilter().attach(problem_of(model, remove=0.0))
    attached.after_epoch(moment_of(model))
    assert attached.finish().plan.removed_count == 0
    assert all(torch.equal(one, other) for one, other in zip(before, tensors(model), strict=True))


def test_the_growing_share_is_an_exponential_through_three_points():
    found = [growing_share(k / 8) for k in range(9)]
    assert found[0] == 0.0
    assert found[1] == pytest.approx(0.75, abs=1e-12)
    assert found[8] == 1.0
    steps = [after - before for before, after in pairwise(found)]
    assert [after / before for before, after in pairwise(steps)] == pytest.approx([steps[1] / steps[0]] * 7)


def test_with_a_growing_schedule_ever_more_filters_are_zeroed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 40, 1), nn.ReLU(), nn.Conv2d(40, 2, 1))
    attached = SoftFilter(schedule="growing").attach(problem_of(model, 1, 2, 2, 2, remove=0.5, dtype=torch.float32))
    counts = []
    for epoch in range(8):
        with torch.no_grad():
            model[0].weight.normal_()
        attached.after_step(moment_of(model))
        attached.after_epoch(moment_of(model, epoch=epoch, epoch_count=8))
        counts.append(len(zero_rows(model[0].weight)))
    assert counts == [*(at_zero_count(20, growing_share(k / 8)) for k in range(1, 8)), 20]
    assert counts[0] == 15
    assert counts == sorted(counts)


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_growing_schedule_that_breaks_off_still_meets_the_budget_with_zeroed_filters(epochs):
    model = small_net()
    fit(model, batches(), ClassificationTask(), Recipe(epochs=2, lr=0.1), progress=False)
    attached = SoftFilter(schedule="growing").attach(problem_of(model))
    for epoch in range(epochs):
        attached.after_epoch(moment_of(model, epoch=epoch, epoch_count=8))
        assert [len(zero_rows(model[k].weight)) for k in (0, 3)] == [3, 2]
    zeroed, decision = copy.deepcopy(model), attached.finish()
    assert [len(decision.plan.removed(name)) for name in "03"] == [4, 3]
    with torch.no_grad():
        for name in "03":
            zeroed[int(name)].weight[list(decision.plan.removed(name))] = 0.0
    small = shrink(model, attached.problem.graph, decision.plan).eval()
    images = batches()[0][0]
    torch.testing.assert_close(small(images), zeroed.eval()(images), rtol=0, atol=1e-12)


def test_the_scores_outlive_a_checkpoint_between_the_last_epoch_and_the_end(tmp_path):
    _, _, decision = run(SoftFilter(), folder=tmp_path)
    _, _, again = run(SoftFilter(), folder=tmp_path)  # nothing is left to train
    assert_same(decision, again)
    assert min(decision.scores["0"]) > 0


def test_a_global_ranking_is_made_anew_each_epoch():
    model = chain([[1.0], [2.0], [8.0], [9.0]], [[3.0] * 4, [4.0] * 4], [[1.0] * 2])
    method = SoftFilter(allocation="global")
    attached = attach(method, problem_of(model, 1, 1, 1, 1, remove=0.3, dtype=torch.float32))
    assert (zero_rows(model[0].weight), zero_rows(model[1].weight)) == ([0, 1], [])
    with torch.no_grad():
        model[0].weight[:2] = 20.0
    attached.after_step(moment_of(model))
    attached.after_epoch(moment_of(model))
    assert (zero_rows(model[0].weight), zero_rows(model[1].weight)) == ([2], [0])
    decision = attached.finish()
    assert (decision.plan.removed("0"), decision.plan.removed("1")) == ((2,), (0,))


@pytest.mark.parametrize("schedule", ["constant", "growing"])
@pytest.mark.parametrize(("point", "step"), POINTS)
def test_a_run_killed_at_any_point_ends_the_same(tmp_path, schedule, point, step):
    assert_resumes(SoftFilter(schedule=schedule), point, step, tmp_path)


def test_a_loop_by_hand_ends_like_ours():
    model, _, decision = run(SoftFilter())
    by_hand, same = run_by_hand(SoftFilter())
    assert_same(decision, same)
    assert all(torch.equal(one, other) for one, other in zip(tensors(model), tensors(by_hand), strict=True))


def test_weight_norm_loses_its_lengths_and_never_its_directions():
    torch.manual_seed(0)
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 4, 1))
    model = nn.Sequential(conv, nn.Conv2d(4, 1, 1))
    with torch.no_grad():
        conv.parametrizations.weight.original0[:, 0, 0, 0] = torch.tensor([3.0, 1.0, 2.0, 4.0])
        conv.parametrizations.weight.original1 *= torch.tensor([1.0, 50.0, 1.0, 1.0]).view(4, 1, 1, 1)
    attached = attach(SoftFilter(), problem_of(model, 1, 2, 3, 3, remove=0.25, dtype=torch.float32))
    assert zero_rows(conv.weight) == [1]
    model(torch.randn(2, 2, 3, 3)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert zero_rows(conv.weight) == []
    assert attached.finish().plan.removed_count == 1


def test_an_optimizer_without_the_filters_is_refused():
    model = small_net()
    attached = SoftFilter().attach(problem_of(model))
    optimizer = torch.optim.SGD(model[3].parameters(), lr=0.1)
    with pytest.raises(MethodError, match=r"'0\.weight'.*SGD of this run does not hold it"):
        attached.after_backward(moment_of(model, optimizer=optimizer))
    model[0].weight.requires_grad_(False)
    attached.after_backward(moment_of(model, optimizer=optimizer))  # frozen on purpose


def test_a_budget_out_of_reach_is_told_before_anything_is_touched():
    model = small_net()
    before = copy.deepcopy(tensors(model))
    with pytest.raises(BudgetError, match="at most"):
        SoftFilter().attach(problem_of(model, remove=0.99))
    assert all(torch.equal(one, other) for one, other in zip(before, tensors(model), strict=True))


def test_an_unknown_schedule_is_refused():
    with pytest.raises(MethodError, match="schedule='linear': expected one of constant, growing"):
        SoftFilter(schedule="linear")


@pytest.mark.slow
def test_digits_lose_less_than_two_points():
    assert lost_on_digits(SoftFilter(schedule="growing", recipe=Recipe(epochs=10, lr=0.01))) < 0.02
