import pytest
import torch

from secateur.data.split import stratified_split
from secateur.errors import DataError

LABELS = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)[torch.randperm(100, generator=torch.Generator().manual_seed(1))]


def test_every_class_gives_its_share():
    stay, held = stratified_split(LABELS, fraction=0.1, seed=0)
    assert torch.bincount(LABELS[held]).tolist() == [5, 3, 2]
    assert torch.bincount(LABELS[stay]).tolist() == [45, 27, 18]


def test_the_parts_are_sorted_and_make_up_the_whole():
    stay, held = stratified_split(LABELS, fraction=0.3, seed=0)
    assert sorted([*stay.tolist(), *held.tolist()]) == list(range(100))
    assert stay.tolist() == sorted(stay.tolist())
    assert held.tolist() == sorted(held.tolist())


def test_the_total_is_exact_where_shares_are_no_whole_numbers():
    labels = torch.arange(7).repeat(3)
    assert len(stratified_split(labels, fraction=0.5, seed=0)[1]) == round(21 * 0.5)


def test_a_class_always_keeps_an_example():
    stay, held = stratified_split(torch.tensor([0, 1, 1, 1, 1, 1]), fraction=0.8, seed=0)
    assert 0 in stay
    assert len(held) == 4


def test_the_seed_decides_and_the_global_state_does_not():
    torch.manual_seed(1)
    first = stratified_split(LABELS, fraction=0.2, seed=5)[1]
    state = torch.get_rng_state()
    again = stratified_split(LABELS, fraction=0.2, seed=5)[1]
    assert torch.equal(first, again)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, stratified_split(LABELS, fraction=0.2, seed=6)[1])


@pytest.mark.parametrize("fraction", [0, 1, 10, -0.1])
def test_a_fraction_outside_its_range_is_an_error(fraction):
    with pytest.raises(DataError, match=rf"fraction={fraction}: expected the share to hold out"):
        stratified_split(LABELS, fraction=fraction, seed=0)


def test_holding_nothing_out_is_an_error():
    with pytest.raises(DataError, match="holds nothing out"):
        stratified_split(torch.tensor([0, 1, 2]), fraction=0.01, seed=0)
