"""What is written comes back: types, nesting, values."""

from __future__ import annotations

import pytest
import torch

from secateur.errors import TrainingError
from secateur.train.state_file import read_state, write_state

SHARED = torch.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize(
    "state",
    [
        {},
        [],
        (1, (2, [3, ()])),
        {"dict": {"tensor": "0"}, 3: None, True: "x", ("a", 1): [1.5, -(2**70), 1e-300, float("inf")]},
        {"tuple": 0.1 + 0.2, "list": "ünï"},
    ],
    ids=repr,
)
def test_plain_values_come_back_with_their_types(state, tmp_path):
    write_state(tmp_path / "state.safetensors", state)
    found = read_state(tmp_path / "state.safetensors")
    assert found == state
    assert repr(found) == repr(state), "1, 1.0 and True are equal, and lists are no tuples"


@pytest.mark.parametrize(
    "tensor",
    [
        SHARED.t(),
        torch.tensor(3),
        torch.empty(0, 2),
        torch.tensor([True, False]),
        torch.randn(3).bfloat16(),
        torch.Generator().get_state(),
        torch.ones(2, dtype=torch.float64, requires_grad=True),
    ],
    ids=lambda tensor: f"{tensor.dtype} {tuple(tensor.shape)}",
)
def test_tensors_come_back_with_type_and_shape(tensor, tmp_path):
    write_state(tmp_path / "state.safetensors", {"a": [tensor, tensor], "b": SHARED[0]})
    found = read_state(tmp_path / "state.safetensors")
    assert found["a"][1].dtype is tensor.dtype
    assert found["a"][1].shape == tensor.shape
    assert torch.equal(found["a"][0], tensor)
    assert torch.equal(found["b"], SHARED[0])


@pytest.mark.parametrize("value", [object(), {1, 2}, b"x", torch.float32])
def test_what_is_not_plain_is_refused_and_nothing_is_written(value, tmp_path):
    with pytest.raises(TrainingError, match=f"holds a {type(value).__name__}"):
        write_state(tmp_path / "state.safetensors", {"a": [value]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["gone", "cut off", "another file"])
def test_a_damaged_file_is_refused(damage, tmp_path):
    path = tmp_path / "state.safetensors"
    write_state(path, {"a": torch.ones(5)})
    if damage == "gone":
        path.unlink()
    elif damage == "cut off":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        from safetensors.torch import save_file

        save_file({"a": torch.ones(1)}, path)
    with pytest.raises(TrainingError, match=r"cannot read the attachments' state from .*Resume from a checkpoint"):
        read_state(path)


def test_a_folder_that_is_not_there_is_an_error_of_ours(tmp_path):
    with pytest.raises(TrainingError, match="cannot write"):
        write_state(tmp_path / "nowhere" / "state.safetensors", {})
