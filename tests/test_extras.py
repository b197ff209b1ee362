import subprocess
import sys

import pytest

from secateur.errors import MissingExtra
from secateur.extras import require


def test_what_is_missing_names_the_extra_and_who_asked():
    with pytest.raises(MissingExtra, match=r'timm:x needs not_there.*: pip install "secateur\[vision\]"'):
        require("not_there.models", extra="vision", purpose="timm:x")


def test_what_an_installed_library_lacks_itself_is_reported_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "installed_but_broken.py").write_text("import not_there")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_there") as caught:
        require("installed_but_broken", extra="vision", purpose="x")
    assert not isinstance(caught.value, MissingExtra)


def test_the_package_imports_no_optional_library(tmp_path):

    code = (
        "import sys, secateur.models, secateur.data\n"
        "print([m for m in ('timm', 'torchvision', 'transformers', 'datasets', 'sklearn', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]"
