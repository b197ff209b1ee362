"""The template that new methods start from keeps every promise, and computes the norm that it says it does."""

import pytest
import torch

from secateur.catalogue import CATALOGUE, Entry
from secateur.errors import MethodError
from secateur.methods._template import Template, norm_scores

from .cases import CASES
from .promises import PROMISES
from .refusals import REFUSALS
from .subject import Subject, hold

SUBJECT = Subject.of(Entry("_template", "Template", "predefined", "", (), ""))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("promise", PROMISES)
def test_template_keeps(promise, case):
    hold(PROMISES[promise], SUBJECT, CASES[case])


@pytest.mark.parametrize("refusal", REFUSALS)
def test_template_refuses(refusal):
    hold(REFUSALS[refusal], SUBJECT, CASES["plain"])


def test_score_is_the_norm_over_the_whole_filter():
    case = CASES["plain"]
    model = case.model()
    scores = Template().decide(case.problem(model=model)).scores["conv1"]
    assert scores.tolist() == pytest.approx(model.conv1.weight.flatten(1).norm(dim=1).tolist())


def test_power_is_not_fixed():
    # The sum of absolute values is 2 against 3, the largest of them 2 against 1.
    few, many = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0, 1.0])
    for power, lower in ((1.0, 0), (8.0, 1)):
        sums = torch.stack([(few**power).sum(), (many**power).sum()])
        assert int(norm_scores(sums, power).argmin()) == lower


@pytest.mark.parametrize("power", [0, -1.0, float("inf"), float("nan")])
def test_senseless_power_is_refused(power):
    with pytest.raises(MethodError, match="expected a number above 0"):
        Template(power=power)


def test_template_is_not_offered_to_users():
    assert all(entry.class_name != "Template" for entry in CATALOGUE.values())
