"""The contract suite: what every method promises, times every row of the catalogue, times tiny models."""

import pytest

pytest.register_assert_rewrite("tests.contract.promises", "tests.contract.refusals", "tests.contract.snapshot")
