"""Who may import whom, what `import secateur` brings along, and what no source file may hold."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "secateur"
FILES = {str(path.relative_to(SOURCE)): path for path in sorted(SOURCE.rglob("*.py"))}

# A part imports its own line and the lines above it. `models` and `data` hang off `train`: nothing up to
# the methods may need them.
LINES = (
    ("errors", "extras", "arguments", "files", "threads", "budget", "plan"),
    ("graph",),
    ("weight_plan",),
    ("surgery",),
    ("measure", "store"),
    ("train",),
    ("recovery",),
    ("methods",),
    ("catalogue",),
    ("prune", "iterate", "attach", "sparsify", "compact", "source"),
    ("language",),
    ("compare",),
    ("report",),
    ("cli",),
)
BRANCH = ("models", "data")
BRANCH_OFF, BRANCH_USERS = "train", ("prune", "iterate", "sparsify", "source", "compare", "report", "cli")

HEAVY = (
    "accelerate",
    "altair",
    "datasets",
    "gymnasium",
    "PIL",
    "pandas",
    "ray",
    "rich",
    "sklearn",
    "stable_baselines3",
    "timm",
)
HEAVY += ("torchmetrics", "torchvision", "transformers", "typer")


def part_of(module: str) -> str:
    """``"secateur.graph.rules.pooling"`` -> ``"graph"``; the package itself is ``""``."""
    return [*module.split("."), ""][1]


def imported(path: Path, package: str) -> set[str]:
    """Every module that a file imports anywhere, also inside functions and for type checking, as absolute names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(name for name in (parent, node.module) if name)
            # `from . import name` may mean a module; for `from .module import name` the module is what counts.
            found |= {f"{base}.{alias.name}" for alias in node.names} if base == "secateur" else {base}
    return found


def package_of(relative: str) -> str:
    return ".".join(("secateur", *Path(relative).parent.parts))


def may_import(importer: str, other: str) -> bool:
    lines = {part: number for number, line in enumerate(LINES) for part in line}
    if importer == other:
        return True
    if importer in BRANCH:
        return other in BRANCH or lines.get(other, 99) <= lines[BRANCH_OFF]
    if other in BRANCH:
        return importer in BRANCH_USERS
    return other in lines and lines[other] <= lines[importer]


@pytest.mark.parametrize("relative", FILES)
def test_imports_go_one_way(relative):
    importer = Path(relative).parts[0].removesuffix(".py")
    if importer in ("__init__", "__main__"):
        return  # the public surface gathers from everywhere
    known = {part for line in LINES for part in line} | set(BRANCH)
    assert importer in known, f"{importer} has no place in LINES: say who may import it"
    modules = {m for m in imported(FILES[relative], package_of(relative)) if m.split(".")[0] == "secateur"}
    wrong = sorted(m for m in modules if not may_import(importer, part_of(m)))
    assert not wrong, f"{relative} imports {wrong}"


def test_direction_is_told_apart():
    assert may_import("methods", "graph")
    assert may_import("data", "train")
    assert may_import("cli", "models")
    assert not may_import("graph", "methods")
    assert not may_import("train", "recovery")
    assert not may_import("train", "data")
    assert not may_import("methods", "models")
    assert not may_import("data", "methods")
    assert not may_import("graph", "")


def test_imports_inside_functions_are_seen(tmp_path):
    source = "def f():\n    from ..methods import L1Filter\n    from .. import prune\n    import secateur.cli\n"
    path = tmp_path / "sample.py"
    path.write_text(source)
    assert imported(path, "secateur.graph") == {"secateur.methods", "secateur.prune", "secateur.cli"}


@pytest.mark.parametrize("relative", [r for r in FILES if r.startswith("methods/")])
def test_methods_share_code_only_through_helpers(relative):
    if relative == "methods/__init__.py":
        return
    modules = {m for m in imported(FILES[relative], package_of(relative)) if m.startswith("secateur.methods.")}
    wrong = sorted(m for m in modules if not m.split(".")[2].startswith("_"))
    assert not wrong, f"{relative} imports {wrong}: move what both need to a file that starts with an underscore"


def loaded_after(statement: str) -> set[str]:
    """Modules that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_import_brings_nothing_heavy():
    base = loaded_after("import torch, numpy, scipy.sparse.csgraph, torch.utils.flop_counter, torch.utils.data")
    # Every public name is looked up, so that nothing hides behind an import on first use.
    added = loaded_after("import secateur; [getattr(secateur, name) for name in secateur.__all__]") - base
    heavy = sorted({name.partition(".")[0] for name in added} & set(HEAVY))
    assert not heavy, f"import secateur loads {heavy}: import them inside the functions that need them"
    others = sorted(name for name in added if not name.startswith("secateur"))
    assert len(others) < 150, f"import secateur loads {len(others)} modules of others beside torch, numpy and scipy"


MACHINE_PATHS = re.compile(r"(?<![\w./:])(/(home|Users|work|tmp|root|mnt|opt|data)/|[A-Z]:\\\\)")


@pytest.mark.parametrize("relative", FILES)
def test_source_holds_no_path_of_one_machine(relative):
    text = FILES[relative].read_text(encoding="utf-8")
    found = [line for line in text.splitlines() if MACHINE_PATHS.search(line)]
    assert not found


@pytest.mark.parametrize("relative", FILES)
def test_source_does_not_print(relative):
    tree = ast.parse(FILES[relative].read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    lines = [node.lineno for node in calls if node.func.id == "print"]
    assert not lines, f"{relative} prints at lines {lines}: use logging, or rich in cli.py"
