"""C-SGD: how clusters move, who leads and who follows, and that trimming changes nothing on any architecture."""

import copy
import logging
import sys

import numpy as np
import pytest
import torch
from torch import nn

from secateur import Budget, Plan, prune, shrink, trace
from secateur.attach import attach
from secateur.errors import MethodError, MissingExtra
from secateur.graph.tape import tensors
from secateur.methods import CentripetalSgd, Problem
from secateur.methods._channel_sides import channel_sides
from secateur.methods.centripetal_sgd import Clusters, centripetal_gradient, cluster_means, clustered, trim_
from secateur.surgery.shrink import clone
from secateur.train import Attachment, ClassificationTask, Moment, Recipe, fit

from ..contract.cases import CASES
from ..graph.test_cases import NAMES, prepared
from ..train.cases import KillAt, Killed
from .attached_runs import lost_on_digits

SHORT = Recipe(epochs=2, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3)
DOUBLE = torch.float64


def random_rows(seed=0, rows=7, columns=5):
    return torch.randn(rows, columns, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


CLUSTER = torch.tensor([0, 1, 0, 2, 1, 0, 3])


def steps(count, weight_decay, strength, lr=0.1):
    """Plain SGD on random gradients; yields what the filters and gradients were and what the filters became."""
    filters = nn.Parameter(random_rows())
    optimizer = torch.optim.SGD([filters], lr, weight_decay=weight_decay)
    for step in range(count):
        gradient, before = random_rows(step + 1), filters.detach().clone()
        filters.grad = centripetal_gradient(gradient, before, CLUSTER, strength)
        optimizer.step()
        yield gradient, before, filters.detach().clone()


def test_deviation_contracts_by_exactly_one_minus_rate_times_decay_plus_strength():
    tau, eta, epsilon = 0.1, 0.02, 0.3
    for _, before, after in steps(20, eta, epsilon, tau):
        was, now = (rows - cluster_means(rows, CLUSTER) for rows in (before, after))
        torch.testing.assert_close(now, was * (1 - tau * (eta + epsilon)), rtol=1e-9, atol=1e-15)


def test_mean_of_a_cluster_follows_its_mean_gradient_and_a_filter_alone_plain_sgd():
    tau, eta = 0.1, 0.02
    for gradient, before, after in steps(5, eta, 0.3, tau):
        mean, pull = cluster_means(before, CLUSTER), cluster_means(gradient, CLUSTER)
        torch.testing.assert_close(cluster_means(after, CLUSTER), mean * (1 - tau * eta) - tau * pull)
        alone = [3, 6]
        assert torch.equal(centripetal_gradient(gradient, before, CLUSTER, 0.3)[alone], gradient[alone])


def test_it_is_the_matrix_form_of_the_paper():
    gradient, filters, eta, epsilon = random_rows(1), random_rows(2), 0.01, 0.2
    same = (CLUSTER[:, None] == CLUSTER).to(DOUBLE)
    a = same / same.sum(dim=1, keepdim=True)
    b = (eta + epsilon) * torch.eye(7, dtype=DOUBLE) - epsilon * a
    merged = centripetal_gradient(gradient, filters, CLUSTER, epsilon) + eta * filters
    torch.testing.assert_close(merged, a @ gradient + b @ filters)


def test_even_clusters_differ_by_one_at_most_and_an_imbalanced_one_takes_all_but_singletons():
    for width, count in ((16, 10), (7, 3), (5, 5), (9, 1)):
        sizes = np.bincount(clustered(np.zeros((width, 1)), count, "even", 0))
        assert len(sizes) == count
        assert sizes.max() - sizes.min() <= 1
        sizes = np.bincount(clustered(np.zeros((width, 1)), count, "imbalanced", 0))
        assert sorted(sizes.tolist()) == [1] * (count - 1) + [width - count + 1]


def test_kmeans_finds_what_is_near_and_never_leaves_a_cluster_empty():
    rows = np.array([[0.0, 1.0], [5.0, 5.0], [0.1, 1.0], [-5.0, 5.0], [5.0, 5.1]])
    assert clustered(rows, 3, "kmeans", 0).tolist() == [0, 1, 0, 2, 1]
    for count in range(1, 7):  # of six filters four are alike
        alike = np.array([[1.0], [2.0], [1.0], [1.0], [3.0], [1.0]])
        assert np.bincount(clustered(alike, count, "kmeans", 0)).tolist().count(0) == 0
        assert clustered(alike, count, "kmeans", 0).max() == count - 1


def problem(model, *shape, remove=0.4, data=None):
    images = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
    data = [(images, torch.tensor([0, 1, 0, 1]))] * 3 if data is None else data
    return Problem(model, trace(model, images), Budget(remove), args=(images,), data=data, task=ClassificationTask())


class Stage(nn.Module):
    """A stem, a block around an identity, and a block around a projection."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv1, self.conv2 = nn.Conv2d(1, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.conv3, self.conv4 = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.projection, self.head = nn.Conv2d(6, 6, 1), nn.Linear(6, 2)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.conv2(torch.relu(self.conv1(x))))
        y = self.conv4(torch.relu(self.conv3(x)))
        return self.head(torch.relu(y + self.projection(x)).mean((2, 3)))


def planted(convolution, values):
    """Give filter i the weight values[i] everywhere."""
    with torch.no_grad():
        convolution.weight.copy_(torch.tensor(values).view(-1, 1, 1, 1).expand_as(convolution.weight))


def clusters_of(attached):
    return {name: group.cluster.tolist() for name, group in attached.groups.items()}


def test_the_stem_leads_its_stream_and_the_projection_the_next_and_the_others_follow():
    model = Stage()
    near, other = [1.0, 5.0, 1.1, 5.1, 9.0, 1.2], [1.0, 1.1, 5.0, 5.1, 9.0, 9.1]
    planted(model.stem, near)
    planted(model.conv2, other)
    planted(model.projection, near)
    planted(model.conv4, other)
    attached = CentripetalSgd(allocation={"stem": 1.0, "projection": 1.0}).attach(problem(model, 1, 5, 5, remove=0.25))
    found = clusters_of(attached)
    assert found["stem"] == [0, 1, 0, 1, 2, 0]
    assert found["conv4"] == [0, 1, 0, 1, 2, 0]
    makers = {place.tensor for place in attached.groups["stem"].sides.makers}
    assert makers == {"stem.weight", "stem.bias", "conv2.weight", "conv2.bias"}
    attached = CentripetalSgd(residual="skip").attach(problem(model, 1, 5, 5, remove=0.2))
    assert sorted(attached.groups) == ["conv1", "conv3"]


def test_heads_are_clustered_by_all_that_makes_them():
    case = CASES["attention"]
    attached = CentripetalSgd().attach(case.problem(0.2))
    assert [place.tensor for place in attached.groups["qkv"].sides.makers] == ["qkv.weight", "qkv.bias"]
    assert "patches" not in attached.groups  # layer normalisation counts copies


def closed(model, graph):
    """Return a copy whose clusters, drawn at random, hold the same weights, and the clusters."""
    groups = []
    for name, sides in channel_sides(model, graph, graph.groups).items():
        if not sides.obstacle and not sides.is_in_statistics:
            rows = np.random.default_rng(1).normal(size=(graph.widths[name], 2))
            count = (graph.widths[name] + 1) // 2
            groups.append(Clusters(sides, torch.from_numpy(clustered(rows, count, "kmeans", 0))))
    twin = clone(model)
    state = {name: t.detach() for name, t in (*twin.named_parameters(), *twin.named_buffers())}
    for group in groups + groups:  # again, since a tensor may belong to two of them
        group.close_(state)
    return twin, groups


def trimming_changes(model, graph, args, kwargs):
    """Return the largest relative difference of what is given after trimming, at full width and cut."""
    twin, groups = closed(model, graph)
    trimmed = clone(twin)
    trim_(trimmed, groups)
    plan = Plan.from_removed({group.name: group.removed for group in groups}, graph.widths)
    with torch.no_grad():
        wanted = tensors(twin(*args, **kwargs))
        found = [tensors(m(*args, **kwargs)) for m in (trimmed, shrink(trimmed, graph, plan))]
    pairs = [(a, b) for outs in found for a, b in zip(wanted, outs, strict=True)]
    return max(float((a - b).detach().abs().max() / a.detach().abs().max()) for a, b in pairs), groups


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_trimming_identical_filters_keeps_the_logits(case):
    change, groups = trimming_changes(case.model(DOUBLE), case.graph_in(DOUBLE), (case.images(DOUBLE),), {})
    assert change < 1e-9
    assert any(group.removed for group in groups)


@pytest.mark.parametrize("name", NAMES)
def test_trimming_keeps_the_output_of_every_case_of_the_graph(name):
    model, args, kwargs, graph = prepared(name)
    assert trimming_changes(model, graph, args, kwargs)[0] < 1e-9


def test_columns_that_are_not_summed_would_change_the_logits():
    case = CASES["plain"]
    twin, groups = closed(case.model(DOUBLE), case.graph)
    plan = Plan.from_removed({group.name: group.removed for group in groups}, case.graph.widths)
    with torch.no_grad():
        small = shrink(twin, case.graph_in(DOUBLE), plan)
        assert not torch.allclose(small(case.images(DOUBLE)), twin(case.images(DOUBLE)), rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("layer_norm", "statistic"),
        ("rms_norm_by_hand", "statistic"),
        ("mean_over_channels", "statistic"),
        ("tied_transposed", "used in other ways"),
        ("lstm", "recurrent"),
        ("embedding_of_bounded_length", "bounds the length"),
        ("spectral_norm", "statistic"),
    ],
)
def test_channels_whose_copies_would_count_stay_whole_and_the_reason_is_told(name, reason):
    model, args, kwargs, graph = prepared(name)
    with pytest.raises(MethodError, match=f"centripetal_sgd can merge the channels of no group.*{reason}"):
        CentripetalSgd().attach(Problem(model, graph, Budget(0.2), args=args, kwargs=kwargs))


def test_what_does_not_train_is_left_whole(caplog):
    model = CASES["plain"].model()
    model.conv1.bias.requires_grad_(False)
    with caplog.at_level(logging.INFO, logger="secateur.methods"):
        attached = CentripetalSgd().attach(problem(model, 3, 8, 8, remove=0.2))
    assert "conv1" not in attached.groups
    assert "centripetal_sgd cannot merge all channels; left whole: conv1 ('conv1.bias' does not train)" in caplog.text


def trained(case, method, remove=0.3, **recipe):
    """Train a copy by our loop; return it and the attachment."""
    given = case.problem(remove, dtype=DOUBLE)
    norms = [module for module in given.model.modules() if isinstance(module, nn.BatchNorm2d)]
    attached = method.attach(given)
    for norm in norms:
        norm.momentum = 0.5  # so that statistics forget soon how the clusters began
    fit(given.model, given.data, given.task, SHORT.replace(**recipe), attachments=[attached], progress=False)
    for norm in norms:
        norm.momentum = 0.1
    return given.model, attached


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_clusters_close_in_training_and_the_small_network_is_the_trained_one(case):
    method = CentripetalSgd(strength=8.0, vector_scale=1.0)
    model, attached = trained(case, method, epochs=10, lr=0.1, momentum=0.0, nesterov=False, schedule="constant")
    model.eval()
    with torch.no_grad():
        wanted = model(case.images(DOUBLE))
        plan = attached.finish().plan
        small = shrink(model, case.graph_in(DOUBLE), plan)
        difference = float((small(case.images(DOUBLE)) - wanted).abs().max() / wanted.abs().max())
    assert plan.removed_count
    assert difference < 1e-9


def test_a_step_in_the_loop_is_the_paper_s(monkeypatch):
    case, tau, eta, epsilon, scale = CASES["concat"], 0.1, 0.02, 0.3, 0.5
    method = CentripetalSgd(strength=epsilon, vector_scale=scale)
    given = case.problem(0.3, dtype=DOUBLE)
    attached = method.attach(given)
    seen = {}

    class Look(Attachment):
        def after_backward(self, moment):
            seen.update({n: (p.detach().clone(), p.grad.clone()) for n, p in moment.model.named_parameters()})

    recipe = Recipe(epochs=1, lr=tau, momentum=0.0, weight_decay=eta, schedule="constant")
    fit(given.model, given.data[:1], given.task, recipe, attachments=[Look(), attached], progress=False)
    for group in attached.groups.values():
        for place in group.sides.makers:
            if place.tensor in seen:
                before, gradient = (place.read(t) for t in seen[place.tensor])
                e = epsilon * (scale if "bn" in place.tensor or "bias" in place.tensor else 1.0)
                mean = cluster_means(before, group.cluster)
                step = -cluster_means(gradient, group.cluster) - eta * before + e * (mean - before)
                is_alone = (torch.bincount(group.cluster) == 1)[group.cluster]
                step[is_alone] = (-gradient - eta * before)[is_alone]
                after = place.read(given.model.get_parameter(place.tensor).detach())
                torch.testing.assert_close(after, before + tau * step)


def test_clusters_that_are_not_closed_are_told_and_their_mean_stays(caplog):
    case = CASES["plain"]
    given = case.problem(0.3)
    before = clone(given.model)
    attached = CentripetalSgd().attach(given)
    with caplog.at_level(logging.WARNING, logger="secateur.methods.centripetal_sgd"):
        attached.finish()
    assert "clusters are not closed" in caplog.text
    group, trimmed = attached.groups["conv1"], given.model
    kept = int(group.first[group.removed[0]])
    members = (group.cluster == group.cluster[kept]).nonzero().flatten()
    torch.testing.assert_close(trimmed.conv1.weight[kept], before.conv1.weight[members].mean(dim=0))
    rows = cluster_means(before.conv2.weight.detach().flatten(1), attached.groups["conv2"].cluster)
    wanted = rows.view_as(before.conv2.weight)[:, members].sum(dim=1)
    torch.testing.assert_close(trimmed.conv2.weight[:, kept], wanted)
    assert not trimmed.conv2.weight[:, group.removed].any()


def test_finishing_twice_sums_once():
    model, attached = trained(CASES["residual"], CentripetalSgd())
    first, once = attached.finish(), copy.deepcopy(model.state_dict())
    second = attached.finish()
    assert first.plan == second.plan
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, once[name], rtol=1e-12, atol=1e-15, msg=name)


@pytest.mark.parametrize("step", [1, 3, 6])
def test_a_run_killed_at_any_step_ends_with_the_same_plan_and_weights(tmp_path, step):
    case = CASES["concat"]

    def run(kill, folder):
        given = case.problem(0.3)
        attached = CentripetalSgd().attach(given)
        options = {"checkpoint_dir": folder, "checkpoint_steps": 1, "progress": False}
        fit(given.model, given.data, given.task, SHORT, attachments=[attached, kill], **options)
        return attached.finish(), given.model

    whole, model = run(KillAt("never", 0), tmp_path / "whole")
    with pytest.raises(Killed):
        run(KillAt("after_step", step), tmp_path / "killed")
    resumed, other = run(KillAt("never", 0), tmp_path / "killed")
    assert resumed.plan == whole.plan
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_clusters_come_from_the_checkpoint_not_from_the_weights_at_hand():
    case = CASES["plain"]
    first = CentripetalSgd().attach(case.problem(0.3))
    other = case.problem(0.3)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.copy_(parameter.flip(0))
    second = CentripetalSgd().attach(other)
    assert clusters_of(first) != clusters_of(second)
    second.load_state_dict(first.state_dict())
    assert clusters_of(first) == clusters_of(second)


def test_state_of_another_method_or_model_is_refused():
    attached = CentripetalSgd().attach(CASES["plain"].problem(0.3))
    other = CentripetalSgd().attach(CASES["concat"].problem(0.3)).state_dict()
    for state in ({"method": "soft_filter"}, {}, other):
        with pytest.raises(MethodError, match=r"centripetal_sgd was given .* to go on from"):
            attached.load_state_dict(state)


def test_an_optimizer_without_the_clustered_weights_is_refused():
    model = CASES["plain"].model()
    attached = CentripetalSgd().attach(problem(model, 3, 8, 8))
    optimizer = torch.optim.SGD(model.head.parameters(), 0.1)
    with pytest.raises(MethodError, match=r"'conv1.weight', and the SGD of this run does not hold it"):
        attached.after_backward(Moment(model, optimizer, 0, 1, 0, 0.1))


def test_a_loop_of_five_lines_gives_what_ours_gives():
    case = CASES["concat"]
    given, recipe = case.problem(0.3), SHORT.replace(schedule="constant")
    model, images, task = given.model, case.images(), ClassificationTask()
    attached = attach(model, images, method=CentripetalSgd(), budget=given.budget)
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True
    )
    model.train()
    for epoch in range(recipe.epochs):
        for batch in case.data():
            optimizer.zero_grad()
            task.loss(model(batch[0]), batch).backward()
            attached.after_backward(Moment(model, optimizer, epoch, recipe.epochs, 0, recipe.lr))
            optimizer.step()
    ours = CentripetalSgd(recipe=recipe).decide(case.problem(0.3))
    decision = attached.finish()
    assert decision.plan == ours.plan
    for one, other in zip(model.parameters(), ours.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("clusters", ["even", "imbalanced"])
def test_other_clusters_need_no_scikit_learn_and_meet_the_budget(clusters, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    case = CASES["plain"]
    given = {"data": case.data(), "task": ClassificationTask(), "budget": Budget(0.3)}
    result = prune(case.model(), case.images(), method=CentripetalSgd(clusters, recipe=SHORT), **given)
    assert result.plan.removed_count == 9
    with pytest.raises(MissingExtra, match="centripetal_sgd with clusters='kmeans' needs sklearn"):
        CentripetalSgd(recipe=SHORT).decide(case.problem(0.3))


@pytest.mark.parametrize(
    ("setting", "value"), [("clusters", "spectral"), ("strength", 0.0), ("strength", -1.0), ("vector_scale", 0.0)]
)
def test_senseless_setting_is_refused(setting, value):
    with pytest.raises(MethodError, match=f"{setting}="):
        CentripetalSgd(**{setting: value})


@pytest.mark.slow
def test_digits_lose_less_than_two_points_and_all_clusters_close(caplog):
    method = CentripetalSgd(strength=0.5, vector_scale=1.0, recipe=Recipe(epochs=8, lr=0.03))
    assert lost_on_digits(method) < 0.02
    assert "not closed" not in caplog.text
