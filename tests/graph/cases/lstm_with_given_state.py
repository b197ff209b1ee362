"""A first state given from outside holds the hidden width."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.rnn, self.head = nn.Linear(3, 6), nn.LSTM(6, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x, hidden, cell):
        return self.head(self.rnn(self.stem(x), (hidden, cell))[0])


example = ((2, 5, 3), (1, 2, 4), (1, 2, 4))
groups = [{"stem:out", "rnn.weight_ih_l0:1"}]
widths = [6]
