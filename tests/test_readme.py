"""The README says what is true. Its example runs as a doctest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from secateur.catalogue import CATALOGUE
from secateur.cli import app

README = Path(__file__).parents[1] / "README.md"


def test_the_table_of_methods_is_the_catalogue():
    rows = ["| method | family | removes | reads | what goes | paper |", "| --- | --- | --- | --- | --- | --- |"]
    for entry in CATALOGUE.values():
        reads = ", ".join(("weights", *entry.needs))
        rows.append(
            f"| `{entry.name}` | {entry.family} | {entry.removes} | {reads} | {entry.summary} | {entry.paper} |"
        )
    (found,) = re.findall(r"<!-- methods -->\n(.*?)\n<!-- /methods -->", README.read_text(), re.DOTALL)
    assert found == "\n".join(rows), "put this table into README.md:\n" + "\n".join(rows)


def shell_lines() -> list[str]:
    return re.findall(r"^secateur (.*?)(?: +#.*)?$", README.read_text(), re.MULTILINE)


@pytest.mark.parametrize("line", shell_lines())
def test_every_option_in_the_shell_examples_exists(line):
    command, *words = line.split()
    known = CliRunner().invoke(app, [command, "--help"]).stdout
    assert [word for word in words if word.startswith("--") and word not in known] == []


def test_there_are_shell_examples():
    assert len(shell_lines()) >= 5
