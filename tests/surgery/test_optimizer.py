"""An optimizer carried over to the shrunk model does what it would have done to the masked one."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, Adafactor, Adam, AdamW, RMSprop

from secateur import Plan, trace
from secateur.errors import SurgeryError
from secateur.surgery.mask import mask
from secateur.surgery.optimizer import shrink_optimizer
from secateur.surgery.record import record_of
from secateur.surgery.shrink import cut_tensor, shrink

from ..shrunk_models import Attend, ConvNet, TiedEmbedding, example, fresh, half, halved


def train(model, optimizer, x, steps=1):
    """A few steps in evaluation mode, so that batch norm uses its running statistics."""
    for _ in range(steps):
        optimizer.zero_grad()
        out = model(x)
        target = torch.arange(out[..., 0].numel()) % out.shape[-1]
        F.cross_entropy(out.flatten(0, -2), target).backward()
        optimizer.step()


def kept_part(tensor, record, name):
    return cut_tensor(tensor, [(axis, torch.tensor(index)) for axis, index in record.kept.get(name, [])])


MAKERS = {
    "sgd": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.05, nesterov=True),
    "adamw": lambda p: AdamW(p, lr=0.01, weight_decay=0.1),
    "adam amsgrad": lambda p: Adam(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: RMSprop(p, lr=0.01, momentum=0.5, centered=True),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("kind", [ConvNet, Attend, TiedEmbedding])
def test_one_step_after_the_cut_is_the_masked_models_step(make, kind):
    model, x = fresh(kind).double(), example(kind)
    x = x.double() if x.is_floating_point() else x
    optimizer = make(model.parameters())
    train(model, optimizer, x, steps=3)
    graph = trace(model, x)
    plan = half(graph.widths)
    small = shrink(model, graph, plan)
    carried = shrink_optimizer(optimizer, model, small)
    masked = mask(model, graph, plan)
    reference = make(masked.parameters())
    reference.load_state_dict(optimizer.state_dict())
    train(small, carried, x)
    train(masked, reference, x)
    record = record_of(small)
    full = dict(masked.named_parameters())
    for name, parameter in small.named_parameters():
        torch.testing.assert_close(parameter, kept_part(full[name], record, name), rtol=1e-9, atol=1e-10)


def test_momentum_matters_to_that_step():
    model, x = fresh(ConvNet).double(), example(ConvNet).double()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, x, steps=3)
    small = halved(model, x)
    other = copy.deepcopy(small)
    train(small, shrink_optimizer(optimizer, model, small), x)
    train(other, SGD(other.parameters(), lr=0.1, momentum=0.9), x)
    assert not torch.allclose(small.head.weight, other.head.weight)


def test_the_old_optimizer_is_as_before():
    model, x = fresh(ConvNet), example(ConvNet)
    optimizer = AdamW(model.parameters())
    train(model, optimizer, x)
    before = copy.deepcopy(optimizer.state_dict())
    small = halved(model, x)
    carried = shrink_optimizer(optimizer, model, small)
    train(small, carried, x)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for number, state in before["state"].items():
        assert all(torch.equal(value, after["state"][number][key]) for key, value in state.items())


def test_groups_keep_their_order_and_settings():
    model, x = fresh(ConvNet), example(ConvNet)
    groups = [
        {"params": [model.head.bias, model.block[0].weight], "lr": 0.5, "initial_lr": 0.7},
        {"params": [model.stem[0].weight], "weight_decay": 0.0},
    ]
    optimizer = SGD(groups, lr=0.1, momentum=0.8, weight_decay=0.2)
    small = halved(model, x)
    carried = shrink_optimizer(optimizer, model, small)
    assert type(carried) is SGD
    first, second = carried.param_groups
    assert [id(p) for p in first["params"]] == [id(small.head.bias), id(small.block[0].weight)]
    assert [id(p) for p in second["params"]] == [id(small.stem[0].weight)]
    assert (first["lr"], first["initial_lr"], first["weight_decay"]) == (0.5, 0.7, 0.2)
    assert (second["lr"], second["weight_decay"], second["momentum"]) == (0.1, 0.0, 0.8)
    assert carried.defaults == optimizer.defaults


def test_names_of_parameters_are_kept():
    model = fresh(ConvNet)
    optimizer = AdamW(model.named_parameters(), lr=0.1)
    carried = shrink_optimizer(optimizer, model, halved(model, example(ConvNet)))
    assert carried.param_groups[0]["param_names"] == [name for name, _ in model.named_parameters()]


def test_a_learning_rate_that_is_a_tensor_is_not_shared():
    model = fresh(ConvNet)
    optimizer = Adam(model.parameters(), lr=torch.tensor(0.1), foreach=False)
    carried = shrink_optimizer(optimizer, model, halved(model, example(ConvNet)))
    carried.param_groups[0]["lr"].fill_(0.3)
    assert optimizer.param_groups[0]["lr"] == torch.tensor(0.1)


def test_it_works_between_the_first_and_the_second_cut():
    model, x = fresh(ConvNet), example(ConvNet)
    once = halved(model, x)
    optimizer = SGD(once.parameters(), lr=0.1, momentum=0.9)
    train(once, optimizer, x)
    graph = trace(once, x)
    twice = shrink(once, graph, Plan.from_removed({"block.0": [1, 2]}, graph.widths))
    carried = shrink_optimizer(optimizer, once, twice)
    momentum = optimizer.state[once.block[0].bias]["momentum_buffer"]
    assert torch.equal(carried.state[twice.block[0].bias]["momentum_buffer"], momentum[[0, 3, 4]])


def test_before_the_first_step_there_is_no_state():
    model = fresh(ConvNet)
    carried = shrink_optimizer(AdamW(model.parameters()), model, halved(model, example(ConvNet)))
    assert not carried.state


def test_state_that_cannot_be_cut_is_refused():
    model, x = fresh(ConvNet), example(ConvNet)
    optimizer = Adafactor(model.parameters())
    train(model, optimizer, x)
    with pytest.raises(SurgeryError, match=r"Adafactor state 'row_var' of stem\.0\.weight is a tensor of shape"):
        shrink_optimizer(optimizer, model, halved(model, x))


def test_state_of_all_parameters_in_one_is_refused():
    model, x = fresh(ConvNet), example(ConvNet)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)

    def loss():
        optimizer.zero_grad()
        value = model(x).square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    with pytest.raises(SurgeryError, match=r"LBFGS state 'd' of .*cannot be cut with the weight"):
        shrink_optimizer(optimizer, model, halved(model, x))


def test_an_optimizer_of_another_model_is_refused():
    model = fresh(ConvNet)
    small = halved(model, example(ConvNet))
    with pytest.raises(SurgeryError, match=r"trains a parameter of shape .* that is none of the model's"):
        shrink_optimizer(SGD(fresh(ConvNet).parameters(), lr=0.1), model, small)


def test_models_that_do_not_belong_together_are_refused():
    model, x = fresh(ConvNet), example(ConvNet)
    small = halved(model, x)
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(SurgeryError, match="carries no record of a cut"):
        shrink_optimizer(optimizer, model, fresh(ConvNet))
    other = ConvNet(width=16)
    with pytest.raises(
        SurgeryError,
        match=r"not made from this one: 'block\.0\.weight' has shape \[5, 6, 1, 1\] in it, and here \[10, 16",
    ):
        shrink_optimizer(SGD(other.parameters(), lr=0.1), other, small)
    twice = halved(small, x)
    with pytest.raises(SurgeryError, match="was not made from this one"):
        shrink_optimizer(SGD(twice.parameters(), lr=0.1), twice, small)


def test_an_optimizer_that_cannot_be_made_again_is_refused():
    class Named(SGD):
        def __init__(self, params, name):
            super().__init__(params, lr=0.1)

    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2))
    small = halved(model, torch.randn(1, 2))
    with pytest.raises(SurgeryError, match=r"no .*Named can be made .* make a new optimizer"):
        shrink_optimizer(Named(model.parameters(), "x"), model, small)
