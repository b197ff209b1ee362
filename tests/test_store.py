"""Saved and loaded again: the same bits, or an error that says what is wrong."""

import copy
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from secateur import Budget, load, prune, save, shrink, trace
from secateur.errors import StoreError
from secateur.store import BudgetNote, Details, annotate_, read_record
from secateur.store import folder as folder_module
from secateur.surgery.feasible import feasible
from secateur.surgery.record import RECORD, record_of

from .networks import ALL_KINDS, Block, NetworkSpec, build
from .sequence_blocks import SEQUENCE_KINDS
from .shrunk_models import (
    BY_NAME,
    EXAMPLES,
    Attend,
    ConvNet,
    Encoder,
    Grouped,
    Normalised,
    OwnAttention,
    Recurrent,
    TiedEmbedding,
    example,
    fresh,
    half,
    halved,
)

ROOT = Path(__file__).parent.parent
CHILD = """
import sys, torch
from pathlib import Path
from secateur.store import load
from tests.shrunk_models import BY_NAME, example, fresh
for name, kind in BY_NAME.items():
    small = load(Path(sys.argv[1]) / name, fresh(kind, seed=99))
    torch.save(small(example(kind)).detach(), Path(sys.argv[1]) / f"{name}.pt")
"""


def state(model):
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return dict(tensors)


def same_bits(one, other):
    one, other = one.detach().contiguous(), other.detach().contiguous()
    as_bytes = [t.reshape(-1).view(torch.uint8) for t in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*as_bytes)


def assert_same(loaded, small):
    assert str(loaded) == str(small)
    assert state(loaded).keys() == state(small).keys()
    for name, tensor in state(small).items():
        other = state(loaded)[name]
        assert same_bits(other, tensor), name
        assert other.stride() == tensor.stride(), name
        assert other.requires_grad == tensor.requires_grad, name
        assert type(other) is type(tensor), name
    assert {p: m.training for p, m in loaded.named_modules()} == {p: m.training for p, m in small.named_modules()}
    assert record_of(loaded) == record_of(small)


@pytest.fixture(scope="module")
def small():
    return halved(fresh(ConvNet), example(ConvNet))


@pytest.fixture
def saved(small, tmp_path):
    save(small, tmp_path / "out")
    return tmp_path / "out"


# -- the same bits ------------------------------------------------------------------------------------------------


def test_a_new_process_computes_the_same_bits(tmp_path):
    wanted = {}
    for name, kind in BY_NAME.items():
        cut = halved(fresh(kind), example(kind))
        save(cut, tmp_path / name)
        wanted[name] = cut(example(kind)).detach()
    found = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)], cwd=ROOT, env=os.environ, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert {ConvNet, Attend, Encoder, Recurrent, Normalised, TiedEmbedding, Grouped, OwnAttention} == set(EXAMPLES)
    for name, output in wanted.items():
        assert same_bits(torch.load(tmp_path / f"{name}.pt", weights_only=True), output), name


@pytest.mark.parametrize("kind", EXAMPLES)
def test_after_two_cuts_every_tensor_flag_and_attribute_comes_back(kind, tmp_path):
    cut = halved(halved(fresh(kind), example(kind)), example(kind), skip=1)
    save(cut, tmp_path)
    assert_same(load(tmp_path, fresh(kind, seed=5)), cut)


@pytest.mark.slow  # ninety networks
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_kind_of_block_comes_back(kind, tmp_path):
    for length in (0, 8) if kind in SEQUENCE_KINDS else (0,):
        blocks = (Block(kind, 8),) if length else (Block("conv_with_bias", 8), Block(kind, 8))
        spec = NetworkSpec(blocks, channels=8 if length else 3, length=length)
        network = build(spec)
        graph = feasible(network.model, trace(network.model, network.args))
        cut = shrink(network.model, graph, half(graph.widths))
        save(cut, tmp_path)
        loaded = load(tmp_path, build(spec).model)
        if not graph.widths:  # its code computes with a width: nothing was cut, and none is known of what comes back
            assert record_of(loaded) is None
            loaded.__dict__[RECORD] = record_of(cut)
        assert_same(loaded, cut)
        assert same_bits(loaded(*network.args), cut(*network.args))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_come_back_whatever_the_fresh_model_has(dtype, tmp_path):
    cut = halved(fresh(ConvNet), example(ConvNet)).to(dtype)
    save(cut, tmp_path)
    assert_same(load(tmp_path, ConvNet), cut)


def test_odd_buffers_come_back(tmp_path):
    class Odd(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(2, 4), nn.Linear(4, 2))
            self.register_buffer("complex", torch.zeros(2, 2, dtype=torch.complex128))
            self.register_buffer("flags", torch.zeros(3, dtype=torch.bool))
            self.register_buffer("number", torch.tensor(0, dtype=torch.int16))
            self.register_buffer("unsaved", torch.zeros(2), persistent=False)
            self.register_buffer("no_rows", torch.zeros(0, 3))
            self.register_buffer("wide", torch.zeros(1).expand(4))

    cut = halved(Odd(), torch.randn(1, 2))
    with torch.no_grad():
        cut.complex[:] = torch.tensor([[1 + 2j, -0.0j], [float("nan"), 1e-310j]], dtype=torch.complex128).conj()
        cut.flags[1], cut.number[...], cut.unsaved[:] = True, 7, torch.tensor([-0.0, float("nan")])
    save(cut, tmp_path)
    loaded = load(tmp_path, Odd)
    for name, tensor in state(cut).items():
        assert same_bits(state(loaded)[name], tensor), name
    assert "unsaved" not in loaded.state_dict()


def test_modes_and_frozen_parameters_come_back(tmp_path):
    cut = halved(fresh(ConvNet).train(), example(ConvNet))
    cut.stem[1].eval()
    cut.head.weight.requires_grad_(False)
    save(cut, tmp_path)
    assert_same(load(tmp_path, fresh(ConvNet)), cut)


def test_memory_layout_comes_back(tmp_path):
    cut = halved(fresh(ConvNet), example(ConvNet)).to(memory_format=torch.channels_last)
    save(cut, tmp_path)
    loaded = load(tmp_path, ConvNet)
    assert_same(loaded, cut)
    assert not loaded.block[3].weight.is_contiguous()


def test_tied_parameters_lie_in_the_file_once_and_are_tied_again(tmp_path):
    cut = halved(fresh(TiedEmbedding), example(TiedEmbedding))
    save(cut, tmp_path)
    assert "head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = load(tmp_path, TiedEmbedding)
    assert loaded.head.weight is loaded.embedding.weight


def test_ties_are_those_of_the_saved_model_not_of_the_fresh_one(tmp_path):
    def untied():
        model = TiedEmbedding()
        model.head.weight = nn.Parameter(model.head.weight.detach().clone())
        return model

    tied = halved(fresh(TiedEmbedding), example(TiedEmbedding))
    save(tied, tmp_path / "tied")
    loaded = load(tmp_path / "tied", untied)
    assert loaded.head.weight is loaded.embedding.weight
    tied.head.weight = nn.Parameter(tied.head.weight.detach() + 1)
    save(tied, tmp_path / "untied")
    assert_same(load(tmp_path / "untied", TiedEmbedding), tied)


def test_a_bias_that_was_added_after_the_cut_comes_back(tmp_path):
    # folding what removed channels contributed gives a convolution a bias that its class does not make
    cut = halved(fresh(ConvNet), example(ConvNet))
    cut.stem[0].bias = nn.Parameter(torch.randn(6))
    cut.head.bias = None
    save(cut, tmp_path)
    assert_same(load(tmp_path, ConvNet), cut)


def test_tensors_that_share_memory_are_saved_each(tmp_path):
    cut = halved(fresh(ConvNet), example(ConvNet))
    cut.stem[1].running_mean = cut.stem[1].running_var.view(-1)
    save(cut, tmp_path)
    assert same_bits(load(tmp_path, ConvNet).stem[1].running_mean, cut.stem[1].running_var)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_old_style_weight_norm_comes_back(tmp_path):
    def make():
        return nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()

    x = torch.randn(1, 3, 6, 6)
    cut = halved(make(), x)
    save(cut, tmp_path)
    loaded = load(tmp_path, make)
    assert loaded[0].weight.shape == (4, 3, 3, 3)
    assert same_bits(loaded(x), cut(x))


def test_a_fresh_model_without_data_is_enough(tmp_path):
    cut = halved(fresh(Attend), example(Attend))
    save(cut, tmp_path)
    with torch.device("meta"):
        bare = Attend()
    assert_same(load(tmp_path, bare), cut)
    assert all(parameter.is_meta for parameter in bare.parameters())


def test_the_fresh_model_and_the_random_numbers_are_as_before(saved):
    model = fresh(ConvNet)
    before, text, random = copy.deepcopy(model.state_dict()), str(model), torch.get_rng_state()
    load(saved, model)
    assert torch.equal(torch.get_rng_state(), random)
    assert str(model) == text
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert record_of(model) is None


def test_the_saved_model_is_as_before(small, tmp_path):
    before, keys = copy.deepcopy(small.state_dict()), set(small.__dict__)
    save(small, tmp_path, details={"method": "random"})
    assert all(torch.equal(before[name], tensor) for name, tensor in small.state_dict().items())
    assert set(small.__dict__) == keys


def test_a_loaded_model_trains_and_is_cut_and_saved_again(saved, tmp_path):
    loaded = load(saved, ConvNet)
    loaded(example(ConvNet)).sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())
    again = halved(loaded, example(ConvNet))
    save(again, tmp_path / "again")
    assert_same(load(tmp_path / "again", ConvNet), again)


# -- the record ---------------------------------------------------------------------------------------------------


def test_details_are_kept_and_read_without_the_tensors(small, tmp_path):
    given = Details(
        source="secateur:resnet20",
        method="l1_filter",
        settings={"norm": 1},
        budget=BudgetNote(remove=0.5, of="macs", removed=0.52),
        verification_error=1e-15,
        notes={"seed": 3, "tags": ["a"]},
    )
    save(small, tmp_path, details=given.model_dump())
    (tmp_path / "model.safetensors").unlink()
    stored = read_record(tmp_path)
    assert stored.details == given
    assert (stored.format, stored.model_class) == (1, "ConvNet")
    assert stored.versions["torch"] == torch.__version__
    assert stored.surgery.record() == record_of(small)


def test_details_noted_on_the_model_travel_with_it(tmp_path):
    cut = halved(fresh(ConvNet), example(ConvNet))
    annotate_(cut, {"method": "l1_filter"})
    save(cut, tmp_path / "one")
    save(load(tmp_path / "one", ConvNet), tmp_path / "two")
    assert read_record(tmp_path / "two").details == Details(method="l1_filter")
    save(cut, tmp_path / "three", details={"method": "random"})
    assert read_record(tmp_path / "three").details.method == "random"
    save(halved(cut, example(ConvNet)), tmp_path / "four")
    assert read_record(tmp_path / "four").details == Details(), "they are of the cut before"


def test_what_prune_did_is_saved_with_its_model(tmp_path):
    result = prune(fresh(ConvNet), example(ConvNet), budget=Budget(remove=0.5, of="macs"), method="random", seed=3)
    save(result.model, tmp_path)
    details = read_record(tmp_path).details
    assert details.method == "random"
    assert details.budget == BudgetNote(remove=0.5, of="macs", removed=result.removed)
    assert details.verification_error == result.verification.max_relative_error
    assert_same(load(tmp_path, ConvNet), result.model)


@pytest.mark.parametrize(
    ("details", "message"),
    [
        ({"methd": "l1"}, "methd: Extra inputs are not permitted"),
        ({"notes": {"x": object()}}, "not JSON serializable"),
        ({"verification_error": float("nan")}, "Out of range float values"),
        ({"budget": {"remove": 30, "of": "macs"}}, r"budget\.remove: Input should be less than 1"),
    ],
)
def test_details_that_have_no_place_are_refused(small, tmp_path, details, message):
    with pytest.raises(StoreError, match=message):
        save(small, tmp_path / "out", details=details)
    assert not (tmp_path / "out").exists()


# -- what cannot be saved -----------------------------------------------------------------------------------------


def test_a_model_that_was_never_cut_is_refused(small, tmp_path):
    with pytest.raises(StoreError, match=r"this ConvNet carries no record of surgery: .* Shrink or sparsify it first"):
        save(fresh(ConvNet), tmp_path / "out")
    with pytest.raises(StoreError, match=r"only its module '1' does\. Save that"):
        save(nn.Sequential(nn.Identity(), small), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_tensor_file_cannot_hold_is_refused(tmp_path):
    cut = halved(fresh(ConvNet), example(ConvNet))
    cut.register_buffer("sparse", torch.eye(3).to_sparse())
    with pytest.raises(StoreError, match=r"'sparse' is a torch\.sparse_coo tensor"):
        save(cut, tmp_path)
    del cut.sparse
    with pytest.raises(StoreError, match=r"'stem\.0\.weight' is on the meta device and holds no data"):
        save(cut.to("meta"), tmp_path)


def test_extra_state_is_refused(tmp_path):
    class Counting(nn.ReLU):
        def get_extra_state(self):
            return {"calls": 3}

    cut = halved(nn.Sequential(nn.Linear(2, 4), Counting(), nn.Linear(4, 2)), torch.randn(1, 2))
    with pytest.raises(StoreError, match=r"module '1' .*Counting\) keeps extra state"):
        save(cut, tmp_path)


# -- writing: all or nothing --------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here."""


def at_step(number, monkeypatch, error):
    """Raise `error` at the so-manyth call that touches the disk; returns the calls that were made."""
    calls = []

    def counting(original):
        def call(*args, **kwargs):
            calls.append(original.__name__)
            if len(calls) == number:
                raise error
            return original(*args, **kwargs)

        return call

    monkeypatch.setattr(folder_module, "save_file", counting(folder_module.save_file))
    monkeypatch.setattr(folder_module, "flush", counting(folder_module.flush))
    monkeypatch.setattr(folder_module.os, "replace", counting(os.replace))
    return calls


def test_all_steps_are_tried(small, tmp_path, monkeypatch):
    calls = at_step(0, monkeypatch, Killed())
    save(small, tmp_path / "out")
    assert calls == ["save_file", "flush", "flush", "replace", "replace", "replace", "flush"]


@pytest.mark.parametrize("step", range(1, 8))
def test_a_kill_at_any_step_leaves_the_old_or_the_new_model(step, small, tmp_path, monkeypatch):
    target = tmp_path / "out"
    save(small, target)
    new = copy.deepcopy(small)
    with torch.no_grad():
        new.head.bias.add_(1)
    with monkeypatch.context() as patch:
        at_step(step, patch, Killed())
        patch.setattr(folder_module, "_tidy", lambda *_: None)  # a killed process tidies nothing
        with pytest.raises(Killed):
            save(new, target)
    assert_same(load(target, ConvNet), new if step > 5 else small)
    save(new, target)
    assert_same(load(target, ConvNet), new)
    assert sorted(p.name for p in target.iterdir()) == ["model.safetensors", "secateur.json"]


@pytest.mark.parametrize("step", range(1, 6))
def test_a_kill_at_the_first_save_leaves_no_model(step, small, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        at_step(step, patch, Killed())
        patch.setattr(folder_module, "_tidy", lambda *_: None)
        with pytest.raises(Killed):
            save(small, tmp_path / "out")
    with pytest.raises(StoreError, match=r"holds no secateur\.json"):
        load(tmp_path / "out", ConvNet)
    save(small, tmp_path / "out")
    assert_same(load(tmp_path / "out", ConvNet), small)


@pytest.mark.parametrize("step", range(1, 6))
@pytest.mark.parametrize("is_new", [True, False])
def test_a_full_disk_leaves_what_was_there(step, is_new, small, tmp_path, monkeypatch):
    target = tmp_path / "out"
    if not is_new:
        save(small, target)
    new = copy.deepcopy(small)
    with torch.no_grad():
        new.head.bias.add_(1)
    with monkeypatch.context() as patch:
        at_step(step, patch, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(StoreError, match=r"cannot write the model to .*No space left on device.*Free some space"):
            save(new, target)
    if is_new:
        assert not target.exists()
    else:
        assert_same(load(target, ConvNet), small)
        assert sorted(p.name for p in target.iterdir()) == ["model.safetensors", "secateur.json"]


def test_a_folder_that_cannot_be_made_is_named(small, tmp_path):
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(StoreError, match=r"cannot write the model to .*file"):
            save(small, target)
    assert (tmp_path / "file").read_text() == "x"


def test_a_folder_that_may_not_be_written_stays_as_it_was(small, saved, monkeypatch):
    before = (saved / "secateur.json").read_bytes()
    monkeypatch.setattr(folder_module, "save_file", refuse)
    with pytest.raises(StoreError, match="Permission denied"):
        save(small, saved)
    assert (saved / "secateur.json").read_bytes() == before


def refuse(*_):
    raise PermissionError(errno.EACCES, "Permission denied")


def test_other_files_of_the_folder_stay(small, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    save(small, tmp_path)
    save(small, str(tmp_path) + "/")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "model.safetensors", "secateur.json"]


def test_weights_that_secateur_did_not_write_are_not_replaced(small, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"precious")
    with pytest.raises(StoreError, match="was not written by secateur"):
        save(small, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == b"precious"
