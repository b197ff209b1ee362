"""MixMatch: guesses sharpened, shares at least one half, plain supervision when all else is switched off."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from secateur.errors import MethodError, TrainingError
from secateur.recovery.mixmatch import MixedBatches, MixMatch, mixing_share, mixmatch, sharpened, shifted
from secateur.train import Recipe

RECIPE = Recipe(epochs=2, lr=0.05)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(384, 4))


def labelled(count=8):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(count, 1, 8, 8, generator=generator), torch.arange(count) % 4)]


def unlabelled(batches=3):
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(8, 1, 8, 8, generator=generator) for _ in range(batches)]


def one(settings, *, teacher=None, augment=shifted, source=None):
    batches = MixedBatches(source or model().train(), labelled(), unlabelled(1), settings, augment, teacher)
    torch.manual_seed(5)
    return next(iter(batches))


def test_sharpening_makes_the_likely_likelier_and_one_leaves_it():
    rows = torch.tensor([[0.1, 0.3, 0.6], [0.25, 0.25, 0.5]])
    assert torch.allclose(sharpened(rows, 1.0), rows)
    sharp = sharpened(rows, 0.5)
    assert torch.allclose(sharp.sum(1), torch.ones(2))
    assert bool((sharp.max(1).values > rows.max(1).values).all())
    assert torch.allclose(sharpened(rows, 0.01)[0], torch.tensor([0.0, 0.0, 1.0]), atol=1e-6)


def test_shares_are_at_least_one_half_and_differ():
    torch.manual_seed(0)
    shares = [mixing_share(0.75) for _ in range(200)]
    assert min(shares) >= 0.5
    assert max(shares) <= 1.0
    assert len(set(shares)) > 150
    assert mixing_share(0) == 1.0


def test_a_batch_has_the_labelled_first_and_labels_that_sum_to_one():
    batch = one(MixMatch(guesses=3))
    assert batch["inputs"].shape == (8 + 3 * 8, 1, 8, 8)
    assert batch["labelled"] == 8
    assert torch.allclose(batch["targets"].sum(1), torch.ones(32), atol=1e-5)
    assert bool((batch["targets"] >= 0).all())


def test_mixing_keeps_each_image_the_larger_part_of_its_own():
    plain, mixed = one(MixMatch(alpha=0), augment=lambda x: x), one(MixMatch(), augment=lambda x: x)
    own = (plain["inputs"] * mixed["inputs"]).flatten(1).sum(1) / plain["inputs"].flatten(1).square().sum(1)
    assert own.mean() > 0.5
    assert not torch.equal(plain["inputs"], mixed["inputs"])


def test_without_mixing_labelled_images_keep_their_labels():
    batch = one(MixMatch(alpha=0))
    images, labels = labelled()[0]
    assert torch.equal(batch["inputs"][:8], images)
    assert torch.equal(batch["targets"][:8], F.one_hot(labels, 4).float())


def test_the_guess_is_the_mean_over_views_sharpened():
    source = model().train()
    views = [unlabelled(1)[0] + 0.1, unlabelled(1)[0] - 0.2]
    given = iter(views)
    batch = one(MixMatch(alpha=0, temperature=0.5), augment=lambda _: next(given), source=source)
    with torch.no_grad():
        mean = torch.stack([source(view).softmax(1) for view in views]).mean(0)
    assert torch.allclose(batch["targets"][8:16], sharpened(mean, 0.5), atol=1e-6)
    assert torch.equal(batch["targets"][8:16], batch["targets"][16:])


def test_a_teacher_guesses_unsharpened_and_in_evaluation_mode():
    teacher = model().train()
    with torch.no_grad():
        teacher[4].weight.mul_(3)
    batch = one(MixMatch(alpha=0, guesses=1), teacher=teacher, augment=lambda x: x)
    with torch.no_grad():
        wanted = copy.deepcopy(teacher).eval()(unlabelled(1)[0]).softmax(1)
    assert torch.allclose(batch["targets"][8:], wanted, atol=1e-6)
    assert teacher.training


def test_guessing_leaves_running_statistics_alone():
    source = model().train()
    before = {name: buffer.clone() for name, buffer in source.named_buffers()}
    one(MixMatch(), source=source)
    assert all(torch.equal(before[name], buffer) for name, buffer in source.named_buffers())
    assert source.training
    assert source[1].track_running_stats


def test_with_no_weight_and_no_mixing_it_is_supervised_training_on_the_labelled():
    """The gradient of a step is that of cross entropy on the labelled part, in a batch with the others."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    torch.manual_seed(0)
    off = MixMatch(alpha=0, unlabelled_weight=0, decay=0)
    tuned, _ = mixmatch(net, labelled(), unlabelled(1), RECIPE.replace(epochs=1, weight_decay=0.0), settings=off)
    images, labels = labelled()[0]
    weight = net[1].weight.detach().clone().requires_grad_()
    bias = net[1].bias.detach().clone().requires_grad_()
    F.cross_entropy(images.flatten(1) @ weight.T + bias, labels).backward()
    assert torch.allclose(tuned[1].weight, weight - RECIPE.lr * weight.grad, atol=1e-6)


def test_the_unlabelled_weight_rises_with_the_steps():
    from secateur.recovery.mixmatch import _Progress

    progress = _Progress(MixMatch(unlabelled_weight=10, ramp_steps=4))
    told = []
    for step in range(6):
        progress.step = step
        told.append(progress.weight)
    assert told == [0, 2.5, 5, 7.5, 10, 10]


def test_the_result_is_the_average_of_weights_over_steps():
    net = model()
    last, _ = mixmatch(net, labelled(), unlabelled(), RECIPE, settings=MixMatch(decay=0))
    mean, _ = mixmatch(net, labelled(), unlabelled(), RECIPE, settings=MixMatch(decay=0.9))
    moved = [(m[4].weight - net[4].weight).norm() for m in (mean, last)]
    assert 0 < moved[0] < moved[1]


def test_the_model_stays_and_a_seed_repeats_it():
    net = model()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    first, result = mixmatch(net, labelled(), unlabelled(), RECIPE)
    again, _ = mixmatch(net, labelled(), unlabelled(), RECIPE)
    assert result.step_count == 6
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path):
    class BreaksOff(list):
        reads = 0

        def __iter__(self):
            self.reads += 1
            if self.reads == 2:
                raise Killed
            return super().__iter__()

    net = model()
    with pytest.raises(Killed):
        mixmatch(net, labelled(), BreaksOff(unlabelled()), RECIPE, checkpoint_dir=tmp_path)
    resumed, result = mixmatch(net, labelled(), unlabelled(), RECIPE, checkpoint_dir=tmp_path)
    straight, _ = mixmatch(net, labelled(), unlabelled(), RECIPE)
    assert result.resumed_from == 3
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), straight.parameters(), strict=True))


@pytest.mark.parametrize(
    "given", [{"guesses": 0}, {"temperature": 0}, {"alpha": -1}, {"unlabelled_weight": -1}, {"decay": 1.0}]
)
def test_numbers_without_sense_are_refused(given):
    with pytest.raises(MethodError, match=next(iter(given))):
        MixMatch(**given)


def test_missing_labels_and_empty_loaders_are_told():
    with pytest.raises(MethodError, match="labelled="):
        mixmatch(model(), [torch.zeros(4, 1, 8, 8)], unlabelled(), RECIPE)
    with pytest.raises(TrainingError, match="labelled="):
        mixmatch(model(), [], unlabelled(), RECIPE)


def test_shifts_move_images_and_keep_their_values():
    torch.manual_seed(0)
    images = torch.arange(64.0).reshape(1, 1, 8, 8).repeat(6, 1, 1, 1)
    moved = shifted(images)
    assert moved.shape == images.shape
    assert len({tuple(row.flatten().tolist()) for row in moved}) > 1
    assert set(moved.flatten().tolist()) <= set(images.flatten().tolist())
