import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from secateur import Budget, Limits
from secateur.errors import BudgetError, MethodError, NothingToPrune
from secateur.graph import trace
from secateur.graph.norms import Flow
from secateur.methods import Problem, Taylor
from secateur.methods._gates import gate_of
from secateur.methods._gradients import each_gradient
from secateur.methods.taylor import averaged, gate_scores, weight_scores
from secateur.train import ClassificationTask, FunctionTask

from ..contract.cases import CASES
from ..networks import randomise

SUM = FunctionTask(  # a loss that is linear in what the model gives; the batch is (inputs, weight of the output)
    inputs=lambda batch: batch[0],
    loss=lambda output, batch: (output * batch[1]).sum(),
    metric=lambda output, batch: output.flatten(1).sum(dim=1),
)


def problem(model, batches, *, task=SUM, remove=0.5, seed=0, **limits):
    example = (batches[0][0],)
    return Problem(
        model, trace(model, example), Budget(remove, "channels"), Limits(**limits), example, {}, batches, task, seed
    )


def scores_of(model, batches, name, method=None, **options):
    return (method or Taylor()).decide(problem(model, batches, **options)).scores[name].tolist()


def two_layers(first, second):
    model = nn.Sequential(nn.Linear(len(first[0]), len(first)), nn.Linear(len(second[0]), len(second)))
    for layer, rows in zip(model, (first, second), strict=True):
        layer.weight.data, layer.bias.data = torch.tensor(rows), torch.zeros(len(rows))
    return model


# hidden = (x, 2x, 3x), output = 5 hidden0 - 1 hidden1 + 0.5 hidden2: for x = 1 the terms are 5, -2, 1.5
MODEL = two_layers([[1.0], [2.0], [3.0]], [[5.0, -1.0, 0.5]])
ONE = torch.ones(1, 1)


def test_gate_scores_are_squared_changes_of_a_linear_loss():
    assert scores_of(MODEL, [(ONE, 1.0)], "0") == [25.0, 4.0, 2.25]
    assert scores_of(MODEL, [(2 * ONE, 3.0)], "0") == [36 * 25.0, 36 * 4.0, 36 * 2.25]


def test_samples_add_up_before_squaring_and_batches_after():
    """Per sample the terms are 5 and -10: squared one by one 125, added up first 25."""
    batch = torch.tensor([[1.0], [-2.0]])
    assert scores_of(MODEL, [(batch, 1.0)], "0")[0] == 25.0
    opposite = [(ONE, 1.0), (ONE, -1.0)]  # the mean gradient over batches is zero, the mean square is not
    assert scores_of(MODEL, opposite, "0", Taylor(momentum=None)) == [25.0, 4.0, 2.25]


def test_the_average_over_batches_has_momentum_and_starts_with_the_first():
    batches = [(ONE, 1.0), (ONE, 2.0), (ONE, 4.0)]  # scores of channel 1: 4, 16, 64
    assert scores_of(MODEL, batches, "0")[1] == pytest.approx(0.9 * (0.9 * 4 + 0.1 * 16) + 0.1 * 64)
    assert scores_of(MODEL, batches, "0", Taylor(momentum=0.5))[1] == pytest.approx(0.5 * (0.5 * 4 + 0.5 * 16) + 32)
    assert scores_of(MODEL, batches, "0", Taylor(momentum=None))[1] == pytest.approx(84 / 3)
    assert averaged(None, torch.tensor([7.0]), 0.9, 0).tolist() == [7.0]


def test_no_more_batches_are_read_than_asked_for_and_fewer_if_there_are_fewer():
    class Counted(list):
        taken = 0

        def __iter__(self):
            for batch in super().__iter__():
                self.taken += 1
                yield batch

    batches = Counted([(ONE, 1.0), (ONE, 2.0), (ONE, 4.0)])
    assert scores_of(MODEL, batches, "0", Taylor(batch_count=2, momentum=None))[1] == 10.0
    assert batches.taken == 2
    assert scores_of(MODEL, batches, "0", Taylor(batch_count=9, momentum=None))[1] == 28.0


def test_weight_scores_square_before_adding_up_the_weights_of_a_filter():
    model = two_layers([[1.0, 2.0], [3.0, -1.5]], [[1.0, 1.0]])
    batch = [(torch.tensor([[1.0, 2.0]]), 1.0)]  # w dL/dw: (1, 4) and (3, -3)
    assert scores_of(model, batch, "0", Taylor(form="weight")) == [17.0, 18.0]
    assert scores_of(model, batch, "0", Taylor(form="gate")) == [25.0, 0.0]
    assert weight_scores(torch.tensor([3.0, -1.5]), torch.tensor([1.0, 2.0])).tolist() == [9.0, 9.0]
    assert gate_scores(torch.tensor([0.0, -5.0])).tolist() == [0.0, 25.0]


def test_the_gate_stands_behind_the_norm_and_its_shift_counts():
    norm = nn.BatchNorm2d(2).eval()
    norm.weight.data, norm.bias.data = torch.tensor([2.0, 1.0]), torch.tensor([-2.0, 3.0])
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), norm, nn.Conv2d(2, 1, 1, bias=False)).eval()
    model[0].weight.data, model[2].weight.data = torch.ones(2, 1, 1, 1), torch.tensor([1.0, 1.0]).view(1, 2, 1, 1)
    norm.running_mean, norm.running_var, norm.eps = torch.zeros(2), torch.ones(2), 0.0
    # for x = 1 the norm gives 2 - 2 and 1 + 3; gains alone would say 4 and 1
    assert scores_of(model, [(torch.ones(1, 1, 1, 1), 1.0)], "0") == [0.0, 16.0]


def test_layers_are_ranked_together_as_in_the_paper():
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    for layer, rows in zip(model, ([[1.0], [1.0]], [[0.1, 0.1], [9.0, 8.0]], [[1.0, 1.0]]), strict=True):
        layer.weight.data = torch.tensor(rows)
    batch = [(ONE, 1.0)]  # effects: 9.1 and 8.1, then 0.2 and 17
    plan = Taylor().decide(problem(model, batch, remove=0.25)).plan
    assert plan.removed("0") == ()
    assert plan.removed("1") == (0,)
    plan = Taylor(allocation="uniform").decide(problem(model, batch)).plan
    assert (plan.removed("0"), plan.removed("1")) == ((1,), (0,))


# -- gates against gates that are really there ----------------------------------------------------------------------


class Gated(nn.Module):
    """Networks of which a gate z, ones by default, can be put into the forward pass: ``model(x)``, ``model(x, z)``."""

    def gate(self, x, z, axis=1):
        return x if z is None else x * z.view([-1 if d == axis else 1 for d in range(x.ndim)])


class Normed(Gated):
    """The gate stands behind the norm; SiLU, so that before and behind the activation differ."""

    group, width = "one", 3

    def __init__(self):
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3)

    def forward(self, x, z=None):
        return self.two(F.silu(self.gate(self.norm(self.one(x)), z)))


class Depthwise(Gated):
    """Two norms in a row: only the last one before the reader has the gate."""

    group, width = "one", 3

    def __init__(self):
        super().__init__()
        self.one, self.norm1 = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)
        self.depthwise, self.norm2 = nn.Conv2d(3, 3, 3, groups=3), nn.BatchNorm2d(3)
        self.two = nn.Conv2d(3, 2, 1)

    def forward(self, x, z=None):
        x = F.relu6(self.norm1(self.one(x)))
        return self.two(F.silu(self.gate(self.norm2(self.depthwise(x)), z)))


class Stream(Gated):
    """A residual stream: one gate on everything that is added up."""

    group, width = "stem", 3

    def __init__(self):
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)
        self.one, self.norm1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.two, self.norm2, self.head = nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)

    def forward(self, x, z=None):
        x = F.relu(self.gate(self.norm0(self.stem(x)), z))
        y = self.gate(self.norm2(self.two(F.relu(self.norm1(self.one(x))))), z)
        return self.head(F.relu(x + y))


class Flattened(Gated):
    """No norm: the gate is at what the linear layer reads, four places of each channel."""

    group, width = "one", 3

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 3, 3), nn.Linear(12, 2)

    def forward(self, x, z=None):
        return self.two(self.gate(torch.sigmoid(self.one(x)), z).flatten(1))


class TwoReaders(Gated):
    """Two layers read it, one of them a transposed convolution in two groups, whose halves go together."""

    group, width = "one", 2

    def __init__(self):
        super().__init__()
        self.one, self.up = nn.Conv2d(2, 4, 1), nn.ConvTranspose2d(4, 4, 2, groups=2, padding=1, stride=3)
        self.two, self.head = nn.Conv2d(4, 4, 3, groups=2), nn.Linear(4, 2)

    def forward(self, x, z=None):
        x = self.gate(torch.tanh(self.one(x)), None if z is None else z.repeat(2))
        return self.head(torch.tanh(self.two(x).mean((2, 3)) + self.up(x).mean((2, 3))))


class Heads(Gated):
    """Attention heads: the gate is at what the projection reads."""

    group, width = "qkv", 2

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 2)

    def forward(self, x, z=None):
        x = x.flatten(2)
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 2, 2).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = self.gate(F.scaled_dot_product_attention(q, k, v), z)
        return self.out(mixed.transpose(1, 2).reshape(*x.shape[:2], 4)).mean(1)


class Packed(Gated):
    """A stream read by a packed projection of an attention module, whose three parts are slices of one weight."""

    group, width = "one", 4

    def __init__(self):
        super().__init__()
        self.one, self.mix, self.head = nn.Linear(4, 4), nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

    def forward(self, x, z=None):
        x = self.gate(torch.sigmoid(self.one(x.flatten(2))), z, axis=2)
        return self.head(self.mix(x, x + 0, x + 0)[0]).mean(1)


class Twice(Gated):
    """A layer that is run twice on the same channels: its gradient holds both."""

    group, width = "one", 3

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 2, 1)

    def forward(self, x, z=None):
        x = self.gate(torch.sigmoid(self.one(x)), z)
        return self.two(x).square() + self.two(x.flip(2))


class Computed(Gated):
    """The reader's weight is normalised: the gate stands behind the layer that makes the channel, bias included."""

    group, width = "one", 3

    def __init__(self):
        super().__init__()
        self.one, self.two = weight_norm(nn.Conv2d(2, 3, 1)), weight_norm(nn.Conv2d(3, 2, 1), dim=None)

    def forward(self, x, z=None):
        return self.two(torch.sigmoid(self.gate(self.one(x), z)))


ARCHITECTURES = (Normed, Depthwise, Stream, Flattened, TwoReaders, Heads, Packed, Twice, Computed)


@pytest.mark.parametrize("kind", ARCHITECTURES, ids=[kind.__name__ for kind in ARCHITECTURES])
def test_gradients_of_gates_are_finite_differences_of_gates_put_into_the_network(kind):
    model = kind().double().eval()
    randomise(model, torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 2, 4, 4, dtype=torch.float64, generator=generator)
    x = x[:, :, :2, :2].repeat(1, 2, 1, 1) if kind in (Heads, Packed) else x
    labels = torch.randint(2, (5,), generator=generator)

    def loss(z):
        with torch.no_grad():
            out = model(x, z)
        return F.cross_entropy(out.flatten(2).mean(2) if out.ndim > 2 else out, labels)

    task = FunctionTask(
        inputs=lambda batch: batch[0],
        loss=lambda out, batch: F.cross_entropy(out.flatten(2).mean(2) if out.ndim > 2 else out, batch[1]),
        metric=lambda out, batch: out,
    )
    asked = problem(model, [(x, labels)], task=task)
    group = asked.graph.groups[kind.group]
    assert group.width == kind.width
    gate = gate_of(model, asked.graph, Flow(asked.graph), group)
    found = []
    each_gradient(
        asked, gate.names, lambda g: found.append(gate.gradient(asked.graph, g)), method="test", batch_count=1
    )
    ones, step = torch.ones(kind.width, dtype=torch.float64), 1e-5
    wanted = [(loss(ones + step * e) - loss(ones - step * e)) / (2 * step) for e in torch.eye(kind.width).double()]
    torch.testing.assert_close(found[0], torch.stack(wanted), rtol=1e-5, atol=1e-9)
    assert found[0].abs().min() > 1e-8, "a toy without effect proves nothing"


def test_the_gradient_of_a_linear_network_is_the_loss_without_the_channel():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)).double().eval()
    randomise(model, torch.Generator().manual_seed(0))
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    whole = model(x).sum().item()
    changes = []
    for channel in range(3):
        keep = torch.ones(3, dtype=torch.float64)
        keep[channel] = 0
        changes.append(whole - model[2](model[1](model[0](x)) * keep.view(1, 3, 1, 1)).sum().item())
    assert scores_of(model, [(x, 1.0)], "0") == pytest.approx([change**2 for change in changes])


# -- the model that is given ----------------------------------------------------------------------------------------


def test_gradients_of_a_half_precision_model_are_those_of_its_weights_in_single():
    case = CASES["residual"]
    half = case.model(torch.bfloat16)
    single = case.model(torch.bfloat16).float()
    data = case.data(torch.bfloat16)
    of_half = Taylor().decide(case.problem(model=half, dtype=torch.bfloat16, data=data)).scores
    data = [(images.float(), labels) for images, labels in data]
    of_single = Taylor().decide(case.problem(model=single, data=data)).scores
    for name, scores in of_half.items():
        assert torch.equal(scores, of_single[name])


def test_a_frozen_model_in_training_mode_is_scored_as_it_infers():
    case = CASES["residual"]
    wanted = Taylor().decide(case.problem()).scores
    asked = case.problem(model=case.model().train().requires_grad_(False))
    with torch.inference_mode():
        found = Taylor().decide(asked).scores
    for name, scores in wanted.items():
        assert torch.equal(found[name], scores)


def test_a_shuffling_loader_gives_the_same_scores_for_the_same_seed():
    data = torch.utils.data.TensorDataset(torch.randn(12, 1), torch.arange(12.0))
    loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)

    def found(seed):
        example = (ONE,)
        graph = trace(MODEL, example)
        return Taylor().decide(Problem(MODEL, graph, Budget(0.3), args=example, data=loader, task=SQUARED, seed=seed))

    assert torch.equal(found(1).scores["0"], found(1).scores["0"])
    assert not torch.equal(found(1).scores["0"], found(2).scores["0"])


SQUARED = FunctionTask(
    inputs=lambda batch: batch[0],
    loss=lambda output, batch: (output[:, 0] - batch[1]).square().mean(),
    metric=lambda output, batch: output,
)


# -- refusals -------------------------------------------------------------------------------------------------------


def refused(words, model=MODEL, batches=((ONE, 1.0),), method=None, **options):
    with pytest.raises(MethodError, match=words):
        scores_of(model, list(batches), "0", method, **options)


def test_missing_data_labels_and_batches_are_told_apart():
    example = (ONE,)
    for given in ({}, {"data": [(ONE, 1.0)]}, {"task": SUM}):
        with pytest.raises(MethodError, match=r"taylor takes gradients of the loss: give data= .* and task="):
            Taylor().decide(Problem(MODEL, trace(MODEL, example), Budget(0.3), args=example, **given))
    empty = Problem(MODEL, trace(MODEL, example), Budget(0.3), args=example, data=[], task=SUM)
    with pytest.raises(MethodError, match="taylor: data= gave no batch"):
        Taylor().decide(empty)
    refused("batch 0: .* the loss needs labels", batches=[ONE[None][0]], task=ClassificationTask())


def test_batches_that_do_not_fit_the_model_are_named():
    refused(
        "taylor, batch 1: the loss or its gradient cannot be computed, RuntimeError",
        batches=[(ONE, 1.0), (torch.ones(1, 2), 1.0)],
    )


def test_a_loss_without_gradient_is_refused():
    for loss in (lambda out, _: out.detach().sum(), lambda out, _: 1.0, lambda out, _: torch.cat([out, out])):
        task = FunctionTask(inputs=lambda batch: batch[0], loss=loss, metric=loss)
        refused("task.loss gave .*; expected one number that gradients flow through", task=task)


def test_activations_that_are_no_numbers_name_their_module():
    class Log(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.act, self.two = nn.Linear(1, 3), nn.Softplus(), nn.Linear(3, 1)
            self.root = nn.Identity()
            self.one.weight.data.fill_(-1.0)

        def forward(self, x):
            return self.two(self.root(torch.log(self.one(x) - 9.0)))

    model = Log()
    asked = problem(model, [(ONE, 1.0)])
    with pytest.raises(MethodError, match="batch 0: the loss is nan; module 'root' is the first to give NaN"):
        Taylor().decide(asked)
    refused("the loss is nan; the batch itself holds NaN", batches=[(ONE * float("nan"), 1.0)])
    refused("the loss is nan; every activation is finite", batches=[(ONE, float("nan"))])


def test_a_gradient_that_is_no_number_names_its_weight():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(1, 2, bias=False), nn.Linear(2, 1)

        def forward(self, x):
            return self.two(self.one(x).abs()).sqrt()

    model = Root()
    for layer in (model.one, model.two):
        layer.weight.data.fill_(0.0)
    model.two.bias.data.fill_(0.0)  # the slope of a root is infinite at 0
    with pytest.raises(MethodError, match=r"the gradient of 'two.weight' holds NaN or infinite"):
        Taylor().decide(problem(model, [(ONE, 1.0)]))


def test_bad_settings_are_refused():
    with pytest.raises(MethodError, match="form='gates': expected 'gate' or 'weight'"):
        Taylor(form="gates")
    for momentum in (1, -0.1, float("nan")):
        with pytest.raises(MethodError, match=r"momentum=.*: expected a number in \[0, 1\)"):
            Taylor(momentum=momentum)
    for count in (0, 2.5):
        with pytest.raises(MethodError, match=r"batch_count=.*: expected a whole number"):
            Taylor(batch_count=count)
    refused("residual='keep': expected one of", method=Taylor(residual="keep"))
    refused("allocation='even'", method=Taylor(allocation="even"))
    with pytest.raises(BudgetError, match="at most"):
        scores_of(MODEL, [(ONE, 1.0)], "0", remove=0.9)
    with pytest.raises(NothingToPrune, match="protect"):
        scores_of(MODEL, [(ONE, 1.0)], "0", protect=("",))
