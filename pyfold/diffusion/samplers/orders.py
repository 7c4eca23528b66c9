"""Which order a multistep method may have at each of its steps."""

from __future__ import annotations

from pyfold.diffusion.schedules import Point


def check_order(order: int, most: int, name: str = "order") -> int:
    """An int in [1, most]."""
    if not isinstance(order, int) or isinstance(order, bool):
        raise TypeError(f"{name} must be an int, got {type(order).__name__}")
    if not 1 <= order <= most:
        raise ValueError(f"{name} must be in [1, {most}], got {order}")
    return order


def regular(points: list[Point]) -> bool:
    """Whether lambda is finite at all of them."""
    return all(p.alpha and p.sigma for p in points)


def usable_order(points: list[Point], i: int, order: int, final_order: int | None = None) -> int:
    """Of step i: what there is history for, 1 where lambda is infinite, down to ``final_order`` in the last steps."""
    if not regular(points[i : i + 2]):
        return 1
    past = 0
    while past < i and regular([points[i - past - 1]]):
        past += 1
    left = len(points) - 2 - i
    return min(order, past + 1, order if final_order is None else left + final_order)
