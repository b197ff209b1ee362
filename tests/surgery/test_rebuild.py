"""Recorded surgery, done again without a trace."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from secateur.errors import SurgeryError
from secateur.surgery.rebuild import rebuild
from secateur.surgery.record import AttributeChange, SurgeryRecord, record_of

from ..shrunk_models import EXAMPLES, Attend, ConvNet, OwnAttention, example, fresh, halved


def state(model):
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}


@pytest.mark.parametrize("kind", EXAMPLES)
@pytest.mark.parametrize("cut_count", [1, 2])
def test_the_same_model_comes_out_bit_for_bit(kind, cut_count):
    model, x = fresh(kind), example(kind)
    small = halved(model, x)
    if cut_count == 2:
        small = halved(small, x, skip=1)
    again = rebuild(model, record_of(small))
    assert str(again) == str(small)
    assert all(torch.equal(tensor, state(small)[name]) for name, tensor in state(again).items())
    assert torch.equal(again(x), small(x))
    assert record_of(again) == record_of(small)


def test_fresh_weights_are_cut_in_place_of_the_old_ones():
    small = halved(fresh(ConvNet), example(ConvNet))
    other = fresh(ConvNet, seed=2)
    before = {name: tensor.clone() for name, tensor in state(other).items()}
    again = rebuild(other, record_of(small))
    assert torch.equal(again.block[0].bias, before["block.0.bias"][0::2])
    assert all(torch.equal(before[name], tensor) for name, tensor in state(other).items())
    assert record_of(other) is None


def test_a_model_without_data_is_enough():
    small = halved(fresh(Attend), example(Attend))
    with torch.device("meta"):
        bare = Attend()
    again = rebuild(bare, record_of(small))
    assert {n: t.shape for n, t in state(again).items()} == {n: t.shape for n, t in state(small).items()}
    assert all(tensor.is_meta for tensor in state(again).values())


def test_hidden_units_of_a_recurrent_layer_are_cut_with_its_flat_weights():
    kept, width = [0, 3, 4], 5
    gates = [kept_ + gate * width for gate in range(4) for kept_ in kept]
    record = SurgeryRecord(
        kept={
            "weight_ih_l0": [(0, gates)],
            "weight_hh_l0": [(0, gates), (1, kept)],
            "bias_ih_l0": [(0, gates)],
            "bias_hh_l0": [(0, gates)],
        },
        attributes=[AttributeChange("", "hidden_size", 5, 3)],
        shapes={"weight_ih_l0": (20, 2), "weight_hh_l0": (20, 5), "bias_ih_l0": (20,), "bias_hh_l0": (20,)},
    )
    model = nn.LSTM(2, 5)
    with torch.no_grad():
        model.weight_ih_l0[[1, 2, 6, 7, 11, 12, 16, 17]] = 0
        model.weight_hh_l0[:, [1, 2]] = 0
    small, x = rebuild(model, record), torch.randn(4, 1, 2)
    torch.testing.assert_close(small(x)[0], model(x)[0][..., kept])


def test_a_cut_model_is_no_start():
    small = halved(fresh(ConvNet), example(ConvNet))
    with pytest.raises(SurgeryError, match="cut already: give a fresh instance"):
        rebuild(small, record_of(small))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            ConvNet(width=8),
            r"cuts 'stem\.0\.weight' of shape \[12, 3, 3, 3\]; in this model it has shape \[8, 3, 3, 3\]",
        ),
        (nn.Linear(2, 2), r"cuts a tensor 'stem\.0\.weight' of shape .* the model \(Linear\) has none of that name"),
    ],
)
def test_a_model_of_other_widths_or_class_is_refused(other, message):
    with pytest.raises(SurgeryError, match=message):
        rebuild(other, record_of(halved(fresh(ConvNet), example(ConvNet))))


def test_an_attribute_with_another_value_is_refused():
    record = record_of(halved(fresh(OwnAttention), example(OwnAttention)))
    other = fresh(OwnAttention)
    other.heads = 2
    with pytest.raises(SurgeryError, match="'heads' of module '' from 4 to 2; in this model it is 2"):
        rebuild(other, record)


def test_a_change_of_a_module_that_is_not_there_is_refused():
    record = record_of(halved(fresh(OwnAttention), example(OwnAttention)))
    with pytest.raises(SurgeryError, match="module 'gone', and the model has no such module"):
        rebuild(fresh(OwnAttention), replace(record, attributes=[AttributeChange("gone", "heads", 4, 2)]))


def test_an_attention_of_another_kind_is_refused():
    record = record_of(halved(fresh(Attend), example(Attend)))
    with pytest.raises(SurgeryError, match="replaces the attention 'head'; in this model that is Linear"):
        rebuild(fresh(Attend), replace(record, swapped={"head": record.swapped["attention"]}))
    with pytest.raises(SurgeryError, match="replaces the attention 'gone'; in this model that is nothing"):
        rebuild(fresh(Attend), replace(record, swapped={"gone": record.swapped["attention"]}))
    settings = {**record.swapped["attention"], "output_dim": 9}
    with pytest.raises(SurgeryError, match="'attention' comes out with output_dim=8, and it had 9"):
        rebuild(fresh(Attend), replace(record, swapped={"attention": settings}))
