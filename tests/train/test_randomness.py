"""Random numbers: streams that do not disturb each other, and states that come back."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from secateur.train.randomness import (
    Stream,
    epoch_seed,
    random_state,
    same_randomness_after,
    seed_,
    set_random_state_,
)

from .cases import random_numbers

CPU = torch.device("cpu")


def draw() -> tuple[float, float, float]:
    return torch.rand(()).item(), random.random(), float(np.random.uniform())


def test_a_stream_goes_on_where_it_stopped_and_the_outside_too():
    with same_randomness_after(CPU):
        seed_(5)
        alone = [draw() for _ in range(4)]
        stream = Stream(5)
        with stream:
            inside = [draw()]
        seed_(6)
        outside = [draw()]
        with stream:
            inside += [draw(), draw()]
        outside.append(draw())
        seed_(6)
        assert outside == [draw(), draw()]
        assert inside == alone[:3]


def test_a_saved_state_gives_the_same_numbers_again():
    with same_randomness_after(CPU):
        seed_(5)
        draw()
        state = random_state(CPU)
        first = [draw() for _ in range(3)]
        seed_(9)
        set_random_state_(state, CPU)
        assert [draw() for _ in range(3)] == first


def test_the_state_of_the_caller_comes_back_after_an_exception():
    np.random.normal()
    before = random_numbers()

    def disturb() -> None:
        with same_randomness_after(CPU):
            seed_(1)
            raise KeyError

    with pytest.raises(KeyError):
        disturb()
    assert before == random_numbers()


def test_a_callers_own_bit_generator_comes_back():
    original = np.random.get_bit_generator()
    mine = np.random.PCG64(3)
    np.random.set_bit_generator(mine)
    try:
        state = mine.state
        with same_randomness_after(CPU):
            seed_(1)
            draw()
        assert np.random.get_bit_generator() is mine
        assert mine.state == state
    finally:
        np.random.set_bit_generator(original)


def test_no_two_seeds_share_an_epoch():
    assert len({epoch_seed(seed, epoch) for seed in range(30) for epoch in range(30)}) == 900
