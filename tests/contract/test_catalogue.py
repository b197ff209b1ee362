"""Every row of the catalogue keeps every promise on every tiny model. A new row needs no line here."""

import pytest
import torch

from secateur.catalogue import removing

from .cases import CASES, CHANNEL_CASES
from .promises import PROMISES, device_is_kept
from .refusals import REFUSALS
from .subject import Subject, accepted, hold
from .weights import WEIGHT_PROMISES, WEIGHT_REFUSALS, WeightSubject, hold_weights

SUBJECTS = {name: Subject.of(entry) for name, entry in removing("channels").items()}
WEIGHT_SUBJECTS = {name: WeightSubject.of(entry) for name, entry in removing("weights").items()}

every_row = pytest.mark.parametrize("row", SUBJECTS)
every_case = pytest.mark.parametrize("case", CASES)
every_channel_case = pytest.mark.parametrize("case", CHANNEL_CASES)


@every_row
@every_channel_case
@pytest.mark.parametrize("promise", PROMISES)
def test_row_keeps(promise, case, row):
    hold(PROMISES[promise], SUBJECTS[row], CHANNEL_CASES[case])


@every_row
@pytest.mark.parametrize("refusal", REFUSALS)
def test_row_refuses(refusal, row):
    subject = SUBJECTS[row]
    hold(REFUSALS[refusal], subject, CASES[accepted(subject)[0]])


@every_row
def test_row_works_on_several_kinds_of_model(row):
    assert len(accepted(SUBJECTS[row])) >= 2


@every_row
@every_channel_case
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no second device here")
def test_row_keeps_the_device(case, row):
    hold(lambda subject, case: device_is_kept(subject, case, "cuda"), SUBJECTS[row], CHANNEL_CASES[case])


@pytest.mark.parametrize("row", WEIGHT_SUBJECTS)
@every_case
@pytest.mark.parametrize("promise", WEIGHT_PROMISES)
def test_row_for_weights_keeps(promise, case, row):
    hold_weights(WEIGHT_PROMISES[promise], WEIGHT_SUBJECTS[row], CASES[case])


@pytest.mark.parametrize("row", WEIGHT_SUBJECTS)
@pytest.mark.parametrize("refusal", WEIGHT_REFUSALS)
def test_row_for_weights_refuses(refusal, row):
    hold_weights(WEIGHT_REFUSALS[refusal], WEIGHT_SUBJECTS[row], CASES["plain"])
