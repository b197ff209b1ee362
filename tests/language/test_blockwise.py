"""Block by block from disk to disk: the same weights as in memory, resumable, and nothing half-done under the name."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from secateur import Budget, sparsify, sparsify_language_model
from secateur.errors import BudgetError, MethodError, ModelError, StoreError, UnknownName
from secateur.methods import Magnitude, RandomWeights, SparseGPT, Wanda, WeightProblem
from secateur.train import NextTokenTask

transformers = pytest.importorskip("transformers")

HALF = Budget(0.5, "weights")
WORDS, LENGTH = 32, 12


def config_of(family):
    small = {"vocab_size": WORDS, "bos_token_id": 0, "eos_token_id": 1}
    if family == "gpt2":
        return transformers.GPT2Config(n_embd=16, n_layer=3, n_head=2, n_positions=LENGTH, **small)
    common = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": LENGTH,
    }
    if family == "llama":
        return transformers.LlamaConfig(**common, **small)
    sliding = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    return transformers.Qwen2Config(tie_word_embeddings=True, **sliding, **common, **small)


def made(family="llama", auto=None):
    torch.manual_seed(0)
    model = (auto or transformers.AutoModelForCausalLM).from_config(config_of(family)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def saved(folder, model=None, shard="8KB"):
    (model or made()).save_pretrained(folder, max_shard_size=shard)
    (folder / "tokenizer.json").write_text('{"words": 32}')
    return folder


def tokens(count=8):
    return torch.randint(WORDS, (count, LENGTH), generator=torch.Generator().manual_seed(1))


def pruned(source, out, method="magnitude", **more):
    given = {"budget": HALF} | more
    return sparsify_language_model(source, out, method=method, **given)


def loaded(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def contents_of(folder):
    """Everything in a folder; tensors as bytes, since safetensors writes its notes in any order."""
    texts = {path.name: path.read_text() for path in folder.iterdir() if path.suffix != ".safetensors"}
    tensors = {path.name: load_file(path) for path in folder.glob("*.safetensors")}
    return texts | {
        file: {name: tensor.numpy().tobytes() for name, tensor in own.items()} for file, own in tensors.items()
    }


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("method", [Wanda(), SparseGPT(), Magnitude(scope="layer"), Wanda(together="layer")])
def test_it_is_what_the_method_does_to_the_whole_model_in_memory(tmp_path, family, method):
    model = made(family)
    result = pruned(saved(tmp_path / "dense", model), tmp_path / "sparse", method, tokens=tokens())
    head = ["lm_head"] if family == "llama" else []
    whole = sparsify(
        model, method=method, budget=HALF, data=list(tokens().split(1)), task=NextTokenTask(), protect=head
    )
    found, expected = loaded(result.folder).state_dict(), whole.model.state_dict()
    assert found.keys() == expected.keys()
    assert not [name for name in found if not torch.equal(found[name], expected[name])]
    assert (result.removed_count, result.weight_count) == (whole.plan.removed_count, whole.plan.weight_count)


def test_what_is_in_no_block_stays_and_the_pattern_holds(tmp_path):
    model = made()
    result = pruned(
        saved(tmp_path / "dense", model),
        tmp_path / "sparse",
        "wanda",
        tokens=tokens(),
        **{"budget": None, "pattern": "2:4"},
    )
    small = loaded(result.folder)
    for name, before in model.named_parameters():
        after = small.get_parameter(name)
        if name.endswith("proj.weight"):
            assert after.unflatten(1, (-1, 4)).count_nonzero(2).eq(2).all()
            assert torch.equal(after[after != 0], before[after != 0])
        else:
            assert torch.equal(after, before)
    assert result.removed == 0.5
    assert json.loads((result.folder / "tokenizer.json").read_text()) == {"words": 32}


def test_the_index_names_every_tensor_where_it_is(tmp_path):
    source = saved(tmp_path / "dense")
    result = pruned(source, tmp_path / "sparse")
    index = json.loads((result.folder / "model.safetensors.index.json").read_text())
    held = {name: path.name for path in result.folder.glob("*.safetensors") for name in load_file(path)}
    assert index["weight_map"] == held
    size = sum(t.numel() * t.element_size() for path in source.glob("*.safetensors") for t in load_file(path).values())
    assert index["metadata"]["total_size"] == size
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_checkpoint_of_the_decoder_alone_and_one_in_a_single_file_are_read(tmp_path):
    """GPT-2 on the hub names its tensors "h.0…", without the "transformer." of the language model."""
    decoder = made("gpt2", transformers.AutoModel)
    source = saved(tmp_path / "dense", decoder, shard="1GB")
    assert [path.name for path in source.glob("*.safetensors")] == ["model.safetensors"]
    assert any(name.startswith("h.0.") for name in load_file(source / "model.safetensors"))
    result = pruned(source, tmp_path / "sparse", "wanda", tokens=tokens())
    small = transformers.AutoModel.from_pretrained(result.folder, local_files_only=True)
    assert (small.h[1].mlp.c_fc.weight == 0).float().mean() == 0.5
    assert torch.equal(small.wte.weight, decoder.wte.weight)


def test_half_precision_stays_half_and_weights_that_stay_keep_their_bits(tmp_path):
    model = made().to(torch.bfloat16)
    result = pruned(saved(tmp_path / "dense", model), tmp_path / "sparse", "wanda", tokens=tokens())
    small = loaded(result.folder)
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    after, before = small.model.layers[2].mlp.up_proj.weight, model.model.layers[2].mlp.up_proj.weight
    assert torch.equal(after[after != 0], before[after != 0])


@dataclass(frozen=True)
class Breaking:
    """Wanda that is killed on one of its blocks."""

    calls: tuple[list[int], ...]
    on: int = -1
    together: str = "block"

    def __repr__(self):
        return "Breaking()"

    def choose(self, problem: WeightProblem):
        self.calls[0].append(len(list(problem.data)))
        if len(self.calls[0]) == self.on:
            raise KeyboardInterrupt
        return Wanda(together="model").choose(problem)


def test_a_killed_run_goes_on_behind_the_last_finished_block(tmp_path):
    source, calls = saved(tmp_path / "dense"), []
    with pytest.raises(KeyboardInterrupt):
        pruned(source, tmp_path / "sparse", Breaking((calls,), on=3), tokens=tokens())
    assert not (tmp_path / "sparse").exists()
    assert len(calls) == 3
    (tmp_path / ".sparse.unfinished" / ".model-block-00000.safetensors.1.partial").touch()
    again = []
    result = pruned(source, tmp_path / "sparse", Breaking((again,)), tokens=tokens())
    assert again == [8]
    whole = pruned(source, tmp_path / "whole", Breaking(([],)), tokens=tokens())
    assert result.removed_count == whole.removed_count
    assert contents_of(result.folder) == contents_of(whole.folder)
    assert not list(result.folder.glob(".*"))


def test_an_unfinished_run_is_not_mixed_with_another(tmp_path):
    source = saved(tmp_path / "dense")
    with pytest.raises(KeyboardInterrupt):
        pruned(source, tmp_path / "sparse", Breaking(([],), on=2), tokens=tokens())
    for changed in ({"tokens": tokens(4)}, {"budget": Budget(0.4, "weights")}, {"seed": 1}):
        with pytest.raises(StoreError, match=r"unfinished.*another"):
            pruned(source, tmp_path / "sparse", Breaking(([],)), **({"tokens": tokens()} | changed))


def truncated(path):
    path.write_bytes(path.read_bytes()[:-40])


def garbled(path):
    path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])


def without_a_tensor(path):
    tensors = load_file(path)
    tensors.popitem()
    save_file(tensors, path)


@pytest.mark.parametrize("damage", [truncated, garbled, without_a_tensor, Path.unlink])
def test_a_damaged_shard_is_named_and_nothing_is_written(tmp_path, damage):
    source = saved(tmp_path / "dense")
    shard = sorted(source.glob("*.safetensors"))[1]
    damage(shard)
    before = bytes_of(source)
    with pytest.raises(StoreError, match=shard.name):
        pruned(source, tmp_path / "sparse")
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]
    assert bytes_of(source) == before


def test_a_damaged_index_is_named(tmp_path):
    source = saved(tmp_path / "dense")
    for text in ("{", '{"weight_map": {"a": "../b"}}', "{}"):
        (source / "model.safetensors.index.json").write_text(text)
        with pytest.raises(StoreError, match=r"index\.json is damaged"):
            pruned(source, tmp_path / "sparse")


def test_a_folder_that_exists_is_left_alone(tmp_path):
    source, out = saved(tmp_path / "dense"), tmp_path / "sparse"
    out.mkdir()
    with pytest.raises(StoreError, match="exists"):
        pruned(source, out)
    assert list(out.iterdir()) == []


def test_protected_names_stay_whole(tmp_path):
    model = made()
    protect = ["model.layers.1", "model.layers.0.mlp", "model.layers.2.self_attn.q_proj.weight"]
    result = pruned(saved(tmp_path / "dense", model), tmp_path / "sparse", protect=protect)
    small = loaded(result.folder)
    whole = {n for n, p in small.named_parameters() if n.endswith("proj.weight") and bool((p != 0).all())}
    assert whole == {
        n for n, _ in model.named_parameters() if n.endswith("proj.weight") and n.startswith(tuple(protect))
    }
    with pytest.raises(UnknownName, match="layers"):
        pruned(tmp_path / "dense", tmp_path / "other", protect=["model.layers.9"])


def test_random_weights_differ_from_block_to_block(tmp_path):
    result = pruned(saved(tmp_path / "dense"), tmp_path / "sparse", RandomWeights(), seed=3)
    first, second = (loaded(result.folder).model.layers[i].mlp.up_proj.weight == 0 for i in (0, 1))
    assert not torch.equal(first, second)


def test_global_random_numbers_are_as_before(tmp_path):
    source = saved(tmp_path / "dense")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    pruned(source, tmp_path / "sparse", "wanda", tokens=tokens(2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"method": "wanda"}, MethodError, "tokens="),
        ({"method": "wanda", "tokens": torch.zeros(2, 3)}, MethodError, "token ids"),
        ({"method": "wanda", "tokens": torch.zeros(3, dtype=torch.long)}, MethodError, "token ids"),
        ({"method": "wanda", "tokens": torch.full((1, 4), WORDS)}, MethodError, "0 to 31"),
        ({"method": "wanda", "tokens": torch.zeros(1, LENGTH + 1, dtype=torch.long)}, MethodError, "at most 12"),
        ({"method": Magnitude()}, MethodError, "scope='layer'"),
        ({"method": Wanda(scope={"a": 0.5})}, MethodError, "scope"),
        ({"method": Wanda(together="model")}, MethodError, "together"),
        ({"method": "l1_filter"}, MethodError, "single weights"),
        ({"budget": None}, BudgetError, "nothing says how much"),
        ({"budget": Budget(0.5, "params")}, BudgetError, "weights"),
        ({"method": "wand"}, UnknownName, "wanda"),
    ],
)
def test_calls_without_sense_are_refused(tmp_path, given, error, said):
    source = saved(tmp_path / "dense")
    with pytest.raises(error, match=said):
        pruned(source, tmp_path / "sparse", **given)
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_activations_that_are_no_numbers_name_block_and_layer(tmp_path):
    model = made()
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight.fill_(float("nan"))
    with pytest.raises(MethodError, match=r"model\.layers\.1.*q_proj.*NaN"):
        pruned(saved(tmp_path / "dense", model), tmp_path / "sparse", "wanda", tokens=tokens())


def test_what_is_no_decoder_or_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(StoreError, match="no such folder"):
        pruned(tmp_path / "nowhere", tmp_path / "sparse")
    source = saved(tmp_path / "dense")
    (source / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(ModelError, match=r"config\.json"):
        pruned(source, tmp_path / "sparse")
    config_of("gpt2").save_pretrained(source)
    with pytest.raises(StoreError, match="named in another way"):
        pruned(source, tmp_path / "sparse")
