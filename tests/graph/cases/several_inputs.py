"""Two inputs, each with an encoder of its own, that meet in a sum."""

from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.text, self.head = nn.Conv2d(3, 6, 1), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, image, text):
        return self.head(self.image(image).mean((2, 3)) + self.text(text))


example = ((2, 3, 4, 4), (2, 4))
groups = [{"image:out", "text:out", "head:in"}]
widths = [6]
