"""Private names of torch: one module uses them, and without any one of them everything runs on, slower, and is reported."""

import ast
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import pyfold
from pyfold import _torch_private

PACKAGE = Path(pyfold.__file__).parent

#: Private attributes of things that are not torch's.
OTHERS = {
    "sys._getframe",
    "argparse._SubParsersAction",
    "pipeline._execution_device",  # diffusers' pipelines
    "scheduler._step_index",  # diffusers' schedulers
    "mixin._save_pretrained",  # huggingface_hub's mixin
    "mixin._from_pretrained",
    "self._hub_mixin_info",
}


def is_private(name):
    return (name.startswith("_") and not name.startswith("__")) or "dlpack" in name


def modules():
    for file in sorted(PACKAGE.rglob("*.py")):
        yield file.relative_to(PACKAGE).as_posix(), ast.parse(file.read_text())


def defined(tree):
    """The private names that a module gives to what it makes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr


def used(tree, own):
    """Private names that a module reads of torch, or of something that pyfold does not define."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and is_private(node.attr):
            text = ast.unparse(node)
            of_torch = re.match(r"(torch|nn|forward_ad|functional)\b", text) is not None
            if text not in OTHERS and (of_torch or node.attr not in own):
                yield node.lineno, text
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [alias.name for alias in node.names]
            paths = [f"{node.module}.{name}" for name in names] if isinstance(node, ast.ImportFrom) else names
            for path in paths:
                if path.startswith("torch") and any(is_private(part) for part in path.split(".")):
                    yield node.lineno, path
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.search(r"\btorch\._|dlpack", node.value):
            yield node.lineno, node.value


def test_one_module_uses_private_names_of_torch():
    trees = dict(modules())
    own = {name for tree in trees.values() for name in defined(tree)}
    found = {name: list(used(tree, own)) for name, tree in trees.items()}
    # What a scheduler of diffusers has of its own; it is no module of torch.
    found = {
        name: [(n, text) for n, text in uses if not (name.startswith("adapters/diffusers/") and text.startswith("self._"))]
        for name, uses in found.items()
    }
    assert found.pop("_torch_private.py"), "the walk sees nothing"
    assert not {name: uses for name, uses in found.items() if uses}


@pytest.mark.parametrize(
    "text",
    [
        "torch._C._len_torch_dispatch_stack()",
        "torch._foreach_add_(a, b)",
        "from torch._dynamo import reset",
        "import torch._inductor",
        "self._parameters.keys()",
        "tensor._version",
        "nn.modules.conv._ConvNd",
        "getattr(torch.Tensor, '__dlpack_c_exchange_api__')",
        "forward_ad._current_level",
    ],
)
def test_the_walk_sees(text):
    assert list(used(ast.parse(text), {"_own"}))


# --- torch without a name. In children of one process that has imported torch; what lacks is there again after the import of
# pyfold, since torch itself needs it.

RUN = """
import json, os, sys
from functools import reduce
import torch

torch.set_num_threads(1)
# What torch imports late, once for all.
torch.func.jvp(torch.func.vmap(torch.func.grad(torch.sin)), (torch.ones(3),), (torch.ones(3),))

class Gone:
    def __get__(self, instance, owner=None):
        raise AttributeError

def results():
    import pyfold
    from pyfold import _torch_private
    from pyfold.gan.penalties import functional_penalty

    x = torch.linspace(-2, 2, 48, dtype=torch.float64).reshape(2, 4, 6)
    angle = torch.tensor(0.3, dtype=torch.float64).expand(2).clone().requires_grad_()
    seeds = torch.tensor([3, 4])

    def f(x):
        return pyfold.fold(x, "dihedral", dim=1, angle=0.7).square().sum()

    def g(x):
        return pyfold.add_noise(x, 0.8, 0.6, seeds).square().sum()

    leaf = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(f(leaf), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), leaf)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        tangent = torch.autograd.forward_ad.unpack_dual(g(dual)).tangent
    out = torch.empty_like(x)
    table = pyfold.ops.affine_table([{"p": 1.0, "a": 0.5, "c_x0": 0.5}], "cpu")
    pyfold.affine_step(x, x, table, out=out)
    net, average = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    for layer, value in ((net, 1.0), (average, 0.0)):
        torch.nn.init.constant_(layer.weight, value), torch.nn.init.constant_(layer.bias, value)
    with torch.no_grad():
        _torch_private.lerp_(list(average.parameters()), list(net.parameters()), 0.25)
    critic = lambda x: pyfold.fold(x, "abs").sum((1, 2))
    made = [
        f(x), g(x), first, second, out, tangent,
        torch.func.grad(f)(x), torch.func.grad(g)(x), torch.func.vmap(f)(torch.stack([x, 2 * x])),
        torch.func.jvp(g, (x,), (torch.ones_like(x),))[1], torch.func.jvp(f, (x,), (torch.ones_like(x),))[1],
        torch.func.grad(lambda x: functional_penalty(critic, x, 2.0))(x), functional_penalty(critic, x, 2.0),
        average.weight, average.bias,
    ]
    depths = [_torch_private.transform_depth() > 0, _torch_private.transforms_active()]
    torch.func.grad(lambda x: depths.append(_torch_private.transform_depth()) or depths.append(
        _torch_private.transforms_active()) or x.sum())(x)
    versions = []
    for _ in range(2):
        versions.append(_torch_private.version(average.weight))
        versions.append(_torch_private.version(average.weight))
        with torch.no_grad():
            average.weight.add_(1)
    return {
        "values": [made_.detach().flatten().tolist() for made_ in made],
        "depths": [bool(d) for d in depths],
        "versions": [versions[0] == versions[1], versions[1] != versions[2]],
        "lacks": pyfold.config()["torch_lacks"],
    }

def without(path):
    *parents, name = path.split(".")
    parent = reduce(getattr, parents, torch)
    value = getattr(parent, name)
    if parent is torch.Tensor:  # whose base is immutable
        setattr(parent, name, Gone())
    else:
        delattr(parent, name)
    try:
        import pyfold
    finally:
        if parent is torch.Tensor:
            delattr(parent, name)
        else:
            setattr(parent, name, value)
    return results()

for path in [None, *sys.argv[1:]]:
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            text = json.dumps(results() if path is None else without(path))
        except BaseException as error:
            import traceback
            text = json.dumps({"error": traceback.format_exc()})
        with os.fdopen(write, "w") as pipe:
            pipe.write(text)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        print(pipe.read())
    os.wait()
"""


def names():
    """The paths that the module looks up."""
    tree = ast.parse((PACKAGE / "_torch_private.py").read_text())
    strings = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    looked_up = sorted(s for s in strings if re.fullmatch(r"[\w.]+\.\w+", s) and not s.startswith("torch."))
    return [path for path in looked_up if path != "_C._cuda_getDevice"]  # what a CUDA torch alone is asked for


@pytest.fixture(scope="module")
def runs():
    paths = names()
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run([sys.executable, "-c", RUN, *paths], capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return dict(zip([None, *paths], map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("path", names())
def test_a_torch_without_it_gives_the_same_and_says_so(runs, path):
    expected, found = runs[None], runs[path]
    assert "error" not in expected and "error" not in found, expected.get("error") or textwrap.indent(found["error"], "  ")
    assert found["depths"] == expected["depths"] == [False, False, True, True]
    assert found["versions"] == expected["versions"] == [True, True]
    for a, b in zip(found["values"], expected["values"], strict=True):
        assert a == pytest.approx(b, rel=1e-13, abs=1e-13)
    more = [line for line in found["lacks"] if line not in expected["lacks"]]
    assert more and all(line.startswith(f"torch.{path}: ") and len(line) > len(path) + 20 for line in more)


def seen_inside(transform):
    seen = []

    def function(x):
        seen.extend(
            (_torch_private.transforms_active(), _torch_private.transform_depth() > 0, _torch_private.differentiates_forwards())
        )
        return x.sin().sum()

    transform(function)(torch.ones(3, 2))
    return seen


TRANSFORMS = {
    "none": lambda f: f,
    "no_grad": torch.no_grad(),
    "grad": torch.func.grad,
    "vmap": torch.func.vmap,
    "jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (x,)),
    "vmap of grad": lambda f: torch.func.vmap(torch.func.grad(f)),
}


@pytest.mark.parametrize("lacking", ["_TRANSFORMS", "_LAYERS", "_INTERPRETERS", "_JVP"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_are_noticed_without_it(monkeypatch, name, lacking):
    active, deep, forwards = seen_inside(TRANSFORMS[name])
    assert active == deep == (name not in ("none", "no_grad")) and forwards == (name == "jvp")
    monkeypatch.setattr(_torch_private, lacking, None)
    unsure = lacking in ("_INTERPRETERS", "_JVP")
    assert seen_inside(TRANSFORMS[name]) == [active, deep, active if unsure else forwards]


def test_what_is_compiled_may_be_transformed(monkeypatch):
    for name in ("_LAYERS", "_TRANSFORMS"):
        monkeypatch.setattr(_torch_private, name, None)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert _torch_private.transform_depth() == 1


def test_tangents_weights_and_versions_without_private_names(monkeypatch):
    for name in ("_FORWARD_LEVEL", "_LERP", "_VERSION", "_FUNCTION_BASE"):
        monkeypatch.setattr(_torch_private, name, None)
    x = torch.ones(3)
    assert not _torch_private.has_tangent([x])
    with torch.autograd.forward_ad.dual_level():
        assert _torch_private.has_tangent([None, torch.autograd.forward_ad.make_dual(x, x)])
        assert not _torch_private.has_tangent([x])
    before = _torch_private.version(x)
    assert _torch_private.version(x) == before
    _torch_private.lerp_([x], [torch.full_like(x, 5.0)], 0.25)
    assert torch.equal(x, torch.full_like(x, 2.0)) and _torch_private.version(x) != before
    assert _torch_private.eager_apply(torch.autograd.Function) == torch.autograd.Function.apply


def test_show_config_prints_what_is_lacking(monkeypatch, capsys):
    monkeypatch.setattr(_torch_private, "MISSING", ["torch._C._something: everything is slower"])
    pyfold.show_config()
    assert "this torch lacks torch._C._something: everything is slower" in capsys.readouterr().out


def test_a_function_that_does_not_answer_counts_as_missing(monkeypatch):
    monkeypatch.setattr(_torch_private, "MISSING", [])
    assert _torch_private._find("nn.functional.relu", "slower", asked=True) is None
    assert _torch_private.MISSING == ["torch.nn.functional.relu: slower"]
    assert _torch_private._find("is_grad_enabled", "slower", asked=True) is not None


def test_an_exchange_api_that_does_not_fit_is_reported(monkeypatch):
    monkeypatch.setattr(_torch_private, "MISSING", [])
    _torch_private.open_fast_path(lambda *given: False, (), print)
    assert [line.split(":")[0] for line in _torch_private.MISSING] == ["torch.Tensor.__dlpack_c_exchange_api__ of DLPack 1"]
