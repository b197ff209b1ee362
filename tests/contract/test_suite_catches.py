"""The suite can fail: each method here breaks one promise, and that promise catches it."""

import pytest

from secateur.errors import PlanError

from . import broken
from .cases import CASES
from .promises import PROMISES
from .refusals import REFUSALS
from .subject import Subject

CAUGHT_BY = [
    (broken.OneTooMany, "exact", "asked for 9 channels, 10 go"),
    (broken.OneTooMany, "exact_on_ties", "asked for 9 channels, 10 go"),
    (broken.OneTooFew, "exact", "30 channels were to go; 22 are left"),
    (broken.Threshold, "exact_on_ties", "asked for 9 channels, 27 go"),
    (broken.AtLeastOne, "nothing_at_zero", "remove=0 removed"),
    (broken.NewWeightsAtZero, "nothing_at_zero", "remove=0 changed .*conv1.weight"),
    (broken.KeepsTheLowScores, "dead_first", "outlived others"),
    (broken.KeepsTheLowScores, "decision_is_sound", "goes and one of .* stays"),
    (broken.FirstInOrder, "order_free", "another order, other channels"),
    (broken.FirstInOrder, "dead_first", "outlived others"),
    (broken.ChangesItsMind, "nested", "brought back"),
    (broken.EmptiesAGroup, "never_empties", "would be emptied"),
    (broken.IgnoresProtect, "limits_are_kept", "lost channels"),
    (broken.IgnoresMinKeep, "limits_are_kept", "min_keep=3, kept"),
    (broken.IgnoresRounding, "limits_are_kept", "round_to=4, kept"),
    (broken.ZeroesInPlace, "leaves_no_trace", "hidden.weight"),
    (broken.LeavesEvalMode, "leaves_no_trace", "conv1: training mode"),
    (broken.LeavesAHook, "leaves_no_trace", "conv1: hooks"),
    (broken.LeavesAGradient, "leaves_no_trace", "conv1.bias.grad"),
    (broken.UnfreezesWeights, "leaves_no_trace", "conv1.weight.requires_grad"),
    (broken.DrawsSharedNumbers, "leaves_no_trace", "torch random numbers"),
    (broken.DrawsSharedNumbers, "same_seed_same_plan", "the same seed, another plan"),
    (broken.LeavesEvalModeOnFailure, "leaves_no_trace_of_a_failure", "conv1: training mode"),
    (broken.WorksInSinglePrecision, "dtype_is_kept", "torch.float32 in place of torch.float64"),
    (broken.NarrowModel, "decision_is_sound", "other widths"),
    (broken.SharedTensors, "decision_is_sound", "shares tensors"),
    (broken.ReadsData, "reads_only_what_it_declares", "does not declare"),
    (broken.ReadsLabels, "reads_only_what_it_declares", "uses labels"),
    (broken.Remembers, "settings_change_nothing_shared", "remembers .*_seen"),
    (broken.Unchecked, "weights_that_are_no_numbers", "DID NOT RAISE"),
    (broken.Unfrozen, "a_change_of_settings", "DID NOT RAISE"),
    (broken.AnyWordWillDo, "settings_without_sense", "DID NOT RAISE"),
]


@pytest.mark.parametrize(
    ("kind", "promise", "words"), CAUGHT_BY, ids=[f"{kind.__name__}-{promise}" for kind, promise, _ in CAUGHT_BY]
)
def test_broken_method_is_caught(kind, promise, words):
    subject = Subject(kind.__name__, kind, needs=kind.NEEDS)
    with pytest.raises((AssertionError, PlanError, pytest.fail.Exception), match=words):
        {**PROMISES, **REFUSALS}[promise](subject, CASES["plain"])


@pytest.mark.parametrize("promise", [*PROMISES, *REFUSALS])
def test_sound_method_is_not_caught(promise):
    {**PROMISES, **REFUSALS}[promise](Subject("Sound", broken.Sound), CASES["plain"])


@pytest.mark.parametrize("promise", [*PROMISES, *REFUSALS])
def test_sound_method_that_reads_data_is_not_caught(promise):
    subject = Subject("SoundReader", broken.SoundReader, needs=broken.SoundReader.NEEDS)
    {**PROMISES, **REFUSALS}[promise](subject, CASES["plain"])
