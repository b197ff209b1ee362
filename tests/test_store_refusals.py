"""A saved model that is damaged, forged or of another class is refused, and the error says what is wrong."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from secateur import CompactResult, load, save
from secateur.errors import StoreError
from secateur.store import folder as folder_module

from .shrunk_models import Attend, ConvNet, Grouped, example, fresh, halved


@pytest.fixture(scope="module")
def small():
    return halved(fresh(ConvNet), example(ConvNet))


@pytest.fixture
def saved(small, tmp_path):
    save(small, tmp_path / "out")
    return tmp_path / "out"


def rewrite(folder, change):
    """Change the record on disk as an editor would."""
    path = folder / "secateur.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def forge(folder, change):
    """Change the tensors on disk, and the digest with them."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)

    def note(record):
        record["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        record["size_bytes"] = path.stat().st_size

    rewrite(folder, note)


def test_what_is_no_model_is_neither_saved_nor_loaded(small, saved, tmp_path):
    result = CompactResult(small, *[None] * 7)
    with pytest.raises(StoreError, match=r"a CompactResult cannot be saved; .*give its \.model"):
        save(result, tmp_path / "other")
    with pytest.raises(StoreError, match=r"gave a NoneType; expected a module"):
        load(saved, None)


# -- reading: never a wrong model ---------------------------------------------------------------------------------


def test_a_folder_that_holds_no_model_is_named(tmp_path):
    with pytest.raises(StoreError, match="there is no such folder"):
        load(tmp_path / "gone", ConvNet)
    with pytest.raises(StoreError, match=r"it holds no secateur\.json"):
        load(tmp_path, ConvNet)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
def test_a_truncated_tensor_file_is_found(saved, part):
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(StoreError, match=rf"is damaged: it is \d+ bytes long, and {len(whole)} bytes"):
        load(saved, ConvNet)


@pytest.mark.parametrize("position", [0, 100, -1])
def test_one_wrong_bit_is_found(saved, position):
    path = saved / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"damaged: it is not the one that was written \(its SHA-256 differs\)"):
        load(saved, ConvNet)


def test_a_missing_tensor_file_is_found(saved):
    (saved / "model.safetensors").unlink()
    with pytest.raises(StoreError, match=r"holds no model\.safetensors"):
        load(saved, ConvNet)


def test_no_prefix_of_the_record_passes(saved):
    path = saved / "secateur.json"
    text = path.read_text()
    for length in range(0, len(text) - 2, 97):
        path.write_text(text[:length])
        with pytest.raises(StoreError, match="damaged, it cannot be parsed as JSON"):
            load(saved, ConvNet)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xfe", "no saved model can be read"),
        (b"[1]", 'no "format" number'),
        (b'{"format": true}', 'no "format" number'),
        (b"[" * 100_000, "cannot be parsed as JSON"),
        (b'{"format": 1}', "versions: Field required"),
        (b'{"format": 9, "versions": {"secateur": "4.2"}}', r"format is 9, written by secateur 4\.2; .*: upgrade"),
    ],
)
def test_a_record_of_another_kind_is_refused(saved, data, message):
    (saved / "secateur.json").write_bytes(data)
    with pytest.raises(StoreError, match=message):
        load(saved, ConvNet)


def test_a_tensor_that_is_missing_or_too_many_is_named(saved):
    forge(saved, lambda tensors: tensors.pop("head.bias"))
    with pytest.raises(StoreError, match=r"disagree about 'head\.bias': only the record lists it"):
        load(saved, ConvNet)
    forge(saved, lambda tensors: tensors.update({"head.bias": torch.zeros(5), "more": torch.zeros(1)}))
    with pytest.raises(StoreError, match="disagree about 'more': only the file holds it"):
        load(saved, ConvNet)


@pytest.mark.parametrize("wrong", [torch.zeros(4), torch.zeros(5, dtype=torch.float16), torch.zeros(5, 1)])
def test_a_tensor_of_another_shape_or_dtype_is_named(saved, wrong):
    forge(saved, lambda tensors: tensors.update({"head.bias": wrong}))
    with pytest.raises(
        StoreError, match=r"'head\.bias' is .* in the tensor file; the record says \[5\] of torch\.float32"
    ):
        load(saved, ConvNet)


def test_a_fresh_model_of_another_class_is_refused(saved):
    with pytest.raises(StoreError, match=r"shrunk_models\.ConvNet was saved, and model= is a Grouped"):
        load(saved, Grouped)
    with pytest.raises(StoreError, match="model= gave a int; expected a module"):
        load(saved, lambda: 3)


def test_a_fresh_model_of_other_widths_is_refused(saved):
    with pytest.raises(StoreError, match=r"'stem\.0\.weight' .* in .* \[8, 3, 3, 3\]"):
        load(saved, ConvNet(width=8))
    # every cut axis keeps channels that 14 has too, so only the recorded width tells
    with pytest.raises(StoreError, match=r"of shape \[12, 3, 3, 3\]; in this model it has shape \[14, 3, 3, 3\]"):
        load(saved, ConvNet(width=14))


def test_a_fresh_model_that_is_cut_already_is_refused(saved, small):
    with pytest.raises(StoreError, match="cut already: give a fresh instance"):
        load(saved, small)


def test_a_fresh_model_with_other_modules_is_refused(saved):
    other = fresh(ConvNet)
    other.stem[2] = nn.GELU()
    with pytest.raises(StoreError, match=r"'stem\.2' was saved as ReLU, and the fresh model gives GELU"):
        load(saved, other)
    other = fresh(ConvNet)
    other.extra = nn.Linear(1, 1)
    with pytest.raises(StoreError, match=r"lacks 'extra\.weight', 'extra\.bias', which the fresh model has"):
        load(saved, other)
    other = fresh(ConvNet)
    other.head = nn.Identity()
    with pytest.raises(StoreError, match=r"holds 'head\.weight', 'head\.bias', which the fresh model has no place for"):
        load(saved, other)
    other = fresh(ConvNet)
    bias = other.head.bias
    del other.head.bias
    other.head.register_buffer("bias", bias.detach())
    with pytest.raises(
        StoreError, match=r"'head\.bias' was saved as a parameter, and in the fresh model it is a buffer"
    ):
        load(saved, other)


# -- security: a record from elsewhere ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("__class__", 3),
        ("_parameters", 3),
        ("forward", 3),
        ("in_features", 3),
    ],
)
def test_a_forged_change_reaches_only_numbers_that_are_as_it_says(saved, name, value):
    change = {"module": "head", "name": name, "before": 7, "after": value}
    rewrite(saved, lambda record: record["surgery"]["attributes"].append(change))
    with pytest.raises(StoreError, match=f"changes attribute '{name}' of module 'head' from 7 to 3"):
        load(saved, ConvNet)


@pytest.mark.parametrize("name", ["a.b", "config.a.b", "a[-1]", "a[x]", "a[0][0]", "config.", "", "a b", "a\n"])
def test_a_forged_name_of_an_attribute_is_refused(saved, name):
    change = {"module": "head", "name": name, "before": 12, "after": 3}
    rewrite(saved, lambda record: record["surgery"]["attributes"].append(change))
    with pytest.raises(StoreError, match=r"name: String should match pattern"):
        load(saved, ConvNet)


@pytest.mark.parametrize("value", ["text", {"a": 1}, 1.5, [[1]], ["x"]])
def test_a_forged_value_of_an_attribute_is_refused(saved, value):
    change = {"module": "head", "name": "in_features", "before": 12, "after": value}
    rewrite(saved, lambda record: record["surgery"]["attributes"].append(change))
    with pytest.raises(StoreError, match=r"surgery\.attributes\.\d+\.after"):
        load(saved, ConvNet)


FORGERIES = {
    "an index out of range": (lambda r: r["surgery"]["kept"]["head.weight"][0][1].append(12), "no ascending indices"),
    "a negative index": (
        lambda r: r["surgery"]["kept"]["head.weight"][0][1].insert(0, -1),
        "greater than or equal to 0",
    ),
    "an index twice": (lambda r: r["surgery"]["kept"]["head.weight"][0][1].insert(0, 0), "no ascending indices"),
    "an axis too many": (lambda r: r["surgery"]["kept"].update({"head.weight": [[2, [0]]]}), "is cut along axis 2"),
    "no shape": (lambda r: r["surgery"]["shapes"].pop("head.weight"), r"its shape is \[\]"),
    "a number as text": (lambda r: r["surgery"]["shapes"].update({"head.weight": ["5", 12]}), "valid integer"),
    "strides with gaps": (
        lambda r: r["tensors"]["head.weight"].update(strides=[10**12, 1]),
        r"strides \[1000000000000, 1\] leave gaps",
    ),
    "an unknown dtype": (lambda r: r["tensors"]["head.bias"].update(dtype="Tensor"), "dtype 'Tensor' is none of"),
    "a tie to nothing": (lambda r: r["same_as"].update(more="gone"), "tied to 'gone', which is not in the file"),
    "a tie to itself": (lambda r: r["same_as"].update({"head.bias": "head.bias"}), r"'head\.bias' is listed twice"),
    "a digest of a path": (lambda r: r.update(sha256="../../etc/passwd"), "sha256: String should match pattern"),
    "an unknown part": (lambda r: r.update(code="import os"), "code: Extra inputs are not permitted"),
    "another drop-in": (
        lambda r: r["surgery"]["swapped"].update(head={"kind": "os.system"}),
        r"swapped\.head: Input tag 'os\.system' found using 'kind' does not match",
    ),
}


@pytest.mark.parametrize(("change", "message"), FORGERIES.values(), ids=FORGERIES)
def test_a_forged_record_is_refused(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(StoreError, match=message):
        load(saved, ConvNet)


def test_a_forged_attention_is_refused(tmp_path):
    save(halved(fresh(Attend), example(Attend)), tmp_path)
    for field, value in (("kept_heads", [0, 9]), ("num_heads", 0), ("names", ["in_proj_weight", "x"]), ("head_dim", 2)):
        rewritten = json.loads((tmp_path / "secateur.json").read_text())
        settings = rewritten["surgery"]["swapped"]["attention"]
        before, settings[field] = settings[field], value
        (tmp_path / "secateur.json").write_text(json.dumps(rewritten))
        with pytest.raises(StoreError, match="cannot load"):
            load(tmp_path, Attend)
        settings[field] = before
        (tmp_path / "secateur.json").write_text(json.dumps(rewritten))
    load(tmp_path, Attend)


def test_nothing_is_pickled(saved):
    assert load_file(saved / "model.safetensors")
    source = "".join(path.read_text() for path in Path(folder_module.__file__).parent.glob("*.py"))
    assert not any(word in source for word in ("import pickle", "torch.load", "torch.save", "eval(", "exec("))
