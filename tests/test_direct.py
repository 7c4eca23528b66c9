"""Plain calls past the dispatcher: the same bits as through it, and everything that is not plain left to it."""

import math
import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pyfold
from pyfold import _C
from pyfold.ops import FLOAT_DTYPES, OPS, affine_table

pytestmark = pytest.mark.skipif(
    not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="this torch has no exchange API, so every call is dispatched"
)

SMALL, LARGE = (3, 4, 10), (3, 8, 70, 70)  # for one thread, and for all of them
CALLS = [
    (name, variant)
    for name in ("randn", "add_noise", "denoising_loss", "mse_loss", "affine_step")
    for variant in OPS[name].variants
]


class Seen(TorchDispatchMode):
    """The names of the ops that pass through the dispatcher."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def flat(value):
    return list(value) if isinstance(value, tuple) else [value]


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize(("name", "variant"), CALLS)
def test_same_bits_as_through_the_dispatcher(name, variant, dtype, shape, generator):
    op = OPS[name]
    sample = op.sample(shape, dtype, torch.device("cpu"), generator, **op.variants[variant])
    direct = flat(op.public(**sample))
    with Seen() as seen:
        dispatched = flat(op.public(**sample))
    assert {"mse_loss": "pyfold::denoising_loss"}.get(name, f"pyfold::{name}") in seen.names
    for a, b in zip(direct, dispatched, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def step_arguments(**changes):
    x = torch.randn(2, 8)
    table = affine_table([{"a": 0.5, "s": 1.0, "c_u": 0.3, "d1": 0.1}])
    given = {
        "x": x, "models": torch.randn(2, 8), "table": table, "index": None, "base": None,
        "history": (), "seeds": torch.arange(2), "stream": 1, "out": None, "history_out": None, "next_input": None,
        "x0_out": None,
    }  # fmt: skip
    return list({**given, **changes}.values())


class Mine(torch.Tensor):
    pass


NOT_PLAIN = {
    "a list": {"x": [1.0]},
    "strides": {"x": torch.randn(8, 2).T},
    "no batch": {"x": torch.tensor(1.0)},
    "empty": {"x": torch.empty(0, 8), "models": torch.empty(0, 8)},
    "integers": {"x": torch.zeros(2, 8, dtype=torch.int64)},
    "meta": {"x": torch.empty(2, 8, device="meta")},
    "sparse": {"x": torch.zeros(2, 8).to_sparse()},
    "a subclass": {"x": torch.randn(2, 8).as_subclass(Mine)},
    "a gradient of x": {"x": torch.randn(2, 8, requires_grad=True)},
    "a gradient of the model": {"models": torch.randn(2, 8, requires_grad=True)},
    "a gradient of the history": {"history": [torch.randn(2, 8, requires_grad=True)]},
    "a gradient of out": {"out": torch.randn(2, 8, requires_grad=True)},
    "another shape": {"models": torch.randn(2, 9)},
    "another order of sizes": {"models": torch.randn(8, 2)},
    "a wider model": {"models": torch.randn(2, 8, dtype=torch.float64)},
    "history of another dtype": {"history": [torch.randn(2, 8, dtype=torch.bfloat16)]},
    "out of another dtype": {"out": torch.randn(2, 8, dtype=torch.bfloat16)},
    "no model": {"models": []},
    "four models": {"models": [torch.randn(2, 8)] * 4},
    "five entries of history": {"history": [torch.randn(2, 8)] * 5},
    "None among the history": {"history": [None]},
    "a float32 table": {"table": torch.zeros(1, 25)},
    "a narrow table": {"table": torch.zeros(1, 24, dtype=torch.float64)},
    "too many rows": {"table": torch.zeros(3, 25, dtype=torch.float64)},
    "an int32 index": {"index": torch.zeros(1, dtype=torch.int32)},
    "a long index": {"index": torch.zeros(3, dtype=torch.int64)},
    "too few seeds": {"seeds": torch.arange(1)},
    "seeds in a list": {"seeds": [1, 2]},
    "seeds on another device": {"seeds": torch.arange(2, device="meta")},
    "strided seeds": {"seeds": torch.arange(4)[::2]},
    "a negative stream": {"stream": -1},
    "a large stream": {"stream": 2**32},
    "a huge stream": {"stream": 2**70},
    "a bool": {"stream": True},
    "a float": {"stream": 1.0},
}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_what_is_not_plain_is_left_alone(name):
    assert _C.affine_step(*step_arguments()) is not None
    history_out = torch.full((2, 8), 7.0)
    assert _C.affine_step(*step_arguments(history_out=history_out, **NOT_PLAIN[name])) is None
    assert (history_out == 7).all()


def test_a_lazily_negated_number_is_left_alone():
    x = torch.full((1, 1), 2 + 3j).conj().imag
    assert x.is_neg() and x.is_contiguous()
    arguments = step_arguments(x=x, models=torch.zeros(1, 1), seeds=None)
    assert _C.affine_step(*arguments) is None
    assert pyfold.affine_step(*arguments[:3]).item() == -1.5


def test_large_calls_are_direct_on_all_threads():
    x, model = torch.randn(1, 2**18), torch.randn(1, 2**18)
    # A step of three terms, u = e; lists and tuples of operands alike.
    for models, history in ((model, ()), ([model], [x, model]), ((model,), (x, model))):
        y = _C.affine_step(*step_arguments(x=x, models=models, history=history, seeds=None))
        torch.testing.assert_close(y, 0.5 * x + 0.3 * model)
    assert _C.randn(torch.arange(1), (2**18,), 0, 0, torch.float32, None).std() > 0.9
    assert _C.affine_step(*step_arguments(x=x, models=[], seeds=None)) is None


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
    arguments = step_arguments(x=x, models=models, seeds=None)
    thread.start()
    try:
        y = _C.affine_step(*arguments)
    finally:
        done.set()
        thread.join()
    assert y is None or torch.allclose(y, expected, atol=1e-6)  # None: the list was empty before the call
    assert counted


COEFFICIENTS = {
    "NaN": math.nan,
    "an infinite tensor": torch.tensor([1.0, math.inf]),
    "a bool": True,
    "a string": "1",
    "too many": torch.ones(3),
    "a matrix": torch.ones(2, 1),
    "half precision": torch.ones(2, dtype=torch.float16),
    "too large an int": 10**400,
}


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_coefficients_that_are_not_plain(name):
    x, seeds, factors = torch.ones(2, 8), torch.arange(2), (0.0, 0.0, 0.0, 1.0, 0.0, 0.0)
    assert _C.add_noise(x, 0.5, torch.tensor(0.5), seeds, factors, 2, 0, None, None, False) is not None
    assert _C.add_noise(x, COEFFICIENTS[name], 0.5, seeds, factors, 2, 0, None, None, False) is None
    assert _C.noising_table(torch.empty(2, 5, dtype=torch.float64), 0.5, COEFFICIENTS[name], 1.0, factors) is None


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.*:DeprecationWarning")
def test_what_watches_the_ops_sees_them():
    x, table = torch.randn(2, 8), affine_table([{"a": 0.5}])
    with torch.profiler.profile() as profile:
        pyfold.affine_step(x, x, table)
    assert "pyfold::affine_step" in {event.key for event in profile.key_averages()}
    with torch.device("cpu"):
        assert _C.affine_step(*step_arguments()) is None
    traced = torch.jit.trace(lambda x: pyfold.affine_step(x, x, table), (x,), check_trace=False)
    other = torch.randn(2, 8)
    torch.testing.assert_close(traced(other), 0.5 * other)
    batched = torch.func.vmap(lambda x: pyfold.affine_step(x, x, table))(torch.stack([x, other]))
    torch.testing.assert_close(batched, 0.5 * torch.stack([x, other]))


def test_a_gradient_still_flows():
    x = torch.randn(2, 8, requires_grad=True)
    loss = pyfold.denoising_loss(pyfold.add_noise(x, 0.5, 0.5, [1, 2]), x.detach(), 0.5, 0.5, [1, 2]).sum()
    (gradient,) = torch.autograd.grad(loss, [x], create_graph=True)
    assert gradient.requires_grad
    with torch.no_grad():
        assert not pyfold.add_noise(x, 0.5, 0.5, torch.arange(2)).requires_grad


@pytest.mark.parametrize(
    "call", ["randn", "noising_table", "add_noise", "denoising_loss", "denoising_residual_scale", "affine_step"]
)
def test_the_number_of_arguments_is_checked(call):
    with pytest.raises(TypeError, match=f"{call} takes"):
        getattr(_C, call)(1)
