"""Every row of the catalogue keeps every promise on every tiny model. A new row needs no line here."""

import pytest
import torch

from secateur.catalogue import CATALOGUE

from .cases import CASES
from .promises import PROMISES, device_is_kept
from .refusals import REFUSALS
from .subject import Subject, accepted, hold

SUBJECTS = {name: Subject.of(entry) for name, entry in CATALOGUE.items()}

every_row = pytest.mark.parametrize("row", SUBJECTS)
every_case = pytest.mark.parametrize("case", CASES)


@every_row
@every_case
@pytest.mark.parametrize("promise", PROMISES)
def test_row_keeps(promise, case, row):
    hold(PROMISES[promise], SUBJECTS[row], CASES[case])


@every_row
@pytest.mark.parametrize("refusal", REFUSALS)
def test_row_refuses(refusal, row):
    subject = SUBJECTS[row]
    hold(REFUSALS[refusal], subject, CASES[accepted(subject)[0]])


@every_row
def test_row_works_on_several_kinds_of_model(row):
    assert len(accepted(SUBJECTS[row])) >= 2


@every_row
@every_case
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no second device here")
def test_row_keeps_the_device(case, row):
    hold(lambda subject, case: device_is_kept(subject, case, "cuda"), SUBJECTS[row], CASES[case])
