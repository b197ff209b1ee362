"""Samples: what is predicted for leaving one out is what training without it gives; solvers against dense algebra."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian
from torch.func import functional_call
from torch.nn import functional as F

from secateur import Plan, data_influence, mask, trace
from secateur.errors import MethodError, UnknownName
from secateur.methods._curvature import Surface, flat, largest_eigenvalue
from secateur.methods._data_influence import ConjugateGradient, Lissa, RemovalCost
from secateur.methods._pull_back import differentiable_copy
from secateur.train import ClassificationTask, FunctionTask, RegressionTask

from ..contract import snapshot

SAMPLES, FEATURES, DECAY = 400, 8, 0.01


def logistic_loss(output, batch):
    return F.binary_cross_entropy_with_logits(output[:, 0], batch[1])


LOGISTIC = FunctionTask(inputs=lambda b: b[0], loss=logistic_loss, metric=lambda o, b: (o[:, 0] > 0) == b[1].bool())


def drawn(seed=0):
    generator = torch.Generator().manual_seed(seed)
    true = torch.randn(FEATURES, dtype=torch.float64, generator=generator)

    def some(count):
        inputs = torch.randn(count, FEATURES, dtype=torch.float64, generator=generator)
        chance = torch.sigmoid(inputs @ true)
        return inputs, torch.bernoulli(chance, generator=generator)

    return some(SAMPLES), some(200)


def trained(inputs, labels, shares=None, start=None):
    """Exact Newton on the mean of losses, weighted by `shares` (of all samples), plus the weight decay."""
    shares = torch.full_like(labels, 1 / len(labels)) if shares is None else shares
    weight = torch.zeros(FEATURES, dtype=torch.float64) if start is None else start.clone()
    for _ in range(30):
        chance = torch.sigmoid(inputs @ weight)
        slope = inputs.T @ (shares * (chance - labels)) + DECAY * weight
        bend = (inputs * (shares * chance * (1 - chance))[:, None]).T @ inputs + DECAY * torch.eye(FEATURES)
        step = torch.linalg.solve(bend, slope)
        weight = weight - step
        if step.norm() < 1e-13:
            return weight
    raise AssertionError("Newton's method did not converge")


def line(weight):
    model = nn.Linear(FEATURES, 1, bias=False).double()
    model.weight.data.copy_(weight[None])
    return model


def in_batches(data, size):
    return list(zip(*(part.split(size) for part in data), strict=True))


@pytest.fixture(scope="module")
def left_out():
    """The weights, and those after training without each sample."""
    (inputs, labels), test = drawn()
    weight = trained(inputs, labels)
    without = []
    for n in range(SAMPLES):
        shares = torch.full_like(labels, 1 / SAMPLES)
        shares[n] = 0
        without.append(trained(inputs, labels, shares, weight))
    return (inputs, labels), test, weight, torch.stack(without)


def test_leaving_samples_out_of_logistic_regression_changes_the_loss_as_predicted(left_out):
    train, test, weight, without = left_out
    loss = lambda w: F.binary_cross_entropy_with_logits(test[0] @ w, test[1])  # noqa: E731
    true = torch.stack([loss(w) - loss(weight) for w in without])
    got = data_influence(
        line(weight), LOGISTIC, train=in_batches(train, 64), target=[test], solver=ConjugateGradient(damping=DECAY)
    )
    assert np.corrcoef(got.removal, true)[0, 1] > 0.99
    slope = np.polyfit(got.removal, true, 1)[0]
    assert 0.95 < slope < 1.1
    assert got.residual < 1e-7
    assert set(got.strongest(5)) & set(true.abs().argsort(descending=True)[:5].tolist())


def test_leaving_samples_out_changes_any_number_made_of_the_model_as_predicted(left_out):
    train, _, weight, without = left_out
    got = data_influence(
        line(weight),
        LOGISTIC,
        train=in_batches(train, 100),
        target=lambda model: model.weight[0, 3].abs(),  # as a filter's L1 score
        solver=ConjugateGradient(damping=DECAY),
    )
    true = without[:, 3].abs() - weight[3].abs()
    assert np.corrcoef(got.removal, true)[0, 1] > 0.99
    assert 0.95 < np.polyfit(got.removal, true, 1)[0] < 1.1


def test_up_weighting_is_the_derivative_for_a_samples_weight(left_out):
    train, test, weight, _ = left_out
    got = data_influence(line(weight), LOGISTIC, train=[train], target=[test], solver=ConjugateGradient(damping=DECAY))
    loss = lambda w: F.binary_cross_entropy_with_logits(test[0] @ w, test[1])  # noqa: E731
    n = got.strongest(1)[0]
    shares = torch.full_like(train[1], 1 / SAMPLES)
    shares[n] += 1e-6
    slope = (loss(trained(*train, shares, weight)) - loss(weight)) / 1e-6
    assert float(got.upweighting[n]) == pytest.approx(float(slope), rel=1e-4)


def test_conjugate_gradients_and_lissa_agree(left_out):
    train, test, weight, _ = left_out
    options = {"train": [train], "target": [test]}
    exact = data_influence(line(weight), LOGISTIC, solver=ConjugateGradient(damping=DECAY), **options)
    steps = data_influence(line(weight), LOGISTIC, solver=Lissa(damping=DECAY, depth=300), **options)
    torch.testing.assert_close(steps.removal, exact.removal, rtol=1e-4, atol=1e-8)


def test_lissa_on_small_batches_comes_close(left_out):
    train, test, weight, _ = left_out
    options = {"train": in_batches(train, 50), "target": [test]}
    exact = data_influence(line(weight), LOGISTIC, solver=ConjugateGradient(damping=DECAY), **options)
    steps = data_influence(line(weight), LOGISTIC, solver=Lissa(damping=DECAY, depth=200, repeats=2), **options)
    assert np.corrcoef(steps.removal, exact.removal)[0, 1] > 0.98
    assert 0 < steps.residual < 0.5


class Little(nn.Module):
    """Convolution, dropout and batch normalisation: eval mode matters."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.drop(torch.tanh(self.norm(self.conv(x)))).mean((2, 3)))


def little():
    torch.manual_seed(0)
    model = Little().double()
    data = [(torch.randn(n, 1, 5, 5, dtype=torch.float64), torch.randint(2, (n,))) for n in (5, 2)]
    return model, data


def dense_hessian(model, data, names):
    inputs, labels = (torch.cat(parts) for parts in zip(*data, strict=True))
    shapes = [model.get_parameter(name).shape for name in names]

    def loss(vector):
        parts = vector.split([shape.numel() for shape in shapes])
        own = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return F.cross_entropy(functional_call(model, own, (inputs,)), labels)

    return hessian(loss, flat([model.get_parameter(name) for name in names]))


def test_hessian_vector_products_are_those_of_the_dense_hessian_in_eval_mode():
    model, data = little()
    model.eval()
    names = [name for name, _ in model.named_parameters()]
    dense = dense_hessian(model, data, names)
    copied = differentiable_copy(model.train())
    surface = Surface(copied, ClassificationTask(), data, list(copied.parameters()))
    vector = torch.randn(surface.size, dtype=torch.float64)
    torch.testing.assert_close(surface.product(vector), dense @ vector)
    found = largest_eigenvalue(surface.product, surface.size, iterations=300, tolerance=1e-9)
    eigenvalues = torch.linalg.eigvalsh(dense)
    assert abs(found) == pytest.approx(float(eigenvalues.abs().max()), rel=1e-3)


def test_only_the_parameters_named_may_move():
    model, data = little()
    model.eval()
    names, damping = ["head.weight", "head.bias"], 0.3
    got = data_influence(
        model, ClassificationTask(), train=data, target=data[:1], parameters=["head"],
        solver=ConjugateGradient(damping=damping),
    )  # fmt: skip
    dense = dense_hessian(model, data, names) + damping * torch.eye(8)
    slope = lambda batch: flat(  # noqa: E731
        torch.autograd.grad(F.cross_entropy(model(batch[0]), batch[1]), [model.get_parameter(n) for n in names])
    )
    solved = torch.linalg.solve(dense, slope(data[0]))
    singles = [
        (image[None], label[None]) for images, labels in data for image, label in zip(images, labels, strict=True)
    ]
    torch.testing.assert_close(
        got.removal, torch.stack([slope(one) @ solved for one in singles]) / 7, rtol=1e-6, atol=0
    )


def test_a_frozen_parameter_does_not_move_unless_it_is_named():
    model, data = little()
    model.conv.requires_grad_(False)
    model.norm.requires_grad_(False)
    options = {"train": data, "target": data, "solver": ConjugateGradient(damping=0.3)}
    free = data_influence(model, ClassificationTask(), **options)
    named = data_influence(model, ClassificationTask(), parameters=["head"], **options)
    torch.testing.assert_close(free.removal, named.removal)


def test_the_cost_of_a_removal_is_the_change_of_the_loss_and_has_its_gradient():
    model, data = little()
    model.eval()
    graph = trace(model, data[0][0])
    (name,) = graph.groups
    plan = Plan.from_removed({name: [1]}, graph.widths)
    cost = RemovalCost(graph, plan, data, ClassificationTask())
    images, labels = (torch.cat(parts) for parts in zip(*data, strict=True))
    loss = lambda m: F.cross_entropy(m(images), labels)  # noqa: E731
    torch.testing.assert_close(cost(model), loss(mask(model, graph, plan)) - loss(model))
    slope = torch.autograd.grad(cost(model), model.head.weight)[0]
    moved = copy.deepcopy(model)
    moved.head.weight.data[1, 2] += 1e-6
    assert float(slope[1, 2]) == pytest.approx(float((cost(moved) - cost(model)).detach()) / 1e-6, rel=1e-4)


def test_a_pruning_decision_rests_on_samples_as_its_cost_does():
    model, data = little()
    graph = trace(model, data[0][0])
    (name,) = graph.groups
    cost = RemovalCost(graph, Plan.from_removed({name: [1]}, graph.widths), data, ClassificationTask())
    options = {"train": data, "solver": ConjugateGradient(damping=2.0)}
    by_batch = data_influence(model, ClassificationTask(), target=cost, **options)
    at_once = data_influence(model, ClassificationTask(), target=lambda m: cost(m), **options)
    torch.testing.assert_close(by_batch.removal, at_once.removal)
    assert by_batch.removal.abs().min() > 0


def test_nothing_is_left_behind():
    model, data = little()
    model.train()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = snapshot.of_model(model), snapshot.of_process(), snapshot.of_batches(data)
    data_influence(model, ClassificationTask(), train=data, target=data, solver=Lissa(damping=1.0, depth=3))
    with pytest.raises(MethodError):
        data_influence(model, ClassificationTask(), train=data, target=[])
    after = snapshot.of_model(model), snapshot.of_process(), snapshot.of_batches(data)
    assert not [name for one, other in zip(before, after, strict=True) for name in snapshot.differences(one, other)]


def test_attention_has_hessian_vector_products():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).double()
    data = [(torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64))]
    got = data_influence(model, RegressionTask(), train=data, target=data, solver=Lissa(damping=1.0, depth=2))
    assert bool(got.removal.isfinite().all())


def test_curvature_that_is_not_positive_is_told():
    model, data = little()
    with pytest.raises(MethodError, match="use a damping well above"):
        data_influence(model, ClassificationTask(), train=data, target=data, solver=ConjugateGradient(damping=0.0))


def test_steps_that_diverge_are_told():
    model, data = line(torch.ones(FEATURES)), drawn()[0]
    with pytest.raises(MethodError, match="raise scale"):
        data_influence(model, LOGISTIC, train=[data], target=[data], solver=Lissa(scale=1e-3, depth=500))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: ConjugateGradient(damping=-1.0), "damping"),
        (lambda: ConjugateGradient(damping=float("nan")), "damping"),
        (lambda: ConjugateGradient(iterations=0), "iterations"),
        (lambda: ConjugateGradient(tolerance=0.0), "tolerance"),
        (lambda: Lissa(depth=0), "depth"),
        (lambda: Lissa(repeats=True), "repeats"),
        (lambda: Lissa(scale=0.0), "scale"),
    ],
)
def test_senseless_settings_are_refused(make, word):
    with pytest.raises(MethodError, match=word):
        make()


def test_what_cannot_work_is_refused():
    model, data = little()
    task, solver = ClassificationTask(), ConjugateGradient(damping=1.0)
    with pytest.raises(MethodError, match="no batch"):
        data_influence(model, task, train=[], target=data, solver=solver)
    with pytest.raises(MethodError, match="scalar"):
        data_influence(model, task, train=data, target=lambda m: m.conv.weight, solver=solver)
    with pytest.raises(UnknownName, match="haed"):
        data_influence(model, task, train=data, target=data, solver=solver, parameters=["haed"])
    model.requires_grad_(False)
    with pytest.raises(MethodError, match="frozen"):
        data_influence(model, task, train=data, target=data, solver=solver)
