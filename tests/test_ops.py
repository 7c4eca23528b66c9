"""Every op of the registry, in every setting: dtype, shape, layout, instruction set, compiler and transform."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from matrix import (
    CASES,
    GRADIENT_CASES,
    LAYOUTS,
    SHAPES,
    assert_matches,
    case_id,
    in_float64,
    outputs,
    relayout,
)
from pyfold.ops import FLOAT_DTYPES, OPS


def samples(op, variant, dtype, device, generator, shapes=SHAPES):
    for shape in shapes:
        sample = op.sample(shape, dtype, device, generator, **op.variants[variant])
        if sample is not None:
            yield shape, sample


def gradient_sample(op, variant, generator, device="cpu", shape=(2, 4, 6), dtype=torch.float64):
    """A sample whose differentiable tensors require a gradient, away from the op's kinks."""
    for _ in range(100):
        sample = op.sample(shape, dtype, torch.device(device), generator, **op.variants[variant])
        if op.tie_distance is None or op.tie_distance(**sample).min() > 1e-3:
            break
    leaves = []
    for name in op.differentiable:
        value = sample.get(name)
        for tensor in value if isinstance(value, list) else [value]:
            if isinstance(tensor, torch.Tensor):
                leaves.append(tensor.requires_grad_())
    return sample, leaves


def call_with(op, sample, leaves):
    """The op as a function of its differentiable tensors alone."""

    def function(*values):
        values = iter(values)
        arguments = dict(sample)
        for name in op.differentiable:
            if name not in sample:
                continue
            value = sample[name]
            if isinstance(value, list):
                arguments[name] = [next(values) for _ in value]
            elif isinstance(value, torch.Tensor):
                arguments[name] = next(values)
        return op.public(**arguments)

    return function


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize(("op", "variant"), CASES, ids=case_id)
def test_matches_the_reference(op, variant, dtype, backend, generator):
    checked = 0
    for shape, sample in samples(op, variant, dtype, backend, generator):
        for layout in LAYOUTS:
            laid_out = relayout(op, sample, layout)
            if laid_out is None:
                continue
            where = f"{op.name}[{variant}] {dtype} {shape} {layout.__name__}"
            expected = outputs(op.reference(**in_float64(laid_out)))
            actual = outputs(op.public(**laid_out))
            for a, e in zip(actual, expected, strict=True):
                assert_matches(a, e, dtype, where)
            main = laid_out[op.tensors[0]] if op.tensors else None
            if main is not None and actual[0].shape == main.shape and layout.__name__ == "channels_last":
                assert actual[0].stride() == main.stride(), f"{where}: the memory format changed"
            checked += 1
    assert checked > 5


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(CASES),
    st.lists(st.integers(0, 9), max_size=5).map(tuple),
    st.sampled_from(FLOAT_DTYPES),
    st.sampled_from(LAYOUTS),
    st.integers(0, 2**31),
)
def test_matches_the_reference_for_drawn_shapes(device, case, shape, dtype, layout, seed):
    op, variant = case
    sample = op.sample(shape, dtype, device, torch.Generator().manual_seed(seed), **op.variants[variant])
    sample = sample and relayout(op, sample, layout)
    if sample is None:
        return
    expected = outputs(op.reference(**in_float64(sample)))
    for a, e in zip(outputs(op.public(**sample)), expected, strict=True):
        assert_matches(a, e, dtype, f"{op.name}[{variant}] {dtype} {shape} {layout.__name__} {seed}")


@pytest.mark.parametrize(("op", "variant"), CASES, ids=case_id)
def test_bits_do_not_depend_on_layout_or_threads(op, variant, generator, device):
    sample = op.sample((2, 8, 65, 64), torch.float32, device, generator, **op.variants[variant])
    sample = sample or op.sample((2, 6, 65, 64), torch.float32, device, generator, **op.variants[variant])
    expected = outputs(op.public(**sample))
    threads = torch.get_num_threads()
    try:
        for layout in LAYOUTS:
            laid_out = relayout(op, sample, layout)
            if laid_out is None or layout.__name__ == "expanded":
                continue
            for count in (1, 2):
                torch.set_num_threads(count)
                for a, e in zip(outputs(op.public(**laid_out)), expected, strict=True):
                    assert torch.equal(a, e), f"{layout.__name__}, {count} threads"
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("op", "variant"), CASES, ids=case_id)
def test_bits_are_equal_on_every_instruction_set(op, variant, generator):
    from pyfold import _C

    before = _C.cpu_tier()
    for dtype in FLOAT_DTYPES:
        sample = op.sample((3, 4, 9, 30), dtype, torch.device("cpu"), generator, **op.variants[variant])
        results = {}
        try:
            for tier in _C.cpu_tiers_supported():
                _C.set_cpu_tier(tier)
                results[tier] = [o.contiguous().view(torch.uint8) for o in outputs(op.public(**sample))]
        finally:
            _C.set_cpu_tier(before)
        first = next(iter(results.values()))
        for tier, values in results.items():
            for a, b in zip(values, first, strict=True):
                assert torch.equal(a, b), f"{tier}, {dtype}"


@pytest.mark.parametrize(("op", "variant"), GRADIENT_CASES, ids=case_id)
def test_first_and_second_derivatives(op, variant, generator):
    sample, leaves = gradient_sample(op, variant, generator)
    function = call_with(op, sample, leaves)
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize(("op", "variant"), GRADIENT_CASES, ids=case_id)
def test_third_derivative(op, variant, generator):
    sample, leaves = gradient_sample(op, variant, generator, shape=(1, 2, 2))
    function = call_with(op, sample, leaves)

    def gradient(*values):
        result = sum((o**2).sum() for o in outputs(function(*values)))
        return torch.autograd.grad(result, values, create_graph=True, allow_unused=True, materialize_grads=True)

    assert torch.autograd.gradgradcheck(gradient, leaves)


class RawCalls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "pyfold":
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def raw_calls(op, variant, generator, device):
    """The raw calls of forward, backward and double backward."""
    with RawCalls() as recorder:
        if op.differentiable:
            sample, leaves = gradient_sample(op, variant, generator, device)
            with torch.no_grad():
                op.public(**sample)
            result = sum((o**2).sum() for o in outputs(op.public(**sample)))
            gradients = torch.autograd.grad(result, leaves, create_graph=True, allow_unused=True)
            sum((g**2).sum() for g in gradients if g is not None).backward()
        else:
            op.public(**op.sample((2, 4, 6), torch.float32, torch.device(device), generator, **op.variants[variant]))
    return recorder.calls


@pytest.mark.parametrize(("op", "variant"), CASES, ids=case_id)
def test_opcheck(op, variant, generator, device):
    seen = set()
    for func, args, kwargs in raw_calls(op, variant, generator, device):
        detached = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.detach().clone(), (args, kwargs))
        # Raw ops carry no gradient rule of their own: pyfold/ops/_autograd.py has it.
        tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
        torch.library.opcheck(func, *detached, test_utils=tests)
        seen.add(func._schema.name.removeprefix("pyfold::"))
    assert seen <= set(op.raw)


def test_every_raw_op_is_declared_and_opchecked(generator, device):
    declared = {name for op in OPS.values() for name in op.raw}
    called = {
        func._schema.name.removeprefix("pyfold::")
        for op, variant in CASES
        for func, _, _ in raw_calls(op, variant, generator, device)
    }
    registered = {
        name.removeprefix("pyfold::").split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("pyfold::")
    }
    assert called == declared == registered


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize(("op", "variant"), CASES, ids=case_id)
def test_compiles_as_one_graph(op, variant, dynamic, generator, device):
    compiled = torch.compile(op.public, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in ((2, 4, 6), (3, 6, 8)):
        sample = op.sample(shape, torch.float32, device, generator, **op.variants[variant])
        for a, b in zip(outputs(compiled(**sample)), outputs(op.public(**sample)), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(("op", "variant"), [case for case in GRADIENT_CASES if case[0].name != "affine_step"], ids=case_id)
def test_compiled_gradients(op, variant, generator, device):
    sample, leaves = gradient_sample(op, variant, generator, device, dtype=torch.float32)
    function = call_with(op, sample, leaves)

    def loss(*values):
        return sum((o**2).sum() for o in outputs(function(*values)))

    expected = torch.autograd.grad(loss(*leaves), leaves, allow_unused=True)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, e in zip(torch.autograd.grad(compiled(*leaves), leaves, allow_unused=True), expected, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize(("op", "variant"), GRADIENT_CASES, ids=case_id)
def test_a_batch_of_gradients(op, variant, generator):
    """autograd.grad(..., is_grads_batched=True), as jacobian(vectorize=True) asks for it."""
    sample, leaves = gradient_sample(op, variant, generator)
    y = outputs(op.public(**sample))[0]
    batch = torch.randn(3, *y.shape, generator=generator, dtype=y.dtype)
    options = {"retain_graph": True, "allow_unused": True}
    together = torch.autograd.grad(y, leaves, batch, is_grads_batched=True, **options)
    one_by_one = [torch.autograd.grad(y, leaves, each, **options) for each in batch]
    for stacked, *alone in zip(together, *one_by_one, strict=True):
        assert (stacked is None) == (alone[0] is None)
        if stacked is not None:
            torch.testing.assert_close(stacked, torch.stack(alone), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("recorded", [False, True], ids=["alone", "recorded"])
@pytest.mark.parametrize(("op", "variant"), GRADIENT_CASES, ids=case_id)
def test_forward_mode(op, variant, recorded, generator):
    """The tangent, in a dual level and by torch.func.jvp, is the Jacobian of backward times the direction."""
    sample, leaves = gradient_sample(op, variant, generator)
    function = call_with(op, sample, leaves)
    values = [leaf.detach() for leaf in leaves]
    directions = [torch.randn(v.shape, generator=generator, dtype=v.dtype) for v in values]
    value, expected = torch.autograd.functional.jvp(lambda *v: outputs(function(*v))[0], tuple(values), tuple(directions))
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(v.requires_grad_(recorded), d) for v, d in zip(values, directions, strict=True)]
        y, tangent = forward_ad.unpack_dual(outputs(function(*duals))[0])
    values = [v.requires_grad_(False) for v in values]
    transformed = torch.func.jvp(lambda *v: outputs(function(*v))[0], tuple(values), tuple(directions))
    for primal, derivative in ((y, tangent), transformed):
        torch.testing.assert_close(primal.detach(), value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(derivative.detach(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["denoising_loss", "mse_loss"])
def test_forward_over_reverse(name, generator):
    """torch.func.hessian: a mean square is 2 / n on the diagonal."""
    op = OPS[name]
    sample = op.sample((1, 2, 3), torch.float64, torch.device("cpu"), generator)
    prediction = sample.pop("prediction")
    hessian = torch.func.hessian(lambda p: op.public(p, **sample).sum())(prediction).reshape(6, 6)
    torch.testing.assert_close(hessian, torch.eye(6, dtype=torch.float64) * 2 / 6, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["add_noise", "denoising_loss", "affine_step", "fold"])
def test_compiles_with_inductor(name, generator):
    op = OPS[name]
    variant = next(iter(op.variants))
    sample = op.sample((2, 4, 6), torch.float32, torch.device("cpu"), generator, **op.variants[variant])
    function = torch.compile(lambda **kw: [2 * o + 1 for o in outputs(op.public(**kw))], fullgraph=True)
    for a, b in zip(function(**sample), outputs(op.public(**sample)), strict=True):
        torch.testing.assert_close(a, 2 * b + 1)


@pytest.mark.parametrize(("op", "variant"), CASES, ids=case_id)
def test_exports(op, variant, generator):
    sample = op.sample((2, 4, 6), torch.float32, torch.device("cpu"), generator, **op.variants[variant])
    tensors = {k: v for k, v in sample.items() if isinstance(v, torch.Tensor)}
    constants = {k: v for k, v in sample.items() if k not in tensors}

    class Module(torch.nn.Module):
        def forward(self, tensors):
            return op.public(**tensors, **constants)

    program = torch.export.export(Module(), (tensors,))
    assert any("pyfold" in str(node.target) for node in program.graph.nodes) == bool(op.raw)
    for a, b in zip(outputs(program.module()(tensors)), outputs(op.public(**sample)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("op", "variant"), GRADIENT_CASES, ids=case_id)
def test_functional_gradient_of_a_gradient(op, variant, generator):
    sample, leaves = gradient_sample(op, variant, generator)
    function = call_with(op, sample, leaves)
    every = tuple(range(len(leaves)))

    def loss(*values):
        return sum((o**2).sum() for o in outputs(function(*values)))

    def penalty(*values):
        return sum((g**2).sum() for g in torch.func.grad(loss, argnums=every)(*values))

    actual = torch.func.grad(penalty, argnums=every)(*(v.detach() for v in leaves))
    gradients = torch.autograd.grad(loss(*leaves), leaves, create_graph=True, materialize_grads=True)
    expected = torch.autograd.grad(sum((g**2).sum() for g in gradients), leaves, materialize_grads=True)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("op", "variant"), [case for case in GRADIENT_CASES if case[0].name != "affine_step"], ids=case_id)
def test_compiled_gradient_of_a_gradient(op, variant, generator):
    """The recipe for a penalty inside a compiled function: torch.func.grad, and the gradient of that by autograd."""
    sample, leaves = gradient_sample(op, variant, generator)
    function = call_with(op, sample, leaves)
    every = tuple(range(len(leaves)))

    def penalty(*values):
        loss = lambda *v: sum((o**2).sum() for o in outputs(function(*v)))  # noqa: E731
        return sum((g**2).sum() for g in torch.func.grad(loss, argnums=every)(*values))

    expected = torch.autograd.grad(penalty(*leaves), leaves, materialize_grads=True)
    compiled = torch.compile(penalty, fullgraph=True, backend="aot_eager")
    for a, e in zip(torch.autograd.grad(compiled(*leaves), leaves, materialize_grads=True), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("op", "variant"), GRADIENT_CASES, ids=case_id)
def test_vmap_over_the_main_tensor(op, variant, generator):
    sample, _ = gradient_sample(op, variant, generator)
    name = op.tensors[0]
    batch = torch.stack([torch.randn_like(sample[name]) for _ in range(3)], 1)

    def function(value):
        return op.public(**{**sample, name: value})

    with torch.no_grad():
        actual = torch.vmap(function, in_dims=1)(batch)
        for i in range(3):
            expected = outputs(function(batch.select(1, i)))
            for a, e in zip(outputs(actual), expected, strict=True):
                torch.testing.assert_close(a[i], e, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("op", "variant"), GRADIENT_CASES, ids=case_id)
def test_gradient_for_each_sample_by_vmap(op, variant, generator):
    sample, _ = gradient_sample(op, variant, generator)
    name = op.tensors[0]
    batch = torch.stack([torch.randn_like(sample[name]) for _ in range(3)])
    detached = {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in sample.items()}

    def loss(value):
        return sum((o**2).sum() for o in outputs(op.public(**{**detached, name: value})))

    actual = torch.vmap(torch.func.grad(loss))(batch)
    for i in range(3):
        value = batch[i].clone().requires_grad_()
        (expected,) = torch.autograd.grad(loss(value), value)
        torch.testing.assert_close(actual[i], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("op", "variant"), GRADIENT_CASES, ids=case_id)
def test_backward_leaves_saved_tensors_alone(op, variant, generator):
    sample, leaves = gradient_sample(op, variant, generator, dtype=torch.float32)
    saved = []

    def pack(tensor):
        saved.append((tensor, tensor.detach().clone(), tensor._version))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = sum((o**2).sum() for o in outputs(op.public(**sample)))
        gradients = torch.autograd.grad(result, leaves, create_graph=True, materialize_grads=True)
        sum((g**2).sum() for g in gradients).backward()
    assert saved
    for tensor, before, version in saved:
        assert tensor._version == version and torch.equal(tensor.detach(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("op", "variant"), [case for case in GRADIENT_CASES if case[0].saved_bytes is not None], ids=case_id)
def test_saves_what_the_contract_says(op, variant, dtype, generator):
    shape = (4, 16, 8, 8)
    for learned in (False, True):
        sample = op.sample(shape, dtype, torch.device("cpu"), generator, **op.variants[variant])
        for name in op.differentiable:
            if learned or name in op.tensors:
                for tensor in sample[name] if isinstance(sample.get(name), list) else [sample.get(name)]:
                    if isinstance(tensor, torch.Tensor):
                        tensor.requires_grad_()
        expected = op.saved_bytes(**sample)
        given = {t.data_ptr() for t in torch.utils._pytree.tree_leaves(sample) if isinstance(t, torch.Tensor)}
        angle = sample.get("angle")
        given -= {angle.data_ptr()} if isinstance(angle, torch.Tensor) else set()
        total = 0

        def pack(tensor, given=given):
            nonlocal total
            # A row of coefficients and a seed for each sample are not memory that grows with the data.
            small = tensor.shape[:1] == shape[:1] and tensor.dim() <= 2 and tensor.numel() <= 5 * shape[0]
            total += 0 if tensor.data_ptr() in given or small else tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            op.public(**sample)
        if expected is not None:
            assert total == expected


@pytest.mark.parametrize(("op", "variant"), [case for case in GRADIENT_CASES if case[0].tensors], ids=case_id)
def test_autocast_keeps_the_input_dtype(op, variant, generator, device):
    for dtype in (torch.float32, torch.bfloat16):
        sample = op.sample((2, 4, 6), dtype, device, generator, **op.variants[variant])
        uncast = outputs(op.public(**sample))
        with torch.autocast(device.type, dtype=torch.bfloat16):
            cast = outputs(op.public(**sample))
        for a, b in zip(cast, uncast, strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("op", "variant"), [case for case in GRADIENT_CASES if case[0].tensors], ids=case_id)
def test_nan_and_infinity_pass_through(op, variant, special, backend, generator):
    sample = op.sample((2, 4, 6), torch.float32, backend, generator, **op.variants[variant])
    sample[op.tensors[0]][0, 1, 2] = special
    tested = False
    for a, e in zip(outputs(op.public(**sample)), outputs(op.reference(**in_float64(sample))), strict=True):
        if op.name in ("fold", "kaleidoscope") and special != special:
            # A NaN counts as a tie: it stays, and where it stays its partner is the reference's business.
            assert torch.isnan(a).any()
            return
        bad = ~torch.isfinite(e)
        tested |= bool(bad.any())
        assert torch.equal(~torch.isfinite(a.double()), bad)
    # An infinity that meets a clip becomes its bound, which the comparison above has seen; everything else must show it.
    clipped = special == special and (op.variants[variant].get("clamp") or op.variants[variant].get("clip"))
    assert tested or clipped, "the case does not test anything"
