"""Build models of timm, torchvision and transformers, with one set of argument names and one kind of error."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from ..errors import ModelError, UnknownName
from ..extras import require

# The transformers classes that a saved architecture may belong to, and the table that tells.
HUGGING_FACE_TASKS = {
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING",
    "AutoModelForImageClassification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
    "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    "AutoModelForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING",
    "AutoModelForSeq2SeqLM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "AutoModelForTokenClassification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",
    "AutoModelForQuestionAnswering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING",
}
CLASSIFIERS = ("AutoModelForImageClassification", "AutoModelForSequenceClassification")


def from_timm(
    name: str,
    *,
    class_count: int | None = None,
    in_channels: int | None = None,
    pretrained: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Build `timm.create_model(name)`; `hf-hub:…` and `local-dir:…` work as in timm.

    Raises:
        MissingExtra: timm is not installed.
        UnknownName: timm has no model of that name.
        ModelError: timm cannot build it from these arguments.
    """
    timm = require("timm", extra="vision", purpose=f"timm:{name}")
    if ":" not in name and not timm.is_model(name.partition(".")[0]):
        raise UnknownName("timm model", name, timm.list_models())
    if class_count is not None:
        kwargs["num_classes"] = class_count
    if in_channels is not None:
        kwargs["in_chans"] = in_channels
    return _build(f"timm:{name}", timm.create_model, name, pretrained=pretrained, **kwargs)


def from_torchvision(
    name: str,
    *,
    class_count: int | None = None,
    in_channels: int | None = None,
    pretrained: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Build `torchvision.models.get_model(name)`, with its default weights if `pretrained`.

    Without `pretrained` nothing is downloaded: the weights of a detector's or a segmenter's backbone, which
    torchvision loads by default, are left out too.

    Raises:
        MissingExtra: torchvision is not installed.
        UnknownName: torchvision has no model of that name.
        ModelError: other than 3 input channels, or torchvision cannot build it from these arguments.
    """
    models = require("torchvision.models", extra="vision", purpose=f"torchvision:{name}")
    if name not in models.list_models():
        raise UnknownName("torchvision model", name, models.list_models())
    if in_channels not in (None, 3):
        raise ModelError(
            f"torchvision:{name} with in_channels={in_channels}: models of torchvision take 3; "
            "timm has most of them, with any number of channels."
        )
    if class_count is not None:
        kwargs["num_classes"] = class_count
    if pretrained:
        kwargs.setdefault("weights", "DEFAULT")
    elif "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        kwargs.setdefault("weights_backbone", None)
    return _build(f"torchvision:{name}", models.get_model, name, **kwargs)


def from_hugging_face(
    name: str,
    *,
    class_count: int | None = None,
    in_channels: int | None = None,
    pretrained: bool = False,
    auto_class: str | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a transformers model from the configuration of a hub id or a local folder.

    Args:
        name: hub id, or a folder with a `config.json`.
        class_count: number of labels; asks for a classifier.
        in_channels: channels of the images.
        pretrained: load the weights too; without it the model starts at random.
        auto_class: e.g. "AutoModelForCausalLM"; None for the class that the configuration names, else "AutoModel".
        kwargs: fields of the configuration to change.

    Raises:
        MissingExtra: transformers is not installed.
        UnknownName: transformers has no such `auto_class`.
        ModelError: no configuration is found there, it lacks a field that was given, or it does not build.
    """
    transformers = require("transformers", extra="hf", purpose=f"hf:{name}")
    if class_count is not None:
        kwargs["num_labels"] = class_count
    if in_channels is not None:
        kwargs["num_channels"] = in_channels
    config = _config(transformers, name, kwargs)
    auto = _auto_class(transformers, config, auto_class, is_classifier=class_count is not None)
    if not pretrained:
        return _build(f"hf:{name}", auto.from_config, config)
    # A head of another size than the stored one starts at random; without the flag it would be an error.
    resized = class_count is not None or in_channels is not None
    return _build(f"hf:{name}", auto.from_pretrained, name, config=config, ignore_mismatched_sizes=resized)


def _config(transformers: ModuleType, name: str, changes: dict[str, Any]) -> Any:
    looks_local = name.startswith((".", "/", "~")) or Path(name).expanduser().exists()
    source = str(Path(name).expanduser()) if looks_local else name
    if looks_local and not (Path(source) / "config.json").is_file():
        raise ModelError(f"hf:{name}: there is no {Path(source) / 'config.json'}; give a hub id or a model's folder.")
    try:
        config, unknown = transformers.AutoConfig.from_pretrained(source, return_unused_kwargs=True, **changes)
    except Exception as error:
        raise ModelError(
            f"hf:{name}: no configuration can be read: {error} Give the id of a public model, or a local folder."
        ) from error
    if lacking := sorted(unknown):
        raise ModelError(f"hf:{name}: its {type(config).__name__} has no field {', '.join(lacking)}.")
    return config


def _auto_class(transformers: ModuleType, config: Any, wanted: str | None, *, is_classifier: bool) -> Any:
    if wanted is not None:
        if not hasattr(transformers, wanted):
            raise UnknownName("transformers class", wanted, [*HUGGING_FACE_TASKS, "AutoModel"])
        return getattr(transformers, wanted)
    made = {task: _architecture(transformers, table, config) for task, table in HUGGING_FACE_TASKS.items()}
    if is_classifier:
        for task in CLASSIFIERS:
            if made[task]:
                return getattr(transformers, task)
        raise ModelError(f"class_count was given, but no classifier of transformers has a {type(config).__name__}.")
    for task, architecture in made.items():
        if architecture and architecture in (config.architectures or ()):
            return getattr(transformers, task)
    return transformers.AutoModel


def _architecture(transformers: ModuleType, table: str, config: Any) -> str | None:
    mapping = getattr(transformers, table)
    return mapping[type(config)].__name__ if type(config) in mapping else None


def _build(label: str, builder: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    """Call a library's builder; whatever it raises becomes a `ModelError` that says which model it was."""
    try:
        return builder(*args, **kwargs)
    except Exception as error:
        raise ModelError(f"{label} cannot be built: {type(error).__name__}: {error}") from error
