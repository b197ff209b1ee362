"""Both directions keep the same hidden units, since the module has one number for both."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 4, bidirectional=True, batch_first=True, bias=False), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


example = (2, 6, 3)
groups = [
    {
        *(f"rnn.weight_{place}_l0{way}:0" for place in ("ih", "hh") for way in ("", "_reverse")),
        "rnn.weight_hh_l0:1",
        "rnn.weight_hh_l0_reverse:1",
        "head:in",
    }
]
widths = [4]
