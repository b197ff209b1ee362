"""Arguments and options that commands share, each with its one help text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

Model = Annotated[
    str,
    typer.Argument(
        help="resnet20, digits_resnet, timm:NAME, torchvision:NAME, hf:NAME or FILE.py:FUNCTION.",
        metavar="MODEL",
        show_default=False,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="State dict as safetensors, or the folder that `secateur train`, prune or sparsify wrote.",
        metavar="PATH",
    ),
]
Pretrained = Annotated[bool, typer.Option("--pretrained", help="Start from the library's trained weights.")]
InputShape = Annotated[
    str | None,
    typer.Option(
        "--input-shape", help="One input without its batch, e.g. 3x224x224. [from data or model]", metavar="CxHxW"
    ),
]
Classes = Annotated[int | None, typer.Option("--classes", min=1, help="Outputs of the model. [from data or model]")]
Data = Annotated[
    str | None,
    typer.Option("--data", help="digits, cifar10, cifar10:PATH or folder:PATH.", metavar="NAME"),
]
HoldOut = Annotated[
    float,
    typer.Option(
        "--hold-out",
        help="Share of the training images that nothing trains on; choices are made on it. The same in all commands.",
        min=0.0,
        max=0.9,
    ),
]
BatchSize = Annotated[int | None, typer.Option("--batch-size", min=1, help="Images in a batch. [the recipe's]")]
Device = Annotated[str, typer.Option("--device", help="Where to run: cpu, cuda, cuda:1, mps.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads within an operation.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Makes everything random repeatable.")]
Method = Annotated[str, typer.Option("--method", help="A name that `secateur methods` lists.", metavar="NAME")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting of the method; may be repeated.", metavar="KEY=VALUE"),
]
Remove = Annotated[
    float, typer.Option("--remove", help="Fraction to remove, 0.5 = half.", metavar="FRACTION", show_default=False)
]
Of = Annotated[str, typer.Option("--of", help="What the fraction counts: channels, macs, params or bytes.")]
Protect = Annotated[
    list[str] | None,
    typer.Option("--protect", help="Module or group that stays whole; may be repeated.", metavar="MODULE"),
]


def _conv_groups(value: str) -> str:
    if value not in ("narrow", "whole"):
        raise typer.BadParameter(f"{value!r} is neither narrow nor whole.")
    return value


ConvGroups = Annotated[
    str,
    typer.Option(
        "--conv-groups",
        help="Of grouped convolutions: narrow all groups alike, or remove whole ones.",
        metavar="narrow|whole",
        callback=_conv_groups,
    ),
]
MinKeep = Annotated[int, typer.Option("--min-keep", help="Channels that every group keeps at least.")]
RoundTo = Annotated[int, typer.Option("--round-to", help="Widths that change become multiples of this.")]
Repair = Annotated[
    list[str] | None,
    typer.Option(
        "--repair",
        help="fold, refit or batchnorm, may be repeated; none for none. [where there is data: refit]",
        metavar="NAME",
    ),
]
RecipeName = Annotated[
    str | None,
    typer.Option("--recipe", help="How to train. [digits for digits, else cifar]", metavar="NAME"),
]
RecipeChanges = Annotated[
    list[str] | None,
    typer.Option("--with", help="Change a value of the recipe, e.g. lr=0.05; may be repeated.", metavar="KEY=VALUE"),
]
Out = Annotated[str, typer.Option("--out", help="Folder to write; must not exist yet.", metavar="DIR")]
OutOrNot = Annotated[
    str | None, typer.Option("--out", help="Folder to write; must not exist yet. [nothing is written]", metavar="DIR")
]
Finetune = Annotated[int | None, typer.Option("--finetune", min=1, help="Train the result so many epochs.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; train and write nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output, and nothing else.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens to standard error.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars and no warnings.")]
Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        help="Show training as it goes on: tensorboard, mlflow or trackio; may be repeated.",
        metavar="NAME",
    ),
]
TrackDir = Annotated[
    str, typer.Option("--track-dir", help="Where TensorBoard's files and MLflow's database go.", metavar="DIR")
]

HOLD_OUT = 0.1
TRACK_DIR = "runs"


def pairs(texts: Sequence[str] | None, option: str) -> dict[str, Any]:
    """Read KEY=VALUE texts; a value that is JSON is read as such, a list as a tuple, anything else is a string.

    >>> pairs(["penalty=1e-4", "residual=skip", "steps=[1, 2]"], "--set")
    {'penalty': 0.0001, 'residual': 'skip', 'steps': (1, 2)}
    """
    found: dict[str, Any] = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{text!r} is no KEY=VALUE.", param_hint=option)
        if key in found:
            raise typer.BadParameter(f"{key!r} is given twice.", param_hint=option)
        try:
            read = json.loads(value)
        except json.JSONDecodeError:
            read = {"True": True, "False": False, "None": None}.get(value, value)
        found[key] = tuple(read) if isinstance(read, list) else read
    return found


def shape(text: str | None) -> tuple[int, ...] | None:
    """Read a shape.

    >>> shape("3x32x32"), shape("1,8,8")
    ((3, 32, 32), (1, 8, 8))
    """
    if text is None:
        return None
    sizes = text.lower().replace(",", "x").split("x")
    if not all(size.strip().isdigit() and int(size) > 0 for size in sizes):
        raise typer.BadParameter(f"{text!r} is no shape; give e.g. 3x32x32.", param_hint="--input-shape")
    return tuple(int(size) for size in sizes)


def counts(text: str, option: str) -> tuple[int, ...]:
    """Read whole numbers with commas between them.

    >>> counts("1,32", "--batch")
    (1, 32)
    """
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{text!r} is no list of whole numbers, e.g. 1,32.", param_hint=option)
    return tuple(int(part) for part in parts)


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Read whole numbers from 0 with commas between them.

    >>> numbers("0,1,2", "--seeds")
    (0, 1, 2)
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise typer.BadParameter(f"{text!r} is no list of whole numbers, e.g. 0,1,2.", param_hint=option)
    return tuple(int(part) for part in parts)
