"""Discrimination-aware channel pruning: the greedy order by hand, gradients against autograd, stages and heads."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.budget import Budget, Limits
from secateur.errors import MethodError
from secateur.graph import trace
from secateur.graph.products import products
from secateur.methods import Dcp, Problem
from secateur.methods._auxiliary import AuxiliaryHead, Socket, evenly, sockets
from secateur.methods._column_selection import Selection, SubProblem, readings
from secateur.train import ClassificationTask, FunctionTask, RegressionTask
from secateur.train.randomness import same_randomness_after

STILL = {"heads": 0, "stage_epochs": 0}  # no training before the selection
LABELS = torch.tensor([0, 1, 0, 1])
HADAMARD = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])


def seeded(make):
    with same_randomness_after(torch.device("cpu")):
        torch.manual_seed(0)
        return make()


def mean_and_linear(width):
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2)


def pair(weight, maker=None):
    """A layer that hands on its inputs, and one with this (out, in) weight that reads them, without bias."""
    weight = torch.tensor(weight)
    first, second = nn.Linear(weight.shape[1], weight.shape[1], bias=False), nn.Linear(*weight.shape[::-1], bias=False)
    first.weight.data, second.weight.data = torch.eye(len(first.weight)) if maker is None else maker, weight
    return nn.Sequential(first, second).eval()


def problem(model, data, remove=0.5, task=None, **limits):
    example = data[0][0]
    budget, task = Budget(remove), ClassificationTask() if task is None else task
    return Problem(model, trace(model, example), budget, Limits(**limits), (example,), data=data, task=task)


def images(count=2, channels=1, size=6, classes=2):
    generator = torch.Generator().manual_seed(0)
    found = torch.randn(count, 8, channels, size, size, generator=generator)
    return list(zip(found, torch.randint(classes, (count, 8), generator=generator), strict=True))


def selection(model, data, name="0", base=None, guide=None):
    """The selection of one group, by reconstruction error unless there is a guide."""
    graph = trace(model, data[0][0])
    reads = readings(model, graph, name, products(graph))
    base = copy.deepcopy(model) if base is None else base
    return Selection(model, base, reads, batches=lambda: ((((x,), {}), (x, y)) for x, y in data), guide=guide)


def join_order(scores):
    return torch.argsort(scores, descending=True)[scores.sort(descending=True).values > 1].tolist()


def test_orthonormal_channels_join_in_the_order_of_their_weights_norms():
    # Frobenius norms 2.83, 3, 2.5, 1; by L1 (4, 3, 3.5, 1) or by the largest weight (2, 3, 1.75, 1) others would lead.
    model = pair([[2.0, 3.0, 1.77, 0.0], [2.0, 0.0, -1.77, 1.0]])
    method = Dcp(**STILL, penalty=0.0, selection_lr=0.0)
    decision = method.decide(problem(model, [(HADAMARD, LABELS)], remove=0.25))
    assert join_order(decision.scores["0"]) == [1, 0, 2]
    assert decision.plan.removed("0") == (3,)


def test_the_gradient_is_that_of_the_moments():
    # dL_M / dW = (W - W_base) Sigma / outputs, with Sigma the second moment of what is read: 4 and 1 here.
    scaled = HADAMARD * torch.tensor([2.0, 1.0, 1.0, 1.0])
    model = pair([[1.0, 3.0, 2.0, 0.0], [0.0, 0.0, -2.0, 1.0]])
    found = selection(model, [(scaled[:2], LABELS[:2]), (scaled[2:], LABELS[2:])])
    loss, norms = found.gradient()
    assert loss == pytest.approx((4 * 1 + 9 + 8 + 1) / 4)
    assert norms.tolist() == pytest.approx([4 / 2, 3 / 2, 8**0.5 / 2, 1 / 2])
    found.add([2])
    loss, norms = found.gradient()
    assert loss == pytest.approx((4 * 1 + 9 + 1) / 4)
    assert norms.tolist() == pytest.approx([4 / 2, 3 / 2, 0.0, 1 / 2])


def test_uneven_batches_weigh_by_their_samples():
    model, data = pair([[1.0, 3.0, 2.0, 0.0]]), [(HADAMARD[:3], LABELS[:3]), (HADAMARD[3:], LABELS[3:])]
    one, other = selection(copy.deepcopy(model), data), selection(model, [(HADAMARD, LABELS)])
    torch.testing.assert_close(one.gradient()[1], other.gradient()[1])


def test_a_twin_of_a_selected_channel_waits_until_others_have_joined():
    # 0 and 1 carry the same; with 0 trained to stand for both, the weak but independent 2 is worth more.
    maker = torch.eye(3)
    maker[1] = maker[0]
    model = pair([[3.0, 2.5, 1.0]], maker)
    method = Dcp(**STILL, penalty=0.0, selection_epochs=30, selection_lr=0.3, momentum=0.0, weight_decay=0.0)
    decision = method.decide(problem(_two_classes(model), [(HADAMARD[:, 1:], LABELS)], remove=1 / 3))
    assert join_order(decision.scores["0"]) == [0, 2]
    assert decision.model[1].weight[:, 0].tolist() == pytest.approx([5.5, 0.0], abs=1e-3)
    still = Dcp(**STILL, penalty=0.0, selection_lr=0.0)
    assert join_order(still.decide(problem(model, [(HADAMARD[:, 1:], LABELS)], remove=1 / 3)).scores["0"]) == [0, 1]


def _two_classes(model):
    model[1].weight = nn.Parameter(torch.cat([model[1].weight.data, torch.zeros(1, 3)]))
    model[1].out_features = 2
    return model


def test_what_is_read_comes_from_the_pruned_network_and_the_target_from_the_one_before():
    base = pair([[1.0, 3.0, 2.0, 0.5]])
    model = pair([[1.0, 3.0, 2.0, 0.5]], torch.eye(4) * torch.tensor([1.0, 0.1, 1.0, 10.0]))
    _, norms = selection(model, [(HADAMARD, LABELS)], base=base).gradient()
    assert norms.tolist() == pytest.approx([1.0, 0.3, 2.0, 5.0])


def test_classifier_loss_prefers_what_tells_classes_apart():
    # Channel 0 is loud and says nothing of the class; channel 1 is quiet and is the class.
    x = torch.tensor([[8.0, 1.0], [8.0, -1.0], [-8.0, 1.0], [-8.0, -1.0]])
    model = pair([[2.0, 0.1], [2.0, -0.1]])
    data = [(x, torch.tensor([0, 1, 0, 1]))]
    for penalty, kept in ((0.0, (0,)), (1000.0, (1,))):
        plan = Dcp(**STILL, penalty=penalty, selection_lr=0.0).decide(problem(model, data)).plan
        assert plan.kept["0"] == kept


def test_loss_is_reconstruction_plus_lambda_times_classification():
    model, data = pair([[1.0, 3.0, 2.0, 0.0], [0.0, 0.0, -2.0, 1.0]]), [(HADAMARD, LABELS)]
    guide = lambda inputs, batch: 7 * F.cross_entropy(model(*inputs[0]), batch[1])  # noqa: E731
    loss, _ = selection(model, data, guide=guide).gradient()
    assert loss == pytest.approx((1 + 9 + 8 + 1) / 4 + 7 * torch.log(torch.tensor(2.0)).item())


class Concat(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.read = nn.Conv2d(1, 3, 2), nn.Conv2d(1, 3, 2), nn.Conv2d(6, 2, 2)
        self.also = nn.Conv2d(3, 2, 1)

    def forward(self, x):
        one = torch.relu(self.one(x))
        both = self.read(torch.cat([one, torch.relu(self.two(x))], 1))
        return both.mean((2, 3)) + self.also(one).mean((2, 3))


def test_weights_outside_the_selected_set_stay_at_zero_and_other_groups_stay_as_they_are():
    model = seeded(Concat)
    before = model.read.weight.detach().clone()
    found = selection(model, images(), "one")
    found.add([1])
    found.train_(SubProblem(3, 0.05, 0.9, 0.1))
    assert not model.read.weight[:, [0, 2]].any()
    assert not model.also.weight[:, [0, 2]].any()
    assert not torch.equal(model.read.weight[:, 1], before[:, 1])
    assert torch.equal(model.read.weight[:, 3:], before[:, 3:])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_all_channels_with_rate_zero_are_the_weights_from_before():
    model = seeded(Concat)
    before = copy.deepcopy(model.state_dict())
    found = selection(model, images(), "one")
    for channel in (2, 0, 1):
        found.add([channel])
        found.train_(SubProblem(2, 0.0, 0.9, 0.1))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert found.gradient()[0] == 0.0


def test_gradient_norms_of_all_consumers_are_added():
    model = seeded(Concat)
    norms, data = {}, images()
    for skip in ((), ("read",), ("also",)):
        fresh = copy.deepcopy(model)
        graph = trace(fresh, data[0][0])
        reads = [r for r in readings(fresh, graph, "one", products(graph)) if r.product.module not in skip]
        batches = lambda: ((((x,), {}), (x, y)) for x, y in data)  # noqa: E731
        norms[skip] = Selection(fresh, copy.deepcopy(model), reads, batches=batches, guide=None).gradient()[1]
    torch.testing.assert_close(norms[()], norms["read",] + norms["also",])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.mix, self.leave = (
            nn.Linear(3, 8),
            nn.MultiheadAttention(8, 2, batch_first=True),
            nn.Linear(8, 2),
        )

    def forward(self, x):
        x = torch.relu(self.enter(x))
        return self.leave(self.mix(x, x, x, need_weights=False)[0].mean(1))


READERS = {
    "convolution": (lambda: nn.Sequential(nn.Conv2d(1, 4, 2), nn.Conv2d(4, 6, 2), *mean_and_linear(6)), "0", ["1"]),
    "grouped": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 2), nn.Conv2d(4, 6, 2, groups=2), *mean_and_linear(6)),
        "0",
        ["1"],
    ),
    "transposed": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 2), nn.ConvTranspose2d(4, 6, 2), *mean_and_linear(6)),
        "0",
        ["1"],
    ),
    "flattened": (lambda: nn.Sequential(nn.Conv2d(1, 4, 2), nn.Flatten(), nn.Linear(100, 2)), "0", ["2"]),
    "last": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 2), nn.Conv2d(4, 6, 2), *mean_and_linear(6)).to(
            memory_format=torch.channels_last
        ),
        "0",
        ["1"],
    ),
}


@pytest.mark.parametrize("reader", READERS)
def test_gradient_is_autograds_for_every_kind_of_consumer(reader):
    make, name, modules = READERS[reader]
    model, data = seeded(make).double().eval(), [(x.double(), y) for x, y in images(1)]
    base = copy.deepcopy(model)
    _, norms = selection(model, data, name, base=base).gradient()
    (module,) = modules
    caught = []
    for net in (model, base):
        net.get_submodule(module).register_forward_hook(lambda _, __, out: caught.append(out))
        net(data[0][0])
    ours, target = caught
    (grad,) = torch.autograd.grad(F.mse_loss(ours, target.detach()) / 2, model.get_submodule(module).weight)
    torch.testing.assert_close(norms, _by_channel(reader, grad).flatten(1).norm(dim=1))


def _by_channel(reader, grad):
    """The gradient with the channels of the group first."""
    if reader == "grouped":  # one channel of the group is one input of each block
        return grad.unflatten(0, (2, 3)).permute(2, 0, 1, 3, 4)
    if reader == "flattened":
        return grad.unflatten(1, (4, 25)).transpose(0, 1)
    return grad if reader == "transposed" else grad.transpose(0, 1)


def test_attention_is_a_consumer_with_a_packed_weight():
    model = seeded(Attention).double().eval()
    data = [(torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), LABELS[:2])]
    base = copy.deepcopy(model)
    _, norms = selection(model, data, "enter", base=base).gradient()
    x = torch.relu(base.enter(data[0][0])).reshape(-1, 8).detach()
    target = x @ base.mix.in_proj_weight.T  # the bias is in both
    grad = -(target.T @ x) / target.numel()
    torch.testing.assert_close(norms, grad.detach().norm(dim=0))


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / (self.weight.std((1, 2, 3), keepdim=True) + 1e-3), self.bias)


def test_computed_weights_are_selected_by_the_classifiers_loss_alone(caplog):
    model = seeded(lambda: nn.Sequential(nn.Conv2d(1, 4, 2), nn.ReLU(), Standardised(4, 3, 2), *mean_and_linear(3)))
    decision = Dcp(**STILL, allocation={"0": 1.0}).decide(problem(model, images(), 0.2))
    assert len(decision.plan.kept["0"]) == 2
    assert "reconstruction error is left out" in caplog.text
    with pytest.raises(MethodError, match="use penalty > 0"):
        Dcp(**STILL, penalty=0.0, allocation={"0": 1.0}).decide(problem(model, images(), 0.2))


def test_weights_normalised_by_their_own_length_are_refused():
    model = deep(depth=3)
    nn.utils.parametrizations.weight_norm(model[2])
    with pytest.raises(MethodError, match="no value at zero"):
        Dcp(**STILL).decide(problem(model, images(), 0.2))


def test_head_is_a_linear_layer_on_the_mean_of_what_is_positive_after_normalisation():
    head = AuxiliaryHead(2, 3, axis=1)
    nn.init.normal_(head.linear.weight, generator=torch.Generator().manual_seed(0))
    activation = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    wanted = head.linear(F.relu(nn.BatchNorm2d(2)(activation)).mean((2, 3)))
    torch.testing.assert_close(head(activation), wanted)
    tokens = AuxiliaryHead(2, 3, axis=-1)
    tokens.linear.load_state_dict(head.linear.state_dict())
    torch.testing.assert_close(tokens(activation.flatten(2).transpose(1, 2)), wanted)
    assert head(activation[:1, :, :1, :1]).shape == (1, 3)  # one row has no variance


def test_heads_cut_the_layers_into_equal_stages():
    places = [Socket(position, "", 1, 1) for position in (0, 2, 4, 6, 8, 10, 12, 14)]
    positions = [0, 2, 4, 6, 8, 10, 12, 14]
    assert [s.position for s in evenly(places, positions, 1)] == [6]
    assert [s.position for s in evenly(places, positions, 3)] == [2, 6, 10]
    assert [s.position for s in evenly(places[3:4], positions, 3)] == [6]
    assert evenly(places, positions, 0) == evenly([], positions, 2) == []


def deep(width=4, depth=5):
    layers = [nn.Conv2d(1, width, 2)]
    for _ in range(depth - 2):
        layers += [nn.ReLU(), nn.Conv2d(width, width, 1)]
    return seeded(lambda: nn.Sequential(*layers, nn.ReLU(), *mean_and_linear(width)))


def test_each_stage_has_the_groups_that_its_classifier_can_judge(caplog):
    with caplog.at_level(logging.INFO, logger="secateur.methods.dcp"):
        Dcp(heads=1, stage_epochs=0, selection_lr=0.0, selection_epochs=0).decide(problem(deep(), images()))
    assert [r.message for r in caplog.records if r.message.startswith("stage")] == [
        "stage 1 of 2: 0, 2",
        "stage 2 of 2: 4, 6",
    ]


def test_every_batch_makes_two_steps_first_of_the_classifier_then_of_the_network():
    seen, model = [], deep()

    class Task(ClassificationTask):
        def loss(self, output, batch):
            seen.append("head" if not output.any() else "network")
            return super().loss(output, batch) * 0  # weights stay, so a fresh head gives zeros

    method = Dcp(heads=1, stage_epochs=2, selection_epochs=0, penalty=0.0, weight_decay=0.0)
    decision = method.decide(problem(model, images(3), task=Task()))
    assert seen == ["head", "network"] * 6 + ["network"] * 6
    assert set(decision.plan.kept) == {"0", "2", "4", "6"}


def test_stage_training_reaches_the_classifiers_prefix_and_takes_its_rate():
    model, lrs = deep(), []
    step = torch.optim.SGD.step

    def spy(self, *args):
        lrs.append((self.param_groups[0]["lr"], len(self.param_groups[0]["params"])))
        return step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", spy)
        method = Dcp(heads=1, stage_epochs=5, stage_lr=0.1, selection_epochs=0)
        method.decide(problem(model, images(1)))
    count = len(list(model.parameters()))
    heads = [lr for lr, parameters in lrs if parameters == count + 4]
    assert heads == pytest.approx([0.1, 0.1, 0.01, 0.001, 0.001])
    assert len(lrs) == 15


def test_places_for_heads_are_modules_with_samples_first_that_run_once():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.once, self.twice, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
            self.swapped, self.loose = nn.Linear(4, 4), nn.Parameter(torch.eye(4))

        def forward(self, x):
            x = self.twice(self.twice(self.once(x))) @ self.loose
            return self.head(self.swapped(x.transpose(0, 1)).mean(0))

    model, batch = seeded(Odd), (torch.randn(2, 5, 3), LABELS[:2])
    found, class_count = sockets(model, products(trace(model, batch[0])), ClassificationTask(), batch)
    assert [(s.module, s.width, s.axis) for s in found] == [("once", 4, -1), ("head", 2, -1)]
    assert class_count == 2


def useful_first(count=6):
    """Two channels carry everything, the others next to nothing."""
    weight = torch.full((2, count), 1e-4)
    weight[:, :2] = torch.tensor([[3.0, 1.0], [-3.0, 2.0]])
    generator = torch.Generator().manual_seed(0)
    x = torch.linalg.qr(torch.randn(12, count, generator=generator))[0] * 3
    return pair(weight.tolist()), [(x, torch.arange(12) % 2)]


def adaptive(remove=0.0, patience=1, **limits):
    model, data = useful_first()
    method = Dcp(**STILL, stop="adaptive", penalty=0.0, selection_lr=0.0, patience=patience)
    return len(method.decide(problem(model, data, remove, **limits)).plan.kept["0"])


def test_adaptive_stop_keeps_what_lowers_the_loss_and_patience_more():
    assert adaptive(patience=1) == 3
    assert adaptive(patience=2) == 4
    assert Dcp(**STILL, penalty=0.0, selection_lr=0.0).decide(problem(*useful_first(), 0.0)).plan.removed_count == 0


def test_adaptive_stop_takes_the_budget_as_the_least_that_goes_and_keeps_the_limits():
    assert adaptive(remove=0.75) == 1
    assert adaptive(min_keep=5) == 5
    assert adaptive(round_to=2) == 4


def test_tolerance_is_a_fraction_of_the_first_loss():
    model, data = useful_first()
    # The second channel takes 5 / 23 of the first loss away.
    for tolerance, kept in ((0.2, 3), (0.25, 2)):
        method = Dcp(**STILL, stop="adaptive", penalty=0.0, selection_lr=0.0, patience=1, tolerance=tolerance)
        assert len(method.decide(problem(model, data, 0.0)).plan.kept["0"]) == kept


def test_several_channels_can_join_at_once():
    model, data = pair([[2.0, 3.0, 1.77, 0.0], [2.0, 0.0, -1.77, 1.0]]), [(HADAMARD, LABELS)]
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        add = Selection.add
        patch.setattr(Selection, "add", lambda self, channels: calls.append(list(channels)) or add(self, channels))
        Dcp(**STILL, channels_per_step=2, penalty=0.0).decide(problem(model, data, 0.25))
    assert calls == [[1, 0], [2]]


def test_selection_batches_bound_what_a_selection_reads():
    model = pair([[1.0, 2.0], [1.0, 2.0]])
    x = torch.tensor([[9.0, 1.0], [1.0, 9.0]])
    data = [(x[:1], LABELS[:1]), (x[1:].repeat(5, 1), LABELS[:1].repeat(5))]
    for count, kept in ((1, (0,)), (None, (1,))):
        method = Dcp(**STILL, penalty=0.0, selection_lr=0.0, selection_batches=count)
        assert method.decide(problem(model, data)).plan.kept["0"] == kept


def test_removed_channels_are_zero_in_the_trained_copy_and_a_frozen_consumer_is_not_trained():
    model = deep()
    model[2].weight.requires_grad_(False)
    decision = Dcp(heads=1, stage_epochs=1, stage_lr=0.01).decide(problem(model, images()))
    for name, reader in (("0", 2), ("2", 4)):
        gone = list(decision.plan.removed(name))
        assert gone
        assert not decision.model[int(name)].weight[gone].any()
        assert not decision.model[reader].weight[:, gone].any()
    rows, kept = list(decision.plan.kept["2"]), list(decision.plan.kept["0"])
    assert torch.equal(decision.model[2].weight[rows][:, kept], model[2].weight[rows][:, kept])
    assert not torch.equal(decision.model[4].weight[rows][:, rows], model[4].weight[rows][:, rows])
    assert [p.requires_grad for p in decision.model.parameters()] == [p.requires_grad for p in model.parameters()]


def test_allocation_can_be_global():
    model = deep(depth=3)
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter[1:3] = 0  # what reads these two has no gradient
        model[2].bias.fill_(1.0)  # and no channel behind it is always zero
    method = Dcp(**STILL, penalty=0.0, selection_lr=0.0, allocation="global")
    plan = method.decide(problem(model, images(), 0.25)).plan
    assert plan.removed("0") == (1, 2)
    assert not plan.removed("2")


def test_regression_is_refused():
    model, data = pair([[1.0, 2.0], [3.0, 4.0]]), [(torch.randn(4, 2), torch.randn(4, 2))]
    with pytest.raises(MethodError, match=r"dcp .*classification.*RegressionTask"):
        Dcp(heads=0).decide(problem(model, data, task=RegressionTask()))


def test_outputs_that_are_no_logits_of_samples_are_refused():
    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 3, 1)

        def forward(self, x):
            return self.two(self.one(x))

    task = FunctionTask(lambda b: b[0], lambda out, b: out.square().mean(), lambda out, b: out.mean((1, 2, 3)))
    with pytest.raises(MethodError, match=r"shape \(samples, classes\); found FunctionTask.*\(8, 3, 6, 6\)"):
        Dcp().decide(problem(Dense(), images(), task=task))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "dcp .*no data="),
        (iter(images()), "dcp .*read once only"),
        ([], "dcp: data= gave no batch"),
        ([*images(1), (torch.zeros(8, 2, 6, 6), torch.zeros(8, dtype=torch.long))], "dcp could not train on data="),
        ([(torch.full((8, 1, 6, 6), float("nan")), images()[0][1])], "dcp: .*output of '0'"),
    ],
    ids=["none", "once", "empty", "shapes", "NaN"],
)
def test_bad_data_are_refused(data, words):
    given = problem(deep(), images())
    with pytest.raises(MethodError, match=words):
        Dcp(stage_epochs=1).decide(
            Problem(given.model, given.graph, given.budget, args=given.args, data=data, task=given.task)
        )


def test_group_that_no_layer_reads_is_refused():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.read, self.unread = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1), nn.Conv2d(1, 4, 1)

        def forward(self, x):
            return self.read(self.one(x)).mean((2, 3)) + self.unread(x).sum((1, 2, 3))[:, None]

    with pytest.raises(MethodError, match="no layer reads the channels of 'unread'"):
        Dcp().decide(problem(Sum(), images()))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("penalty", -1.0),
        ("heads", -1),
        ("stop", "never"),
        ("tolerance", 1.0),
        ("patience", 0),
        ("channels_per_step", 0),
        ("stage_lr", 0.0),
        ("selection_batches", 0),
        ("momentum", 1.0),
    ],
)
def test_senseless_setting_is_refused(setting, value):
    with pytest.raises(MethodError, match=f"{setting}="):
        Dcp(**{setting: value})
