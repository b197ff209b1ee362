"""What zeros are worth where they run."""

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.measure import execution as module
from secateur.measure.execution import FORMS, Execution, Executions, executions, zero_fraction
from secateur.measure.latency import Latency


def models():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 5))
    by_layer = sc.methods.Magnitude(scope="layer")
    return dense.eval(), sc.sparsify(dense, budget=sc.Budget(0.8, "weights"), method=by_layer).model.eval()


@pytest.mark.parametrize("form", ["CSR", "BSR"])
def test_sparse_forms_compute_what_the_zeros_compute(form):
    _, sparse = models()
    images = torch.randn(2, 3, 4, 4)
    made, note = FORMS[form](sparse, (images,), {}, 1)
    torch.testing.assert_close(made(images), sparse(images))
    assert "1 convolutions stay dense" in note
    assert made[3].weight.layout is not torch.strided
    assert isinstance(sparse[3], nn.Linear)
    tokens = torch.randn(2, 7, 32)
    torch.testing.assert_close(made[3](tokens), sparse[3](tokens))


def test_bsr_takes_only_layers_that_its_blocks_fit():
    _, note = FORMS["BSR"](models()[1], (torch.randn(2, 3, 4, 4),), {}, 1)
    assert note.startswith("1 of 2 linear layers"), "64 x 5 has no square blocks"


def test_every_form_is_timed_or_says_why_not():
    dense, sparse = models()
    before = {name: tensor.clone() for name, tensor in sparse.state_dict().items()}
    found = executions(dense, sparse, torch.randn(2, 3, 4, 4), threads=1, min_run_time_s=0.005)
    assert [row.form for row in found.rows] == ["dense", "zeros", *FORMS]
    for row in found.rows:
        assert (row.latency is None) == (row.speed_up is None)
        assert row.latency is not None or row.note
        assert row.latency is None or row.latency.threads == 1
    assert found.rows[0].speed_up == 1.0
    assert "needs a GPU" in str(found)
    assert all(torch.equal(before[name], tensor) for name, tensor in sparse.state_dict().items())


def test_convolutions_have_no_sparse_form():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    with pytest.raises(module.CannotRun, match="no linear layer"):
        FORMS["CSR"](network, (torch.randn(1, 3, 4, 4),), {}, 1)


def row(form: str, speed_up: float | None) -> Execution:
    latency = Latency(1.0, 0.1, 1, 1, "cpu", 10)
    return Execution(form, latency if speed_up else None, speed_up)


def test_the_sentence_says_what_helped():
    helped = Executions((row("dense", 1.0), row("zeros", 1.01), row("CSR", 2.5), row("BSR", 0.4)), 0.99)
    assert "What helped is CSR: 2.50x" in helped.in_words
    useless = Executions((row("dense", 1.0), row("zeros", 1.0), row("CSR", 0.3), row("2:4", None)), 0.5)
    assert "Nothing helped: the best of the others, CSR, runs at 0.30x" in useless.in_words
    alone = Executions((row("dense", 1.0), row("zeros", 1.0), row("CSR", None)), 0.5)
    assert "No other form can run here" in alone.in_words


def test_zeros_are_counted_over_all_parameters():
    layer = nn.Linear(3, 1)
    layer.weight.data.copy_(torch.tensor([[0.0, 1.0, 0.0]]))
    layer.bias.data.fill_(1.0)
    assert zero_fraction(layer) == 0.5


def test_onnx_runtime_computes_the_same():
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    _, sparse = models()
    images = torch.randn(2, 3, 4, 4)
    made, _ = FORMS["ONNX Runtime"](sparse, (images,), {}, 1)
    torch.testing.assert_close(torch.from_numpy(made(images)[0]), sparse(images).detach(), rtol=1e-4, atol=1e-5)
