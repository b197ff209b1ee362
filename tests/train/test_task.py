"""Tasks: what is fed, what is lost, what is measured."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.errors import TrainingError
from secateur.train import ClassificationTask, FunctionTask, NextTokenTask, RegressionTask

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 0.0, 0.5]])
LABELS = torch.tensor([0, 2, 0])
IMAGES = torch.zeros(3, 2)


@dataclass
class Output:
    logits: Tensor


BATCHES = {
    "pair": (IMAGES, LABELS),
    "list": [IMAGES, LABELS],
    "mapping": {"pixel_values": IMAGES, "labels": LABELS},
    "mapping, singular": {"img": IMAGES, "label": LABELS},
    "labels as a list": (IMAGES, LABELS.tolist()),
}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_each_kind_of_batch_gives_the_same_inputs_loss_and_scores(batch):
    task = ClassificationTask()
    args, kwargs = task.to_inputs(batch)
    assert args[0] is IMAGES
    assert len(args) == 1
    assert kwargs == {}
    torch.testing.assert_close(task.loss(LOGITS, batch), F.cross_entropy(LOGITS, LABELS))
    assert task.metric(LOGITS, batch).tolist() == [1.0, 0.0, 1.0]


def test_several_inputs_of_a_mapping_become_keywords():
    batch = {"input_ids": IMAGES, "attention_mask": IMAGES, "labels": LABELS}
    args, kwargs = ClassificationTask().to_inputs(batch)
    assert args == ()
    assert set(kwargs) == {"input_ids", "attention_mask"}
    assert set(batch) == {"input_ids", "attention_mask", "labels"}, "the batch was changed"


@pytest.mark.parametrize("output", [Output(LOGITS), OrderedDict(logits=LOGITS), {"logits": LOGITS}, LOGITS])
def test_logits_are_found_in_dataclasses_mappings_and_tensors(output):
    assert ClassificationTask().metric(output, (IMAGES, LABELS)).tolist() == [1.0, 0.0, 1.0]


def test_hugging_face_outputs_are_understood():
    outputs = pytest.importorskip("transformers.modeling_outputs")
    output = outputs.SequenceClassifierOutput(logits=LOGITS)
    assert ClassificationTask().metric(output, (IMAGES, LABELS)).tolist() == [1.0, 0.0, 1.0]


def test_smoothing_is_the_mix_with_the_uniform_target():
    smooth = ClassificationTask(label_smoothing=0.3).loss(LOGITS, (IMAGES, LABELS))
    uniform = -LOGITS.log_softmax(dim=1).mean()
    torch.testing.assert_close(smooth, 0.7 * F.cross_entropy(LOGITS, LABELS) + 0.3 * uniform)


def test_ignored_labels_count_neither_as_right_nor_as_samples():
    batch = (IMAGES, torch.tensor([0, -100, 1]))
    assert ClassificationTask().metric(LOGITS, batch).tolist() == [1.0, 0.0]


def test_dense_labels_are_scored_per_position():
    logits, labels = torch.randn(2, 5, 4, 4), torch.randint(5, (2, 4, 4))
    assert ClassificationTask().metric(logits, (IMAGES, labels)).shape == (32,)


def test_a_batch_without_labels_can_be_fed_but_not_scored():
    task = ClassificationTask()
    assert task.to_inputs(IMAGES) == ((IMAGES,), {})
    assert task.to_inputs({"x": IMAGES}) == ((IMAGES,), {})
    with pytest.raises(TrainingError, match=r"needs labels; the batch is a mapping with \['x'\]"):
        task.loss(LOGITS, {"x": IMAGES})


def test_an_output_without_logits_is_an_error_that_names_the_way_out():
    with pytest.raises(TrainingError, match=r"returned tuple without them.*FunctionTask"):
        ClassificationTask().loss((LOGITS, LOGITS), (IMAGES, LABELS))


def test_regression_scores_are_one_mean_square_per_sample():
    task, output, target = RegressionTask(), torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.zeros(2, 2)
    assert task.metric(output, (IMAGES, target)).tolist() == [5.0, 0.0]
    assert task.loss(output, (IMAGES, target)).item() == 2.5
    assert not task.higher_is_better


def test_regression_does_not_broadcast_a_column_against_a_row():
    task, output, target = RegressionTask(), torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 2.0])
    assert task.loss(output, (IMAGES, target)).item() == 0.0
    with pytest.raises(TrainingError, match=r"output is \(2, 1\) and the target \(3,\)"):
        task.loss(output, (IMAGES, torch.zeros(3)))


def test_the_next_token_is_the_target_and_padding_does_not_count():
    tokens = torch.tensor([[0, 1, 2], [0, 1, 0]])
    logits = torch.full((2, 3, 3), -50.0)
    logits[0, 0, 1] = logits[0, 1, 2] = logits[1, 0, 1] = 50.0  # certain of each next token, none for the padding
    batch = {"input_ids": tokens, "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    task = NextTokenTask()
    assert task.metric(logits, batch).tolist() == [0.0, 0.0, 0.0]
    assert task.metric(logits, tokens).shape == (4,)
    assert task.loss(logits, tokens).item() == pytest.approx(torch.log(torch.tensor(3.0)).item() / 4)
    assert set(task.to_inputs(batch | {"labels": tokens})[1]) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((1, 2), ((1, 2), {})),
        ({"a": 1}, ((), {"a": 1})),
        (((1,), {"a": 2}), ((1,), {"a": 2})),
        ([1, 2], (([1, 2],), {})),
    ],
)
def test_functions_may_return_inputs_in_each_documented_form(given, expected):
    task = FunctionTask(inputs=lambda batch: given, loss=lambda o, b: o, metric=lambda o, b: o)
    assert task.to_inputs(None) == expected


def test_half_precision_logits_are_scored_in_single():
    assert ClassificationTask().loss(LOGITS.bfloat16(), (IMAGES, LABELS)).dtype is torch.float32
