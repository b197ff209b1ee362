import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secateur import Budget, Limits
from secateur.errors import BudgetError, MethodError, NothingToPrune
from secateur.graph import trace
from secateur.graph.norms import Flow
from secateur.methods import Hrank, Problem
from secateur.methods._features import features
from secateur.methods.hrank import map_ranks
from secateur.train import ClassificationTask

TASK = ClassificationTask()
DIAGONAL = torch.eye(3)
STRIPES = torch.tensor([[1.0, 2.0, 3.0]]).expand(3, 3)
PLAIN = torch.ones(3, 3)


def problem(model, batches, remove=0.5, example=None, **limits):
    args = (batches[0][:1] if example is None else example,)
    return Problem(model, trace(model, args), Budget(remove), Limits(**limits), args, {}, batches, TASK)


def scores_of(model, batches, name="0", method=None, **options):
    return (method or Hrank()).decide(problem(model, batches, **options)).scores[name].tolist()


def conv(rows, *, bias=0.0):
    """A 1x1 convolution with these (out, in) weights."""
    weight = torch.tensor(rows)
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
    layer.weight.data, layer.bias.data = weight[:, :, None, None], torch.full((len(weight),), bias)
    return layer


def images(*maps):
    """One image for each argument; its channels are the maps."""
    return torch.stack([torch.stack(channels) for channels in maps])


BOTH = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]  # the first input channel, the second, their sum


def test_ranks_of_small_matrices_by_hand():
    maps = torch.stack([DIAGONAL, STRIPES, torch.zeros(3, 3), DIAGONAL + PLAIN])
    assert map_ranks(maps).tolist() == [3, 1, 0, 3]
    assert map_ranks(torch.tensor([[[1.0, 0.0, 2.0], [0.0, 1.0, 3.0]]])).tolist() == [2]


def test_the_tolerance_is_relative_to_the_largest_singular_value():
    weak = torch.diag(torch.tensor([100.0, 10.0, 1.0]))
    assert [map_ranks(weak, tolerance).item() for tolerance in (None, 0.0, 0.05, 0.5)] == [3, 3, 2, 1]
    assert map_ranks(1e-6 * weak, 0.05).item() == 2


def test_the_usual_tolerance_is_torchs_and_follows_the_precision():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(6, 5, 2, generator=generator) @ torch.randn(2, 7, generator=generator)
    assert torch.equal(map_ranks(maps), torch.linalg.matrix_rank(maps))
    noisy = torch.diag(torch.tensor([1.0, 1e-2]))  # bfloat16 knows 1 +- 0.008
    assert [map_ranks(noisy.to(kind)).item() for kind in (torch.float64, torch.float32, torch.bfloat16)] == [2, 2, 1]


def test_scores_are_mean_ranks_over_images_and_the_lowest_goes():
    model = nn.Sequential(conv(BOTH), nn.ReLU(), conv([[1.0, 1.0, 1.0]]))
    batches = [images((DIAGONAL, STRIPES), (STRIPES, 0 * PLAIN)), images((DIAGONAL, STRIPES))]
    found = Hrank().decide(problem(model, batches, remove=0.3))
    assert found.scores["0"].tolist() == pytest.approx([(3 + 1 + 3) / 3, (1 + 0 + 1) / 3, (3 + 1 + 3) / 3])
    assert found.plan.removed("0") == (1,)


def test_the_map_is_the_one_behind_the_activation():
    model = nn.Sequential(conv([[1.0], [1.0]]), nn.ReLU(), conv([[1.0, 1.0]]))
    model[0].bias.data = torch.tensor([0.0, -0.5])
    image = images((torch.tensor([[1.0, 0.2], [0.4, 0.3]]),))  # shifted and cut off, one number is left
    assert scores_of(model, [image]) == [2.0, 1.0]
    model[1] = nn.Identity()
    assert scores_of(model, [image]) == [2.0, 2.0]


def test_the_map_is_the_one_before_pooling_and_flattening():
    maps = images((torch.eye(4), torch.ones(4, 4)))
    tails = (
        nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)),
        nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 2)),
    )
    for tail in tails:
        assert scores_of(nn.Sequential(conv(BOTH), nn.ReLU(inplace=True), tail).train(), [maps]) == [4.0, 1.0, 4.0]


def test_branches_that_are_joined_show_their_own_channels():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.head = conv(BOTH[:2]), conv(BOTH[::-1]), conv([[1.0] * 5])

        def forward(self, x):
            return self.head(torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], dim=1))

    maps = [images((DIAGONAL, STRIPES))]
    assert scores_of(Joined(), maps, "left") == [3.0, 1.0]
    assert scores_of(Joined(), maps, "right") == [3.0, 1.0, 3.0]


def test_a_residual_stream_is_seen_wherever_it_is_read():
    class Stream(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.block, self.head = conv(BOTH[:2]), conv([[0.0, 0.0], [1.0, 0.0]]), conv([[1.0, 1.0]])

        def forward(self, x):
            x = F.relu(self.stem(x))
            return self.head(F.relu(x + self.block(x)))

    maps = [images((DIAGONAL, STRIPES))]  # stem shows (3, 1); after the block the second is their sum, (3, 3)
    assert scores_of(Stream(), maps, "stem", Hrank(residual="prune")) == [3.0, 2.0]


def test_a_hidden_unit_is_a_column_of_the_batch_so_it_counts_as_alive_or_dead():
    model = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 2))
    model[0].weight.data, model[0].bias.data = torch.tensor([[1.0], [-1.0], [2.0]]), torch.zeros(3)
    assert scores_of(model, [torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [-1.0]])]) == [1.0, 0.5, 1.0]


def test_a_unit_over_tokens_is_a_matrix_of_samples_by_tokens():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    model[0].weight.data, model[0].bias.data = torch.eye(2), torch.zeros(2)
    batch = torch.stack([DIAGONAL, STRIPES], dim=2)  # three samples of three tokens of two features
    assert scores_of(model, [batch]) == [3.0, 1.0]


class Heads(nn.Module):
    """Two heads of three dimensions each; what a head puts out is a matrix of tokens by dimensions."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(3, 18), nn.Linear(6, 2)
        rows = torch.zeros(3, 2, 3, 3)  # (query key value, head, dimension, input)
        rows[2, 0] = torch.eye(3)
        rows[2, 1, 0] = torch.tensor([1.0, 0.0, 0.0])
        rows[0], rows[1] = 9 * torch.eye(3), 9 * torch.eye(3)  # every token looks at itself
        self.qkv.weight.data, self.qkv.bias.data = rows.reshape(18, 3), torch.zeros(18)

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*x.shape[:2], 6))


def test_a_head_is_a_matrix_of_tokens_by_dimensions_whatever_the_batch_size():
    batch = torch.stack([torch.eye(3), torch.diag(torch.tensor([1.0, 1.0, 0.0])), torch.zeros(3, 3)])
    for example in (batch[:1], batch[:2]):
        assert scores_of(Heads(), [batch], "qkv", example=example) == pytest.approx([5 / 3, 2 / 3])


def test_what_counts_ranks_is_not_taken_for_an_operation_of_the_model():
    """Adding up the ranks of the heads once hid the addition behind them."""

    class Model(Heads):
        def __init__(self):
            super().__init__()
            self.side, self.head = nn.Linear(3, 2), nn.Linear(2, 1)

        def forward(self, x):
            return self.head(super().forward(x) + self.side(x))

    batch = torch.stack([torch.eye(3), torch.diag(torch.tensor([1.0, 1.0, 0.0])), torch.zeros(3, 3)])
    found = Hrank(residual="prune").decide(problem(Model(), [batch], remove=0.2))
    assert found.scores["qkv"].tolist() == pytest.approx([5 / 3, 2 / 3])
    assert found.scores["out"].shape == (2,)


def test_attention_modules_are_found_again_whatever_kernels_they_run_on():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 1)

        def forward(self, x):
            return self.head(self.mix(x, x, x)[0])

    batch = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    for example in (batch[:1], batch[:2], batch):
        assert scores_of(Model(), [batch], "mix", example=example) == [2.0, 2.0]


def test_volumes_are_matrices_with_the_last_axis_as_columns():
    model = nn.Sequential(nn.Conv3d(1, 2, 1, bias=False), nn.ReLU(), nn.Conv3d(2, 1, 1))
    model[0].weight.data = torch.ones(2, 1, 1, 1, 1)
    volume = torch.zeros(1, 1, 2, 2, 3)
    volume[0, 0, 0, 0, 0] = volume[0, 0, 1, 0, 1] = volume[0, 0, 1, 1, 2] = 1.0  # no slice has more than rank 2
    assert scores_of(model, [volume]) == [3.0, 3.0]


def test_whole_batches_are_read_until_there_are_enough_images():
    model = nn.Sequential(conv([[1.0], [1.0]]), nn.ReLU(), conv([[1.0, 1.0]]))
    batches = [images((DIAGONAL,), (DIAGONAL,)), images((STRIPES,), (STRIPES,)), images((0 * PLAIN,), (0 * PLAIN,))]
    for count, wanted in ((1, 3.0), (2, 3.0), (3, 2.0), (4, 2.0), (5, 4 / 3), (99, 4 / 3)):
        assert scores_of(model, batches, method=Hrank(sample_count=count)) == pytest.approx([wanted, wanted])


def test_a_feature_is_found_again_by_its_module_kind_and_count():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.head, self.act = conv(BOTH), conv([[1.0] * 3] * 2), conv([[1.0, 1.0]]), nn.ReLU()

        def forward(self, x):
            return self.head(self.act(self.two(self.act(self.one(x)))))

    graph = trace(Model(), torch.zeros(1, 2, 3, 3))
    flow = Flow(graph)
    found = {name: [f.key for f in features(graph, flow, group)] for name, group in graph.groups.items()}
    assert found == {"one": [("act", "relu", 0)], "two": [("act", "relu", 1)]}


# -- refusals -------------------------------------------------------------------------------------------------------

MODEL = nn.Sequential(conv(BOTH), nn.ReLU(), conv([[1.0, 1.0, 1.0]]))
GOOD = images((DIAGONAL, STRIPES))


def test_missing_data_and_batches_are_told_apart():
    for given in ({}, {"data": [GOOD]}, {"task": TASK}):
        with pytest.raises(MethodError, match=r"hrank looks at feature maps: give data= .* and task="):
            Hrank().decide(Problem(MODEL, trace(MODEL, GOOD), Budget(0.3), args=(GOOD,), **given))
    with pytest.raises(MethodError, match="hrank: data= gave no batch"):
        Hrank().decide(Problem(MODEL, trace(MODEL, GOOD), Budget(0.3), args=(GOOD,), data=[], task=TASK))


def test_batches_that_do_not_fit_and_maps_that_are_no_numbers_name_the_module():
    with pytest.raises(MethodError, match="hrank, batch 1: the model cannot be run, module '0' raised RuntimeError"):
        scores_of(MODEL, [GOOD, torch.zeros(1, 3, 3, 3)])
    with pytest.raises(MethodError, match="hrank, batch 0: module '1' gives NaN or infinite values"):
        scores_of(MODEL, [GOOD * float("nan")])


def test_control_flow_that_follows_the_data_is_refused():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.act, self.head = conv(BOTH), nn.ReLU(), conv([[1.0, 1.0, 1.0]])

        def forward(self, x):
            x = self.one(x)
            return self.head(self.act(x) if len(x) == 1 else x)

    with pytest.raises(MethodError, match="batch 0: module 'act' did not run 'relu' as it did on the example input"):
        scores_of(Gated(), [torch.cat([GOOD, GOOD])], example=GOOD)


def test_another_layout_than_that_of_the_example_is_refused():
    feature = features(graph := trace(MODEL, GOOD), Flow(graph), graph.groups["0"])[0]
    for value in (torch.zeros(1, 4, 3, 3), torch.zeros(3, 3, 3)):
        with pytest.raises(MethodError, match=r"module '1' gave a tensor .* on the example input they took 3 places"):
            feature.maps(value)


def test_bad_settings_are_refused():
    for count in (0, 1.5):
        with pytest.raises(MethodError, match=r"sample_count=.*: expected a whole number"):
            Hrank(sample_count=count)
    for tolerance in (-0.1, 1.0, float("nan")):
        with pytest.raises(MethodError, match=r"tolerance=.*: expected a fraction in \[0, 1\)"):
            Hrank(tolerance=tolerance)
    with pytest.raises(MethodError, match="residual='keep': expected one of"):
        scores_of(MODEL, [GOOD], method=Hrank(residual="keep"))
    with pytest.raises(MethodError, match="allocation='even'"):
        scores_of(MODEL, [GOOD], method=Hrank(allocation="even"))
    with pytest.raises(BudgetError, match="at most"):
        scores_of(MODEL, [GOOD], remove=0.9)
    with pytest.raises(NothingToPrune, match="protect"):
        scores_of(MODEL, [GOOD], protect=("",))
