"""SNIP: |w dL/dw|, normalised, of one batch; at the weights given or at fresh ones."""

import pytest
import torch
from torch import nn

from secateur import Budget, sparsify
from secateur.errors import MethodError
from secateur.methods import Snip, WeightProblem
from secateur.methods._weight_choice import LayerKeptAlive
from secateur.train import ClassificationTask, FunctionTask, RegressionTask

HALF_SQUARE = FunctionTask(
    inputs=lambda batch: batch[0],
    loss=lambda output, batch: (output.squeeze(1) - batch[1]).square().mean() / 2,
    metric=lambda output, batch: (output.squeeze(1) - batch[1]).square(),
)


def problem(model, data, remove=0.5, task=None, **given):
    return WeightProblem(model, Budget(remove, "weights"), data=data, task=task or ClassificationTask(), **given)


def unit(*weights):
    model = nn.Linear(len(weights), 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([weights]))
    return model


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 4))


def images(count=8):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 6, 6, generator=generator), torch.arange(count) % 4


def test_scores_of_a_linear_unit_are_those_of_the_closed_form():
    """L = (w.x - y)^2 / 2: s_j = |(w.x - y) x_j w_j|, by the sum; tells w from |w|, x from x^2, and s from s^2."""
    w, x, y = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([1.0, 3.0, -4.0]), 0.25
    data = [(x[None].double(), torch.tensor([y]).double())]
    scores = Snip().choose(problem(unit(*w.tolist()), data, 1 / 3, HALF_SQUARE)).scores["weight"][0]
    wanted = ((w @ x - y) * x * w).abs().double()
    torch.testing.assert_close(scores, wanted / wanted.sum())


def test_scores_are_the_change_of_the_loss_with_each_switch():
    model, (x, y) = network().double(), images()
    scores = Snip(norm_statistics="running").choose(problem(model, [(x.double(), y)])).scores
    model.eval()
    for name in ("0.weight", "4.weight"):
        parameter = model.get_parameter(name)
        slopes = []
        for place in range(0, parameter.numel(), parameter.numel() // 5):
            losses = []
            for switch in (1 + 1e-6, 1 - 1e-6):
                with torch.no_grad():
                    kept = parameter.view(-1)[place].item()
                    parameter.view(-1)[place] = kept * switch
                    losses.append(nn.functional.cross_entropy(model(x.double()), y))
                    parameter.view(-1)[place] = kept
            slopes.append(abs(float(losses[0] - losses[1])) / 2e-6)
        found = scores[name].flatten()[:: parameter.numel() // 5][: len(slopes)]
        ratios = torch.tensor(slopes, dtype=torch.float64) / found
        torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios), rtol=1e-4, atol=0)


def test_scores_of_all_layers_add_up_to_one():
    scores = Snip().choose(problem(network(), [images()])).scores
    assert sum(float(s.sum()) for s in scores.values()) == pytest.approx(1)


def test_several_batches_are_one_large_batch():
    x, y = images(8)
    halves = [(x[:4], y[:4]), (x[4:], y[4:])]
    made = Snip(norm_statistics="running", batch_count=2)
    two = made.choose(problem(network(), halves)).scores
    one = made.choose(problem(network(), [(x, y)])).scores
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-9)


def test_one_batch_is_read_unless_told_otherwise():
    x, y = images(8)
    one = Snip().choose(problem(network(), [(x[:4], y[:4]), (x[4:], y[4:])])).plan
    assert one == Snip().choose(problem(network(), [(x[:4], y[:4])])).plan


def test_norms_use_the_statistics_of_the_batch_and_the_callers_are_left_alone():
    model, data = network().eval(), [images()]
    with torch.no_grad():
        model[1].running_mean.fill_(0.3)
        model[1].running_var.copy_(torch.arange(1.0, 7.0))
    other = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert Snip().choose(problem(model, data)).plan == Snip().choose(problem(other, data)).plan
    assert Snip(norm_statistics="running").choose(problem(model, data)).plan != Snip().choose(problem(other, data)).plan
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.training


def test_dropout_is_off():
    x, y = images()
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(108, 4)).train()
    bare = nn.Sequential(nn.Flatten(), nn.Identity(), model[2])
    assert Snip().choose(problem(model, [(x, y)])).plan == Snip().choose(problem(bare, [(x, y)])).plan


def test_trained_weights_are_scored_as_they_are_and_nothing_is_drawn():
    model = network()
    result = sparsify(model, budget=Budget(0.5, "weights"), method="snip", data=[images()], task=ClassificationTask())
    kept = result.plan.kept["0.weight"]
    assert result.decision.model is None
    assert torch.equal(result.model[0].weight[kept], model[0].weight[kept])


def test_variance_scaling_starts_a_copy_anew():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(400, 300), nn.BatchNorm1d(300), nn.Linear(300, 200))
    with torch.no_grad():
        for tensor in [*model.parameters(), model[1].running_mean]:
            tensor.fill_(7.0)
    data = [(torch.randn(16, 400), torch.arange(16))]
    made = Snip(start="variance_scaling")
    decision = made.choose(problem(model, data, 0.9, seed=3))
    fresh = decision.model
    for layer, inputs in ((fresh[0], 400), (fresh[2], 300)):
        assert float(layer.weight.detach().var()) * inputs == pytest.approx(1, abs=0.03)
        assert layer.weight.abs().max() <= 2 / inputs**0.5 / 0.8796 + 1e-6
        assert not layer.bias.any()
    assert fresh[1].weight.eq(1).all()
    assert not fresh[1].running_mean.any()
    assert all(p.eq(7).all() for p in model.parameters())
    again, other = (made.choose(problem(model, data, 0.9, seed=s)).model for s in (3, 4))
    assert torch.equal(again[0].weight, fresh[0].weight)
    assert not torch.equal(other[0].weight, fresh[0].weight)


def test_a_result_at_fresh_weights_is_those_weights_with_zeros():
    made = Snip(start="variance_scaling")
    result = sparsify(network(), budget=Budget(0.8, "weights"), method=made, data=[images()], task=ClassificationTask())
    for name, mask in result.plan.kept.items():
        assert torch.equal(result.model.get_parameter(name), result.decision.model.get_parameter(name) * mask)


def test_parameters_that_nobody_knows_how_to_start_are_refused_by_name():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.head = nn.Parameter(torch.ones(3)), nn.Linear(3, 4)

        def forward(self, x):
            return self.head(x.mean((2, 3)) + self.token)

    model = nn.Sequential(Own())
    with pytest.raises(MethodError, match=r"'0\.token' belongs to Own.*start='given'"):
        Snip(start="variance_scaling").choose(problem(model, [images()]))
    assert Snip().choose(problem(model, [images()])).plan.removed_count == 6


def test_dead_weights_go_before_those_without_a_gradient():
    """The first unit is dead: its weights have no gradient, and still outlive those that are zero."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
        model[0].bias.copy_(torch.tensor([-100.0, 0.0]))
        model[2].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, -4.0]]))
    plan = Snip().choose(problem(model, [(torch.ones(2, 2), torch.tensor([0, 1]))], 1 / 8)).plan
    assert plan.kept["0.weight"].tolist() == [[True, True], [True, False]]


def test_a_layer_that_would_be_emptied_is_kept_alive_and_reported():
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.strong, self.weak = nn.Linear(108, 4), nn.Linear(108, 4)

        def forward(self, x):
            return self.strong(x.flatten(1)) + self.weak(x.flatten(1))

    model = Beside()
    with torch.no_grad():
        model.weak.weight.mul_(1e-9)
    with pytest.warns(LayerKeptAlive, match=r"weak\.weight would have lost every weight"):
        plan = Snip().choose(problem(model, [images()], 0.6)).plan
    assert plan.kept["weak.weight"].sum(1).tolist() == [1, 1, 1, 1]
    assert plan.removed_count == -int(-0.6 * plan.weight_count // 1)


def test_recurrent_and_attention_layers_are_scored():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.lstm = nn.Embedding(7, 8), nn.LSTM(8, 8, batch_first=True)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 4)

        def forward(self, tokens):
            x = self.lstm(self.table(tokens))[0]
            return self.head(self.attention(x, x, x)[0].mean(1))

    torch.manual_seed(0)
    data = [(torch.randint(7, (8, 5)), torch.arange(8) % 4)]
    scores = Snip().choose(problem(Reader(), data)).scores
    assert {"lstm.weight_ih_l0", "attention.in_proj_weight", "head.weight"} <= set(scores)
    assert all(s.max() > 0 for s in scores.values())
    assert Snip(start="variance_scaling").choose(problem(Reader(), data)).model is not None


def test_what_is_missing_or_wrong_is_said():
    x, y = images()
    with pytest.raises(MethodError, match="data="):
        Snip().choose(problem(network(), None))
    with pytest.raises(MethodError, match="labels"):
        Snip().choose(problem(network(), [(x,)]))
    with pytest.raises(MethodError, match="gave no batch"):
        Snip().choose(problem(network(), []))
    with pytest.raises(MethodError, match=r"loss is nan.*the batch itself"):
        Snip().choose(problem(network(), [(x * float("nan"), y)]))
    with pytest.raises(MethodError, match="cannot be computed"):
        Snip().choose(problem(network(), [(x[:, :2], y)]))
    lone = nn.Sequential(nn.Flatten(), nn.Linear(108, 4), nn.BatchNorm1d(4))
    with pytest.raises(MethodError, match="more than 1 value per channel"):
        Snip().choose(problem(lone, [(x[:1], y[:1])]))
    with pytest.raises(MethodError, match="every weight that can go is zero"):
        Snip().choose(
            problem(unit(1.0, 2.0), [(torch.zeros(1, 2).double(), torch.zeros(1, 1).double())], task=RegressionTask())
        )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"start": "fresh"}, "start"),
        ({"batch_count": 0}, "batch_count"),
        ({"batch_count": True}, "batch_count"),
        ({"norm_statistics": "none"}, "norm_statistics"),
        ({"scope": "channel"}, "scope"),
    ],
)
def test_settings_without_sense_are_refused(settings, said):
    with pytest.raises(MethodError, match=said):
        Snip(**settings)
