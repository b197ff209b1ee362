"""`secateur sparsify-language`: single weights of a language model on disk, one block in memory at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._options import Json, Quiet, Seed, Settings, Threads, Verbose, pairs
from ._session import session

if TYPE_CHECKING:
    from torch import Tensor

Folder = Annotated[
    str, typer.Argument(help="Checkpoint of transformers: config.json and safetensors.", metavar="FOLDER")
]
NewFolder = Annotated[str, typer.Option("--out", help="Folder to write; must not exist yet.", metavar="DIR")]
Fraction = Annotated[
    float | None, typer.Option("--remove", help="Fraction of each block's weights, 0.5 = half.", metavar="FRACTION")
]
Blocks = Annotated[
    str | None, typer.Option("--pattern", help="2:4 or another N:M: of each M inputs N stay.", metavar="N:M")
]
Named = Annotated[str, typer.Option("--method", help="wanda, sparsegpt, magnitude or random_weights.", metavar="NAME")]
Text = Annotated[str | None, typer.Option("--text", help="Text file to calibrate on; the folder's tokenizer reads it.")]
Sequences = Annotated[int, typer.Option("--sequences", min=1, help="Pieces of the text to calibrate on.")]
Length = Annotated[
    int | None, typer.Option("--length", min=2, help="Tokens of each piece. [2048, or as many as the model reads]")
]
LENGTH = 2048
Kept = Annotated[
    list[str] | None,
    typer.Option("--protect", help="Module or parameter that stays whole; may be repeated.", metavar="NAME"),
]


def sparsify_language(
    folder: Folder,
    out: NewFolder,
    remove: Fraction = None,
    pattern: Blocks = None,
    method: Named = "wanda",
    settings: Settings = None,
    text: Text = None,
    sequences: Sequences = 128,
    length: Length = None,
    protect: Kept = None,
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Set single weights of a causal language model to zero, from shards to shards, one block in memory at a time."""
    chosen = pairs(settings, "--set")
    if remove is None and pattern is None:
        raise typer.BadParameter("give --remove FRACTION or --pattern N:M.")
    with session(as_json=as_json, verbose=verbose, quiet=quiet, threads=threads) as run:
        from ..budget import Budget
        from ..catalogue import find
        from ..errors import MethodError
        from ..language import sparsify_language_model

        entry = find(method)
        if {"data", "labels"} & set(entry.needs) and text is None:
            raise MethodError(f"{method} calibrates on text: give --text FILE.")
        tokens = None if text is None else pieces(folder, text, sequences, length, seed)
        result = sparsify_language_model(
            folder,
            out,
            tokens=tokens,
            method=entry.make(**chosen) if chosen else method,
            budget=None if remove is None else Budget(remove, "weights"),
            pattern=pattern,
            protect=tuple(protect or ()),
            seed=seed,
        )
        share = result.removed_count / result.weight_count if result.weight_count else 0.0
        facts: dict[str, Any] = {
            "out": str(result.folder),
            "method": method,
            "settings": chosen,
            "weights": result.weight_count,
            "zeros": result.removed_count,
            "tokens": None if tokens is None else list(tokens.shape),
            "seed": seed,
        }
        run.result(f"{result.removed_count:,} of {result.weight_count:,} weights are zero ({share:.1%}): {out}", facts)


def pieces(folder: str, text: str, count: int, length: int | None, seed: int) -> Tensor:
    """Return (count, length) tokens: pieces of a text that start anywhere in it, drawn by the seed.

    Without a length it is 2048, or as many as the model reads.

    Raises:
        DataError: the text cannot be read, or has fewer tokens than one piece.
        MissingExtra: transformers is not installed.
        ModelError: the folder has no tokenizer.
    """
    import torch

    from ..errors import DataError, ModelError
    from ..extras import require

    transformers = require("transformers", extra="hf", purpose="reading text with a model's tokenizer")
    try:
        words = Path(text).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--text {text} cannot be read ({error}).") from error
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder} has no tokenizer that transformers can load ({error}): copy the tokenizer's files there."
        ) from error
    if length is None:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        length = min(LENGTH, getattr(config, "max_position_embeddings", None) or LENGTH)
    ids = tokenizer(words, return_tensors="pt", verbose=False).input_ids[0]
    if len(ids) < length:
        raise DataError(f"--text {text} has {len(ids)} tokens, fewer than --length {length}: give more text.")
    starts = torch.randint(0, len(ids) - length + 1, (count,), generator=torch.Generator().manual_seed(seed))
    return torch.stack([ids[start : start + length] for start in starts.tolist()])
