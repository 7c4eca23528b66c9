"""Programs of folds for tests/fuzz.py, from well-made to hostile, given to the raw ops and to what is below them."""

from __future__ import annotations

import random
from typing import Any

import torch
from fuzz_pool import Case, Guards, Pool

from pyfold import _C

#: name -> (code, planes of bits of a unit of one value)
OPS: dict[str, tuple[int, int]] = dict(_C.FOLD_OPS)
LIMITS: dict[str, int] = dict(_C.FOLD_LIMITS)
CONSTANTS = {
    "Mirror": 1,
    "Leaky": 1,
    "Box": 1,
    "BoxSides": 1,
    "Tri": 2,
    "TriCell": 2,
    "Line": 2,
    "Clamp": 1,
    "Sphere": 2,
    "Ball": 1,
}


class Writer:
    """A program for units of a width, good but for what is spoilt."""

    def __init__(self, pool: Pool, width: int, hostile: bool):
        self.pool, self.rng, self.width, self.hostile = pool, pool.rng, width, hostile
        self.constants = [pool.number() or 0.7 for _ in range(self.rng.choice([8, 30, LIMITS["constants"]]))]
        self.program: list[int] = []
        self.planes = 0
        for k in range(self.rng.choice([0, 1, 2, 3, 8, 30, LIMITS["instructions"]])):
            self.add(k)
        if hostile and self.program:
            self.spoil()

    def spoil(self) -> None:
        """One number, or two, may be anything; the rest stays good, so that nothing else refuses the program."""
        values = [-1, 0, 1, self.width, len(OPS), 103, 104, 191, 192, 1023, 1024, 2000, 32767, 32768, 2**40, -(2**63)]
        for _ in range(self.rng.choice([1, 1, 2])):
            self.program[self.rng.randrange(len(self.program))] = self.rng.choice(values)

    def add(self, k: int) -> None:
        width, rng = self.width, self.rng
        names = list(OPS)
        rare = self.hostile and self.pool.chance(0.02)
        if not rare and not (k == 0 and width == 1):
            names.remove("Crelu")
        if not rare and width > LIMITS["matrix_width"]:
            names.remove("Matrix")
        name = rng.choice(names)
        if width == 1 and name in ("Swap", "Line") and not rare:
            name = "Mirror"
        shifts = rng.randint(0, 1)
        i = rng.randrange(width)
        j = shifts if name == "Affine" else rng.choice([r for r in range(width) if r != i] or [0])
        count = {"Plane": width + 1, "Affine": 1 + width * shifts, "Matrix": 2 * width**2 + width}.get(
            name, CONSTANTS.get(name, 0)
        )
        if count > len(self.constants) and not rare:
            name, count, j = "Mirror", 1, 0
        first = rng.randrange(max(1, len(self.constants) - count + 1))
        instruction = [OPS[name][0], i, j, first, self.planes]
        self.program += instruction
        self.planes += OPS[name][1] * (width if name == "Clamp" else 1)
        if name == "Crelu" and k == 0:
            self.width = 2


def make(rng: random.Random) -> Case:
    guards = Guards()
    pool = Pool(rng, guards)
    width = rng.choice([1, 1, 2, 3, 4, 6, 7, 32, LIMITS["width"]])
    hostile = pool.chance(0.5)
    writer = Writer(pool, width, hostile)
    dim = rng.randrange(3)
    shape = [rng.choice([1, 2, 3, 9]) for _ in range(3)]
    shape[dim] = width * rng.choice([1, 2, 3])
    dtype = pool.dtype()
    x = torch.randn(shape, generator=pool.generator).to(dtype)
    x = guards.tensor(rng, tuple(shape), dtype).copy_(x)
    widened = list(shape)
    widened[dim] *= writer.width // width if writer.width != width else 1
    y = guards.tensor(rng, tuple(widened), dtype)
    groups = rng.choice([1, 1, 1, shape[0]]) if dim else 1
    units = x.numel() // width // max(groups, 1)
    bits = guards.tensor(rng, (groups, writer.planes * ((units + 7) // 8)), torch.uint8)
    parameters = None
    accumulated = torch.float64 if dtype == torch.float64 else torch.float32
    if pool.chance(0.3):
        count = rng.choice([0, 1, 8, width + 1])
        parameters = guards.tensor(rng, (count,), accumulated).fill_(0.5)
        if pool.chance(0.7) and writer.program and count:
            writer.program[3] = 1024 + rng.randrange(count)
    pairing = rng.choice(["adjacent", "adjacent", "halves"])
    given: dict[str, Any] = {
        "program": writer.program,
        "constants": writer.constants,
        "width": width,
        "dim": dim,
        "pairing": pairing,
        "groups": groups,
        "bias": guards.tensor(rng, (shape[dim],), accumulated) if pool.chance(0.2) else None,
        "bits": bits,
        "direction": rng.choice(["tangent", "adjoint", "inverse"]),
    }
    if hostile and pool.chance(0.5):
        spoil(pool, given, x)

    def run() -> None:
        form = given["program"], given["constants"], given["width"]
        units = given["dim"], given["pairing"], given["groups"]
        forward = torch.ops.pyfold.fold_sequence.default
        apply = torch.ops.pyfold.fold_sequence_apply.default
        try:
            forward(x, given["bias"], parameters, *units, *form, given["bits"] is not None)
        finally:
            value = x if given["direction"] == "tangent" else y
            if given["bits"] is not None:
                apply(value, given["bits"], parameters, *units, given["direction"], *form)

    return Case(run, set(), raw=True, guards=guards)


def spoil(pool: Pool, given: dict[str, Any], x: torch.Tensor) -> None:
    """One argument that is not as it should be, of the type that the schema asks for."""
    rng = pool.rng
    name = rng.choice(["program", "constants", "width", "dim", "pairing", "groups", "bits", "direction"])
    given[name] = {
        "program": given["program"][:-1] or [0],
        "constants": given["constants"][: rng.choice([0, 1, 3])] if pool.chance(0.7) else [1.0] * 105,
        "width": rng.choice([0, -1, 1, 2, 5, 193, 2**31, 2**32 + 1, 2**63 - 1]),
        "dim": rng.choice([-1, -4, 3, 7, 2**40]),
        "pairing": rng.choice(["", "halves", "nonsense"]),
        "groups": rng.choice([0, -1, 2, 3, 10**9, 2**62]),
        "bits": rng.choice([torch.zeros(0, dtype=torch.uint8), torch.zeros(3, 3), given["bits"][:, 1:], given["bits"].t()]),
        "direction": rng.choice(["", "forward"]),
    }[name]  # fmt: skip
