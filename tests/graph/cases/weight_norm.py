"""Under weight_norm the lengths go with the filters, and filters are as long as what is left of them."""

from torch import nn


def conv(inputs, outputs):
    return nn.utils.parametrizations.weight_norm(nn.Conv2d(inputs, outputs, 3, padding=1))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = conv(3, 5), conv(5, 6), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        return self.head(self.two(self.one(x).relu()).relu())


example = (2, 3, 6, 6)
groups = [{"one:out", "two:in"}, {"two:out", "head:in"}]
widths = [5, 6]
