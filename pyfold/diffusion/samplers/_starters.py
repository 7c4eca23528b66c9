"""How a multistep method of one derivative a step comes by its first derivatives.

With lower orders, as published, the first steps leave an error of ``O(h^2)`` in the result, whatever the order of the rest. One
step of a Runge-Kutta method of order ``p - 1`` has an error of ``O(h^p)``, so a few of them leave the order p.

Of such a step only the first derivative is one of the method's. Those of its later stages share one entry of the history, in
front of the others, which the next step's first stage overwrites.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pyfold.diffusion.formulas import BASE, Form, H, Step, X
from pyfold.diffusion.samplers._declare import Frame, Past, regular
from pyfold.diffusion.samplers.runge_kutta import line
from pyfold.diffusion.schedule import Point, Schedule


def in_frame(schedule: Schedule, frame: Frame, here: Point, there: Point, order: int, u: Form) -> list[Step]:
    """A step of the midpoint method (order 2) or of Heun's method of order 3, in the coordinates of a frame."""

    def at(part: float) -> Point:
        s = frame.s(here) + part * (frame.s(there) - frame.s(here))
        return schedule.at_ratio(s if frame.u == "epsilon" else s / (1 - s))

    if order == 2:
        middle = at(1 / 2)
        return [Step(line(frame, here, middle, X, u)), Step(line(frame, here, there, BASE, u), at=middle)]
    one, two = at(1 / 3), at(2 / 3)
    return [
        Step(line(frame, here, one, X, u)),
        Step(line(frame, here, two, BASE, u), at=one),
        Step(line(frame, here, there, BASE, u * (3 / 4) + H[1] * (1 / 4)), at=two),
    ]


def starting(stages: Sequence[Step], first: bool) -> list[Step]:
    """The stages of one of the first steps; ``first`` for the very first."""
    entries = [not first, False, *[True] * (len(stages) - 2)]
    return [replace(stage, overwrites=overwrites) for stage, overwrites in zip(stages, entries, strict=True)]


def check_starter(options: dict[str, Any]) -> None:
    """Runge and Kutta's steps have no noise."""
    if options["starter"] == "runge_kutta" and options.get("eta", 0.0):
        raise ValueError(f"eta must be 0 for starter 'runge_kutta', got {options['eta']}")
    if options["starter"] == "runge_kutta" and options.get("stochastic"):
        raise ValueError("stochastic must be False for starter 'runge_kutta', got True")


class Start:
    """Which part a step has in the start of a method of some order.

    Args:
        available: how many derivatives the method could use here, this step's included; 0 for a step without a past to come.

    Attributes:
        runs: it is one of the first steps, ``order - 1`` long. first: the very first.
        ends: it is the step behind those, in front of whose history lies the entry of later stages.
    """

    def __init__(self, starter: str, order: int, available: int):
        wanted = starter == "runge_kutta" and order > 2
        self.runs = wanted and 0 < available < order
        self.first = available == 1
        self.ends = wanted and available == order

    def step(self, step: Step) -> Step:
        """The method's own, which clears the entry of later stages away."""
        return replace(step, overwrites=True) if self.ends else step

    @property
    def history(self) -> tuple[Form, ...]:
        """The earlier derivatives, the newest first."""
        return H[1:] if self.ends else H


def derivatives_in_lambda(past: Past) -> int:
    """Derivatives at finite lambda, of a step between two such points; else 0."""
    return past.order(len(past) + 1) if regular([past.here, past.there]) else 0
