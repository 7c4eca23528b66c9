"""Folds past the dispatcher, and calls that are known again: the same bits, and nothing that the long way does is lost."""

import gc
import itertools
import sys
import threading

import pytest
import torch
from test_direct import Mine, Seen
from torch.utils.checkpoint import checkpoint

import pyfold
from pyfold import _C
from pyfold.ops import FLOAT_DTYPES, OPS

pytestmark = pytest.mark.skipif(
    not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="this torch has no exchange API, so every call is dispatched"
)

SHAPE = (2, 4, 5, 6)
LAYOUTS = {
    "contiguous": lambda x: x.clone(),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "turned": lambda x: x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
}
VARIANTS = list(OPS["fold"].variants)
#: Those that run in torch's operations where a gradient is asked for.
COMPOSED = ("sphere", "ball, gain")
_fresh = itertools.count(1)


def new_gain():
    """A gain that no call has had, so that the next call with it is a new one."""
    return 1 + next(_fresh) / 4096


def sample_of(variant, dtype, generator, shape=SHAPE):
    return OPS["fold"].sample(shape, dtype, torch.device("cpu"), generator, **OPS["fold"].variants[variant])


def known(x, kind, *, bias=None, gain=1.0, clamp=None, dim=1, pairing="adjacent", **parameters):
    return _C.fold(x, bias, kind, gain, clamp, dim, pairing, parameters)


def derivatives(sample, cotangent):
    """The fold, its gradients, and the gradient of the first one's gradient."""
    leaves = [v for v in sample.values() if isinstance(v, torch.Tensor) and v.requires_grad]
    cotangent = cotangent.requires_grad_()
    y = pyfold.fold(**sample)
    first = torch.autograd.grad(y, leaves, cotangent, create_graph=True)
    (second,) = torch.autograd.grad(first[0], cotangent, torch.ones_like(first[0]))
    return y, *first, second


@pytest.fixture
def no_long_way(monkeypatch):
    """Fails whatever is checked again or dispatched."""

    def fail(*_args, **_kwargs):
        raise AssertionError("the long way")

    monkeypatch.setattr(sys.modules["pyfold.ops.fold"], "check_call", fail)
    for name in ("fold", "fold_backward", "fold_sequence", "fold_sequence_apply"):
        monkeypatch.setattr(torch.ops.pyfold, name, fail)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in COMPOSED])
def test_same_bits_as_through_the_dispatcher(variant, dtype, layout, generator):
    sample = sample_of(variant, dtype, generator)
    sample["x"] = LAYOUTS[layout](sample["x"])
    new = pyfold.fold(**sample)
    direct = known(**sample)
    assert direct is not None
    with Seen() as seen:
        dispatched = pyfold.fold(**sample)
    assert {"pyfold::fold", "pyfold::fold_sequence"} & set(seen.names)
    for result in (new, direct):
        assert result.dtype == dispatched.dtype and result.stride() == dispatched.stride()
        assert torch.equal(result, dispatched)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in COMPOSED])
def test_same_derivatives_as_through_the_dispatcher(variant, dtype, layout, generator):
    sample = sample_of(variant, dtype, generator)
    sample["x"] = LAYOUTS[layout](sample["x"])
    for name in ("x", "bias", "angle"):
        if isinstance(sample.get(name), torch.Tensor):
            sample[name].requires_grad_()
    cotangent = torch.randn(pyfold.fold(**sample).shape, generator=generator, dtype=torch.float64).to(dtype)
    assert known(**sample).requires_grad
    direct = derivatives(sample, LAYOUTS[layout](cotangent))
    with Seen() as seen:
        dispatched = derivatives(sample, LAYOUTS[layout](cotangent))
    assert {"pyfold::fold_backward", "pyfold::fold_sequence_apply"} & set(seen.names)
    for a, b in zip(direct, dispatched, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in (*COMPOSED, "crelu, bias")])
def test_a_known_call_is_neither_checked_nor_dispatched(variant, layout, generator, request):
    sample = sample_of(variant, torch.float32, generator)
    sample["x"] = LAYOUTS[layout](sample["x"])
    expected = pyfold.fold(**sample)
    cotangent = torch.randn_like(expected)
    request.getfixturevalue("no_long_way")
    assert torch.equal(pyfold.fold(**sample), expected)
    sample["x"].requires_grad_()
    y = pyfold.fold(**sample)
    assert torch.equal(y, expected)
    torch.autograd.grad(y, sample["x"], cotangent)


def test_the_long_way_is_noticed(no_long_way):
    with pytest.raises(AssertionError, match="the long way"):
        pyfold.fold(torch.randn(2, 4), "abs", gain=new_gain())


@pytest.mark.parametrize("variant", ["leaky", "maxmin"])
def test_large_calls_are_direct_too(variant, generator, request):
    sample = sample_of(variant, torch.float32, generator, (8, 16, 64, 64))
    with Seen() as seen:
        expected = pyfold.fold(**sample)
    assert seen.names
    pyfold.fold(**sample)
    request.getfixturevalue("no_long_way")
    assert torch.equal(pyfold.fold(**sample), expected)
    x = sample["x"].requires_grad_()
    (gradient,) = torch.autograd.grad(pyfold.fold(**sample), x, expected)
    slopes = torch.where(x < 0, -0.6, 1.0)
    assert torch.equal(gradient, slopes * expected if variant == "leaky" else x)


def test_what_widens_is_known_and_dispatched(generator):
    sample = sample_of("crelu, bias", torch.float32, generator)
    pyfold.fold(**sample)
    with Seen():
        expected = pyfold.fold(**sample)
    assert torch.equal(known(**sample), expected)
    sample["x"].requires_grad_()
    y = known(**sample)
    assert torch.equal(y, expected) and y.requires_grad
    (gradient,) = torch.autograd.grad(y.square().sum(), sample["x"])
    with Seen():
        (other,) = torch.autograd.grad(pyfold.fold(**sample).square().sum(), sample["x"])
    assert torch.equal(gradient, other)


NOT_PLAIN = {
    "a list": {"x": [1.0]},
    "gaps": {"x": torch.randn(2, 4, 6)[..., ::2]},
    "expanded": {"x": torch.randn(1, 4, 3).expand(2, 4, 3)},
    "sparse": {"x": torch.zeros(2, 4, 3).to_sparse()},
    "a subclass": {"x": torch.randn(2, 4, 3).as_subclass(Mine)},
    "on another device": {"x": torch.randn(2, 4, 3, device="meta")},
    "integers": {"x": torch.zeros(2, 4, 3, dtype=torch.int64)},
    "another dtype": {"x": torch.randn(2, 4, 3, dtype=torch.float64)},
    "other channels": {"x": torch.randn(2, 6, 3)},
    "another dimension": {"x": torch.randn(2, 4)},
    "another kind": {"kind": "maxmin"},
    "no text": {"kind": 1},
    "a gain": {"gain": 2.0},
    "a gain that is a tensor": {"gain": torch.tensor(1.0)},
    "a bool": {"gain": True},
    "a clamp": {"clamp": 1.0},
    "another dim": {"dim": 2},
    "a dim that is no int": {"dim": 1.0},
    "a large dim": {"dim": 2**70},
    "another pairing": {"pairing": "neither"},
    "a bias": {"bias": torch.zeros(4)},
    "a bias that is none": {"bias": 0.0},
    "another slope": {"slope": 0.25},
    "a learned slope": {"slope": torch.tensor(0.125)},
    "a parameter that is none": {"angle": 1.0},
    "many parameters": {f"p{i}": 1.0 for i in range(8)},
}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_what_is_new_or_not_plain_goes_the_long_way(name):
    plain = {"x": torch.randn(2, 4, 3), "kind": "leaky", "slope": 0.125}
    pyfold.fold(**plain)
    assert known(**plain) is not None
    assert known(**{**plain, **NOT_PLAIN[name]}) is None


BAD = [
    ({"clamp": 0.0}, ValueError), ({"clamp": -1}, ValueError), ({"gain": float("nan")}, ValueError), ({"dim": 3}, ValueError),
    ({"dim": True}, TypeError), ({"kind": "abs "}, ValueError), ({"pairing": "other"}, ValueError),
    ({"angle": 0.5}, ValueError), ({"bias": torch.zeros(5)}, ValueError), ({"gain": "1"}, TypeError), ({"size": 3}, ValueError),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "error"), BAD, ids=str)
def test_a_known_call_does_not_hide_errors(wrong, error):
    call = {"x": torch.randn(2, 4, 3), "kind": "groupsort", "size": 2}
    pyfold.fold(**call)
    for _ in range(2):
        with pytest.raises(error):
            pyfold.fold(**{**call, **wrong})
    assert known(**call) is not None


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.*:DeprecationWarning")
def test_what_watches_the_ops_sees_them():
    x = torch.randn(2, 4, 3)
    expected = pyfold.fold(x, "maxmin")
    assert known(x, "maxmin") is not None
    with torch.profiler.profile() as profile:
        pyfold.fold(x, "maxmin")
    assert "pyfold::fold" in {event.key for event in profile.key_averages()}
    with torch.device("cpu"):  # a mode that changes calls of torch's functions
        assert known(x, "maxmin") is None
    traced = torch.jit.trace(lambda x: pyfold.fold(x, "maxmin"), (x,), check_trace=False)
    assert torch.equal(traced(x.flip(0)), expected.flip(0))
    seen = []
    torch.func.vmap(lambda x: seen.append(known(x, "maxmin", dim=0)) or x)(x)
    assert seen == [None]
    assert torch.equal(torch.func.vmap(lambda x: pyfold.fold(x, "maxmin", dim=0))(x), expected)


@pytest.mark.parametrize("kind", ["abs", "leaky"])
def test_gradients_under_transforms(kind):
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    pyfold.fold(x, kind)
    y = pyfold.fold(x, kind)
    (expected,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    assert torch.equal(torch.func.grad(lambda x: pyfold.fold(x, kind).sum())(x.detach()), expected)
    assert torch.autograd.gradgradcheck(lambda x: pyfold.fold(x, kind).square(), x)
    if kind == "abs":
        cotangents = torch.randn(5, 2, 4, 3, dtype=torch.float64)
        (batched,) = torch.autograd.grad(y, x, cotangents, is_grads_batched=True)
        assert torch.equal(batched, cotangents * expected)


@pytest.mark.parametrize("kind", ["abs", "leaky"])
def test_gradients_of_any_strides(kind, generator):
    x = torch.randn(3, 4, 5, 5, generator=generator).contiguous(memory_format=torch.channels_last).requires_grad_()
    pyfold.fold(x, kind)
    gradient = torch.randn(3, 4, 5, 5, generator=generator)
    slopes = torch.where(x < 0, -1.0 if kind == "abs" else 0.2, 1.0)
    for given in (gradient, gradient.contiguous(memory_format=torch.channels_last), gradient.mT.contiguous().mT):
        y = pyfold.fold(x, kind)
        assert torch.equal(torch.autograd.grad(y, x, given)[0], gradient * slopes)
    one = torch.tensor(2.0).expand(3, 4, 5, 5)
    assert torch.equal(torch.autograd.grad(pyfold.fold(x, kind), x, one)[0], 2 * slopes)


def test_zeros_without_memory_are_left_alone():
    zeros = torch._efficientzerotensor(2, 4, 3)
    assert _C.fold_forward(torch.zeros(2, 4, 3), None, None, "abs", 1, "adjacent", 1.0, 0.0, 1, True) is not None
    assert _C.fold_forward(zeros, None, None, "abs", 1, "adjacent", 1.0, 0.0, 1, True) is None


def test_normals_may_change_in_any_way_and_go():
    x, offset = torch.randn(6, 4, 3), torch.zeros(2)
    normal = torch.randn(2, 4)

    def check():
        torch.testing.assert_close(pyfold.fold(x, "hyperplane", normal=normal, offset=offset),
                                   OPS["fold"].reference(x, "hyperplane", normal=normal, offset=offset))  # fmt: skip

    for change in (
        lambda: None,
        lambda: None,
        lambda: normal.copy_(torch.randn(2, 4)),
        lambda: normal.data.mul_(torch.randn(4)),
        lambda: normal.numpy().fill(0.5),
        lambda: offset.fill_(0.3),
    ):
        change()
        check()
        assert known(x, "hyperplane", normal=normal, offset=offset) is not None
    for _ in range(3):  # another tensor, perhaps at the same address
        del normal
        gc.collect()
        normal = torch.randn(2, 4)
        assert known(x, "hyperplane", normal=normal, offset=offset) is None
        check()
    normal.requires_grad_()
    assert known(x, "hyperplane", normal=normal, offset=offset) is None
    (gradient,) = torch.autograd.grad(pyfold.fold(x, "hyperplane", normal=normal, offset=offset).square().sum(), normal,
                                      allow_unused=True)  # fmt: skip
    assert gradient is not None
    many = torch.randn(1100, 4)
    assert pyfold.fold(x, "hyperplane", normal=many[:20]) is not None and known(x, "hyperplane", normal=many) is None


def test_a_program_made_in_inference_mode_does_not_stay():
    x, normal = torch.randn(2, 4, 3), torch.randn(1, 4)
    with torch.inference_mode():
        pyfold.ops.fold_with_bits(torch.randn(1, 4, 99), "abs")
        pyfold.fold(x, "hyperplane", normal=normal)
        pyfold.fold(x, "abs")
    for kind, parameters in (("hyperplane", {"normal": normal}), ("abs", {})):
        for value in (x, torch.randn(1, 4, 99)):
            for _ in range(2):
                y = pyfold.fold(value.requires_grad_(), kind, **parameters)
                (gradient,) = torch.autograd.grad((y**2).sum(), value)
                torch.testing.assert_close(gradient, 2 * value)  # the squares of what keeps lengths


def kept(function):
    tensors = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: tensors.append((t.dtype, tuple(t.shape))) or t, lambda t: t):
        function()
    return tensors


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in COMPOSED])
@pytest.mark.parametrize("learned", [False, True])
def test_a_known_call_keeps_what_a_new_one_keeps(variant, learned, generator):
    sample = {**sample_of(variant, torch.float32, generator), "gain": new_gain()}
    sample["x"].requires_grad_()
    if isinstance(sample.get("angle"), torch.Tensor):
        sample["angle"].requires_grad_(learned)
    first, second = (kept(lambda: pyfold.fold(**sample)) for _ in range(2))
    assert first and first == second


@pytest.mark.parametrize("kind", ["abs", "maxmin", "box"])
def test_checkpointing(kind):
    x = torch.randn(2, 4, 3, requires_grad=True)
    gain = new_gain()
    function = lambda x: pyfold.fold(pyfold.fold(x, kind, gain=gain), "groupsort", gain=gain).square().sum()  # noqa: E731
    loss = checkpoint(function, x, use_reentrant=False)  # new here, known when it runs again
    assert torch.equal(torch.autograd.grad(loss, x)[0], torch.autograd.grad(function(x), x)[0])


def test_names_from_anywhere_and_parameters_are_known():
    x, gain = torch.randn(2, 4, 3), new_gain()
    expected = pyfold.fold(x, "".join(["max", "min"]), gain=gain)
    assert torch.equal(known(x, "".join(["maxm", "in"]), gain=gain), expected)
    module = pyfold.nn.Fold("householder", 4, bias=True)
    module(x)
    given = {"bias": module.bias, "angle": module.angle}
    y = known(x, "householder", **given)
    (angle,) = torch.autograd.grad(y.square().sum() + y.sum(), module.angle)
    assert y.requires_grad and angle.abs().sum() > 0
    with torch.no_grad():
        assert not known(x, "householder", **given).requires_grad


def test_where_dim_does_not_matter_the_call_is_known_too():
    for x in (torch.randn(5), torch.tensor(-2.0)):
        assert torch.equal(pyfold.fold(x, "abs", dim=1), x.abs())
        assert torch.equal(known(x, "abs", dim=1), x.abs())


def test_many_different_calls():
    x = torch.randn(2, 4, 3)
    for i in range(1100):
        slope = (i + 1) / 2048
        assert torch.equal(pyfold.fold(x, "leaky", slope=slope), torch.where(x < 0, slope * x, x))
    assert known(x, "leaky", slope=1100 / 2048) is not None


def test_threads_may_remember_and_forget_at_once():
    x, failures = torch.randn(2, 4, 3), []

    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        try:
            for i in range(700):
                call = {"normal": torch.randn(2, 4, generator=generator), "gain": 1 + (seed * 700 + i) / 8192}
                assert torch.equal(pyfold.fold(x, "hyperplane", **call), pyfold.fold(x, "hyperplane", **call))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize(
    "call",
    ["fold", "remember_fold", "record_fold", "recorded_gradient", "fold_forward", "fold_backward", "fold_sequence",
     "fold_sequence_apply"],
)  # fmt: skip
def test_the_number_of_arguments_is_checked(call):
    with pytest.raises(TypeError, match=f"{call} takes"):
        getattr(_C, call)(1)
