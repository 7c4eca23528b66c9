"""Mutants of C++: a copy of csrc in which each of many changes can be switched on (mutant schemata, Untch et al. 1993).

A changed expression becomes ``mutant(k) ? changed : original``, a dropped statement ``if (!mutant(k)) statement``. Where the
compiler evaluates an expression itself (constants, template arguments, sizes of arrays, preprocessor) nothing can be switched:
those places are passed over.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDERS = ("core", "diffusion", "folds", "cpu")
#: Read by every library: one file holds which mutant is on, and takes a mark from each that is reached.
HEADER = """#pragma once

#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

namespace pyfold {
namespace {

struct MutantControl {
  volatile int32_t active, recording;
  volatile uint8_t reached[1];
};

inline MutantControl* open_mutants() {
  static MutantControl none = {-1, 0, {0}};
  const char* path = getenv("PYFOLD_MUTANTS");
  const int file = path == nullptr ? -1 : open(path, O_RDWR);
  if (file < 0) return &none;
  void* memory = mmap(nullptr, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  return memory == MAP_FAILED ? &none : static_cast<MutantControl*>(memory);
}

MutantControl* const mutant_control = open_mutants();

__attribute__((unused)) constexpr bool mutant(int k) {
  if (__builtin_is_constant_evaluated()) return false;
  if (mutant_control->recording) mutant_control->reached[k] = 1;
  return mutant_control->active == k;
}

}  // namespace
}  // namespace pyfold
"""
_SWAPS = {
    "+": "-", "-": "+", "*": "/", "/": "*", "%": "*", "<<": ">>", ">>": "<<", "&": "|", "|": "&", "^": "&",
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "&&": "||", "||": "&&",
    "+=": "-=", "-=": "+=", "*=": "/=", "/=": "*=", "|=": "&=", "&=": "|=", "^=": "|=",
}  # fmt: skip
#: Nodes inside of which the compiler evaluates, or nothing is evaluated.
_CONSTANT = (
    "static_assert_declaration", "template_argument_list", "template_parameter_list", "enumerator", "array_declarator",
    "preproc_def", "preproc_function_def", "preproc_include", "bitfield_clause", "decltype", "sizeof_expression",
    "alignof_expression", "attribute_specifier", "operator_name", "linkage_specification_string", "noexcept",
)  # fmt: skip


@dataclass(frozen=True)
class Change:
    """One mutant: what stands in a file, and what stands there instead."""

    file: str  #: below the root of the repository
    start: int
    end: int
    line: int
    last: int
    kind: str
    before: str
    after: str
    code: str  #: what is written in the copy, with {k}, {original} and, where it is evaluated in its place, {changed}


def _nodes(node: Any, constant: bool = False) -> Iterator[Any]:
    if node.type in _CONSTANT or (node.type == "declaration" and b"constexpr" in node.text.split(b"=")[0]):
        return
    if node.type == "field_declaration" and b"constexpr" in node.text.split(b"=")[0]:
        return
    if node.type == "if_statement" and b"constexpr" in node.text.split(b"(")[0]:
        children = [c for c in node.children if c.type != "condition_clause"]
    elif node.type == "case_statement":
        children = [c for c in node.children if c != node.child_by_field_name("value")]
    else:
        children = node.children
    yield node
    for child in children:
        yield from _nodes(child)


def _condition(node: Any) -> Any:
    """The expression that an if, a loop or a ?: asks, where it has one."""
    if node.type in ("if_statement", "while_statement"):
        clause = node.child_by_field_name("condition")
        value = clause.child_by_field_name("value") if clause is not None else None
        return value if value is not None and not value.type.endswith("declaration") else None
    return node.child_by_field_name("condition") if node.type in ("conditional_expression", "for_statement") else None


def _literal(text: str) -> list[tuple[str, str]]:
    digits = text.lower().replace("'", "")
    hexadecimal = digits.startswith("0x")
    if "p" in digits or (not hexadecimal and ("." in digits or "e" in digits)):
        zero = not re.search(r"[1-9]", re.split(r"[ep]", digits)[0])
        return [("constant", f"{text} + 1")] + ([] if zero else [("sign", f"-({text})"), ("constant", f"{text} * 1.0001f")])
    return [("constant", f"{text} + 1")]


def _of_node(node: Any, text: Callable[[Any], str]) -> Iterator[tuple[Any, str, str, str]]:
    """(node that is replaced, kind, its changed text, the form of the copy)."""
    operand: Callable[[Any], str] = lambda n: f"({text(n)})" if n.type == "binary_expression" else text(n)  # noqa: E731
    choice = "(::pyfold::mutant({k}) ? ({changed}) : ({original}))"
    if node.type in ("binary_expression", "assignment_expression"):
        operator = node.child_by_field_name("operator")
        if operator is not None and operator.type in _SWAPS:
            left, right = node.child_by_field_name("left"), node.child_by_field_name("right")
            kind = "assignment" if node.type == "assignment_expression" else "operator"
            yield node, kind, f"{operand(left)} {_SWAPS[operator.type]} {operand(right)}", choice
    elif node.type == "unary_expression":
        if node.child_by_field_name("operator").type in ("!", "-", "~"):
            yield node, "operator", text(node.child_by_field_name("argument")), choice
    elif node.type == "number_literal":
        if node.parent.type != "unary_expression":
            for kind, changed in _literal(text(node)):
                yield node, kind, changed, choice
    elif node.type in ("true", "false"):
        yield node, "constant", "false" if node.type == "true" else "true", choice
    elif node.type == "call_expression":
        arguments = [c for c in node.child_by_field_name("arguments").named_children if c.type != "comment"]
        for i in range(min(len(arguments) - 1, 3)):
            if arguments[i].type != "lambda_expression" and text(arguments[i]) != text(arguments[i + 1]):
                swapped = [text(a) for a in arguments]
                swapped[i], swapped[i + 1] = swapped[i + 1], swapped[i]
                yield node, "arguments", f"{text(node.child_by_field_name('function'))}({', '.join(swapped)})", choice
    elif node.type == "expression_statement" and node.named_children:
        if node.named_children[0].type in ("call_expression", "assignment_expression"):
            yield node, "statement", "", "{{ if (!::pyfold::mutant({k})) {original} }}"
    condition = _condition(node)
    if condition is not None and condition.type not in ("true", "false"):
        yield condition, "condition", f"!({text(condition)})", choice


def changes(root: Path) -> list[Change]:
    """Every change of the files of csrc, in order."""
    import tree_sitter
    import tree_sitter_cpp

    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_cpp.language()))
    found = []
    for folder in FOLDERS:
        for path in sorted((root / "csrc" / folder).glob("*")):
            source = path.read_bytes()
            # The parser knows no macros: definitions, and those that are no expression, go by as many bytes.
            bare = re.sub(rb"(?m)^[ \t]*#[ \t]*define\b(.*\\\n)*.*$", lambda m: re.sub(rb"[^\n]", b" ", m[0]), source)
            bare = re.sub(rb"\bPYFOLD_UNROLL\b", lambda m: b" " * len(m[0]), bare)
            bare = re.sub(rb"\bPYFOLD_HD\b", lambda m: b"inline".ljust(len(m[0])), bare)

            def text(node: Any, source: bytes = source) -> str:
                return re.sub(r"\s+", " ", source[node.start_byte : node.end_byte].decode())

            for node in _nodes(parser.parse(bare).root_node):
                for place, kind, changed, form in _of_node(node, text):
                    if b"//" in place.text or b"#" in place.text or place.has_error or len(place.text) > 400:
                        continue
                    name, first, last = str(path.relative_to(root)), place.start_point[0] + 1, place.end_point[0] + 1
                    found.append(Change(name, place.start_byte, place.end_byte, first, last, kind, text(place), changed, form))
    return found


def _written(source: bytes, chosen: list[tuple[int, Change]], start: int, end: int) -> str:
    """The text of [start, end) with the changes that lie in it; the outer ones come first."""
    result, at = [], start
    while chosen:
        number, change = chosen[0]
        inside = [c for c in chosen[1:] if c[1].start < change.end]
        result.append(source[at : change.start].decode())
        original = _written(source, inside, change.start, change.end)
        result.append(change.code.format(k=number, changed=change.after, original=original))
        at, chosen = change.end, [c for c in chosen[1:] if c[1].start >= change.end]
    result.append(source[at:end].decode())
    return "".join(result)


def write(root: Path, copy: Path, chosen: dict[int, Change]) -> None:
    """Writes the files of csrc with these changes in them into a copy of the repository."""
    _write_changed(copy / "csrc/core/mutant.h", HEADER)
    for path in sorted(path for folder in FOLDERS for path in (root / "csrc" / folder).glob("*")):
        file, source = str(path.relative_to(root)), path.read_bytes()
        of_file = [(k, c) for k, c in chosen.items() if c.file == file]
        # Of two at one place the longer is outside; a statement, whose form takes no text of its own, outermost.
        of_file.sort(key=lambda pair: (pair[1].start, -pair[1].end, pair[1].kind != "statement"))
        text = _written(source, of_file, 0, len(source))
        _write_changed(copy / file, '#include "core/mutant.h"\n' + text)


def _write_changed(path: Path, text: str) -> None:
    """Leaves alone what stays as it is, which then is not compiled anew."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


Changes = dict[int, Change]


def build(copy: Path, options: Iterable[str], root: Path, chosen: Changes) -> tuple[Changes, dict[str, int]]:
    """Builds the copy; the changes that are in it, and how many were left out for which reason.

    A change that does not compile is found by the line of the compiler's message, and left out.
    """
    folder, left_out = copy / "build", {"does not compile": 0, "not compiled for this machine": 0}
    write(root, copy, chosen)
    subprocess.check_call(["cmake", "-S", copy, "-B", folder, "-G", "Ninja", *options], stdout=subprocess.DEVNULL)
    present = _preprocessed(folder, copy)
    left_out["not compiled for this machine"] = len(chosen.keys() - present)
    chosen = {k: change for k, change in chosen.items() if k in present}
    for _ in range(20):
        write(root, copy, chosen)
        done = subprocess.run(["cmake", "--build", folder, "--", "-k", "0"], capture_output=True, text=True)
        if done.returncode == 0:
            return chosen, left_out
        messages = done.stdout + done.stderr
        # In a template the message may name a line that is innocent; then one of those that led there is it.
        wrong = _on_lines(chosen, messages, "error") or _on_lines(chosen, messages, " +required")
        if not wrong:
            raise SystemExit(f"the copy in {copy} does not build\n{done.stdout[-4000:]}{done.stderr[-2000:]}")
        left_out["does not compile"] += len(wrong)
        chosen = {k: change for k, change in chosen.items() if k not in wrong}
    raise SystemExit(f"the copy in {copy} does not build in 20 rounds")


def _on_lines(chosen: dict[int, Change], messages: str, kind: str) -> set[int]:
    """The changes on the lines that the compiler names; the copy's have one line more before them."""
    named = {(name, int(line) - 1) for name, line in re.findall(rf"(csrc/\w+/[\w.]+):(\d+):\d+: {kind}", messages)}
    return {k for k, c in chosen.items() if any((c.file, line) in named for line in range(c.line, c.last + 1))}


def _runs_here(command: str) -> bool:
    return "x86-64-v4" not in command or " avx512f " in Path("/proc/cpuinfo").read_text()


def _preprocessed(folder: Path, copy: Path) -> set[int]:
    """The changes that lie in what the preprocessor leaves, for the instruction sets of this machine."""

    def of(entry: dict[str, str]) -> set[int]:
        words = shlex.split(entry["command"])
        words = [w for w in words[: words.index("-o")] if w != "-c"]
        command = [*words, "-E", "-P", entry["file"]]
        text = subprocess.run(command, cwd=entry["directory"], capture_output=True, text=True, check=True).stdout
        return {int(k) for k in re.findall(r"pyfold::mutant\((\d+)\)", text)}

    entries = json.loads((folder / "compile_commands.json").read_text())
    entries = [e for e in entries if _runs_here(e["command"]) and Path(e["file"]).is_relative_to(copy / "csrc")]
    with ThreadPoolExecutor(2) as pool:
        return set().union(*pool.map(of, entries))
