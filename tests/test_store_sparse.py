"""Sparse models on disk: the same bits, less room, and the mask to train on with."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import secateur as sc
from secateur.errors import StoreError
from secateur.store import packing, read_record
from secateur.train import ClassificationTask, Recipe

BY_LAYER = sc.methods.Magnitude(scope="layer")
FOLDER_FILES = ["model.safetensors", "secateur.json"]


def model(width: int = 24):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(width * 4, 8)
    )


def sparse(remove: float = 0.9) -> nn.Module:
    return sc.sparsify(model(), budget=sc.Budget(remove, "weights"), method=BY_LAYER).model


def bits_of(network: nn.Module) -> dict[str, bytes]:
    return {
        name: t.detach().reshape(-1).view(torch.uint8).numpy().tobytes() for name, t in network.state_dict().items()
    }


def test_a_model_that_was_only_sparsified_comes_back_to_the_same_bits(tmp_path):
    network = sparse()
    sc.save(network, tmp_path)
    back = sc.load(tmp_path, model=model)
    assert bits_of(back) == bits_of(network)
    assert sc.WeightPlan.of(back) == sc.WeightPlan.of(network)
    assert read_record(tmp_path).details.method == "Magnitude"
    sc.save(back, tmp_path / "again")
    assert bits_of(sc.load(tmp_path / "again", model=model)) == bits_of(network)


@pytest.mark.parametrize("first", ["shrunk", "sparsified"])
def test_a_model_that_was_shrunk_and_sparsified_comes_back(first, tmp_path):
    images = torch.randn(2, 3, 4, 4)
    budget, zeros = sc.Budget(0.5), sc.Budget(0.8, "weights")
    if first == "shrunk":
        network = sc.sparsify(sc.prune(model(), images, budget=budget).model, budget=zeros, method=BY_LAYER).model
    else:
        network = sc.prune(sc.sparsify(model(), budget=zeros, method=BY_LAYER).model, images, budget=budget).model
    sc.save(network, tmp_path)
    back = sc.load(tmp_path, model=model)
    assert bits_of(back) == bits_of(network)
    assert set(sc.WeightPlan.of(back)) == {"0.weight", "4.weight"}


def test_zeros_take_a_bit_each(tmp_path):
    network = sparse(0.9)
    sc.save(network, tmp_path / "packed")
    sc.save(network, tmp_path / "plain", compress=False)
    sizes = {name: (tmp_path / name / "model.safetensors").stat().st_size for name in ("packed", "plain")}
    assert sizes["packed"] < 0.35 * sizes["plain"]
    assert bits_of(sc.load(tmp_path / "plain", model=model)) == bits_of(network)
    assert "4.weight..nonzero" in load_file(tmp_path / "packed" / "model.safetensors")
    assert set(load_file(tmp_path / "plain" / "model.safetensors")) == set(network.state_dict())


def test_only_what_gets_smaller_is_packed(tmp_path):
    network = sc.sparsify(model(), budget=sc.Budget(0.9, "weights"), protect=["4"]).model
    sc.save(network, tmp_path)
    counts = {name: tensor.nonzero for name, tensor in read_record(tmp_path).tensors.items()}
    assert {name for name, count in counts.items() if count is not None} == {"0.weight"}
    assert counts["0.weight"] == int((network[0].weight != 0).sum())


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64]
)
def test_every_dtype_keeps_its_bits_and_minus_zero(dtype, tmp_path):
    torch.manual_seed(0)
    layer = nn.Linear(64, 64, bias=False)
    sc.WeightPlan({"weight": torch.rand(64, 64) < 0.05}).apply_(layer)
    values = layer.weight.detach().clone().to(dtype)
    values.view(-1)[7] = -0.0
    layer.weight = nn.Parameter(values, requires_grad=False)
    sc.save(layer, tmp_path)
    assert read_record(tmp_path).tensors["weight"].nonzero is not None
    assert (tmp_path / "model.safetensors").stat().st_size < values.numel() * values.element_size() / 2
    back = sc.load(tmp_path, model=nn.Linear(64, 64, bias=False))
    assert back.weight.dtype == dtype
    assert bits_of(back) == bits_of(layer)


def test_memory_layout_comes_back_from_packed_weights(tmp_path):
    network = sparse().to(memory_format=torch.channels_last)
    sc.save(network, tmp_path)
    back = sc.load(tmp_path, model=model)
    assert back[0].weight.stride() == network[0].weight.stride()
    assert bits_of(back) == bits_of(network)


def test_all_zero_and_tiny_parameters_come_back():
    for plain in (torch.zeros(100, 3), torch.eye(17)):
        parts = packing.smaller("w", plain)
        assert torch.equal(packing.unpacked(parts["w"], parts["w..nonzero"], tuple(plain.shape)), plain)
    assert packing.smaller("w", torch.zeros(())) is None
    assert packing.smaller("w", torch.zeros(0, 4)) is None


def test_training_goes_on_with_the_same_mask_after_loading(tmp_path):
    network = sparse()
    plan = sc.WeightPlan.of(network)
    sc.save(network, tmp_path)
    back = sc.load(tmp_path, model=model)
    batches = [(torch.randn(8, 3, 4, 4), torch.arange(8))]
    held = sc.HeldZeros(sc.WeightPlan.of(back))
    tuned, _ = sc.finetune(back, batches, ClassificationTask(), Recipe(epochs=2, lr=0.1), attachments=[held])
    assert not torch.equal(tuned[4].weight, back[4].weight)
    assert sc.WeightPlan.of(tuned) == plan


def test_a_loaded_sparse_model_is_at_full_width_and_can_be_cut(tmp_path):
    sc.save(sparse(), tmp_path)
    back = sc.load(tmp_path, model=model)
    small = sc.prune(back, torch.randn(1, 3, 4, 4), budget=sc.Budget(0.5)).model
    assert small[0].out_channels == 12
    assert bits_of(sc.load(tmp_path, model=back)) == bits_of(back), "it serves as a fresh model as well"


def test_files_without_zeros_are_of_the_old_format(tmp_path):
    small = sc.prune(model(), torch.randn(1, 3, 4, 4), budget=sc.Budget(0.5)).model
    sc.save(small, tmp_path)
    text = (tmp_path / "secateur.json").read_text()
    assert json.loads(text)["format"] == 1
    assert "nonzero" not in text
    assert "masked" not in text
    sc.save(sparse(), tmp_path)
    assert json.loads((tmp_path / "secateur.json").read_text())["format"] == 2


def test_a_newer_format_is_refused(tmp_path):
    sc.save(sparse(), tmp_path)
    record = tmp_path / "secateur.json"
    record.write_text(record.read_text().replace('"format": 2', '"format": 3'))
    with pytest.raises(StoreError, match="reads up to 2"):
        sc.load(tmp_path, model=model)


def forge(folder: Path, change) -> None:
    """Change the tensors of a saved model, and let the record agree with the new file."""
    from secateur.store.folder import sha256_of

    path = folder / FOLDER_FILES[0]
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)
    record = json.loads((folder / FOLDER_FILES[1]).read_text())
    record |= {"sha256": sha256_of(path), "size_bytes": path.stat().st_size}
    (folder / FOLDER_FILES[1]).write_text(json.dumps(record))


def _one_bit_more(tensors):
    name = "4.weight..nonzero"
    position = int((tensors[name] == 0).nonzero()[0])
    tensors[name][position] = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_one_bit_more, "'4.weight' is packed, and its values do not fit its bits"),
        (lambda t: t.update({"4.weight": t["4.weight"][:-1]}), "values for"),
        (lambda t: t.update({"4.weight..nonzero": t["4.weight..nonzero"][:-1]}), "are no mask of shape"),
        (lambda t: t.pop("4.weight..nonzero"), "only the record lists it"),
        (lambda t: t.update({"0.bias..nonzero": torch.zeros(3, dtype=torch.uint8)}), "only the file holds it"),
    ],
)
def test_bits_that_do_not_fit_are_named(change, message, tmp_path):
    sc.save(sparse(), tmp_path)
    forge(tmp_path, change)
    with pytest.raises(StoreError, match=message):
        sc.load(tmp_path, model=model)


def test_a_mask_on_nothing_is_refused(tmp_path):
    sc.save(sparse(), tmp_path)
    record = tmp_path / "secateur.json"
    record.write_text(record.read_text().replace('"masked": ["0.weight"', '"masked": ["9.weight"'))
    with pytest.raises(StoreError, match=r"'9\.weight' is masked"):
        sc.load(tmp_path, model=model)


def test_tied_parameters_under_one_mask_stay_tied(tmp_path):
    def tied():
        network = nn.ModuleDict({"one": nn.Linear(32, 32, bias=False), "other": nn.Linear(32, 32, bias=False)})
        network["other"].weight = network["one"].weight
        return network

    network = sc.sparsify(tied(), budget=sc.Budget(0.9, "weights")).model
    sc.save(network, tmp_path)
    back = sc.load(tmp_path, model=tied())
    assert back["one"].weight is back["other"].weight
    assert sc.WeightPlan.of(back) == sc.WeightPlan.of(network)
