"""With projections the cells and what they are projected to are two widths."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 8, proj_size=3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


example = (2, 5, 3)
groups = [
    {
        *(f"rnn.{kind}_{place}_l0:0" for kind in ("weight", "bias") for place in ("ih", "hh")),
        "rnn.weight_hr_l0:1",
    },
    {"rnn.weight_hh_l0:1", "rnn.weight_hr_l0:0", "head:in"},
]
widths = [8, 3]
