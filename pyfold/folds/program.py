"""Programs of folds on the values of a unit: what csrc/folds/sequence.h runs, written down in Python."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from pyfold import _C

#: Limits of one kernel call (csrc/folds/sequence.h); what is larger runs in torch operations.
MAX_INSTRUCTIONS: int = _C.FOLD_LIMITS["instructions"]
MAX_CONSTANTS: int = _C.FOLD_LIMITS["constants"]
MAX_WIDTH: int = _C.FOLD_LIMITS["width"]
MAX_MATRIX_WIDTH: int = _C.FOLD_LIMITS["matrix_width"]
_FIRST_PARAMETER: int = _C.FOLD_LIMITS["first_parameter"]

#: Codes of the instructions, and the planes of bits that each has in a unit of one value (PYFOLD_FOLD_OPS).
CODES: dict[str, int] = {name: code for name, (code, _) in _C.FOLD_OPS.items()}
_OF_VALUES = {CODES["Sphere"], CODES["Ball"]}
_PLANES: dict[str, int] = {name: planes for name, (_, planes) in _C.FOLD_OPS.items()}

#: ``unit_planes(normal, offset, dtype)``: the parameters of planes, without torch's operations; None where torch must see them.
unit_planes: Callable[[Any, Any, Any], Any] = _C.unit_planes


class Program:
    """Instructions, their constants, and how many planes of bits they fill.

    Args:
        width: values of a unit.
        unfoldable: save all that the way back needs, where that is more than the gradient needs.
    """

    def __init__(self, width: int, unfoldable: bool = False):
        self.width = self.input_width = width  # crelu widens the former
        self.unfoldable = unfoldable
        self.instructions: list[int] = []
        self.constants: list[float] = []
        self.planes = 0
        self._parameter_count = 0

    def _add(self, name: str, constants: Sequence[float] = (), i: int = 0, j: int = 0, times: int = 1) -> None:
        """One instruction; its planes of bits count ``times``."""
        self._place_instruction(name, self._place(tuple(constants)), i, j, times)

    def _place_instruction(self, name: str, first: int, i: int = 0, j: int = 0, times: int = 1) -> None:
        self.instructions += [CODES[name], i, j, first, self.planes]
        self.planes += _PLANES[name] * times

    def _place(self, constants: tuple[float, ...]) -> int:
        """Where these constants lie, next to each other; equal runs lie in one place."""
        for at in range(len(self.constants) - len(constants) + 1):
            if tuple(self.constants[at : at + len(constants)]) == constants:
                return at
        self.constants += constants
        return len(self.constants) - len(constants)

    def mirror(self, i: int, at: float) -> None:
        self._add("Mirror", (at,), i)

    def leaky(self, i: int, slope: float) -> None:
        self._add("Leaky", (slope,), i)

    def box(self, i: int, length: float) -> None:
        self._add("BoxSides" if self.unfoldable else "Box", (length,), i)

    def tri(self, i: int, length: float, phase: float) -> None:
        self._add("TriCell" if self.unfoldable else "Tri", (length, phase), i)

    def swap(self, i: int, j: int) -> None:
        self._add("Swap", (), i, j)

    def line(self, i: int, j: int, direction: float) -> None:
        """Folds values i and j at the line through 0 in this direction; what lies clockwise of it moves."""
        self._add("Line", (math.sin(direction), -math.cos(direction)), i, j)

    def plane(self) -> None:
        """Folds the unit at a plane, whose normal and offset are the next of the parameters that the call gives."""
        self._place_instruction("Plane", _FIRST_PARAMETER + self._parameter_count)
        self._parameter_count += self.width + 1

    def crelu(self) -> None:
        self._add("Crelu")
        self.width = 2

    def affine(self, factor: float, shift: Sequence[float] | None = None) -> None:
        self._add("Affine", (factor, *(shift or ())), j=0 if shift is None else 1)

    def matrix(self, matrix: Sequence[Sequence[float]], inverse: Sequence[Sequence[float]], shift: Sequence[float]) -> None:
        flat = [value for rows in (matrix, inverse) for row in rows for value in row]
        self._add("Matrix", (*flat, *shift))

    def clamp(self, bound: float) -> None:
        self._add("Clamp", (bound,), times=self.width)

    def sphere(self, radius: float, inner: float) -> None:
        self._add("Sphere", (radius**2, inner**2))

    def ball(self, radius: float) -> None:
        self._add("Ball", (radius**2,))

    def sort(self, values: Sequence[int]) -> None:
        for i, j in sorting_network(len(values)):
            self.swap(values[i], values[j])

    @property
    def operands(self) -> tuple[tuple[int, ...], tuple[float, ...], int]:
        """program, constants and width of the ops, once it is written."""
        return tuple(self.instructions), tuple(self.constants), self.input_width

    @property
    def differentiable(self) -> bool:
        return differentiable(self.instructions)

    @property
    def fits(self) -> bool:
        """Whether one kernel call can hold it."""
        return (
            len(self.instructions) <= 5 * MAX_INSTRUCTIONS
            and len(self.constants) <= MAX_CONSTANTS
            and self.width <= MAX_WIDTH
            and self._parameter_count < 2**15 - _FIRST_PARAMETER
        )


def differentiable(instructions: Sequence[int]) -> bool:
    """Whether a program's gradient in its input follows from its bits: it does not scale values by what they are."""
    return not _OF_VALUES.intersection(instructions[::5])


def sorting_network(size: int) -> list[tuple[int, int]]:
    """Batcher's odd-even merge sort (1968; Knuth, The Art of Computer Programming 3, section 5.2.2, algorithm M).

    Swaps (i, j), i < j, that sort any ``size`` values: 1, 3, 5, 9, 12, 16, 19 for sizes 2 to 8.
    """
    swaps = []
    step = 1
    while step < size:
        step *= 2
    p = step // 2
    while p > 0:
        q, r, distance = step // 2, 0, p
        while True:
            swaps += [(i, i + distance) for i in range(size - distance) if i & p == r]
            if q == p:
                break
            distance, q, r = q - p, q // 2, p
        p //= 2
    return swaps
