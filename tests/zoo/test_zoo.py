"""Every model of the zoo, pruned at random, is the masked original: twelve by default, all in the slow run."""

import pytest
import torch
from benchmarks import _torchvision_support
from benchmarks.zoo import random_plan, run
from benchmarks.zoo_models import all_models, default_twelve

from secateur import Plan, trace
from tests.zoo.test_zoo_models import needs

ALWAYS = {entry.name for entry in default_twelve()}


@pytest.fixture(autouse=True)
def libraries():
    for library in ("torchvision", "timm", "transformers"):
        needs(library)
    _torchvision_support.prepare()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("entry", default_twelve(), ids=lambda entry: entry.name)
@pytest.mark.filterwarnings("default")  # what the three libraries warn of is not ours
def test_twelve_models_are_exact_after_random_pruning(entry):
    row = run(entry)
    assert row["outcome"] == "exact", row
    assert row["groups"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(all_models()) - ALWAYS))
@pytest.mark.filterwarnings("default")
def test_every_model_is_exact_or_refused(name):
    row = run(all_models()[name])
    assert row["outcome"] in ("exact", "raised", "refused", "whole"), row


def test_the_random_plan_cuts_every_group_and_empties_none():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 10), torch.nn.Linear(10, 1))
    graph = trace(model, torch.zeros(1, 2))
    plan = random_plan(graph)
    assert {name: len(kept) for name, kept in plan.kept.items()} == {"0": 1, "1": 6}
    assert plan != Plan()
