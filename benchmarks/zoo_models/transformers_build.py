"""Build a transformers model from a tiny configuration given as data."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .._torchvision_support import prepare
from .record import Built, ZooModel

Inputs = Callable[[], dict[str, Tensor]]

# Every size is a different number, so that no two axes of a tiny model are taken for one another.
VOCABULARY, TOKENS, HIDDEN, HEADS, HEAD_SIZE, FEED_FORWARD = 97, 7, 48, 6, 8, 80
BLOCKS = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": FEED_FORWARD,
}
VIT = {**BLOCKS, "image_size": 32, "patch_size": 8}


def token_ids(length: int = TOKENS) -> Tensor:
    """Token ids (2, length) away from the special ones at the start of the vocabulary."""
    return torch.randint(5, VOCABULARY - 5, (2, length))


def build(architecture: str, class_name: str, config: Mapping[str, Any], inputs: Inputs) -> Built:
    """A fresh `class_name` with configuration `architecture`; nested mappings become sub-configurations."""
    prepare()
    import transformers

    made = transformers.AutoConfig.for_model(architecture, **config)
    model = getattr(transformers, class_name)(made)
    return model, (), inputs()


def entry(name: str, kind: str, class_name: str, config: Mapping[str, Any], inputs: Inputs) -> ZooModel:
    """The entry "transformers:name"; what follows a "+" in the name tells variants of an architecture apart."""
    make = functools.partial(build, name.split("+")[0], class_name, config, inputs)
    return ZooModel(f"transformers:{name}", "transformers", name.split("+")[0], kind, make)
