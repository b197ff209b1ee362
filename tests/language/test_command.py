"""`secateur sparsify-language`, from a folder with a tokenizer to a folder that loads."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from secateur.cli import app

from .test_blockwise import made

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama with a tokenizer of single letters."""
    path = tmp_path_factory.mktemp("model")
    model = made()
    model.save_pretrained(path)
    letters = {chr(97 + i): i for i in range(min(model.config.vocab_size, 20))} | {"[UNK]": 20}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(letters, unk_token="[UNK]"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    transformers.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]").save_pretrained(path)
    (path.parent / "text.txt").write_text("abcdefghij" * 30)
    return path


def run(*words):
    return CliRunner().invoke(app, ["sparsify-language", *map(str, words)])


def test_half_of_the_blocks_weights_go_and_the_folder_loads(folder, tmp_path):
    text = ("--text", folder.parent / "text.txt", "--sequences", 4)
    result = run(folder, "--out", tmp_path / "out", "--remove", 0.5, *text, "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["tokens"] == [4, 12], "as many as the model reads"
    assert facts["zeros"] == pytest.approx(facts["weights"] / 2, abs=facts["weights"] * 0.01)
    sparse = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    weight = sparse.model.layers[0].mlp.up_proj.weight
    assert (weight == 0).float().mean() == pytest.approx(0.5, abs=0.01)
    assert not (sparse.lm_head.weight == 0).any()
    assert torch.isfinite(sparse(torch.zeros(1, 4, dtype=torch.long)).logits).all()


def test_magnitude_needs_no_text_and_a_pattern_no_fraction(folder, tmp_path):
    result = run(folder, "--out", tmp_path / "out", "--pattern", "2:4", "--method", "magnitude")
    assert result.exit_code == 0, result.stderr
    assert "50.0%" in result.stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "--remove"),
        (("--remove", 0.5), 1, "--text"),
        (("--remove", 0.5, "--text", "missing.txt"), 1, "missing.txt"),
        (("--remove", 0.5, "--method", "wandda"), 1, "wanda"),
    ],
)
def test_what_is_missing_is_named_and_nothing_is_written(folder, tmp_path, words, code, said):
    result = run(folder, "--out", tmp_path / "out", *words)
    assert result.exit_code == code
    assert said in result.stderr
    assert not (tmp_path / "out").exists()


def test_too_short_a_text_and_a_folder_without_tokenizer_are_told(folder, tmp_path):
    text = folder.parent / "text.txt"
    result = run(folder, "--out", tmp_path / "out", "--remove", 0.5, "--text", text, "--length", 9999)
    assert result.exit_code == 1
    assert "fewer than --length 9999" in result.stderr
    bare = tmp_path / "bare"
    made().save_pretrained(bare)
    result = run(bare, "--out", tmp_path / "out", "--remove", 0.5, "--text", text, "--length", 8)
    assert result.exit_code == 1
    assert "tokenizer" in result.stderr
