import pytest
import torch
from scipy.spatial.distance import cdist
from torch import nn
from torch.nn import functional as F

from secateur.errors import BudgetError, MethodError, NothingToPrune
from secateur.methods import Fpgm, L2Filter
from secateur.methods._filters import filter_rows
from secateur.methods.fpgm import fpgm_scores, norm_then_distance_scores

from .test_l1_filter import READOUT, chain, problem


def decide(model, *shape, method=None, **options):
    return (method or Fpgm()).decide(problem(model, *shape, **options))


def removed(model, *shape, method=None, **options):
    plan = decide(model, *shape, method=method, **options).plan
    return {name: plan.removed(name) for name in plan if plan.removed(name)}


LINE = [[0.0], [1.0], [10.0]]  # sums of distances 11, 10, 19


def test_the_filter_amid_the_others_goes_and_not_the_one_of_smallest_norm():
    model = chain(LINE, [[1.0] * 3])
    assert decide(model, 1, 1, 1, 1, remove=0.3).scores["0"].tolist() == [11.0, 10.0, 19.0]
    assert removed(model, 1, 1, 1, 1, remove=0.3) == {"0": (1,)}
    assert removed(model, 1, 1, 1, 1, remove=0.3, method=L2Filter()) == {"0": (0,)}


def test_distances_are_not_squared_and_euclidean_in_all_weights():
    squared = torch.tensor([[0.0], [1.0], [2.0], [2.0], [10.0]])  # squared: 109, 84, 72, 72, 309
    assert fpgm_scores(squared).tolist() == [15.0, 12.0, 11.0, 11.0, 35.0]
    plane = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 8.0]])
    assert fpgm_scores(plane).tolist() == [13.0, 10.0, 13.0]  # sums of absolute differences: 15, 14, 15


def test_the_sum_of_distances_is_not_the_distance_to_the_mean_nor_to_the_nearest():
    points = torch.tensor([[0.0], [1.0], [2.5], [6.0], [50.0]])  # the mean, 11.9, is nearest to 6; 0 and 1 are nearest
    assert fpgm_scores(points).tolist() == [59.5, 56.5, 55.0, 58.5, 190.5]


def test_opposite_filters_are_far_apart():
    filters = [[2.0, 1.0], [-2.0, -1.0], [1.9, 0.9], [1.0, 2.0]]  # |w| would make the first two one point
    assert removed(chain(filters, [[1.0] * 4]), 1, 2, 1, 1, remove=0.25) == {"0": (2,)}
    scores = decide(chain(filters, [[1.0] * 4]), 1, 2, 1, 1, remove=0.25).scores["0"]
    assert scores[1] == scores.max()
    assert scores[1] == pytest.approx(20**0.5 + (3.9**2 + 1.9**2) ** 0.5 + 18**0.5)


def test_scores_agree_with_scipy_below_and_above_the_size_where_torch_multiplies_matrices():
    for count in (7, 40):
        filters = torch.randn(count, 12, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
        filters[1] = filters[0] + 1e-3
        wanted = cdist(filters.numpy(), filters.numpy()).sum(axis=0)
        assert fpgm_scores(filters).tolist() == pytest.approx(wanted.tolist(), rel=1e-9)


def test_scores_do_not_change_when_all_filters_move_and_grow_with_their_scale():
    filters = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(fpgm_scores(filters + 5.0), fpgm_scores(filters))
    torch.testing.assert_close(fpgm_scores(filters * -3.0), fpgm_scores(filters) * 3.0)


def test_filters_are_rows_over_kernel_places_and_columns_of_transposed_convolutions():
    weight = torch.arange(24.0).view(2, 3, 2, 2)
    conv, up = nn.Conv2d(3, 2, 2), nn.ConvTranspose2d(2, 3, 2)
    conv.weight.data, up.weight.data = weight.clone(), weight.clone()
    model = nn.Sequential(conv, nn.Conv2d(2, 1, 1))
    assert torch.equal(filter_rows(problem(model, 1, 3, 4, 4), "0"), weight.flatten(1).double())
    model = nn.Sequential(up, nn.Conv2d(3, 1, 1))
    assert torch.equal(filter_rows(problem(model, 1, 2, 4, 4), "0"), weight.transpose(0, 1).flatten(1).double())


class Gated(nn.Module):
    def __init__(self, gate, up):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(1, 3), nn.Linear(1, 3), nn.Linear(3, 1)
        self.gate.weight.data, self.up.weight.data = torch.tensor(gate), torch.tensor(up)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


def test_weights_that_make_the_same_channels_are_laid_side_by_side():
    model = Gated([[0.0], [3.0], [6.0]], [[0.0], [4.0], [0.0]])
    assert decide(model, 1, 1, remove=0.3).scores["gate"].tolist() == [11.0, 10.0, 11.0]  # one by one: 9+4, 6+8, 9+4
    assert removed(model, 1, 1, remove=0.3) == {"gate": (1,)}


def test_a_head_is_one_point_with_the_rows_of_query_key_and_value():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(2, 12, bias=False), nn.Linear(4, 2)

        def forward(self, x):
            q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 2, 2).permute(2, 0, 3, 1, 4).unbind(0)
            return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*x.shape[:2], 4))

    model = Heads()
    model.qkv.weight.data = torch.arange(24.0).view(12, 2)
    rows = filter_rows(problem(model, 1, 3, 2), "qkv")
    wanted = model.qkv.weight.data.view(3, 2, 4).transpose(0, 1).flatten(1)  # (part, head, ...) -> (head, ...)
    assert torch.equal(rows, wanted.double())


def test_channels_are_points_in_any_order():
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).tolist()
    scores = decide(chain(weight, [[1.0] * 5]), 1, 3, 1, 1, remove=0.2).scores["0"]
    turned = decide(chain(weight[::-1], [[1.0] * 5]), 1, 3, 1, 1, remove=0.2).scores["0"]
    torch.testing.assert_close(turned.flip(0), scores)


def test_the_part_by_norm_goes_first_and_distances_are_those_of_the_rest():
    points = torch.tensor([[0.0], [1.0], [10.0], [12.0]])
    assert norm_then_distance_scores(points, 0.25).tolist() == [-12.0, 20.0, 11.0, 13.0]  # over all four: 23, 21, …
    model = chain(points.tolist(), [[1.0] * 4])
    mixed = Fpgm(remove_by_norm=0.25)
    assert removed(model, 1, 1, 1, 1, method=mixed, remove=0.25) == {"0": (0,)}
    assert removed(model, 1, 1, 1, 1, method=mixed, remove=0.5) == {"0": (0, 2)}
    assert removed(model, 1, 1, 1, 1, remove=0.5) == {"0": (1, 2)}


def test_the_part_by_norm_is_a_whole_number_of_channels_rounded_down():
    points = torch.tensor([[0.0], [1.0], [10.0], [12.0]])
    assert norm_then_distance_scores(points, 0.24).tolist() == fpgm_scores(points).tolist()
    assert (norm_then_distance_scores(points, 0.5) < 0).tolist() == [True, True, False, False]


def test_a_filter_of_zeros_does_not_go_first_by_itself():
    filters = [[0.0], [5.0], [6.0], [7.0]]
    assert removed(chain(filters, [[1.0] * 4]), 1, 1, 1, 1, remove=0.25) == {"0": (1,)}


@pytest.mark.parametrize("value", [-0.1, 1, 1.5, float("nan")])
def test_the_part_by_norm_is_a_fraction_below_one(value):
    with pytest.raises(MethodError, match=r"remove_by_norm=.*: expected a fraction in \[0, 1\)"):
        Fpgm(remove_by_norm=value)


def test_bad_settings_are_refused():
    model = chain(LINE, [[1.0] * 3])
    with pytest.raises(MethodError, match="residual='keep': expected one of projection, skip, prune"):
        removed(model, 1, 1, 1, 1, method=Fpgm(residual="keep"))
    with pytest.raises(MethodError, match="allocation='even'"):
        removed(model, 1, 1, 1, 1, method=Fpgm(allocation="even"))
    with pytest.raises(BudgetError, match="at most"):
        removed(model, 1, 1, 1, 1, remove=0.9)
    with pytest.raises(NothingToPrune, match="protect"):
        removed(model, 1, 1, 1, 1, protect=("",))
    with pytest.raises(MethodError, match=r"'0.weight' holds NaN or infinite"):
        removed(chain([[1.0], [float("inf")]], READOUT), 1, 1, 1, 1)
