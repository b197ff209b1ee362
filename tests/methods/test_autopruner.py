"""AutoPruner: gradients through codes, codes that become binary and are met by the budget, hooks that go again."""

from __future__ import annotations

import copy
import gc
import logging

import pytest
import torch
from torch import nn

from secateur import Budget, mask, prune, shrink, trace
from secateur.errors import MethodError
from secateur.methods import AutoPruner, Problem
from secateur.methods._coding import (
    CodingLayer,
    Reader,
    adapted_penalty,
    code_loss,
    pooled,
    readers_of,
)
from secateur.train import Attachment, ClassificationTask, Recipe, evaluate, fit

from ..contract.cases import CASES
from ..graph.test_cases import prepared
from .attached_runs import (
    RECIPE,
    batches,
    lost_on_digits,
    moment_of,
    problem_of,
    run,
    run_by_hand,
    small_net,
    tensors,
)

DOUBLE = torch.float64
LOG = "secateur.methods.autopruner"
BRISK = AutoPruner(adapt_steps=2, search=0.6)


def coder(sizes=(8, 8), width=3, places=None, **options):
    index = torch.arange(width).view(-1, 1) if places is None else places
    reader = Reader("conv", -1 - len(sizes), index.numel(), {"group": index}, sizes)
    return CodingLayer(reader, "group", **{"pool": None, "spread": 1.0, "seed": 0, "dtype": DOUBLE} | options)


def code_of(layer, activation, alpha=1.0):
    return torch.sigmoid(alpha * layer(layer.reader.mean(activation)))


def hooks(model):
    return [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]


def test_gradients_of_gate_and_activation_are_those_of_finite_differences():
    layer, generator = coder(sizes=(8,), width=2), torch.Generator().manual_seed(1)
    activation = torch.randn(3, 2, 8, dtype=DOUBLE, generator=generator, requires_grad=True)

    def gated(activation, weight, bias):
        layer.weight, layer.bias = weight, bias
        return activation * code_of(layer, activation, 1.5).view(-1, 1)

    assert torch.autograd.gradcheck(gated, (activation, layer.weight, layer.bias))


def test_the_code_comes_from_the_pooled_batch_mean_by_a_full_size_kernel():
    layer, activation = coder(), torch.randn(4, 3, 8, 8, dtype=DOUBLE)
    pooled_mean = nn.functional.max_pool2d(activation.mean(0, keepdim=True), 2)
    wanted = nn.functional.conv2d(pooled_mean, layer.weight.view(3, 3, 4, 4), layer.bias)
    torch.testing.assert_close(layer(layer.reader.mean(activation)), wanted.flatten())


def test_small_maps_are_not_pooled_and_a_bound_pools_more():
    assert [pooled(size, None) for size in (1, 7, 8, 14, 224)] == [1, 7, 4, 7, 112]
    assert [pooled(size, 7) for size in (5, 8, 224)] == [5, 4, 7]
    assert coder(sizes=(7, 7)).weight.shape == (3, 3 * 49)
    assert coder(sizes=(56, 56), pool=7).weight.shape == (3, 3 * 49)
    assert coder(sizes=(), width=3).weight.shape == (3, 3)


def test_weights_start_with_ten_times_he_s_deviation():
    layer = coder(sizes=(32, 32), width=16, spread=10.0)
    wanted = 10 * (2 / (16 * 16 * 16)) ** 0.5
    assert layer.weight.std().item() == pytest.approx(wanted, rel=0.02)


def test_a_large_scale_makes_codes_binary():
    layer, activation = coder(spread=10.0), torch.randn(4, 3, 8, 8, dtype=DOUBLE)
    assert bool(((code_of(layer, activation, 0.01) - 0.5).abs() < 0.2).all())
    code = code_of(layer, activation, 1e6)
    assert torch.equal(code, code.round())


def test_all_places_of_a_channel_enter_its_code():
    """A flattened map: channel k takes columns 2 k and 2 k + 1."""
    layer = coder(sizes=(), places=torch.arange(6).view(3, 2))
    activation = torch.randn(4, 6, dtype=DOUBLE)
    wanted = layer.weight @ activation.mean(0) + layer.bias
    torch.testing.assert_close(layer(layer.reader.mean(activation)), wanted)


def test_the_loss_is_zero_just_where_the_mean_of_the_code_is_the_fraction_to_keep():
    assert code_loss(torch.tensor([1.0, 1.0, 0.0, 0.0]), 0.5) == 0
    assert code_loss(torch.tensor([0.5, 0.75, 0.25, 0.5]), 0.5) == 0
    assert code_loss(torch.tensor([1.0, 1.0, 1.0, 0.0]), 0.5) == 0.0625
    assert code_loss(torch.tensor([1.0, 0.0, 0.0, 0.0]), 0.5) == 0.0625


def attached_to(model, remove=0.5, **settings):
    return AutoPruner(**settings).attach(problem_of(model, remove=remove))


def stepped(model, attached, moment, images, labels):
    loss = nn.functional.cross_entropy(model(images), labels)
    extra = attached.extra_loss(moment)
    (loss + extra).backward()
    attached.after_backward(moment)
    attached.after_step(moment)
    return extra


def test_the_extra_loss_adds_up_over_layers_with_the_fraction_that_the_budget_leaves():
    model = small_net().train()
    attached = attached_to(model, penalty=2.0)
    assert {name: code.keep for name, code in attached._codes.items()} == {"0": 0.5, "3": 0.5}
    model(batches()[0][0])
    codes = [code.value for code in attached._codes.values()]
    wanted = sum(2.0 * (code.mean() - 0.5) ** 2 for code in codes)
    torch.testing.assert_close(attached.extra_loss(moment_of(model)), wanted)
    wanted.backward()
    assert all(bool(code.layer.weight.grad.any()) for code in attached._codes.values())


def test_what_is_read_is_multiplied_by_the_code():
    model, images = small_net().train(), batches()[0][0]
    plain = copy.deepcopy(model)
    attached = attached_to(model)
    found = model(images)
    first, second = (code.value.view(-1, 1, 1) for code in attached._codes.values())
    hidden = plain[:3](images)
    hidden = plain[3:6](hidden * first)
    torch.testing.assert_close(found, plain[6:](hidden * second))


def test_lambda_follows_the_distance_of_the_binary_code_from_the_fraction_to_keep():
    assert adapted_penalty(1.0, 0.25) == 75.0
    assert adapted_penalty(0.25, 0.25) == 0.0
    model = small_net().train()
    attached = attached_to(model, adapt_steps=3)
    code = attached._codes["0"]
    outputs = torch.tensor([[1.0] * 8, [1.0] * 2 + [-1.0] * 6, [1.0] * 3 + [-1.0] * 5], dtype=DOUBLE)
    for step, output in enumerate(outputs):  # on in two of three steps: channels 0, 1 and 2
        code.output, code.value = output, torch.sigmoid(output)
        attached.after_step(moment_of(model, epoch_count=4, step=step))
        assert code.penalty == (10.0 if step < 2 else pytest.approx(100 * (0.5 - 3 / 8)))
    constant = attached_to(small_net(), adapt=0.0)._codes["0"]
    constant.output, constant.value = outputs[0], torch.sigmoid(outputs[0])
    constant.count_()
    constant.adapt_(0.0, 1.0)
    assert constant.penalty == 10.0


def test_alpha_is_lifted_for_a_code_that_is_too_empty_then_already_for_less():
    code = attached_to(small_net())._codes["0"]
    for on, lift in ((1, 0.0), (0, 1.0), (1, 1.0)):  # 7 of 8 at 0 are 87.5 %; the bounds are 95 %, then 90 %
        code.output = torch.tensor([1.0] * on + [-1.0] * (8 - on), dtype=DOUBLE)
        code.value = torch.sigmoid(code.output)
        code.count_()
        code.adapt_(100.0, 1.0)
        assert code.lift == lift
    assert code.full == pytest.approx(0.90)
    for _ in range(20):
        code.output = torch.full((8,), -1.0, dtype=DOUBLE)
        code.value = torch.sigmoid(code.output)
        code.count_()
        code.adapt_(100.0, 0.5)
    assert code.full == 0.5


def test_alpha_rises_from_start_to_end_over_the_search():
    model, seen = small_net(), []

    class Look(Attachment):
        def extra_loss(self, moment):
            seen.append(attached._alpha)

    attached = AutoPruner(alpha_start=1.0, alpha_end=9.0, search=2 / 3).attach(problem_of(model, data=batches()))
    fit(model, batches(), ClassificationTask(), RECIPE, attachments=[attached, Look()], progress=False)
    assert seen[:8] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    assert not attached._parts


@pytest.mark.parametrize("scope", ["net", "layer"])
def test_codes_are_binary_at_the_end_and_about_as_many_are_on_as_the_budget_keeps(scope, caplog):
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 12, 3), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)),
    ).double()
    images, labels = (torch.cat(own) for own in zip(*batches(), strict=True))
    data, codes = [(images, labels)] * 25, {}

    class Look(Attachment):
        def extra_loss(self, moment):
            codes.update({name: attached._codes[name].value.detach() for name in attached._parts[0]})

    attached = AutoPruner(scope=scope, search=1.0, adapt_steps=10).attach(problem_of(model, data=data))
    with caplog.at_level(logging.WARNING, logger=LOG):
        fit(model, data, ClassificationTask(), RECIPE.replace(epochs=4), attachments=[attached, Look()], progress=False)
        plan = attached.finish().plan
    assert not caplog.text
    for name, width in (("0", 16), ("3", 12)):
        assert bool(((codes[name] < 0.1) | (codes[name] > 0.9)).all())
        assert abs(int((codes[name] > 0.5).sum()) - width // 2) <= 1
        assert len(plan.kept[name]) == width // 2


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gated_by_binary_codes_the_network_is_the_masked_and_the_shrunk_one(case):
    """In eval mode codes are binary; here they are set to be what the budget wants."""
    given = case.problem(0.3, dtype=DOUBLE)
    model, images = given.model.eval(), case.images(DOUBLE)
    attached = AutoPruner().attach(given)
    for number, (name, code) in enumerate(attached._codes.items()):
        width, generator = len(code.layer.bias), torch.Generator().manual_seed(number)
        on = torch.randperm(width, generator=generator)[: attached._counts[name]]
        binary = torch.zeros(width, dtype=DOUBLE).index_fill(0, on, 1.0)
        code.recent = torch.stack([binary, binary, 2 * binary - 1, 0 * binary])
    attached._step_count = 1
    with torch.no_grad():
        gated = model(images)
        plan = attached.finish().plan
        assert plan.removed_count
        torch.testing.assert_close(model(images), gated)
        torch.testing.assert_close(mask(model, given.graph, plan)(images), gated)
        torch.testing.assert_close(shrink(model, given.graph, plan)(images), gated)


def test_what_a_code_is_when_it_is_not_binary_goes_into_the_weights():
    model = small_net().eval()
    before = model[3].weight.clone()
    attached = attached_to(model, allocation={"0": 1.0}, remove=0.25)
    value = torch.tensor([0.9, 0.1, 0.2, 0.8, 0.7, 0.3, 0.6, 0.95], dtype=DOUBLE)
    attached._codes["0"].recent = torch.stack(
        [(value > 0.5).double(), value, value - 0.5, torch.minimum(value, 1 - value)]
    )
    attached._step_count = 1
    plan = attached.finish().plan
    assert plan.removed("0") == (1, 2, 5, 6)
    factors = value.index_fill(0, torch.tensor([1, 2, 5, 6]), 0.0)
    torch.testing.assert_close(model[3].weight, before * factors.view(1, -1, 1, 1))


def test_groups_that_lose_nothing_are_not_gated():
    attached = attached_to(small_net(), remove=0.25, allocation={"0": 1.0})
    assert list(attached._codes) == ["0"]
    model = small_net()
    before = copy.deepcopy(tensors(model))
    attached = attached_to(model, remove=0.0)
    assert not hooks(model)
    assert attached.finish().plan.removed_count == 0
    assert all(torch.equal(one, other) for one, other in zip(before, tensors(model), strict=True))


def test_parts_of_the_network_follow_each_other():
    problem = CASES["residual"].problem()
    assert AutoPruner(scope="layer").attach(problem)._parts == [["conv1"], ["conv3"]]
    assert AutoPruner(scope="stage").attach(problem)._parts == [["conv1"], ["conv3"]]  # 8x8 and 4x4
    assert AutoPruner().attach(problem)._parts == [["conv1", "conv3"]]
    attached = AutoPruner(scope="layer", search=0.5).attach(problem)
    attached._begin(moment_of(problem.model, epoch_count=10))
    assert attached._ends == [2, 5]
    short = AutoPruner(scope="layer", search=0.5).attach(problem)
    short._begin(moment_of(problem.model, epoch_count=2))
    assert (short._parts, short._ends) == ([["conv1", "conv3"]], [1])


def test_in_eval_mode_the_network_is_gated_by_what_most_steps_said():
    model, images = small_net(), batches()[0][0]
    attached = attached_to(model)
    plain = model.eval()(images)
    on = torch.tensor([0.9, 0.4, 1.0, 0.6, 0.0, 0.1, 0.2, 0.51], dtype=DOUBLE)
    attached._codes["0"].recent = on.expand(4, -1)
    gated = model(images)
    assert not torch.equal(gated, plain)
    by_hand = copy.deepcopy(model)
    with torch.no_grad():
        by_hand[3].weight[:, [1, 4, 5, 6]] = 0
    torch.testing.assert_close(by_hand(images), gated)


def test_hooks_are_gone_after_the_end_and_with_the_attachment():
    model, attached, _ = run(BRISK)
    assert not hooks(model)
    model = small_net()
    attached = attached_to(model)
    assert len(hooks(model)) == 2
    del attached
    gc.collect()
    assert not hooks(model)


def test_a_copy_of_the_model_is_not_gated():
    model, images = small_net(), batches()[0][0]
    attached = attached_to(model)
    twin = copy.deepcopy(model).train()
    plain = small_net().train()
    torch.testing.assert_close(twin(images), plain(images), rtol=0, atol=0)
    assert attached.extra_loss(moment_of(model)) is None


def test_the_seed_decides_over_the_coding_layers_and_the_process_does_not():
    def weights(seed, process_seed):
        model = small_net()
        torch.manual_seed(process_seed)
        return AutoPruner().attach(problem_of(model, seed=seed))._codes["0"].layer.weight

    assert torch.equal(weights(1, 5), weights(1, 6))
    assert not torch.equal(weights(1, 5), weights(2, 5))


def test_groups_that_several_layers_read_have_one_code():
    case = CASES["concat"]
    found, why = readers_of(case.graph, list(case.graph.groups))
    assert not why
    assert found["left"] == found["right"]
    assert found["left"][0].places["right"].flatten().tolist() == list(range(8, 14))


class Shared(nn.Module):
    """A layer that is called twice, and one that does more with its input than multiply it."""

    def __init__(self):
        super().__init__()
        self.make, self.one, self.other = nn.Linear(3, 6), nn.Linear(6, 4), Adding()

    def forward(self, x):
        x = self.make(x).relu()
        return self.other(self.one(x.mul(2)) + self.one(x))


class Adding(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 4))

    def forward(self, x):
        return nn.functional.linear(x, self.weight).sum(1) + nn.functional.linear(x * 2, self.weight).sum(1)


def test_modules_that_do_more_with_their_input_are_told_from_those_that_do_not():
    model = Shared()
    graph = trace(model, torch.zeros(2, 3))
    found, why = readers_of(graph, list(graph.groups))
    assert {name: [reader.path for reader in own] for name, own in found.items()} == {"make": ["one"]}
    assert list(why) == ["one"]
    assert "'other' does more with its input" in why["one"]


def test_attention_of_torch_is_left_whole_with_the_reason(caplog):
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    images = torch.zeros(2, 5, 8)
    with caplog.at_level(logging.INFO, logger="secateur.methods"):
        attached = AutoPruner().attach(Problem(model, trace(model, images), Budget(0.1, "macs"), args=(images,)))
    assert list(attached._codes) == ["linear1"]
    assert "does more with its input than multiply it by one weight" in caplog.text


def test_in_bfloat16_under_autocast_codes_stay_in_float32():
    model = small_net(torch.float32).train()
    attached = AutoPruner().attach(problem_of(model, dtype=torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(batches(torch.float32)[0][0])
    assert found.dtype == torch.bfloat16
    assert attached._codes["3"].value.dtype == torch.float32


def test_residual_streams_are_coded_on_request():
    case = CASES["residual"]
    assert sorted(AutoPruner().attach(case.problem(0.2))._codes) == ["conv1", "conv3"]
    method = AutoPruner(residual="prune", recipe=Recipe(epochs=2, lr=0.01))
    given = {"data": case.data(), "task": ClassificationTask(), "budget": Budget(0.3)}
    result = prune(case.model(), case.images(), method=method, **given)
    assert result.verification.is_exact
    assert sorted(method.attach(case.problem(0.2))._codes) == ["conv1", "conv3", "conv4", "stem"]


def test_evaluation_meanwhile_sees_the_network_without_what_is_off():
    model = small_net()
    attached = attached_to(model)
    attached._codes["0"].recent = torch.zeros(4, 8, dtype=DOUBLE)
    attached._codes["3"].recent = torch.zeros(4, 6, dtype=DOUBLE)
    data = batches()
    accuracy = evaluate(model, data, ClassificationTask())
    with torch.no_grad():
        always = int(model[8].bias.argmax())
    assert accuracy == pytest.approx(torch.cat([labels for _, labels in data]).eq(always).double().mean().item())


def test_the_log_says_when_training_was_too_short(caplog):
    with caplog.at_level(logging.WARNING, logger=LOG):
        run_by_hand(AutoPruner(alpha_end=0.1, lift=0.0, search=1.0))
    assert "autopruner: the code of 0 is not binary" in caplog.text
    model = small_net().train()
    attached = attached_to(model)
    stepped(model, attached, moment_of(model, epoch_count=3), *batches()[0])
    with caplog.at_level(logging.WARNING, logger=LOG):
        assert attached.finish().plan.removed_count == 7
    assert "training ended after 1 steps, while codes of 2 layers were being learned" in caplog.text


def test_bad_runs_are_refused():
    model = small_net()
    attached = attached_to(model)
    other = AutoPruner().attach(CASES["concat"].problem()).state_dict()
    with pytest.raises(MethodError, match="resume with the model and settings that were saved"):
        attached.load_state_dict(other)
    with pytest.raises(MethodError, match="autopruner has seen no step"):
        attached.finish()
    with pytest.raises(MethodError, match=r"'3' was given a tensor of shape.*and 8 channels"):
        model[3](torch.zeros(2, 5, 4, 4, dtype=DOUBLE))
    model, args, kwargs, graph = prepared("mean_over_channels")
    with pytest.raises(MethodError, match="autopruner can mask the channels of no group"):
        AutoPruner().attach(Problem(model, graph, Budget(0.2), args=args, kwargs=kwargs))
    only = nn.Sequential(nn.Linear(3, 6), Squashing(6))
    with pytest.raises(MethodError, match=r"autopruner can gate the channels of no group.*'1' does more"):
        AutoPruner().attach(Problem(only, trace(only, torch.zeros(2, 3)), Budget(0.2), args=(torch.zeros(2, 3),)))


class Squashing(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, width))

    def forward(self, x):
        return nn.functional.linear(x.tanh(), self.weight)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scope", "block"),
        ("alpha_start", 0.0),
        ("alpha_end", 0.01),
        ("lift", -1.0),
        ("penalty", -1.0),
        ("adapt", float("inf")),
        ("adapt_steps", 0),
        ("pool", 0),
        ("spread", 0.0),
        ("momentum", 1.0),
        ("weight_decay", -1.0),
        ("search", 0.0),
    ],
)
def test_settings_without_sense_are_refused(name, value):
    with pytest.raises(MethodError, match=rf"{name}={value!r}: expected"):
        AutoPruner(**{name: value})


def test_global_codes_need_the_whole_net():
    with pytest.raises(MethodError, match="allocation='global': expected"):
        AutoPruner(scope="layer", allocation="global")
    _, _, decision = run(AutoPruner(allocation="global", adapt_steps=2))
    kept = torch.cat([decision.scores[name][list(decision.plan.kept[name])] for name in "03"])
    gone = torch.cat([decision.scores[name][list(decision.plan.removed(name))] for name in "03"])
    assert gone.max() <= kept.min()
    assert decision.plan.removed_count == 7


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["net", "stage"])
def test_digits_lose_less_than_two_points(scope):
    recipe = Recipe(epochs=10, lr=0.02)
    assert lost_on_digits(AutoPruner(scope=scope, search=0.7, recipe=recipe)) < 0.02


def test_a_code_of_ones_changes_nothing_in_any_architecture():
    for case in CASES.values():
        model, images = case.model(DOUBLE), case.images(DOUBLE)
        plain = model(images)
        attached = AutoPruner().attach(case.problem(0.3, model=model, dtype=DOUBLE))
        assert attached._codes
        for code in attached._codes.values():
            code.recent = torch.ones(4, len(code.layer.bias), dtype=DOUBLE)
        torch.testing.assert_close(model(images), plain, rtol=0, atol=0)
