"""Programs of folds on the rows of a unit: what csrc/folds/sequence.h runs, written down in Python."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum

import torch

#: Limits of one kernel call (csrc/folds/sequence.h); what is larger runs in torch operations.
MAX_INSTRUCTIONS = 280
MAX_CONSTANTS = 104
MAX_ROWS = 192
MAX_MATRIX_ROWS = 6
_FIRST_PARAMETER = 1024
_CELL_PLANES = 32


class Code(IntEnum):
    """The instructions, in the order of ``FoldOp``."""

    MIRROR = 0
    LEAKY = 1
    BOX = 2
    BOX_SIDES = 3
    TRI = 4
    TRI_CELL = 5
    SWAP = 6
    LINE = 7
    PLANE = 8
    CRELU = 9
    AFFINE = 10
    MATRIX = 11
    CLAMP = 12
    SPHERE = 13
    BALL = 14


class Program:
    """Instructions, their constants, and how many planes of bits they fill.

    Args:
        rows: values of a unit.
        unfoldable: remember all that the way back needs, where that is more than the gradient needs.
    """

    def __init__(self, rows: int, unfoldable: bool = False):
        self.rows = self.input_rows = rows  # crelu widens the former
        self.unfoldable = unfoldable
        self.instructions: list[int] = []
        self.constants: list[float] = []
        self.parameters: list[torch.Tensor] = []
        self.planes = 0
        self.differentiable = True  # in its input, by the bits alone
        self._parameter_count = 0

    def _add(self, code: Code, planes: int, constants: Sequence[float] | torch.Tensor = (), i: int = 0, j: int = 0) -> None:
        if isinstance(constants, torch.Tensor):
            first = _FIRST_PARAMETER + self._parameter_count
            self.parameters.append(constants)
            self._parameter_count += constants.numel()
        else:
            first = self._place(tuple(constants))
        self.instructions += [int(code), i, j, first, self.planes]
        self.planes += planes

    def _place(self, constants: tuple[float, ...]) -> int:
        """Where these constants lie, next to each other; equal runs lie in one place."""
        for at in range(len(self.constants) - len(constants) + 1):
            if tuple(self.constants[at : at + len(constants)]) == constants:
                return at
        self.constants += constants
        return len(self.constants) - len(constants)

    def mirror(self, i: int, at: float) -> None:
        self._add(Code.MIRROR, 1, (at,), i)

    def leaky(self, i: int, slope: float) -> None:
        self._add(Code.LEAKY, 1, (slope,), i)

    def box(self, i: int, length: float) -> None:
        self._add(Code.BOX_SIDES if self.unfoldable else Code.BOX, 2 if self.unfoldable else 1, (length,), i)

    def tri(self, i: int, length: float, phase: float) -> None:
        code, planes = (Code.TRI_CELL, _CELL_PLANES) if self.unfoldable else (Code.TRI, 1)
        self._add(code, planes, (length, phase), i)

    def swap(self, i: int, j: int) -> None:
        self._add(Code.SWAP, 1, (), i, j)

    def line(self, i: int, j: int, direction: float) -> None:
        """Folds rows i and j at the line through 0 in this direction; what lies clockwise of it moves."""
        self._add(Code.LINE, 1, (math.sin(direction), -math.cos(direction)), i, j)

    def plane(self, normal_and_offset: Sequence[float] | torch.Tensor) -> None:
        self._add(Code.PLANE, 1, normal_and_offset)

    def crelu(self) -> None:
        self._add(Code.CRELU, 1)
        self.rows = 2

    def affine(self, factor: float, shift: Sequence[float] | None = None) -> None:
        self._add(Code.AFFINE, 0, (factor, *(shift or ())), j=0 if shift is None else 1)

    def matrix(self, matrix: Sequence[Sequence[float]], inverse: Sequence[Sequence[float]], shift: Sequence[float]) -> None:
        flat = [value for rows in (matrix, inverse) for row in rows for value in row]
        self._add(Code.MATRIX, 0, (*flat, *shift))

    def clamp(self, bound: float) -> None:
        self._add(Code.CLAMP, self.rows, (bound,))

    def sphere(self, radius: float, inner: float) -> None:
        self._add(Code.SPHERE, 2, (radius**2, inner**2))
        self.differentiable = False

    def ball(self, radius: float) -> None:
        self._add(Code.BALL, 1, (radius**2,))
        self.differentiable = False

    def sort(self, rows: Sequence[int]) -> None:
        for i, j in sorting_network(len(rows)):
            self.swap(rows[i], rows[j])

    @property
    def fits(self) -> bool:
        """Whether one kernel call can hold it."""
        return (
            len(self.instructions) <= 5 * MAX_INSTRUCTIONS
            and len(self.constants) <= MAX_CONSTANTS
            and self.rows <= MAX_ROWS
            and self._parameter_count < 2**15 - _FIRST_PARAMETER
        )

    def packed_parameters(self) -> torch.Tensor | None:
        return torch.cat([p.reshape(-1) for p in self.parameters]) if self.parameters else None


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
