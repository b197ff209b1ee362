"""Fields of a dataclass are outputs."""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass
class Result:
    logits: Tensor
    features: Tensor | None = None
    loss: float = 0.0


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x):
        features = self.two(self.one(x).relu())
        return Result(self.head(features), features)


example = (2, 3)
groups = [{"one:out", "two:in"}]
widths = [6]
