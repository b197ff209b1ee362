"""An LSTM has one hidden width: every layer, every gate, the state and what reads it."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(3, 5), nn.Linear(4, 2)
        self.rnn = nn.LSTM(5, 4, num_layers=2, batch_first=True)

    def forward(self, x):
        return self.head(self.rnn(self.stem(x))[0])


example = (2, 6, 3)
groups = [
    {"stem:out", "rnn.weight_ih_l0:1"},
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
    },
]
widths = [5, 4]
