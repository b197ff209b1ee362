import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur.errors import BudgetError, MethodError, NothingToPrune
from secateur.methods import BnScale
from secateur.methods.bn_scale import bn_scale_scores

from .test_l1_filter import problem


def decide(model, *shape, method=None, **options):
    return (method or BnScale()).decide(problem(model, *shape, **options))


def removed(model, *shape, method=None, **options):
    plan = decide(model, *shape, method=method, **options).plan
    return {name: plan.removed(name) for name in plan if plan.removed(name)}


def set_(norm, gains, shifts=None):
    norm.weight.data = torch.tensor(gains)
    norm.bias.data = torch.tensor(shifts or [0.0] * len(gains))
    return norm


def test_the_sign_of_a_factor_does_not_count_and_its_shift_and_statistics_do_not():
    norm = set_(nn.BatchNorm2d(3), [-3.0, 0.5, 1.0], [0.0, 9.0, 9.0])
    norm.running_var = torch.tensor([100.0, 0.01, 0.01])  # dividing by the deviation would turn the order round
    model = nn.Sequential(nn.Conv2d(1, 3, 1), norm, nn.ReLU(), nn.Conv2d(3, 1, 1)).eval()
    assert decide(model, 1, 1, 2, 2, remove=0.3).scores["0"].tolist() == [3.0, 0.5, 1.0]
    assert removed(model, 1, 1, 2, 2, remove=0.3) == {"0": (1,)}


def test_weights_of_the_layers_around_do_not_count():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), set_(nn.BatchNorm2d(2), [1.0, 2.0]), nn.Conv2d(2, 1, 1))
    model[0].weight.data, model[2].weight.data = torch.tensor([9.0, 0.0]).view(2, 1, 1, 1), torch.ones(1, 2, 1, 1)
    assert removed(model, 1, 1, 2, 2) == {"0": (0,)}


def test_all_layers_are_ranked_together_only_on_request():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1), set_(nn.BatchNorm2d(2), [0.1, 0.2]), nn.ReLU(),
        nn.Conv2d(2, 4, 1), set_(nn.BatchNorm2d(4), [4.0, 0.3, 5.0, 0.4]), nn.ReLU(), nn.Conv2d(4, 1, 1),
    )  # fmt: skip
    assert removed(model, 1, 1, 2, 2) == {"0": (0,), "3": (1, 3)}
    assert removed(model, 1, 1, 2, 2, remove=0.3, method=BnScale(allocation="global")) == {"0": (0,), "3": (1,)}
    assert removed(model, 1, 1, 2, 2, remove=0.17, method=BnScale(allocation="global")) == {"0": (0,), "3": (1,)}


def inverted(first, second):
    """Expand, depthwise, project: the expanded channels pass two normalisations."""
    return nn.Sequential(
        nn.Conv2d(1, 2, 1), set_(nn.BatchNorm2d(2), first), nn.ReLU6(),
        nn.Conv2d(2, 2, 3, padding=1, groups=2), set_(nn.BatchNorm2d(2), second), nn.ReLU6(), nn.Conv2d(2, 1, 1),
    )  # fmt: skip


def test_the_norm_right_behind_the_maker_decides_and_the_mean_over_all_on_request():
    model = inverted([1.0, 2.0], [-5.0, 1.0])
    assert decide(model, 1, 1, 4, 4).scores["0"].tolist() == [1.0, 2.0]
    assert decide(model, 1, 1, 4, 4, method=BnScale(coupled="mean")).scores["0"].tolist() == [3.0, 1.5]
    assert bn_scale_scores(torch.tensor([[1.0, 2.0], [-5.0, 1.0]])).tolist() == [3.0, 1.5]  # |mean|: 2 and 1.5


class Stage(nn.Module):
    """A stem, then a block with a projection: norms of the last layer and of the projection disagree."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(1, 2, 1), set_(nn.BatchNorm2d(2), [1.0, 2.0])
        self.one, self.norm1 = nn.Conv2d(2, 2, 3, padding=1), set_(nn.BatchNorm2d(2), [1.0, 2.0])
        self.two, self.norm2 = nn.Conv2d(2, 2, 3, padding=1), set_(nn.BatchNorm2d(2), [1.0, 9.0])
        self.shortcut, self.shortcut_norm = nn.Conv2d(2, 2, 1), set_(nn.BatchNorm2d(2), [4.0, 3.0])
        self.head = nn.Conv2d(2, 1, 1)

    def forward(self, x):
        x = F.relu(self.stem_norm(self.stem(x)))
        y = self.norm2(self.two(F.relu(self.norm1(self.one(x)))))
        return self.head(F.relu(y + self.shortcut_norm(self.shortcut(x))))


def test_in_a_residual_stream_the_norm_of_the_projection_decides():
    found = decide(Stage(), 1, 1, 4, 4).scores
    assert found["two"].tolist() == [4.0, 3.0]
    assert decide(Stage(), 1, 1, 4, 4, method=BnScale(residual="prune")).scores["two"].tolist() == [1.0, 9.0]
    assert decide(Stage(), 1, 1, 4, 4, method=BnScale(coupled="mean")).scores["two"].tolist() == [2.5, 6.0]
    assert "two" not in decide(Stage(), 1, 1, 4, 4, method=BnScale(residual="skip"), remove=0.3).scores


def test_branches_that_are_joined_read_their_own_part_of_the_common_norm():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)
            self.norm, self.head = set_(nn.BatchNorm2d(4), [1.0, 2.0, 4.0, 3.0]), nn.Conv2d(4, 1, 1)

        def forward(self, x):
            return self.head(self.norm(torch.cat([self.left(x), self.right(x)], dim=1)))

    found = decide(Joined(), 1, 1, 2, 2)
    assert found.scores["left"].tolist() == [1.0, 2.0]
    assert found.scores["right"].tolist() == [4.0, 3.0]


def test_a_channel_that_takes_several_places_counts_their_mean():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.Flatten(), set_(nn.BatchNorm1d(4), [1.0, -4.0, 2.0, 2.0]), nn.Linear(4, 1)
    )
    assert decide(model, 1, 1, 1, 2).scores["0"].tolist() == [2.5, 2.0]


def test_groups_without_a_norm_stay_whole_and_are_named(caplog):
    model = nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), set_(nn.BatchNorm2d(4), [4.0, 3.0, 2.0, 1.0]),
        nn.ReLU(), nn.Conv2d(4, 1, 1),
    )  # fmt: skip
    with caplog.at_level(logging.INFO, logger="secateur.methods.bn_scale"):
        assert removed(model, 1, 1, 2, 2, remove=0.25) == {"2": (2, 3)}
    assert "left whole: 0" in caplog.text
    with pytest.raises(BudgetError, match="at most"):
        removed(model, 1, 1, 2, 2, remove=0.5)


def test_a_model_without_any_norm_is_refused_in_words():
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 1, 1))
    with pytest.raises(MethodError, match=r"none follows any of the 1 groups .*\(0\): use a method that reads weights"):
        removed(model, 1, 1, 2, 2)
    plain = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 1, 1))
    with pytest.raises(MethodError, match="reads the gain of a normalisation"):
        removed(plain, 1, 1, 2, 2)


def test_bad_settings_are_refused():
    with pytest.raises(MethodError, match="coupled='sum': expected 'first' or 'mean'"):
        BnScale(coupled="sum")
    with pytest.raises(MethodError, match="residual='keep': expected one of projection, skip, prune"):
        removed(Stage(), 1, 1, 4, 4, method=BnScale(residual="keep"))
    with pytest.raises(MethodError, match="allocation='even'"):
        removed(Stage(), 1, 1, 4, 4, method=BnScale(allocation="even"))
    with pytest.raises(NothingToPrune, match="protect"):
        removed(Stage(), 1, 1, 4, 4, protect=("",))
    broken = Stage()
    broken.norm1.weight.data[0] = float("nan")
    with pytest.raises(MethodError, match=r"'norm1.weight' holds NaN or infinite"):
        removed(broken, 1, 1, 4, 4)
