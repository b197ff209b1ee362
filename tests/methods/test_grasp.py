"""GraSP: theta o (H g), exactly; those that hold the gradient's norm up stay."""

import pytest
import torch
from torch import nn

from secateur import Budget, sparsify
from secateur.errors import MethodError
from secateur.methods import Grasp, WeightProblem
from secateur.train import ClassificationTask, FunctionTask, RegressionTask


class Vector(nn.Module):
    """A bare weight: its quadratic form is the loss."""

    def __init__(self, theta):
        super().__init__()
        self.layer = nn.Linear(len(theta), 1, bias=False).double()
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([theta], dtype=torch.float64))

    def forward(self, matrix):
        return (self.layer.weight[0] @ matrix) @ self.layer.weight[0] / 2


QUADRATIC = FunctionTask(
    inputs=lambda batch: batch[0],
    loss=lambda output, batch: output + 0 * batch[0].sum(),
    metric=lambda output, _: output,
)
THETA = [1.0, -2.0, 0.2]
HESSIAN = torch.tensor([[2.0, 1.0, 0.0], [1.0, 3.0, -1.0], [0.0, -1.0, 4.0]], dtype=torch.float64)


def problem(model, data, remove=1 / 3, task=None, **given):
    return WeightProblem(model, Budget(remove, "weights"), data=data, task=task or ClassificationTask(), **given)


def network(norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), norm(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 4))


def images(count=8):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 6, 6, generator=generator), torch.arange(count) % 4


def test_on_a_quadratic_the_hessian_times_the_gradient_is_exact():
    """g = H theta; the largest S = -theta o (H g) goes, which is neither the smallest |S| nor the smallest weight."""
    theta = torch.tensor(THETA, dtype=torch.float64)
    decision = Grasp().choose(problem(Vector(THETA), [(HESSIAN,)], 1 / 3, QUADRATIC))
    wanted = theta * (HESSIAN @ HESSIAN @ theta)
    torch.testing.assert_close(decision.scores["layer.weight"][0], wanted, rtol=1e-14, atol=0)
    torch.testing.assert_close(wanted, torch.tensor([-5.2, 36.8, 3.28], dtype=torch.float64))
    assert decision.plan.kept["layer.weight"].tolist() == [[False, True, True]]


def test_over_several_batches_the_gradient_is_of_the_whole_sample_first():
    """(mean H)(mean g), not the mean of each batch's H g."""
    one, other = HESSIAN, torch.diag(torch.tensor([1.0, 0.0, 5.0], dtype=torch.float64))
    theta, mean = torch.tensor(THETA, dtype=torch.float64), (one + other) / 2
    scores = Grasp(batch_count=2).choose(problem(Vector(THETA), [(one,), (other,)], task=QUADRATIC)).scores
    torch.testing.assert_close(scores["layer.weight"][0], theta * (mean @ mean @ theta))
    scores = Grasp().choose(problem(Vector(THETA), [(one,), (other,)], task=QUADRATIC)).scores
    torch.testing.assert_close(scores["layer.weight"][0], theta * (one @ one @ theta))


def test_scores_tell_how_the_gradients_norm_changes():
    """To first order |g|^2 / 2 at (1 - e) theta_j is lower by e score_j; on a network with the paper's temperature."""
    model, (x, y) = network(nn.Identity).double(), images()
    scores = Grasp().choose(problem(model, [(x.double(), y)])).scores
    weights = [model[0].weight, model[4].weight]

    def half_square():
        loss = nn.functional.cross_entropy(model(x.double()) / 200, y)
        return sum(g.square().sum() for g in torch.autograd.grad(loss, weights)) / 2

    for name, weight in (("0.weight", weights[0]), ("4.weight", weights[1])):
        for place in (0, 7, 50):
            kept, found = weight.detach().view(-1)[place].item(), []
            for factor in (1 + 1e-4, 1 - 1e-4):
                weight.detach().view(-1)[place] = kept * factor
                found.append(float(half_square()))
            weight.detach().view(-1)[place] = kept
            assert (found[0] - found[1]) / 2e-4 == pytest.approx(
                float(scores[name].view(-1)[place]), rel=1e-4, abs=1e-12
            )


def test_temperature_is_of_logits_only():
    data = [images()]
    given, hot = (Grasp(temperature=t).choose(problem(network(), data)).scores for t in (None, 200))
    cold = Grasp(temperature=1).choose(problem(network(), data)).scores
    torch.testing.assert_close(given, hot)
    assert not torch.allclose(given["4.weight"] * 200**2, cold["4.weight"], rtol=0.01)
    model = nn.Linear(3, 2)
    pairs = [(torch.ones(4, 3), torch.ones(4, 2))]
    none, one, two = (Grasp(temperature=t).choose(problem(model, pairs, task=RegressionTask())) for t in (None, 1, 2))
    torch.testing.assert_close(none.scores, one.scores)
    assert not torch.allclose(one.scores["weight"], two.scores["weight"])


def test_norms_use_the_batch_and_the_callers_are_left_alone():
    model, data = network().eval(), [images()]
    with torch.no_grad():
        model[1].running_mean.fill_(0.3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert Grasp().choose(problem(model, data)).plan == Grasp().choose(problem(network(), data)).plan
    running = Grasp(norm_statistics="running")
    assert running.choose(problem(model, data)).plan != running.choose(problem(network(), data)).plan
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_protected_weights_take_part_in_the_gradient():
    data = [images()]
    all_of_it = Grasp().choose(problem(network(), data)).scores
    part = Grasp().choose(problem(network(), data, protect=("0",))).scores
    assert set(part) == {"4.weight"}
    torch.testing.assert_close(part["4.weight"], all_of_it["4.weight"])


def test_attention_and_recurrent_layers_are_scored():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.gru = nn.Embedding(7, 8), nn.GRU(8, 8, batch_first=True)
            self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.head = nn.Linear(8, 4)

        def forward(self, tokens):
            return self.head(self.block(self.gru(self.table(tokens))[0]).mean(1))

    torch.manual_seed(0)
    data = [(torch.randint(7, (8, 5)), torch.arange(8) % 4)]
    scores = Grasp().choose(problem(Reader(), data)).scores
    assert {"gru.weight_hh_l0", "block.self_attn.in_proj_weight", "head.weight"} <= set(scores)
    assert all(s.abs().max() > 0 for s in scores.values())


def test_it_can_be_called_by_name():
    result = sparsify(
        network(), budget=Budget(0.9, "weights"), method="grasp", data=[images()], task=ClassificationTask()
    )
    assert result.plan.removed_count == -int(-0.9 * result.plan.weight_count // 1)
    assert result.decision.model is None


def test_what_is_missing_or_wrong_is_said():
    x, y = images()
    with pytest.raises(MethodError, match="data="):
        Grasp().choose(problem(network(), None))
    with pytest.raises(MethodError, match="labels"):
        Grasp().choose(problem(network(), [(x,)]))
    with pytest.raises(MethodError, match="gave no batch"):
        Grasp().choose(problem(network(), []))
    with pytest.raises(MethodError, match="loss is nan"):
        Grasp().choose(problem(network(), [(x * float("nan"), y)]))
    linear = FunctionTask(inputs=lambda b: b[0], loss=lambda output, _: output.mean(), metric=lambda output, _: output)
    with pytest.raises(MethodError, match="linear in the weights"):
        Grasp().choose(problem(nn.Linear(3, 2), [(torch.ones(4, 3), 0)], task=linear))
    worded = FunctionTask(inputs=lambda b: b[0], loss=lambda *_: torch.tensor(1.0), metric=lambda output, _: output)
    with pytest.raises(MethodError, match="depends on no weight"):
        Grasp().choose(problem(network(), [(x, y)], task=worded))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": 0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"batch_count": 1.0}, "batch_count"),
        ({"norm_statistics": "eval"}, "norm_statistics"),
        ({"scope": "group"}, "scope"),
    ],
)
def test_settings_without_sense_are_refused(settings, said):
    with pytest.raises(MethodError, match=said):
        Grasp(**settings)
