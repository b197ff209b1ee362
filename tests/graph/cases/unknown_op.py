"""An operation without a rule freezes what touches it, and nothing else."""

import torch
from torch import Tensor, nn


@torch.library.custom_op("secateur_tests::scramble", mutates_args=())
def scramble(x: Tensor) -> Tensor:
    return x.cumsum(1).flip(1)


@scramble.register_fake
def _(x):
    return torch.empty_like(x)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.two(scramble(self.one(x))).relu())


example = (2, 3)
unknown = ["secateur_tests.scramble.default"]
groups = [{"two:out", "head:in"}]
widths = [5]
