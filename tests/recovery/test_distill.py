"""Distillation: the teacher's soft targets at a temperature, and features through maps where widths differ."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from secateur import Budget, finetune, prune
from secateur.errors import MethodError, UnknownName
from secateur.models import resolve
from secateur.recovery.distill import DistillationTask, FeatureDistillation, divergence
from secateur.train import ClassificationTask, Moment, Recipe

TASK = ClassificationTask()


def net(seed, width=8):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


def batches(count=4):
    generator = torch.Generator().manual_seed(7)
    return [(torch.randn(8, 4, generator=generator), torch.arange(8) % 3) for _ in range(count)]


def test_the_divergence_is_of_teacher_from_student_and_scaled_by_t_squared():
    student, teacher = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[0.0, 2.0, 0.5]])
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    wanted = 9 * (p * (p / q).log()).sum()
    assert divergence(student, teacher, 3.0).item() == pytest.approx(wanted.item(), rel=1e-5)
    reverse = 9 * (q * (q / p).log()).sum()
    assert divergence(student, teacher, 3.0).item() != pytest.approx(reverse.item(), rel=1e-2)


def test_the_gradient_hardly_changes_with_the_temperature():
    """What the square is for: at large T the gradient tends to that of half the squared distance of logits."""
    teacher, sizes = torch.tensor([[0.3, -0.2, 0.1]]), []
    for temperature in (20.0, 200.0):
        student = torch.zeros(1, 3, requires_grad=True)
        divergence(student, teacher, temperature).backward()
        sizes.append(student.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_shares_of_teacher_and_labels():
    student, teacher = net(0), net(1)
    batch = batches(1)[0]
    output = student(batch[0])
    soft = divergence(output, teacher(batch[0]), 4.0)
    hard = F.cross_entropy(output, batch[1])
    for weight in (0.0, 0.25, 1.0):
        loss = DistillationTask(TASK, teacher, weight=weight).loss(output, batch)
        assert loss.item() == pytest.approx(((1 - weight) * hard + weight * soft).item(), rel=1e-5)


def test_at_full_weight_labels_are_not_read():
    class NoLabels(ClassificationTask):
        def loss(self, output, batch):
            raise AssertionError

    batch = batches(1)[0]
    DistillationTask(NoLabels(), net(1), weight=1.0).loss(net(0)(batch[0]), batch)


def test_the_student_comes_to_answer_as_the_teacher_and_the_teacher_stays():
    student, teacher = net(0), net(1).train()
    before = {n: t.clone() for n, t in teacher.state_dict().items()}
    task = DistillationTask(TASK, teacher, weight=1.0, temperature=1.0)
    tuned, _ = finetune(student, batches(), task, Recipe(epochs=60, lr=0.3), progress=False)
    images = batches(1)[0][0]
    gap = [divergence(m(images), teacher(images), 1.0).item() for m in (student, tuned)]
    assert gap[1] < 0.1 * gap[0]
    assert teacher.training
    assert all(torch.equal(before[n], t) for n, t in teacher.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("given", [{"temperature": 0}, {"temperature": float("inf")}, {"weight": 1.5}, {"weight": -1}])
def test_numbers_without_sense_are_refused(given):
    with pytest.raises(MethodError, match=next(iter(given))):
        DistillationTask(TASK, net(0), **given)


def test_features_of_equal_width_are_compared_as_they_are():
    student, teacher = net(0), net(1)
    hints = FeatureDistillation(teacher, ("0",)).watch(student)
    images = batches(1)[0][0]
    student(images)
    moment = Moment(student, torch.optim.SGD(student.parameters(), 0.1), 0, 1, 0, 0.1)
    assert hints.extra_loss(moment).item() == pytest.approx(F.mse_loss(student[0](images), teacher[0](images)).item())
    assert not hints.maps
    hints.unwatch()


def test_features_of_a_cut_layer_meet_through_a_map_that_learns():
    torch.manual_seed(0)
    teacher = resolve("digits_resnet")
    images = torch.randn(8, 1, 8, 8)
    small = prune(teacher, images[:1], budget=Budget(0.5, "macs")).model
    name = next(n for n, m in small.named_modules() if isinstance(m, nn.Conv2d) and n.endswith("conv1") and "." in n)
    hints = FeatureDistillation(teacher, (name,)).watch(small)
    data = [(images, torch.arange(8) % 10)]
    from secateur.train import fit

    fit(small, data, TASK, Recipe(epochs=3, lr=0.05), attachments=[hints], progress=False)
    hints.unwatch()
    (linear,) = hints.maps.values()
    assert linear.out_features == teacher.get_submodule(name).out_channels
    assert linear.in_features == small.get_submodule(name).out_channels < linear.out_features
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in [*small.modules(), *hints.teacher.modules()])
    again = FeatureDistillation(teacher, (name,))
    again.load_state_dict(hints.state_dict())
    assert torch.equal(again.maps[name].weight, linear.weight)


def test_layers_that_there_are_not_and_training_unwatched_are_told():
    with pytest.raises(UnknownName, match="nothing"):
        FeatureDistillation(net(0), ("nothing",))
    with pytest.raises(MethodError, match="layers"):
        FeatureDistillation(net(0), ())
    with pytest.raises(UnknownName, match="2"):
        FeatureDistillation(net(0), ("2",)).watch(nn.Sequential(nn.Linear(4, 3)))
    moment = Moment(net(0), torch.optim.SGD(net(0).parameters(), 0.1), 0, 1, 0, 0.1)
    with pytest.raises(MethodError, match="watch"):
        FeatureDistillation(net(0), ("0",)).extra_loss(moment)
