"""The fast path: the bits of torch's dispatcher, everything that torch must see left to it, and one parse a call."""

import contextlib
import copy
import gc
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pyfold
from pyfold import _C
from pyfold.folds.program import unit_planes
from pyfold.ops import FLOAT_DTYPES, FOLDS, OPS, affine_table
from pyfold.ops._call import RAW
from pyfold.ops.step import PreparedStep

pytestmark = pytest.mark.skipif(
    not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="this torch has no exchange API, so every call is dispatched"
)

SMALL, LARGE = (3, 4, 10), (3, 8, 70, 70)  # for one thread, and for all of them
CALLS = [
    (name, variant)
    for name in ("randn", "add_noise", "denoising_loss", "mse_loss", "affine_step", "fold")
    for variant in OPS[name].variants
]
LAYOUTS = {
    "contiguous": lambda x: x.clone(),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "turned": lambda x: x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
    "gaps": lambda x: torch.stack([x, x], -1)[..., 0],
}


class Seen(TorchDispatchMode):
    """The names of the ops that pass through the dispatcher."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


class Mine(torch.Tensor):
    pass


def flat(value):
    return list(value) if isinstance(value, tuple) else [value]


def sample_of(name, variant, dtype, generator, shape):
    return OPS[name].sample(shape, dtype, torch.device("cpu"), generator, **OPS[name].variants[variant])


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize(("name", "variant"), CALLS)
def test_same_bits_as_through_the_dispatcher(name, variant, dtype, shape, generator):
    sample = sample_of(name, variant, dtype, generator, shape)
    before = _C.read_counts()[1]
    fast = flat(OPS[name].public(**sample))
    once = _C.read_counts()[1] - before
    with Seen() as seen:
        dispatched = flat(OPS[name].public(**sample))
    assert once == 1, "an op is parsed once"
    assert any(op.startswith("pyfold::") for op in seen.names)
    for a, b in zip(fast, dispatched, strict=True):
        assert a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)


def derivatives(sample, cotangent):
    """The fold, its gradients, and the gradient of the first one's gradient."""
    leaves = [v for v in sample.values() if isinstance(v, torch.Tensor) and v.requires_grad]
    cotangent = cotangent.requires_grad_()
    y = pyfold.fold(**sample)
    first = torch.autograd.grad(y, leaves, cotangent, create_graph=True)
    (second,) = torch.autograd.grad(first[0], cotangent, torch.ones_like(first[0]))
    return y, *first, second


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", OPS["fold"].variants)
def test_same_derivatives_as_through_the_dispatcher(variant, dtype, layout, generator):
    sample = sample_of("fold", variant, dtype, generator, (2, 4, 5, 6))
    sample["x"] = LAYOUTS[layout](sample["x"])
    for name in ("x", "bias", "angle"):
        if isinstance(sample.get(name), torch.Tensor):
            sample[name].requires_grad_()
    cotangent = torch.randn(pyfold.fold(**sample).shape, generator=generator, dtype=torch.float64).to(dtype)
    fast = derivatives(sample, LAYOUTS[layout](cotangent))
    with Seen():
        dispatched = derivatives(sample, LAYOUTS[layout](cotangent))
    for a, b in zip(fast, dispatched, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("variant", ["abs", "leaky", "groupsort", "householder, halves, bias, gain"])
def test_an_op_with_a_gradient_is_parsed_once_too(variant, generator):
    sample = sample_of("fold", variant, torch.float32, generator, (2, 4, 5, 6))
    sample["x"].requires_grad_()
    pyfold.fold(**sample)
    before = _C.read_counts()[1]
    with torch.no_grad():
        pyfold.fold(**sample)
    assert _C.read_counts()[1] - before == 1
    y = pyfold.fold(**sample)
    assert _C.read_counts()[1] - before == 2
    torch.autograd.grad(y, sample["x"], torch.ones_like(y))
    assert _C.read_counts()[1] - before == 3


def step_operands(**changes):
    x = torch.randn(2, 8)
    given = {
        "x": x, "models": torch.randn(2, 8), "base": None, "history": (),
        "table": affine_table([{"a": 0.5, "s": 1.0, "c_u": 0.3, "d1": 0.1}]), "index": None, "seeds": torch.arange(2),
        "streams": None, "positions": None, "stream": 1, "step": 0, "offset": (), "global_shape": (), "out": None,
        "history_out": None, "next_input": None, "x0_out": None,
    }  # fmt: skip
    assert list(given) == [operand.name for operand in RAW["affine_step"].operands]
    return list({**given, **changes}.values())


FOR_TORCH = {
    "meta": {"x": torch.empty(2, 8, device="meta")},
    "a subclass": {"x": torch.randn(2, 8).as_subclass(Mine)},
    "a subclass among the history": {"history": [torch.randn(2, 8).as_subclass(Mine)]},
    "zeros without memory": {"models": torch._efficientzerotensor(2, 8)},
    "a lazily negated operand": {"x": torch.randn(2, 8, dtype=torch.complex64).conj().imag},
    "a table with gaps": {"table": torch.zeros(1, 50, dtype=torch.float64)[:, ::2]},
    "seeds with gaps": {"seeds": torch.arange(4)[::2]},
}


@pytest.mark.parametrize("name", FOR_TORCH)
def test_what_torch_must_see_is_left_to_it(name):
    assert _C.affine_step(*step_operands()) is not None
    history_out = torch.full((2, 8), 7.0)
    assert _C.affine_step(*step_operands(history_out=history_out, **FOR_TORCH[name])) is None
    assert (history_out == 7).all()


REFUSED = {
    "a list": ({"x": [1.0]}, TypeError, "x must be a torch.Tensor, got list"),
    "no batch": ({"x": torch.tensor(1.0)}, ValueError, "x needs a batch dimension"),
    "integers": ({"x": torch.zeros(2, 8, dtype=torch.int64)}, TypeError, "x must have dtype float32.*int64"),
    "sparse": ({"x": torch.zeros(2, 8).to_sparse()}, TypeError, "x must be a dense .* tensor"),
    "another shape": ({"models": torch.randn(2, 9)}, ValueError, r"models\[0\] must have the shape of x.*\(2, 9\)"),
    "a wider model": ({"models": torch.randn(2, 8).double()}, TypeError, r"models\[0\] must be .*float32.*float64"),
    "history of another dtype": ({"history": [torch.randn(2, 8).half()]}, TypeError, r"history\[0\] must have dtype float32"),
    "out of another dtype": ({"out": torch.randn(2, 8).half()}, TypeError, "out must have dtype float32, got float16"),
    "no model": ({"models": []}, ValueError, "models must be 1 to 3 tensors, got 0"),
    "four models": ({"models": [torch.randn(2, 8)] * 4}, ValueError, "models must be 1 to 3 tensors, got 4"),
    "five entries of history": ({"history": [torch.randn(2, 8)] * 5}, ValueError, "history must be at most 4 tensors, got 5"),
    "None among the history": ({"history": [None]}, TypeError, r"history\[0\] must be a torch.Tensor, got NoneType"),
    "models that are a string": ({"models": "m"}, TypeError, "models must be a tensor or a sequence of tensors, got str"),
    "a float32 table": ({"table": torch.zeros(1, 25)}, TypeError, "table must have dtype float64, got float32"),
    "a narrow table": ({"table": torch.zeros(1, 24).double()}, ValueError, r"table must have shape \(rows, 25\), .*24"),
    "too many rows": ({"table": torch.zeros(3, 25).double()}, ValueError, "table must have 1 or 2 rows.*got 3"),
    "an int32 index": ({"index": torch.zeros(1, dtype=torch.int32)}, TypeError, "index must have dtype int64, got int32"),
    "a long index": ({"index": torch.zeros(3, dtype=torch.int64)}, ValueError, r"index must have shape .*\(2,\), got \(3,\)"),
    "too few seeds": ({"seeds": torch.arange(1)}, ValueError, r"seeds must have shape \(2,\), one for each sample, got \(1,\)"),
    "streams of another shape": ({"streams": torch.arange(3)}, ValueError, r"streams must have shape \(\) or \(2,\)"),
    "seeds on another device": ({"seeds": torch.arange(2, device="meta")}, ValueError, "seeds"),
    "a negative stream": ({"stream": -1}, ValueError, r"stream must be in \[0, 2\*\*32\), got -1"),
    "a large stream": ({"stream": 2**32}, ValueError, r"stream must be in \[0, 2\*\*32\), got 4294967296"),
    "a huge step": ({"step": 2**70}, ValueError, r"step must be in \[0, 2\*\*32\)"),
    "a bool": ({"stream": True}, TypeError, "stream must be an int, got bool"),
    "a float": ({"stream": 1.0}, TypeError, "stream must be an int, got float"),
    "a window outside": ({"offset": [1], "global_shape": [8]}, ValueError, "leaves global_shape"),
    "a window before it": ({"offset": [-1], "global_shape": [16]}, ValueError, "leaves global_shape"),
    "half a window": ({"offset": [1]}, ValueError, "offset and global_shape"),
}  # fmt: skip


@pytest.mark.parametrize("dispatched", [False, True], ids=["fast", "dispatched"])
@pytest.mark.parametrize("name", REFUSED)
def test_errors_name_the_operand_in_either_way(name, dispatched):
    wrong, error, pattern = REFUSED[name]
    if dispatched and name in ("a list", "sparse", "None among the history", "models that are a string", "a float", "a bool",
                               "a huge step", "seeds on another device"):  # fmt: skip
        pytest.skip("torch itself refuses it: the public function has seen it before")
    history_out = torch.full((2, 8), 7.0)
    operands = step_operands(history_out=history_out, **wrong)
    if not dispatched and name == "seeds on another device":
        assert _C.affine_step(*operands) is None  # a meta tensor is for torch
        return
    call = (lambda: pyfold.ops._call.dispatch(RAW["affine_step"], *operands)) if dispatched else None
    with pytest.raises(error, match=pattern):
        (call or (lambda: _C.affine_step(*operands)))()
    assert (history_out == 7).all()


def test_large_calls_run_on_all_threads():
    x, model = torch.randn(1, 2**18), torch.randn(1, 2**18)
    # A step of three terms, u = e; lists and tuples of operands alike.
    for models, history in ((model, ()), ([model], [x, model]), ((model,), (x, model))):
        y = _C.affine_step(*step_operands(x=x, models=models, history=history, seeds=None))
        torch.testing.assert_close(y, 0.5 * x + 0.3 * model)


def test_other_threads_run_during_large_calls():
    """A thread that empties the list of operands meanwhile takes nothing away."""
    x, counted, done = torch.randn(4, 2**20), [], threading.Event()
    models = [torch.randn(4, 2**20)]
    expected = 0.5 * x + 0.3 * models[0]

    def empty():
        while not done.is_set():
            counted.append(len(models))
            models.clear()

    thread = threading.Thread(target=empty)
    operands = step_operands(x=x, models=models, seeds=None)
    y = None
    thread.start()
    try:
        with contextlib.suppress(ValueError):  # where the list was empty before the call
            y = _C.affine_step(*operands)
    finally:
        done.set()
        thread.join()
    assert y is None or torch.allclose(y, expected, atol=1e-6)
    assert counted


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.*:DeprecationWarning")
def test_what_watches_the_ops_sees_them():
    x, table = torch.randn(2, 8), affine_table([{"a": 0.5}])
    with torch.profiler.profile() as profile:
        pyfold.affine_step(x, x, table)
        pyfold.fold(x, "maxmin")
    assert {"pyfold::affine_step", "pyfold::fold"} <= {event.key for event in profile.key_averages()}
    with torch.device("cpu"):
        assert _C.affine_step(*step_operands()) is None
    traced = torch.jit.trace(lambda x: pyfold.affine_step(x, x, table), (x,), check_trace=False)
    other = torch.randn(2, 8)
    torch.testing.assert_close(traced(other), 0.5 * other)
    batched = torch.func.vmap(lambda x: pyfold.affine_step(x, x, table))(torch.stack([x, other]))
    torch.testing.assert_close(batched, 0.5 * torch.stack([x, other]))
    assert torch.equal(torch.func.vmap(lambda x: pyfold.fold(x, "maxmin", dim=0))(x), pyfold.fold(x, "maxmin"))


def test_a_gradient_still_flows():
    x = torch.randn(2, 8, requires_grad=True)
    loss = pyfold.denoising_loss(pyfold.add_noise(x, 0.5, 0.5, [1, 2]), x.detach(), 0.5, 0.5, [1, 2]).sum()
    (gradient,) = torch.autograd.grad(loss, [x], create_graph=True)
    assert gradient.requires_grad
    with torch.no_grad():
        assert not pyfold.add_noise(x, 0.5, 0.5, torch.arange(2)).requires_grad


@pytest.mark.parametrize("kind", ["abs", "leaky"])
def test_gradients_under_transforms(kind):
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    y = pyfold.fold(x, kind)
    (expected,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    assert torch.equal(torch.func.grad(lambda x: pyfold.fold(x, kind).sum())(x.detach()), expected)
    assert torch.autograd.gradgradcheck(lambda x: pyfold.fold(x, kind).square(), x)
    cotangents = torch.randn(5, 2, 4, 3, dtype=torch.float64)
    (batched,) = torch.autograd.grad(y, x, cotangents, is_grads_batched=True)
    assert torch.equal(batched, cotangents * expected)


@pytest.mark.parametrize("kind", ["abs", "leaky"])
def test_gradients_of_any_strides(kind, generator):
    x = torch.randn(3, 4, 5, 5, generator=generator).contiguous(memory_format=torch.channels_last).requires_grad_()
    gradient = torch.randn(3, 4, 5, 5, generator=generator)
    slopes = torch.where(x < 0, -1.0 if kind == "abs" else 0.2, 1.0)
    for given in (gradient, gradient.contiguous(memory_format=torch.channels_last), gradient.mT.contiguous().mT):
        assert torch.equal(torch.autograd.grad(pyfold.fold(x, kind), x, given)[0], gradient * slopes)
    one = torch.tensor(2.0).expand(3, 4, 5, 5)
    assert torch.equal(torch.autograd.grad(pyfold.fold(x, kind), x, one)[0], 2 * slopes)


def test_normals_may_change_in_any_way_and_go():
    x, offset = torch.randn(6, 4, 3), torch.zeros(2)
    normal = torch.randn(2, 4)
    module = pyfold.nn.Fold("hyperplane", normal=normal, offset=offset)

    def check():
        given = {"normal": normal, "offset": offset}
        expected = OPS["fold"].reference(x, "hyperplane", **given)
        torch.testing.assert_close(pyfold.fold(x, "hyperplane", **given), expected)
        torch.testing.assert_close(module(x), expected)

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
    for _ in range(3):  # another tensor, perhaps at the same address
        del normal
        gc.collect()
        normal = torch.randn(2, 4)
        module.normal = normal
        check()
    normal.requires_grad_()
    (gradient,) = torch.autograd.grad(pyfold.fold(x, "hyperplane", normal=normal, offset=offset).square().sum(), normal,
                                      allow_unused=True)  # fmt: skip
    assert gradient is not None


BAD = [
    ({"clamp": 0.0}, ValueError), ({"clamp": -1}, ValueError), ({"gain": float("nan")}, ValueError), ({"dim": 3}, ValueError),
    ({"dim": True}, TypeError), ({"kind": "abs "}, ValueError), ({"pairing": "other"}, ValueError), ({"size": [2]}, TypeError),
    ({"angle": 0.5}, ValueError), ({"bias": torch.zeros(5)}, ValueError), ({"gain": "1"}, TypeError), ({"size": 3}, ValueError),
    ({"gain": True}, TypeError), ({"dim": 2**70}, ValueError), ({"dim": 1.0}, TypeError), ({"bias": 0.0}, TypeError),
    ({"gain": torch.tensor(1.0)}, TypeError), ({"kind": 1}, ValueError),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "error"), BAD, ids=str)
def test_a_prepared_fold_does_not_hide_errors(wrong, error):
    call = {"x": torch.randn(2, 4, 3), "kind": "groupsort", "size": 2}
    pyfold.fold(**call)
    for _ in range(2):
        with pytest.raises(error):
            pyfold.fold(**{**call, **wrong})


def test_where_dim_does_not_matter_any_dim_does():
    for x in (torch.randn(5), torch.tensor(-2.0)):
        for dim in (1, -7):
            assert torch.equal(pyfold.fold(x, "abs", dim=dim), x.abs())
            y = pyfold.fold(x.clone().requires_grad_(), "leaky", dim=dim)
            assert torch.equal(y, torch.where(x < 0, 0.2 * x, x))


def test_what_is_made_in_inference_mode_does_not_stay():
    x, normal = torch.randn(2, 4, 3), torch.randn(1, 4)
    with torch.inference_mode():
        pyfold.fold(x, "hyperplane", normal=normal)
        pyfold.fold(x, "abs")
    for kind, parameters in (("hyperplane", {"normal": normal}), ("abs", {})):
        for _ in range(2):
            y = pyfold.fold(x.requires_grad_(), kind, **parameters)
            (gradient,) = torch.autograd.grad((y**2).sum(), x)
            torch.testing.assert_close(gradient, 2 * x)  # the squares of what keeps lengths


def test_a_prepared_step_is_the_step():
    x, model = torch.randn(2, 8), torch.randn(2, 8)
    table, seeds = affine_table([{"a": 0.5, "s": 1.0, "c_u": 0.3, "d1": 0.1, "n1": k} for k in range(3)]), torch.arange(2)
    step = PreparedStep(table, seeds=seeds, stream=7)
    for k in range(3):
        index = torch.tensor([k])
        kept, expected = torch.empty_like(x), torch.empty_like(x)
        y = step(x, [model], index=index, history_out=kept)
        assert torch.equal(y, pyfold.affine_step(x, model, table, index, seeds=seeds, stream=7, history_out=expected))
        assert torch.equal(kept, expected)


@pytest.mark.parametrize("name", RAW)
def test_the_number_of_operands_is_checked(name):
    for call in (getattr(_C, name), _C.RUN[name]):
        with pytest.raises(TypeError, match=f"{name} takes {RAW[name].operands[0].name}"):
            call(1)


def test_nothing_else_imports_the_compiled_module():
    """What takes a second way past the ops would read arguments by rules of its own."""
    package = Path(pyfold.__file__).parent
    allowed = {"_library.py", "ops", "folds"}
    users = [path for path in package.rglob("*.py") if "_C" in path.read_text() and "import _C" in path.read_text()]
    assert {path.relative_to(package).parts[0] for path in users} <= allowed


# --- modules: the options are read once, when they are new


def modules():
    normal = {"normal": torch.randn(3, 8), "offset": 0.2}
    return {kind: pyfold.nn.Fold(kind, 8, bias=True, **(normal if kind == "hyperplane" else {})) for kind in FOLDS}


@pytest.mark.parametrize("kind", FOLDS)
def test_a_module_reads_its_options_once(kind):
    module, x = modules()[kind], torch.randn(2, 8, 3)
    with torch.no_grad():
        expected = pyfold.fold(x, kind, bias=module.bias, **{name: getattr(module, name) for name in module._names})
        assert torch.equal(module(x), expected)
        options, tensors = _C.read_counts()
        for calls in (1, 2, 3):
            assert torch.equal(module(x), expected)
            served = module._prepared._call is not None
            assert served == (kind != "soft"), "soft alone has no kernel"
            assert not served or _C.read_counts() == (options, tensors + calls)
    with torch.no_grad(), Seen() as seen:
        assert torch.equal(module(x), expected)
    assert not served or any(op.startswith("pyfold::") for op in seen.names), "torch sees what it watches"


CHANGES = {
    "gain": lambda m: setattr(m, "gain", 0.5),
    "clamp": lambda m: setattr(m, "clamp", 0.3),
    "dim": lambda m: setattr(m, "dim", -1),
    "kind": lambda m: setattr(m, "kind", "sortabs" if m.kind == "groupsort" else m.kind),
    "pairing": lambda m: setattr(m, "pairing", "halves"),
    "bias": lambda m: setattr(m, "bias", torch.nn.Parameter(torch.randn(8))),
    "no bias": lambda m: setattr(m, "bias", None),
    "bias in place": lambda m: m.bias.data.normal_(),
    "half": lambda m: m.half(),
    "bfloat16 and back": lambda m: m.to(torch.bfloat16).to(torch.float32),
    "double": lambda m: m.double(),
    "load_state_dict": lambda m: m.load_state_dict(_redrawn(m)),
    "load_state_dict, assign": lambda m: m.load_state_dict(_redrawn(m), assign=True),
    "frozen": lambda m: m.requires_grad_(False),
    "parameters": lambda m: [setattr(m, name, _changed(name, getattr(m, name))) for name in m._names],
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
}  # fmt: skip


def _redrawn(module):
    return {name: torch.randn_like(value) for name, value in module.state_dict().items()}


def _changed(name, value):
    if isinstance(value, torch.nn.Parameter):
        return torch.nn.Parameter(torch.randn_like(value))
    if isinstance(value, torch.Tensor):
        return torch.randn(2, 8)
    return {"m": 5, "size": 2, "offset": 0.7, "inner": 0.3}.get(name, 0.8)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", FOLDS)
def test_a_change_of_a_module_counts_at_once(kind, change):
    module, x = modules()[kind], torch.randn(2, 8, 8)
    for shape in ((2, 8, 8), (2, 8)):  # what is prepared for one shape serves another, or is made anew
        assert module(torch.randn(shape)).shape[0] == 2
    module = CHANGES[change](module) if change in ("deepcopy", "pickle") else (CHANGES[change](module), module)[1]
    for grad in (False, True):
        given = x.clone().requires_grad_(grad)
        values = {name: getattr(module, name) for name in module._names}
        options = {name: getattr(module, name) for name in ("bias", "gain", "clamp", "dim", "pairing")}
        y, expected = module(given), pyfold.fold(given, module.kind, **options, **values)
        assert torch.equal(y, expected)
        if grad:
            for a, b in zip(*(torch.autograd.grad(v.square().sum(), given) for v in (y, expected)), strict=True):
                assert torch.equal(a, b)


def test_what_is_wrong_with_a_modules_call_is_raised():
    module = pyfold.nn.Fold("groupsort", 8, bias=True)
    module(torch.randn(2, 8))
    for x, error in (
        (torch.randn(2, 6), "bias"),
        ("x", "x must be"),
        (torch.zeros(2, 8, dtype=torch.int64), "x must have dtype"),
    ):
        with pytest.raises((TypeError, ValueError), match=error):
            module(x)
    module.gain = True
    with pytest.raises(TypeError, match="gain"):
        module(torch.randn(2, 8))
    del module.gain
    with pytest.raises(AttributeError, match="gain"):
        module(torch.randn(2, 8))
    module = pyfold.nn.Fold("groupsort")
    for channels in (4, 6, 4, 2):  # all channels are one unit
        x = torch.randn(3, channels)
        assert torch.equal(module(x), x.sort(1).values)
    assert torch.equal(pyfold.nn.Fold("groupsort", dim=-1)(x[None]), x[None].sort(-1).values)


def test_unit_normals_are_the_same_bits_on_every_path(generator):
    for channels in (1, 2, 3, 7, 16, 37):
        for dtype in FLOAT_DTYPES:
            drawn = torch.randn(3, channels, generator=generator).to(dtype)
            for normal in (drawn, drawn[0], drawn.T.contiguous().T):
                for offset in (
                    0.3,
                    torch.randn((), generator=generator),
                    torch.randn(len(torch.atleast_2d(normal)), generator=generator),
                ):
                    for made in (torch.float32, torch.float64):
                        parameters = unit_planes(normal, offset, made)
                        with Seen():
                            assert unit_planes(normal, offset, made) is None
                            composed = FOLDS["hyperplane"].pack(made, normal=normal, offset=offset)
                        assert parameters.dtype == made and torch.equal(parameters, composed)
    assert unit_planes(torch.randn(4, requires_grad=True), 0.0, torch.float32) is None


def test_operands_of_a_prepared_call_are_checked():
    options = 1, "adjacent", 1, "abs", 1.0, 0.0, False
    call = _C.prepare("fold", 2, 1, 4, ..., ..., None, *options)
    assert torch.equal(call(torch.full((2, 4), -1.0), None), torch.ones(2, 4))
    assert call(torch.ones(2, 6), None) is None and call(torch.ones(4), None) is None, "another shape"
    x = torch.full((2, 4), -1.0)
    assert torch.equal(call(x, bias=torch.full((4,), 3.0)), torch.full((2, 4), 2.0)), "by name"
    assert call() is None and call(x, torch.ones(5)) is None, "what is wrong is left to the public function"
    for given, named in (((x, None, None), {}), ((x,), {"dim": 1}), ((x, None), {"bias": None}), ((), {"y": x})):
        with pytest.raises(TypeError, match="operands"):
            call(*given, **named)
    with pytest.raises(ValueError, match="no op"):
        _C.prepare("unfold", -1, -1, 0)
    with pytest.raises(TypeError, match="takes x, bias"):
        _C.prepare("fold", -1, -1, 0, ...)
    with pytest.raises(TypeError, match="gain must be a number"):
        _C.prepare("fold", -1, -1, 0, ..., ..., None, 1, "adjacent", 1, "abs", "1", 0.0, False)
    with pytest.raises(TypeError):
        type(call)()


def test_a_forked_process_does_not_wait_for_its_parents_threads():
    """Which are not there: torch's own large calls hang so."""
    code = """
import os, signal, pyfold
call = lambda: pyfold.randn([1, 2], (3, 256, 256)).numpy().tobytes()
z = call()
child = os.fork()
if child == 0:
    signal.alarm(60)
    os._exit(7 if call() == z else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 7


def test_daemon_threads_in_a_call_do_not_stop_the_interpreter_from_ending():
    """With out=, where no call goes through torch's own functions."""
    code = """
import threading, time, torch, pyfold
table = pyfold.ops.affine_table([{"a": 1.0, "s": 1.0, "c_u": 0.5}])
def work():
    x, model, out = torch.ones(3, 4, 3, 96, 96)
    while True:
        pyfold.affine_step(x, model, table, out=out)
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.1)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0
