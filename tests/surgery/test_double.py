"""A verification runs in float64 throughout, whatever precision a forward pass names, and leaves nothing behind."""

import pytest
import torch
from torch import nn

from secateur import Plan, shrink, trace, verify
from secateur.errors import VerificationError


class Net(nn.Module):
    """Adds what `term` makes of the six features to them."""

    def __init__(self, term):
        super().__init__()
        self.up, self.down, self.term = nn.Linear(4, 6), nn.Linear(6, 3), term

    def forward(self, x):
        return self.down(self.term(self.up(x)))


TERMS = {
    "default precision": lambda x: x + torch.linspace(0, 1, len(x)).outer(torch.ones(2)).mm(torch.ones(2, 1).to(x)),
    "float of whole numbers": lambda x: x + (torch.arange(len(x)).float()[:, None] @ x.new_ones(1, 1)),
    "precision by name": lambda x: x + torch.zeros(len(x), 1, dtype=torch.float32).add(3) @ x.new_ones(1, 1),
    "half": lambda x: x + torch.tensor([[0.1]], dtype=torch.float16) @ x.new_ones(1, 1),
    "smallest number": lambda x: x + (1 - torch.ones(len(x), 1).bool().float()) * torch.finfo(x.dtype).min,
    "filled with it": lambda x: torch.max(x, torch.full((), torch.finfo(x.dtype).min)),
    "complex": lambda x: x + torch.polar(torch.ones(1), torch.ones(1)).to(torch.complex64).real @ x.new_ones(1, 1),
    "rounded norm": lambda x: (x.float() * 3).to(x.dtype),
}


def cut(term):
    torch.manual_seed(0)
    model, x = Net(term).eval(), torch.randn(5, 4)
    graph = trace(model, x)
    plan = Plan.from_removed({"up": [1, 4]}, graph.widths)
    return model, shrink(model, graph, plan), plan, x


@pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)
def test_tensors_that_a_forward_pass_makes_follow_float64(term):
    assert verify(*cut(term)).max_relative_error < 1e-14


@pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)
def test_a_wrong_cut_still_shows(term):
    model, small, plan, x = cut(term)
    with torch.no_grad():
        small.down.weight[0, 0] += 1e-6
    assert not verify(model, small, plan, x).is_exact


def test_the_default_precision_is_back_also_after_a_failure():
    model, small, plan, x = cut(lambda x: x)
    verify(model, small, plan, x)
    assert torch.get_default_dtype() == torch.float32
    small.up = nn.Linear(3, 4)
    with pytest.raises(VerificationError, match="the shrunk model does not run in float64"):
        verify(model, small, plan, x)
    assert torch.get_default_dtype() == torch.float32


def test_a_layer_that_the_model_does_not_hold_is_hinted_at():
    unheld = [nn.Linear(6, 6)]
    model, x = Net(lambda y: unheld[0](y)).eval(), torch.randn(5, 4)
    plan = Plan.from_removed({}, {})
    with pytest.raises(VerificationError, match=r"does not run in float64.*in a plain list; use nn\.ModuleList"):
        verify(model, model, plan, x)
