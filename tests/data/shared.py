"""Where the real CIFAR-10 files are, if this machine has them."""

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("SECATEUR_SHARED_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")).resolve()

needs_cifar10 = pytest.mark.skipif(
    not (FOLDER / "cifar10-test.parquet").is_file(), reason="no CIFAR-10 parquet files; set SECATEUR_SHARED_DATA"
)
