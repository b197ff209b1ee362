"""A GRU has one hidden width; its last state and its outputs have it too."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 5, num_layers=2, batch_first=True), nn.Linear(5, 2)

    def forward(self, x):
        outputs, last = self.rnn(x)
        return self.head(outputs + last[-1][:, None])


example = (2, 6, 3)
groups = [
    {
        *(
            f"rnn.{kind}_{place}_l{layer}:0"
            for kind in ("weight", "bias")
            for place in ("ih", "hh")
            for layer in (0, 1)
        ),
        "rnn.weight_hh_l0:1",
        "rnn.weight_ih_l1:1",
        "rnn.weight_hh_l1:1",
        "head:in",
    }
]
widths = [5]
