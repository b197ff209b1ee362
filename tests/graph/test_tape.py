"""Recording leaves no trace, takes any forward signature and says what is wrong with an example."""

import random
from collections import OrderedDict, deque
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from secateur import trace, verify
from secateur.errors import TraceError, UnsupportedOp
from secateur.graph.tape import CARRIERS, record
from secateur.plan import Plan

from ..contract import snapshot

ALL_CARRIERS = pytest.mark.parametrize("carrier", CARRIERS)


class Restless(nn.Module):
    """Changes everything it can reach while it runs."""

    def __init__(self, fails=False):
        super().__init__()
        self.one, self.head, self.fails = nn.Linear(3, 6), nn.Linear(6, 2), fails
        self.norm, self.words = nn.BatchNorm1d(6), nn.Embedding(5, 6, max_norm=0.1)
        self.register_buffer("steps", torch.zeros(()))
        self.calls, self.log, self.table, self.queue = 0, [], {"deep": {"list": [1]}, "set": {1}}, deque([1])
        self.order = OrderedDict(a=[0])
        self.plain = torch.zeros(2)

    def forward(self, x):
        self.calls += 1
        self.new = x
        self.log.append(x.shape)
        self.table["deep"]["list"].append(2)
        self.table["set"].add(2)
        self.table["more"] = {}
        self.queue.append(2)
        self.order["a"].append(1)
        self.plain.add_(1)
        self.steps.add_(1)
        self.one.weight.mul_(2)
        self.extra = nn.Linear(2, 2)
        self.register_buffer("later", torch.ones(1))
        self.head.register_forward_hook(lambda *_: None)
        self.norm.train()
        random.random(), np.random.rand(), torch.rand(3)
        x.add_(1)
        x = self.norm(self.one(x)) + self.words(torch.zeros(x.shape[0], dtype=torch.long))
        if self.fails:
            raise RuntimeError("on purpose")
        return self.head(x)


def contents(model):
    """Attributes as values, beside what `snapshot.of_model` sees."""
    return {k: repr(v) for k, v in vars(model).items() if k not in ("_modules", "_forward_hooks")}


def prepared(fails):
    torch.manual_seed(0)
    model = Restless(fails)
    model.head.eval()
    model.one.bias.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    return model, torch.randn(4, 3)


@ALL_CARRIERS
@pytest.mark.parametrize("fails", [False, True])
def test_recording_leaves_no_trace_on_model_input_and_process(carrier, fails):
    model, x = prepared(fails)
    kept, before, attributes = x.clone(), snapshot.of_model(model), contents(model)
    shared = snapshot.of_process()
    if fails:
        with pytest.raises(TraceError, match="on purpose"):
            record(model, (x,), carrier=carrier)
    else:
        assert record(model, (x,), carrier=carrier).carrier == carrier
    assert snapshot.differences(before, snapshot.of_model(model)) == []
    assert snapshot.differences(shared, snapshot.of_process()) == []
    assert contents(model) == attributes
    assert torch.equal(x, kept)


@ALL_CARRIERS
@pytest.mark.parametrize("fails", [False, True])
def test_switches_of_torch_are_put_back(carrier, fails):
    def switches():
        cuda, mha = torch.backends.cuda, torch.backends.mha
        sdpa = cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()
        return (
            sdpa,
            mha.get_fastpath_enabled(),
            torch._C._get_mkldnn_enabled(),
            torch._C._get_cudnn_enabled(),
            torch.is_grad_enabled(),
        )

    model, x = prepared(fails)
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.cuda.enable_flash_sdp(False)
    try:
        before = switches()
        try:
            record(model, (x,), carrier=carrier)
        except TraceError:
            assert fails
        assert switches() == before
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
        torch.backends.cuda.enable_flash_sdp(True)


@ALL_CARRIERS
def test_recording_twice_gives_the_same_tape(carrier):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.shift = nn.Linear(3, 6), torch.ones(6)

        def forward(self, x):
            return self.one(x) + self.shift if carrier != "meta" else self.one(x)

    model, x = Plain(), torch.randn(4, 3)
    first, second = (record(model, (x,), carrier=carrier) for _ in range(2))
    assert [repr(op) for op in first.ops] == [repr(op) for op in second.ops]
    assert not vars(model.shift)


def test_no_global_hook_is_left():
    hooks = nn.modules.module._global_forward_pre_hooks, nn.modules.module._global_forward_hooks
    before = [len(h) for h in hooks]
    model, x = prepared(fails=True)
    with pytest.raises(TraceError):
        record(model, (x,))
    assert [len(h) for h in hooks] == before


def test_verify_changes_neither_models_nor_inputs():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(5, 6), nn.Linear(6, 2)
            self.register_buffer("steps", torch.zeros((), dtype=torch.float64))

        def forward(self, ids, x):
            self.steps.add_(1)
            x.relu_()
            return self.head(self.words(ids.clamp_(max=3)) + x.sum())

    model, ids, x = Writes().double(), torch.arange(5), torch.randn(3, dtype=torch.float64)
    kept, before = (ids.clone(), x.clone()), snapshot.of_model(model)
    assert verify(model, model, Plan(), (ids, x)).max_relative_error == 0
    assert snapshot.differences(before, snapshot.of_model(model)) == []
    assert torch.equal(ids, kept[0])
    assert torch.equal(x, kept[1])


@dataclass
class Batch:
    x: Tensor
    name: str = "batch"


class Flexible(nn.Module):
    """Takes its input in whichever way it is given."""

    def __init__(self):
        super().__init__()
        self.one, self.head = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, first, /, *rest, x=None, flag: bool = False, **more):
        inputs = [v for v in (first, *rest, x, *more.values()) if v is not None and not isinstance(v, (int, str))]
        inputs = [v.x if isinstance(v, Batch) else v["x"] if isinstance(v, dict) else v for v in inputs]
        inputs = [t for v in inputs for t in (v if isinstance(v, (list, tuple)) else [v])]
        return self.head(self.one(sum(inputs)) * (2 if flag else 1))


X = torch.ones(4, 3)
SIGNATURES = {
    "a tensor": (X, None),
    "a tuple of one": ((X,), None),
    "positional": ((X, X, X), None),
    "keywords": ((X,), {"x": X, "flag": True}),
    "only keywords": ((None,), {"x": X, "other": X}),
    "a list as one input": (([X, X],), None),
    "nested": (((X, X), X), None),
    "a dictionary": (({"x": X},), None),
    "a dataclass": ((Batch(X),), None),
    "numbers and text": ((X, 3, "text"), None),
}


@pytest.mark.parametrize("how", SIGNATURES)
@pytest.mark.parametrize("carrier", [None, *CARRIERS])
def test_any_signature_is_recorded(how, carrier):
    args, kwargs = SIGNATURES[how]
    graph = trace(Flexible(), args, kwargs, carrier=carrier)
    assert graph.widths == {"one": 6}


def test_the_lightest_carrier_that_works_is_taken():
    class Looks(nn.Module):
        def __init__(self, how):
            super().__init__()
            self.one, self.head, self.how = nn.Linear(3, 6), nn.Linear(6, 2), how

        def forward(self, x):
            if self.how == "device" and x.device.type != "cpu":
                raise ValueError("not here")
            if self.how == "value" and x.sum().item() > 1e9:
                return x
            return self.head(self.one(x))

    found = {how: trace(Looks(how), X).tape.carrier for how in ("nothing", "device", "value")}
    assert found == {"nothing": "meta", "device": "fake", "value": "real"}


def test_a_model_without_data_is_recorded():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 2))
    assert trace(model, X).widths == {"0": 6}


def test_a_rejected_example_is_named_with_the_module_that_rejects_it():
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    message = (
        r"^the model cannot be run on \(tensor \[4, 5\]\): module '0' raised RuntimeError: mat1 and mat2 shapes cannot "
        r"be multiplied \(4x5 and 3x6\) \(on real tensors\). Give an example that model\(\*args, \*\*kwargs\) accepts"
    )
    with pytest.raises(TraceError, match=message):
        trace(model, torch.ones(4, 5))


def test_a_wrong_signature_is_named_with_all_that_was_given():
    with pytest.raises(
        TraceError, match=r"on \(tensor \[4, 3\], flag=True\): it raised TypeError: .*unexpected keyword"
    ):
        trace(nn.Linear(3, 2), X, {"flag": True})


def test_for_a_model_without_data_the_reason_is_the_example():
    with torch.device("meta"):
        model = nn.Linear(3, 6)
    with pytest.raises(TraceError, match=r"raised RuntimeError: .*\(on fake tensors\)"):
        trace(model, torch.ones(4, 5))


def test_an_output_without_a_tensor_is_an_error():
    class Empty(nn.Linear):
        def forward(self, x):
            return {"shape": super().forward(x).shape}

    with pytest.raises(TraceError, match="the model returned dict, which holds no tensor"):
        trace(Empty(3, 2), X)


def test_model_and_example_on_two_devices_is_an_error():
    with FakeTensorMode():
        elsewhere = torch.empty(4, 3, device="cuda")
    with pytest.raises(TraceError, match="the model is on 'cpu' and the example input on 'cuda': move one of them"):
        trace(nn.Linear(3, 2), elsewhere)


def test_parameters_without_a_shape_are_an_error():
    with pytest.raises(TraceError, match="'weight' has no shape yet: run the model once on an input"):
        trace(nn.LazyLinear(2), X)


def test_an_unknown_granularity_is_an_error():
    with pytest.raises(ValueError, match="granularity='rows': expected 'heads' or 'head_dims'"):
        trace(nn.Linear(3, 2), X, granularity="rows")


def test_strict_raises_on_an_operation_without_a_rule():
    from .cases.unknown_op import Model

    with pytest.raises(UnsupportedOp, match=r"the model calls secateur_tests\.scramble\.default, and no rule says how"):
        trace(Model(), torch.ones(2, 3), strict=True)


def test_strict_names_the_module():
    from .cases.unknown_op import Model

    with pytest.raises(UnsupportedOp, match=r"^inner\.0 calls secateur_tests\.scramble\.default"):
        trace(nn.Sequential(OrderedDict(inner=nn.Sequential(Model()))), X, strict=True)
