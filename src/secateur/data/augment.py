"""Shift and flip a whole batch at once, decided per example and epoch by a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Pad with black, take a crop of the old size at random, and mirror every second image or so.

    Attributes:
        pad: pixels added on every side before the crop; 0 for no crop.
        flip: mirror left and right with probability one half.
    """

    pad: int = 4
    flip: bool = True

    def draw(self, count: int, *, seed: int, epoch: int) -> Draws:
        """Decide for `count` examples what happens to each in this epoch.

        The whole epoch is drawn at once, so what happens to an example does not depend on its batch, on how many
        processes share the epoch, nor on where a killed run took it up again.
        """
        generator = epoch_generator(seed, epoch, purpose=1)
        shift = torch.randint(0, 2 * self.pad + 1, (2, count), generator=generator)
        mirrored = torch.rand(count, generator=generator) < 0.5
        return Draws(self.pad, shift[0], shift[1], mirrored if self.flip else torch.zeros_like(mirrored))


@dataclass(frozen=True, eq=False)
class Draws:
    """What happens to each example of one epoch.

    Attributes:
        pad: pixels added on every side before the crop.
        top: (N,) row of the padded image where the crop begins.
        left: (N,) its column.
        mirrored: (N,) bool, whether the crop is mirrored left and right.
    """

    pad: int
    top: Tensor
    left: Tensor
    mirrored: Tensor

    def apply(self, images: Tensor, index: Tensor) -> Tensor:
        """Return new images of the same shape (B, C, H, W), dtype and device; `index` (B,) says which examples.

        >>> image = torch.tensor([[[[1, 2, 3]]]], dtype=torch.uint8)
        >>> one_right = Draws(1, top=torch.tensor([1]), left=torch.tensor([0]), mirrored=torch.tensor([False]))
        >>> one_right.apply(image, torch.tensor([0])).tolist()
        [[[[0, 1, 2]]]]
        """
        height, width = images.shape[-2:]
        index = index.to(self.top.device)
        top, left, mirrored = (drawn[index].to(images.device) for drawn in (self.top, self.left, self.mirrored))
        if self.pad:
            crops = F.pad(images, (self.pad,) * 4).unfold(2, height, 1).unfold(3, width, 1)
            images = crops[torch.arange(len(images), device=images.device), :, top, left]
        return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)


def epoch_generator(seed: int, epoch: int, *, purpose: int) -> torch.Generator:
    """Return a generator that depends on these three numbers only; nearby numbers give unrelated streams."""
    state = np.random.SeedSequence([seed, epoch, purpose]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) & (2**63 - 1))
