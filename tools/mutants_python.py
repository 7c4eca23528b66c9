"""Mutants of Python: a hook that changes modules as they are imported, so that each of many changes can be switched on.

A changed expression becomes ``changed if hit(k) else original``, a dropped statement ``if not hit(k): statement``. What is
evaluated as a module is imported (defaults, decorators, tables) is ``static``: its change must be on before the import.
"""

from __future__ import annotations

import ast
import copy
import importlib.abc
import importlib.machinery
import json
import mmap
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

FOLDERS = ("ops", "diffusion", "gan")
CONTROL_BYTES = 1 << 16
HEADER_BYTES = 8

#: The number of the change that is on, and marks of those that are reached while a recording runs.
active = -1
recording = False
reached: set[int] = set()


def hit(number: int) -> bool:
    """Whether a change is on; what the compiler of torch traces, so nothing but constants and a small set."""
    if recording:
        reached.add(number)
    return active == number


_SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


@dataclass
class Change:
    """One mutant: a node of a module's tree, and what stands there instead; None where a statement is dropped."""

    file: str
    line: int
    kind: str
    before: str
    after: str
    static: bool
    node: ast.AST
    instead: ast.AST | None


def _of_numbers(node: ast.BinOp | ast.BoolOp, static: bool) -> bool:
    """Whether another operator would compute something else, and be no error."""
    if static and isinstance(node.op, ast.BitOr):
        return False  # a name for a union of types
    parts = [node.left, node.right] if isinstance(node, ast.BinOp) else []
    if any(isinstance(p, ast.Constant) and isinstance(p.value, str) for p in parts):
        return False
    return not any(isinstance(p, (ast.JoinedStr, ast.List, ast.Tuple, ast.Dict, ast.Set)) for p in parts)


def _swapped(node: Any, static: bool) -> list[tuple[str, ast.AST]]:
    """The node with another operator or constant, or with two arguments exchanged."""
    result: list[tuple[str, ast.AST]] = []

    def other(kind: str, **fields: Any) -> None:
        changed = copy.deepcopy(node)
        for name, value in fields.items():
            setattr(changed, name, value)
        result.append((kind, changed))

    if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in _SWAPS:
        if _of_numbers(node, static):
            other("operator", op=_SWAPS[type(node.op)]())
    elif isinstance(node, ast.AugAssign) and type(node.op) in _SWAPS:
        other("assignment", op=_SWAPS[type(node.op)]())
    elif isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            if type(op) in _SWAPS:
                other("operator", ops=[*node.ops[:i], _SWAPS[type(op)](), *node.ops[i + 1 :]])
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not, ast.Invert)):
        result.append(("operator", copy.deepcopy(node.operand)))
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        other("constant", value=not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        other("constant", value=node.value + 1)
        if isinstance(node.value, float) and node.value:
            result.append(("sign", ast.UnaryOp(ast.USub(), copy.deepcopy(node))))
            other("constant", value=node.value * 1.0001)
    elif isinstance(node, ast.Call) and ast.unparse(node.func) != "isinstance":
        starred = any(isinstance(a, ast.Starred) for a in node.args)
        for i in range(0 if starred else min(len(node.args) - 1, 3)):
            if ast.dump(node.args[i]) != ast.dump(node.args[i + 1]):
                args = copy.deepcopy(node.args)
                args[i], args[i + 1] = args[i + 1], args[i]
                other("arguments", args=args)
    return result


def _of_node(node: Any, static: bool) -> Iterator[tuple[ast.AST, str, ast.AST | None]]:
    for kind, instead in _swapped(node, static):
        yield node, kind, instead
    if isinstance(node, (ast.If, ast.IfExp, ast.While)) and not isinstance(node.test, ast.Constant):
        yield node.test, "condition", ast.UnaryOp(ast.Not(), copy.deepcopy(node.test))
    dropped = isinstance(node, (ast.Raise, ast.AugAssign)) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], (ast.Attribute, ast.Subscript)):
        dropped = True
    if dropped:
        yield node, "statement", None


#: Fields inside of which nothing is computed, or only the text of a message.
_SKIPPED = {
    (ast.arg, "annotation"), (ast.AnnAssign, "annotation"), (ast.FunctionDef, "returns"),
    (ast.Raise, "exc"), (ast.Raise, "cause"), (ast.Assert, "msg"), (ast.match_case, "pattern"),
}  # fmt: skip


def _walk(node: ast.AST, static: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    """Nodes in the order of the text, and whether each is evaluated as the module is imported."""
    if isinstance(node, ast.JoinedStr):
        return
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    yield node, static
    for name, value in ast.iter_fields(node):
        if (type(node), name) in _SKIPPED:
            continue
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and name == "body"
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _walk(child, static and not inside)


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def changes_of(tree: ast.Module, file: str) -> list[Change]:
    found = []
    for node, static in _walk(tree):
        for place, kind, instead in _of_node(node, static):
            before = " ".join(ast.unparse(place).split())
            after = " ".join(ast.unparse(ast.fix_missing_locations(instead)).split()) if instead is not None else ""
            line = getattr(place, "lineno", 0)
            found.append(Change(file, line, kind, before, after, static, place, instead))
    return found


def changes(root: Path) -> list[Change]:
    """Every change of the Python files, in order."""
    paths = [path for folder in FOLDERS for path in sorted((root / "pyfold" / folder).rglob("*.py"))]
    return [change for path in paths for change in changes_of(_parsed(path), str(path.relative_to(root)))]


def _hit(number: int) -> ast.Call:
    called = ast.Attribute(ast.Name("_pyfold_mutants", ast.Load()), "hit", ast.Load())
    return ast.Call(called, [ast.Constant(number)], [])


class _Switches(ast.NodeTransformer):
    """Puts the switches into a tree."""

    def __init__(self, chosen: dict[int, list[tuple[int, ast.AST | None]]], mark: int):
        self.chosen, self.mark = chosen, mark

    def visit(self, node: ast.AST) -> Any:
        switches = self.chosen.get(id(node), [])
        result: Any = self.generic_visit(node)
        if isinstance(result, (ast.FunctionDef, ast.AsyncFunctionDef)):
            # Behind the docstring, which is no longer one if anything is before it.
            place = 1 if ast.get_docstring(result, clean=False) is not None else 0
            result.body.insert(place, ast.copy_location(ast.Expr(_hit(self.mark)), result.body[0]))
        for number, instead in switches:
            if isinstance(result, ast.stmt):
                test = ast.UnaryOp(ast.Not(), _hit(number))
                other = [instead] if isinstance(instead, ast.stmt) else []
                result = ast.If(test, [result], other)
            else:
                assert isinstance(instead, ast.expr)
                result = ast.IfExp(_hit(number), instead, result)
            ast.copy_location(result, node)
        return ast.fix_missing_locations(result) if switches else result


def switched(tree: ast.Module, chosen: dict[int, int], mark: int) -> ast.Module:
    """The tree with its changes of these places in ``changes_of`` as switches of these numbers, and a mark in each function."""
    found, of_node = changes_of(tree, ""), dict[int, list[tuple[int, ast.AST | None]]]()
    for place, number in chosen.items():
        of_node.setdefault(id(found[place].node), []).append((number, found[place].instead))
    tree = _Switches(of_node, mark).visit(tree)
    first = [i for i, s in enumerate(tree.body) if isinstance(s, ast.ImportFrom) and s.module == "__future__"]
    place = first[-1] + 1 if first else int(ast.get_docstring(tree) is not None)
    tree.body.insert(place, ast.Import([ast.alias(__name__, "_pyfold_mutants")]))
    return ast.fix_missing_locations(tree)


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles a module with its switches; no cached bytecode is read or written."""

    def __init__(self, name: str, path: str, chosen: dict[int, int], mark: int):
        super().__init__(name, path)
        self.chosen, self.mark = chosen, mark

    def get_code(self, fullname: str) -> CodeType:
        tree = switched(_parsed(Path(self.path)), self.chosen, self.mark)
        return compile(tree, self.path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, modules: dict[str, tuple[dict[int, int], int]]):
        self.modules = modules

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if name.split(".")[0] != "pyfold":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.origin is None:
            return None
        for file, (chosen, mark) in self.modules.items():
            if Path(spec.origin).match(file):
                spec.loader = _Loader(name, spec.origin, chosen, mark)
        return spec


class Control:
    """The file that says which change is on, to this process and those that it starts, in both languages."""

    def __init__(self, path: Path):
        with path.open("r+b") as file:
            self.memory = mmap.mmap(file.fileno(), CONTROL_BYTES)

    @staticmethod
    def make(path: Path) -> Control:
        path.write_bytes(struct.pack("ii", -1, 0).ljust(CONTROL_BYTES, b"\0"))
        return Control(path)

    def switch(self, number: int) -> None:
        global active
        self.memory[:4] = struct.pack("i", number)
        active = number

    def record(self, on: bool) -> None:
        global recording
        self.memory[4:8] = struct.pack("i", on)
        recording = on
        reached.clear()

    def taken(self) -> list[int]:
        """The changes reached since the last call."""
        marks = self.memory[HEADER_BYTES:]
        result = sorted({k for k, mark in enumerate(marks) if mark} | reached)
        self.memory[HEADER_BYTES:] = bytes(len(marks))
        reached.clear()
        return result


#: Of this process, once :func:`install` has run.
control: Control | None = None


def install(plan: Path) -> None:
    """Hooks the imports of this process as the plan says: a JSON object, file -> [{place: number}, number of its mark]."""
    global active, control
    files = json.loads(plan.read_text()).items()
    sys.meta_path.insert(0, _Finder({f: ({int(p): k for p, k in chosen.items()}, mark) for f, (chosen, mark) in files}))
    control = Control(Path(os.environ["PYFOLD_MUTANTS"]))
    (active,) = struct.unpack("i", control.memory[:4])
