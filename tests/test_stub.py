"""pyfold/_C.pyi says what the compiled module has."""

import ast
import re
from pathlib import Path
from types import BuiltinFunctionType

import numpy as np
import pytest

import pyfold
from pyfold import _C

STUB = ast.parse((Path(pyfold.__file__).parent / "_C.pyi").read_text())
FUNCTIONS = {node.name: node for node in STUB.body if isinstance(node, ast.FunctionDef)}
VALUES = {node.target.id: ast.unparse(node.annotation) for node in STUB.body if isinstance(node, ast.AnnAssign)}
MODULE = {name: getattr(_C, name) for name in vars(_C) if not name.startswith("__")}
OPS = {op[0] for op in _C.OPS}
COUNTED = ("differentiate", "noising_table", "unit_planes", "use_torch")


def test_the_same_names():
    assert set(FUNCTIONS) == {name for name, value in MODULE.items() if isinstance(value, BuiltinFunctionType)}
    assert set(VALUES) == set(MODULE) - set(FUNCTIONS)


def signature(docstring):
    """What pybind11 writes first: [(name, whether there is a default)]."""
    text = re.fullmatch(r"(\w+\(.*\)) -> .+", docstring.splitlines()[0])[1]
    arguments = ast.parse(f"def {text}: ...").body[0].args
    given = arguments.posonlyargs + arguments.args
    return [(a.arg, i >= len(given) - len(arguments.defaults)) for i, a in enumerate(given)], arguments.defaults


def described():
    return [name for name in FUNCTIONS if (MODULE[name].__doc__ or "").startswith(f"{name}(")]


@pytest.mark.parametrize("name", described())
def test_the_arguments_that_pybind11_describes(name):
    arguments = FUNCTIONS[name].args
    stub = (
        [(a.arg, i >= len(arguments.args) - len(arguments.defaults)) for i, a in enumerate(arguments.args)],
        arguments.defaults,
    )
    expected = signature(MODULE[name].__doc__)
    assert stub[0] == expected[0] and list(map(ast.unparse, stub[1])) == list(map(ast.unparse, expected[1]))


def test_pybind11_describes_all_but_calls_of_ops():
    assert set(FUNCTIONS) - set(described()) == OPS | {*COUNTED, "prepare"}


@pytest.mark.parametrize("name", COUNTED)
def test_calls_that_take_a_number_of_arguments(name):
    """Their number is all that they say of their arguments."""
    count = len(FUNCTIONS[name].args.posonlyargs)
    for wrong in (0, count - 1, count + 1):
        with pytest.raises(TypeError, match=f"{name} takes "):
            MODULE[name](*[None] * wrong)


def test_an_op_takes_its_operands_by_place():
    assert set(_C.RUN) == OPS <= set(FUNCTIONS)
    for name in OPS:
        arguments = FUNCTIONS[name].args
        assert arguments.vararg is not None and not (arguments.args or arguments.kwonlyargs or arguments.kwarg)
        with pytest.raises(TypeError, match="keyword"):
            MODULE[name](operand=1)


def is_a(value, annotation):
    """Whether a value is what an annotation without names of other modules says."""
    if isinstance(annotation, ast.Name):
        return type(value) is {"str": str, "int": int, "bool": bool}[annotation.id]
    kind, inner = annotation.value.id, annotation.slice
    parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if kind == "Callable":
        return callable(value)
    if kind == "list":
        return isinstance(value, list) and all(is_a(v, parts[0]) for v in value)
    if kind == "dict":
        return isinstance(value, dict) and all(is_a(k, parts[0]) and is_a(v, parts[1]) for k, v in value.items())
    assert kind == "tuple"
    return isinstance(value, tuple) and len(value) == len(parts) and all(map(is_a, value, parts))


@pytest.mark.parametrize("name", VALUES)
def test_values_are_what_the_stub_says(name):
    assert is_a(MODULE[name], ast.parse(VALUES[name], mode="eval").body)


def test_results_are_what_the_stub_says():
    info = next(node for node in STUB.body if isinstance(node, ast.ClassDef) and node.name == "_BuildInfo")
    fields = {node.target.id: node.annotation for node in info.body}
    built = _C.build_info()
    assert set(built) == set(fields) and all(is_a(built[key], fields[key]) for key in fields)
    for name in ("cpu_tier", "cpu_tiers_built", "cpu_tiers_supported", "read_counts"):
        assert is_a(MODULE[name](), FUNCTIONS[name].returns)
    assert _C.philox4x32([[1, 2, 3, 4]], [5, 6]).dtype == np.uint32
    assert _C.normals(seed=1, stream=32, step=0, count=3).dtype == np.float32
    sine, cosine = _C.half_angles(np.zeros(2))
    assert sine.dtype == cosine.dtype == np.float64
