"""Correlated filters: r against NumPy, the penalty's gradient against finite differences, pairs made by hand."""

from __future__ import annotations

import logging
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from secateur import prune
from secateur.budget import Budget, Limits
from secateur.errors import MethodError
from secateur.graph import trace
from secateur.methods import Cfp, Problem
from secateur.methods._compensate import compensated
from secateur.methods._filters import JointFilters
from secateur.methods.cfp import correlations, pair_penalty, strongest_pairs
from secateur.train import ClassificationTask

from ..contract.cases import CASES

STILL = {"epochs": 0, "finetune_epochs": 0}  # choose only


def batches(count=3, channels=1, size=6, classes=2):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 8, channels, size, size, generator=generator)
    labels = torch.randint(classes, (count, 8), generator=generator)
    return list(zip(images, labels, strict=True))


def problem(model, remove=0.5, data=None, **limits):
    data = batches() if data is None else data
    example = data[0][0]
    budget, task = Budget(remove), ClassificationTask()
    return Problem(model, trace(model, example), budget, Limits(**limits), (example,), data=data, task=task)


def network(filters):
    """A convolution with these filters of four weights, and a linear layer that reads their means."""
    weight = torch.tensor(filters).view(len(filters), 1, 2, 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        model = nn.Sequential(nn.Conv2d(1, len(filters), 2), nn.ReLU(), *pool, nn.Linear(len(filters), 2))
    model[0].weight.data = weight
    return model


A, B, C = [1.0, -2.0, 3.0, 0.5], [4.0, 1.0, -1.0, 2.0], [-1.0, 0.0, 5.0, -3.0]
TWICE_A = [2 * x + 3 for x in A]


def removed(model, method, **options):
    plan = method.decide(problem(model, **options)).plan
    return {name: plan.removed(name) for name in plan if plan.removed(name)}


def random_filters(count=5, size=9, seed=0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_correlation_is_numpys():
    filters = random_filters()
    torch.testing.assert_close(correlations(filters), torch.from_numpy(np.corrcoef(filters.numpy())))


def test_correlation_does_not_see_affine_changes_of_a_filter():
    filters = random_filters()
    changed = filters.clone()
    changed[1] = 0.01 * filters[1] - 40.0
    torch.testing.assert_close(correlations(changed), correlations(filters))
    changed[1] = -2.0 * filters[1]
    torch.testing.assert_close(correlations(changed).abs(), correlations(filters).abs())


def test_constant_filter_correlates_with_nothing_and_leaves_gradients_finite():
    filters = random_filters().float()
    filters[2] = 0.1  # in float32 its mean is not 0.1 to the bit
    filters.requires_grad_()
    assert correlations(filters)[2].tolist() == [0.0] * 5
    pair_penalty({"a": filters}, {"a": [(0, 2), (1, 3)]}).backward()
    assert bool(filters.grad.isfinite().all())
    assert not filters.grad[2].any()
    assert filters.grad[1].any()


def test_penalty_is_the_exponential_of_the_mean_over_all_pairs_of_all_groups():
    one, other = random_filters(seed=1), random_filters(4, 3, seed=2)
    r, s = np.corrcoef(one.numpy()), np.corrcoef(other.numpy())
    # Two pairs of one group and one of the other: a mean of the groups' means would weigh them differently.
    wanted = np.exp(-(abs(r[0, 3]) + abs(r[1, 2]) + abs(s[0, 1])) / 3)
    found = pair_penalty({"a": one, "b": other}, {"a": [(0, 3), (1, 2)], "b": [(0, 1)]})
    assert float(found) == pytest.approx(wanted, rel=1e-12)


def test_gradient_of_the_penalty_is_that_of_finite_differences():
    def penalty(filters):
        return pair_penalty({"a": filters}, {"a": [(0, 3), (1, 2)]})

    assert torch.autograd.gradcheck(penalty, random_filters().requires_grad_())


def test_steps_on_the_penalty_alone_lower_it_every_time():
    filters, pairs = random_filters().requires_grad_(), {"a": [(0, 3), (1, 2)]}
    seen = []
    for _ in range(50):
        penalty = pair_penalty({"a": filters}, pairs)
        (gradient,) = torch.autograd.grad(penalty, filters)
        filters = (filters - 0.5 * gradient).detach().requires_grad_()
        seen.append(float(penalty.detach()))
    assert all(after < before for before, after in pairwise(seen))
    assert seen[-1] < 0.8 * seen[0]


def test_pairs_are_disjoint_and_greedy():
    # 0-1 is strongest. Then 2-3 is left with 0.1, though 0-2 and 1-3 together would be stronger.
    strength = torch.tensor([[0, 0.9, 0.8, 0.2], [0.9, 0, 0.3, 0.7], [0.8, 0.3, 0, 0.1], [0.2, 0.7, 0.1, 0]])
    assert strongest_pairs(strength, range(4), 2) == [(0, 1), (2, 3)]
    assert strongest_pairs(strength, range(4), 1) == [(0, 1)]
    assert strongest_pairs(strength, [0, 2, 3], 1) == [(0, 2)]
    assert strongest_pairs(torch.zeros(4, 4), range(4), 2) == [(0, 1), (2, 3)]


def test_affine_copy_is_found_and_the_smaller_norm_of_the_pair_goes():
    # The smallest norm of all is C's; the pair is A and 2 A + 3, of which A is smaller.
    small_c = [0.1 * x for x in C]
    assert removed(network([B, TWICE_A, A, small_c]), Cfp(**STILL), remove=0.25) == {"0": (2,)}
    assert removed(network([B, A, TWICE_A, small_c]), Cfp(**STILL), remove=0.25) == {"0": (1,)}


def test_opposite_filters_are_a_pair_too():
    assert removed(network([B, [-x for x in A], C, [2 * x for x in A]]), Cfp(**STILL), remove=0.25) == {"0": (1,)}


def test_norm_of_the_pair_is_the_sum_of_absolute_weights():
    tall, flat = [3.0, 0.0, 0.0, 0.0], [-0.1, -1.1, -1.1, -1.1]  # L1 3 < 3.4, L2 3 > 1.9, sum 3 > -3.4
    assert removed(network([B, tall, C, flat]), Cfp(**STILL), remove=0.25) == {"0": (1,)}


def test_filter_of_zeros_goes_before_any_pair():
    assert removed(network([B, A, TWICE_A, [0.0] * 4]), Cfp(**STILL), remove=0.25) == {"0": (3,)}
    assert removed(network([B, A, TWICE_A, [0.0] * 4]), Cfp(**STILL, step=0.5), remove=0.5) == {"0": (1, 3)}


class TwoMakers(nn.Module):
    """A stream that two convolutions make; channels 0 and 1 agree in the one, 2 and 3 in both."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 4, 2, bias=False), nn.Conv2d(1, 4, 2, bias=False)
        self.head = nn.Linear(4, 2)
        self.one.weight.data = torch.tensor([A, A, C, C]).view(4, 1, 2, 2)
        self.two.weight.data = torch.tensor([B, [-x for x in B], [0.9 * x for x in B], B]).view(4, 1, 2, 2)

    def forward(self, x):
        return self.head(torch.relu(self.one(x) + self.two(x)).mean((2, 3)))


def test_filters_of_a_shared_channel_are_one_vector():
    model = TwoMakers()
    graph = trace(model, torch.zeros(2, 1, 6, 6))
    joint = JointFilters.of(graph, graph.groups["one"]).read(model)
    assert joint[1].tolist() == A + [-x for x in B]
    # By `one` alone both pairs have r = 1; together 0 and 1 are far apart.
    assert removed(model, Cfp(**STILL, residual="prune"), remove=0.25) == {"one": (2,)}


def test_an_episode_takes_one_filter_of_a_pair_and_no_more_than_its_step(caplog):
    filters = [A, TWICE_A, B, [2 * x for x in B], C, [3 * x for x in C]]
    with caplog.at_level(logging.INFO, logger="secateur.methods.cfp"):
        gone = removed(network(filters), Cfp(**STILL, step=0.34), remove=0.5)
    assert gone == {"0": (0, 2, 4)}
    assert [r.message for r in caplog.records] == ["episode 1: 2 filters are gone", "episode 2: 3 filters are gone"]


def test_more_than_half_of_a_group_takes_further_episodes():
    plan = Cfp(**STILL, step=0.5).decide(problem(network([A, TWICE_A, B, C]), remove=0.75)).plan
    assert len(plan.kept["0"]) == 1


def test_training_brings_the_pairs_together_and_the_smaller_of_them_goes():
    model = network([A, [1.0, -2.0, 2.0, 1.5], B, C])
    kept, r = {}, {}
    for penalty in (0.0, 30.0):
        method = Cfp(penalty=penalty, epochs=10, finetune_epochs=0, lr=0.02, momentum=0.0, weight_decay=0.0)
        seen = {}
        decision = method.decide(_spying(problem(model, remove=0.25), seen))
        kept[penalty], r[penalty] = decision.plan.kept["0"], seen["closest"]
    assert kept[30.0] in ((0, 2, 3), (1, 2, 3))
    assert r[30.0] > r[0.0] + 0.02


def _spying(given, seen):
    """Note, whenever the loss is asked for, how the first two filters of the model in training correlate."""

    class Task(ClassificationTask):
        def loss(self, output, batch):
            weight = output.grad_fn.next_functions  # reach the leaf through the graph of the loss
            for leaf in _leaves(weight):
                if leaf.shape == (4, 1, 2, 2):
                    seen["closest"] = float(correlations(leaf.detach().flatten(1))[0, 1])
            return super().loss(output, batch)

    return Problem(given.model, given.graph, given.budget, given.limits, given.args, data=given.data, task=Task())


def _leaves(functions):
    for function, _ in functions:
        if function is not None:
            if hasattr(function, "variable"):
                yield function.variable
            yield from _leaves(function.next_functions)


def test_trained_copy_has_the_removed_filters_at_zero_and_the_model_is_left_alone():
    model = network([A, TWICE_A, B, C])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    decision = Cfp(epochs=1, finetune_epochs=1).decide(problem(model, remove=0.25))
    (gone,) = decision.plan.removed("0")
    assert not decision.model[0].weight[gone].any()
    assert not decision.model[4].weight[:, gone].any()
    assert not torch.equal(decision.model[4].bias, model[4].bias)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_without_epochs_nothing_is_trained():
    assert Cfp(**STILL).decide(problem(network([A, TWICE_A, B, C]))).model is None


def test_global_allocation_takes_from_the_group_with_the_closest_pairs():
    model = network([A, TWICE_A, B, C])
    wide = nn.Sequential(*model[:2], nn.Conv2d(4, 4, 1), nn.ReLU(), *model[2:])
    wide[2].weight.data = torch.eye(4).roll(1, 0).mul(torch.tensor([1.0, 2.0, 3.0, 4.0]))[:, :, None, None]
    assert removed(wide, Cfp(**STILL, allocation="global"), remove=0.125) == {"0": (0,)}


def twins(activation, *behind, kernel=2, padding=0):
    """Filters A, 2 A and B with biases that make channel 1 twice channel 0 plus a constant; zero after 3 and 5."""
    model = nn.Sequential(nn.Conv2d(1, 3, kernel, padding=padding), activation, *behind).eval()
    model[0].weight.data = torch.tensor([A, [2 * x for x in A], B]).view(3, 1, 2, 2)
    model[0].bias.data = torch.tensor([0.1, 0.2 if isinstance(activation, nn.ReLU) else 0.7, -0.3])
    return model


READERS = {
    "convolution": lambda: [nn.Conv2d(3, 2, 2), nn.Flatten(), nn.Linear(32, 2)],
    "grouped convolution": lambda: [nn.Conv2d(3, 3, 1, groups=3), nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(64, 2)],
    "transposed convolution": lambda: [nn.ConvTranspose2d(3, 2, 1), nn.Flatten(), nn.Linear(50, 2)],
    "flattened map": lambda: [nn.Flatten(), nn.Linear(75, 2)],
    "two layers": lambda: [Both()],
    "batch norm without bias": lambda: [
        nn.Conv2d(3, 2, 2, bias=False),
        nn.BatchNorm2d(2),
        nn.Flatten(),
        nn.Linear(32, 2),
    ],
}


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1), nn.Linear(2, 2)

    def forward(self, x):
        return self.head((self.one(x) + torch.tanh(self.two(x))).mean((2, 3)))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Identity])
@pytest.mark.parametrize("reader", READERS)
def test_compensation_is_exact_for_channels_on_a_line(reader, activation):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = twins(activation(), *READERS[reader]())
    if reader == "batch norm without bias":
        model[3].running_var.fill_(0.5)
    images = batches()[0][0]
    budget, repair = Budget(1 / trace(model, images).channel_count), ()
    given = {"budget": budget, "data": batches(), "task": ClassificationTask(), "repair": repair}
    with torch.no_grad():
        wanted = model(images)
        for compensate in (True, False):
            method = Cfp(**STILL, compensate=compensate, allocation={"0": 1.0})
            found = prune(model, images, method=method, **given)
            assert found.plan.removed("0") == (0,)
            assert torch.allclose(found.model(images), wanted, atol=1e-5) == compensate


def test_compensation_takes_the_constant_of_a_filter_of_zeros():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = twins(nn.ReLU(), nn.Conv2d(3, 2, 2), nn.Flatten(), nn.Linear(32, 2))
    model[0].weight.data[2], model[0].bias.data[2] = 0.0, 0.9
    images = batches()[0][0]
    method = Cfp(**STILL, compensate=True, allocation={"0": 1.0})
    given = {"data": batches(), "task": ClassificationTask(), "repair": (), "budget": Budget(0.2)}
    found = prune(model, images, method=method, **given)
    assert found.plan.removed("0") == (2,)
    torch.testing.assert_close(found.model(images), model(images))


def test_compensation_fits_the_line_by_least_squares():
    model = twins(nn.ReLU(), nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(50, 2))
    graph, data = trace(model, batches()[0][0]), batches()
    moved = compensated(model, graph, {"0": [(0, 2)]}, data, ClassificationTask())
    with torch.no_grad():
        read = torch.cat([model[:2](images) for images, _ in data]).transpose(0, 1).flatten(1).double().numpy()
        slope, constant = np.polyfit(read[0], read[2], 1)
        change = moved[2].weight[:, 0, 0, 0] - model[2].weight[:, 0, 0, 0]
        torch.testing.assert_close(change, slope.item() * model[2].weight[:, 2, 0, 0])
        change = moved[2].bias - model[2].bias
        torch.testing.assert_close(change, constant.item() * model[2].weight[:, 2, 0, 0])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_compensation_keeps_the_promises_of_exact_surgery_on_every_kind_of_model(case):
    result = prune(
        case.model(),
        case.images(),
        method=Cfp(**STILL, compensate=True),
        budget=Budget(0.3),
        graph=case.graph,
        data=case.data(),
        task=ClassificationTask(),
    )
    assert result.verification.is_exact


@pytest.mark.parametrize(
    ("setting", "value"),
    [("penalty", -1.0), ("step", 0.0), ("step", 0.6), ("epochs", -1), ("lr", 0.0), ("momentum", 1.0)],
)
def test_senseless_setting_is_refused(setting, value):
    with pytest.raises(MethodError, match=f"{setting}="):
        Cfp(**{setting: value})


def test_data_that_are_missing_or_can_be_read_once_only_are_refused():
    given, model = problem(network([A, B, C, TWICE_A])), network([A, B, C, TWICE_A])
    for data, words in ((None, "no data="), (iter(batches()), "read once only")):
        with pytest.raises(MethodError, match=f"cfp.*{words}"):
            Cfp().decide(Problem(model, given.graph, given.budget, args=given.args, data=data, task=given.task))


def test_batches_of_other_shapes_are_refused():
    data = [*batches(1), (torch.zeros(8, 2, 6, 6), torch.zeros(8, dtype=torch.long))]
    with pytest.raises(MethodError, match=r"cfp could not train on data=.*channels"):
        Cfp().decide(problem(network([A, B, C, TWICE_A]), data=data))


def test_activations_that_are_no_numbers_name_the_layer():
    images, labels = batches(1)[0]
    images = images.clone()
    images[0, 0, 3, 3] = float("nan")
    with pytest.raises(MethodError, match=r"cfp: .*output of '0'"):
        Cfp().decide(problem(network([A, B, C, TWICE_A]), data=[*batches(1), (images, labels)]))
