"""How the networks of this package start: He et al. 2015, "Delving Deep into Rectifiers", arXiv:1502.01852."""

from __future__ import annotations

from torch import nn


def initialise_(model: nn.Module, *, norm_scale: float = 1.0) -> None:
    """Set the first weights of a rectifier network in place.

    Convolutions are normal with variance 2 / (kernel area * out channels), linear layers normal with
    standard deviation 0.01; every bias is 0.

    Args:
        model: a network of convolutions, batch norms and linear layers.
        norm_scale: first scale of every batch norm; slimming starts VGG at 0.5 (arXiv:1708.06519, section 4.2).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.constant_(module.weight, norm_scale)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
