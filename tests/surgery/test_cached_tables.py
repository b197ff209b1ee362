"""A table that a module keeps of an earlier pass must not survive a cut (LeViT's and TinyViT's attention biases)."""

import torch
from torch import nn

from secateur import Plan, shrink, trace, verify


class Biased(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
        self.bias = nn.Parameter(torch.randn(6))
        self.bias_cache = {}

    def forward(self, x):
        if x.device.type not in self.bias_cache:
            self.bias_cache[x.device.type] = 2 * self.bias
        return self.head(torch.relu(self.stem(x) + self.bias_cache[x.device.type]))


def test_a_cut_model_does_not_use_the_table_of_the_whole_one():
    torch.manual_seed(0)
    model, x = Biased().eval(), torch.randn(3, 4)
    with torch.no_grad():
        model(x)
    kept = model.bias_cache["cpu"]
    graph = trace(model, x)
    assert list(graph.widths.values()) == [6]
    plan = Plan({name: (0, 2, 5) for name in graph.groups}, graph.widths)
    small = shrink(model, graph, plan)
    assert small(x).shape == (3, 2)
    assert verify(model, small, plan, x).is_exact
    assert model.bias_cache["cpu"] is kept, "the input model lost its own table"
