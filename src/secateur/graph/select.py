"""Channel selection: a layer that reads some channels of a stream which stays whole.

Source: Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming", arXiv:1708.06519, section
3 and the co-author's repository, for networks that normalise before they add or concatenate; He, Zhang, Sun 2017,
"Channel Pruning for Accelerating Very Deep Neural Networks", arXiv:1707.06168, section 3.3, where it is a "channel
sampler" in front of a residual block's first convolution.

Where we differ: the index is a buffer. As a parameter, which it is in the former, it would be counted and handed to
optimizers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

SELECT = "select"  # name of the selection inside the normalisation behind which, or layer before which, it stands


class ChannelSelect(nn.Module):
    """Pass on some channels, by number.

    Args:
        index: which channels; sorted, each once.
        axis: where the channels are.

    >>> ChannelSelect([0, 2])(torch.tensor([[5.0, 6.0, 7.0]]))
    tensor([[5., 7.]])
    """

    index: Tensor

    def __init__(self, index: Sequence[int] | Tensor, *, axis: int = 1) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("index", torch.as_tensor(index, dtype=torch.long).clone())

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, channels, …) to (…, selected channels, …)."""
        return x.index_select(self.axis, self.index)

    def extra_repr(self) -> str:
        """Say how many channels pass."""
        return f"{len(self.index)} channels, axis={self.axis}"


def index_names(modules: Mapping[str, nn.Module]) -> set[str]:
    """Return the names of the buffers by which channels are selected."""
    return {f"{path}.index" if path else "index" for path, m in modules.items() if isinstance(m, ChannelSelect)}
