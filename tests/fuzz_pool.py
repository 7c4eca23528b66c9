"""Random operands for tests/fuzz.py: tensors between guards, in any layout, and values that no argument wants."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OTHERS = [torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64]
GUARD, ROOM = 0xA5, 256


class Guards:
    """Tensors made here lie in larger ones, between bytes that nobody may write."""

    def __init__(self) -> None:
        self.kept: list[tuple[torch.Tensor, int]] = []

    def tensor(self, rng: random.Random, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Uninitialised; at any alignment that the dtype allows, or an allocation of its own, which sanitizers watch."""
        size = math.prod(shape) * torch.empty(0, dtype=dtype).element_size()
        if rng.random() < 0.4:
            return torch.zeros(shape, dtype=dtype)
        shift = rng.choice([0, 8, 16, 24])
        whole = torch.full((shift + size + 2 * ROOM,), GUARD, dtype=torch.uint8)
        whole[ROOM + shift : ROOM + shift + size] = 0
        self.kept.append((whole, shift))
        return whole[ROOM + shift : ROOM + shift + size].view(dtype).view(shape)

    def broken(self) -> str | None:
        for whole, shift in self.kept:
            if bool((whole[: ROOM + shift] != GUARD).any()) or bool((whole[len(whole) - ROOM :] != GUARD).any()):
                return "wrote outside of a tensor"
        return None


@dataclass
class Case:
    """One call: ``run``, the names that a refusal may speak of, and whether it is a raw op's."""

    run: Callable[[], Any]
    names: set[str]
    label: str = ""
    raw: bool = False
    guards: Guards = field(default_factory=Guards)


class Pool:
    """Random values of one case."""

    def __init__(self, rng: random.Random, guards: Guards):
        self.rng, self.guards = rng, guards
        self.generator = torch.Generator().manual_seed(rng.getrandbits(62))

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def shape(self, least: int = 0, most: int = 5) -> tuple[int, ...]:
        sizes = [0, 1, 1, 2, 2, 3, 4, 5, 6, 8, 12] if self.chance(0.3) else [1, 2, 3, 4, 6, 8]
        shape = [self.rng.choice(sizes) for _ in range(self.rng.randint(least, most))]
        if shape and self.chance(0.3):
            shape[-1] = self.rng.choice([7, 16, 33, 64, 130, 300])
        return tuple(shape)

    def dtype(self) -> torch.dtype:
        return self.rng.choice(FLOATS)

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype | None = None, writable: bool = False) -> torch.Tensor:
        """In any layout; with infinities and NaN at times. A writable one overlaps nothing, not even itself."""
        dtype = dtype or self.dtype()
        x = self.laid(shape, dtype, writable)
        if x.numel() and dtype.is_floating_point and not (x.dim() and 0 in x.stride()):
            x.copy_(torch.randn(shape, generator=self.generator) * self.rng.choice([0.1, 1.0, 1.0, 30.0]))
            if self.chance(0.1):
                value = self.rng.choice([math.nan, math.inf, -math.inf, 0.0, 1e30])
                x[tuple(self.rng.randrange(size) for size in shape)] = value
        return x

    def laid(self, shape: tuple[int, ...], dtype: torch.dtype, writable: bool) -> torch.Tensor:
        way, dims = self.rng.random(), len(shape)
        if way < 0.55 or dims == 0:
            return self.guards.tensor(self.rng, shape, dtype)
        if way < 0.7:
            order = list(range(dims))
            self.rng.shuffle(order)
            base = self.guards.tensor(self.rng, tuple(shape[d] for d in order), dtype)
            return base.permute([order.index(d) for d in range(dims)])
        if way < 0.8:
            return self.guards.tensor(self.rng, (*shape[:-1], 2 * shape[-1] + 1), dtype)[..., 1::2]
        if way < 0.9:
            d = self.rng.randrange(dims)
            larger = list(shape)
            larger[d] += 2
            return self.guards.tensor(self.rng, tuple(larger), dtype).narrow(d, 1, shape[d])
        if writable:
            return self.guards.tensor(self.rng, shape, dtype)
        d = self.rng.randrange(dims)
        return self.guards.tensor(self.rng, (*shape[:d], 1, *shape[d + 1 :]), dtype).expand(shape)

    def like(self, x: torch.Tensor, writable: bool = False) -> torch.Tensor:
        return self.tensor(tuple(x.shape), x.dtype, writable)

    def seeds(self, count: int) -> Any:
        values = [self.rng.choice([0, -1, 2**63 - 1, -(2**63), self.rng.getrandbits(40)]) for _ in range(count)]
        if self.chance(0.2):
            return values
        seeds = torch.tensor(values, dtype=torch.int64)
        return seeds.repeat_interleave(2)[::2] if self.chance(0.2) else seeds

    def number(self) -> float:
        return self.rng.choice([0.0, -0.0, 1.0, -1.0, 0.5, 1e-8, 1e30, -3.7, self.rng.gauss(0, 1), self.rng.random()])

    def counter(self) -> int:
        return self.rng.choice([0, 1, 7, 2**31, 2**32 - 1])

    def window(self, shape: tuple[int, ...]) -> dict[str, Any]:
        before = [self.rng.choice([0, 0, 1, 5, 1000]) for _ in shape]
        return {
            "offset": before,
            "global_shape": [b + s + self.rng.choice([0, 1, 9]) for b, s in zip(before, shape, strict=True)],
        }

    # --- what nobody wants

    def hostile(self, value: Any) -> Any:
        """Something else in the place of an argument: near to it, or of another world."""
        if isinstance(value, torch.Tensor) and self.chance(0.7):
            return self.rng.choice(self.hostile_tensors(value))
        if isinstance(value, (list, tuple)) and value and self.chance(0.5):
            spoilt = list(value)
            spoilt[self.rng.randrange(len(spoilt))] = self.hostile(spoilt[0])
            return type(value)(spoilt) if type(value) in (list, tuple) else spoilt
        numbers = [math.nan, math.inf, -math.inf, -1, 0, 2**31, 2**32, 2**63, 2**64, -(2**63) - 1, 10**40, 1e-310, 1e308, 0.5]
        others: list[Any] = [
            None, True, False, "", "abs", "nonsense", b"bytes", [], (), {}, [1], (2, 2), object(), 1j, float, [None], ["a"],
            [1.5], [[1]], {"a": 1}, range(3), slice(None), torch.float32, torch.device("cpu"), "meta", "cuda",
            torch.zeros(()), torch.zeros(3), torch.zeros(0, dtype=torch.int64), torch.arange(4),
            torch.zeros(2, 3, dtype=torch.complex64), torch.zeros(2, device="meta"),
        ]  # fmt: skip
        return self.rng.choice(numbers if self.chance(0.4) else others)

    def hostile_tensors(self, x: torch.Tensor) -> list[Any]:
        dtype = self.rng.choice(FLOATS + OTHERS)
        shape = list(x.shape)
        if x.device.type == "meta":
            # It has no numbers that a list or an array could hold.
            return [x.detach().to(dtype), x.detach().unsqueeze(0), torch.zeros(self.shape(), dtype=x.dtype)]
        found: list[Any] = [
            x.detach().to(dtype),
            x.detach().unsqueeze(0),
            torch.zeros(self.shape(), dtype=x.dtype),
            torch.empty(x.shape, dtype=x.dtype, device="meta"),
            torch.zeros(x.shape, dtype=x.dtype).to_sparse() if x.dim() else x,
            x.detach().flatten()[:1].expand(shape) if x.numel() and x.dim() else x,
            x.detach().tolist(),
            x.detach().numpy() if x.dtype != torch.bfloat16 else x,
        ]
        if shape:
            d = self.rng.randrange(len(shape))
            shape[d] = max(0, shape[d] + self.rng.choice([-1, 1]))
            found += [torch.zeros(shape, dtype=x.dtype), x.detach().transpose(0, d), x.detach()[:0]]
        return found
