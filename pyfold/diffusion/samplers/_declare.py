"""A sampler is declared once: a rule of formulas, and with it the plan's function, its checks, its documentation."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from pyfold.diffusion.formulas import Step
from pyfold.diffusion.plan import Plan, Rows
from pyfold.diffusion.predictions import determines_x0
from pyfold.diffusion.schedule import NEARLY_PURE, Point, Schedule, check_number, check_schedule
from pyfold.diffusion.spacings import Points, choose_points

Spacing = str | Callable[..., list[Point]] | Points
Steps = Step | Sequence[Step]


def regular(points: Sequence[Point]) -> bool:
    """Whether lambda is finite at all of them."""
    return all(p.alpha and p.sigma for p in points)


class Past:
    """The way to a step: ``past[0]`` is the point before ``here``, ``past[1]`` the one before that.

    Args:
        points: of the whole way. i: the step's number.
        schedule: of the points.
    """

    def __init__(self, points: Sequence[Point], i: int, schedule: Schedule):
        self.points, self.i, self.schedule = points, i, schedule

    def __len__(self) -> int:
        return self.i

    def __getitem__(self, j: int) -> Point:
        if not 0 <= j < self.i:
            raise IndexError(f"past[{j}] of a step with {self.i} before it")
        return self.points[self.i - 1 - j]

    @property
    def here(self) -> Point:
        return self.points[self.i]

    @property
    def there(self) -> Point:
        return self.points[self.i + 1]

    def back(self) -> Past:
        """The past of the step before."""
        return type(self)(self.points, self.i - 1, self.schedule)

    def order(self, most: int, final: int | None = None) -> int:
        """What a multistep method has history for, down to ``final`` in the last step; 1 where lambda is infinite or rests."""
        if not regular([self.here, self.there]) or self.here.lam == self.there.lam:
            return 1
        past = 0
        while past < self.i and regular([self[past]]):
            past += 1
        left = len(self.points) - 2 - self.i
        return min(most, past + 1, most if final is None else left + final)


class Frame(NamedTuple):
    """Where the flow's curves are straightest: what x is divided by, the variable, and the derivative."""

    scale: Callable[[Point], Any]
    s: Callable[[Point], Any]
    u: str


#: As EDM and k-diffusion have it; and as flow matching has it, which is finite at pure noise too.
NOISE_FRAME = Frame(lambda p: p.alpha, lambda p: p.ratio, "epsilon")
FRAMES = {
    "noise": NOISE_FRAME,
    "flow": Frame(lambda p: p.alpha + p.sigma, lambda p: p.sigma / (p.alpha + p.sigma), "flow"),
}


class Sampler(Protocol):
    """A function that makes a plan, and what its declaration says of it."""

    __name__: str
    rule: Callable[..., Steps]
    #: "any", "discrete" or "flow"; whether it takes k-diffusion's or ComfyUI's sigmas as they are; the sampler it is short for.
    schedules: str
    on_sigmas: bool
    alias_of: str
    #: What way points that are given may go with these options: "falls", "turns" (rises too) or "rests" (repeats too).
    way: Callable[[dict[str, Any]], str]
    #: (schedule, steps, **options) -> the points between its steps.
    points: Callable[..., list[Point]]

    def __call__(self, schedule: Schedule, steps: int = ..., **options: Any) -> Plan: ...


#: Every sampler by its name, and by the names that people type elsewhere.
SAMPLERS: dict[str, Sampler] = {}

#: What options mean and what they may be, where a declaration does not say it: (text, allowed).
OPTIONS: dict[str, tuple[str, Any]] = {
    "prediction": ("what the model predicts, a name in ``pyfold.diffusion.PREDICTIONS``.", None),
    "clip": ("bound on the predicted x0, or None.", None),
    "spacing": (
        'which points are visited: a name in ``pyfold.diffusion.SPACINGS``, a function, or points. Where it is "trailing" by '
        'default, or "leading" on a schedule without discrete times, the schedule\'s ``even_spacing`` stands for it, which is '
        '"karras" for ``edm()``. A name whose points start at pure noise starts at sigma / alpha 999 where the sampler, or x0 '
        "of the prediction, needs some signal; points and functions of your own are refused there.",
        None,
    ),
    "frame": ('"noise" or "flow", the coordinates in which steps are straight; by default the schedule\'s own.', None),
    "eta": ("strength of the noise that is put back.", (0.0, 1.0)),
    "noise_scale": ("factor on the noise.", (0.0, math.inf)),
    "order": ("of the method.", None),
    "starter": (
        "how the first steps are made: with lower orders, as published, which leaves order 2 in the limit of many steps, or "
        "with Runge-Kutta steps of two evaluations (order 3) or three (order 4), which reach the full order.",
        ("lower_order", "runge_kutta"),
    ),
    "final_order": ("highest order of the last step, one more of the one before, and so on; None for no limit.", None),
    "before": (
        "points that the run has visited before those of ``spacing``. Noise is numbered by the level that it leads to, so a "
        "part of a run draws as the whole does; where the whole returns to a level (a restart), the part must be told.",
        None,
    ),
    "sigma_min": ("least sigma / alpha, by default the schedule's.", None),
    "sigma_max": ("greatest sigma / alpha, by default the schedule's.", None),
}


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _range(low: float, high: float, above: str = "") -> str:
    """A closed range in words; infinite ends are open, ``above`` the least is, too."""
    if high == math.inf:
        return "finite" if low == -math.inf else f"finite and from {_number(low)}"
    return f"in {'(' if above else '['}{_number(low)}, {_number(high)}]"


def check_option(name: str, value: Any, allowed: Any) -> None:
    """A choice of words, or an int or a float in a range: (least, greatest) and, where the least is left out, "above"."""
    if isinstance(allowed[0], str):
        if value not in allowed:
            words = ", ".join(map(repr, allowed[:-1])) + f" or {allowed[-1]!r}"
            raise ValueError(f"{name} must be {words}, got {value!r}")
        return
    low, high, *above = allowed
    if isinstance(high, int) and (not isinstance(value, int) or isinstance(value, bool)):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    check_number(name, value)
    if not (low <= value <= high and math.isfinite(value)) or (above and value == low):
        raise ValueError(f"{name} must be {_range(*allowed)}, got {value}")


_DOCUMENTATION = """{words}

Source: {source}.

Args:
    schedule: {flow}
    steps: {steps}
{options}

Returns:
    a :class:`pyfold.diffusion.Plan`, which :func:`pyfold.diffusion.sample` runs.

Raises:
    TypeError, ValueError: an option out of its range, points that do not decrease in noise (where the
        sampler is on the probability flow they may rise: unsampling), or a step whose
        coefficients would not be finite, such as x0 of a predicted epsilon at pure noise."""


def _documented(rule: Callable[..., Any], source: str, texts: dict[str, tuple[str, Any]], steps: str, flow: str) -> str:
    """The rule's words, and the arguments, results and errors that all samplers share."""
    lines = []
    for name, (text, allowed) in texts.items():
        if allowed is not None:
            words = ", ".join(f'"{a}"' for a in allowed) if isinstance(allowed[0], str) else _range(*allowed)
            text = f"{text.rstrip('.')}; {words}."
        lines.append(f"    {name}: {text}")
    return _DOCUMENTATION.format(
        words=inspect.cleandoc(rule.__doc__ or ""), source=source, flow=flow, steps=steps, options="\n".join(lines)
    )


def sampler(
    steps: int,
    *,
    source: str,
    keeps: str = "x0",
    spacing: str | None = "karras",
    few: str | None = None,
    prediction: str = "epsilon",
    clip: float | None = None,
    schedules: str = "any",
    steps_are: str = "steps between points.",
    on_sigmas: bool = True,
    raw: Callable[[dict[str, Any]], bool] = lambda options: False,
    needs_signal: bool | Callable[[dict[str, Any]], bool] = False,
    points: Callable[..., list[Point]] | None = None,
    churns: Callable[..., tuple[float, float] | None] | None = None,
    way: str | Callable[[dict[str, Any]], str] = "falls",
    check: Callable[..., None] | None = None,
    finish: Callable[..., Plan] | None = None,
    listed: bool = True,
    given: Sequence[str] = (),
    texts: dict[str, str] | None = None,
    **allowed: Any,
) -> Callable[[Callable[..., Steps]], Sampler]:
    """Declares ``rule(here, there, past, *, options) -> Step`` or the stages of one, for the points of a step.

    States are in the schedule's own scale, ``x = alpha x0 + sigma eps``; what the model's output means is X0, EPSILON and
    FLOW, and U is the one of them that the sampler keeps.

    Args:
        steps, spacing, prediction, clip: defaults of the plan's function; ``spacing`` None for points of its own.
        few: the spacing in place of a schedule's ``even_spacing`` that is made for many steps.
        source: where the formula is published.
        keeps: what U is: "x0", "epsilon", "flow", the option that says it, "frame" for the frame's derivative; "" for nothing.
        schedules: "any", "discrete" or "flow". steps_are: what ``steps`` counts.
        on_sigmas: whether it visits sigmas that it is given once each, as k-diffusion's and ComfyUI's samplers do.
        raw: whether U is made from the model's output even where x0 is clipped.
        needs_signal: whether (for which options) it cannot start at pure noise, where alpha is 0; in the frame "flow" it can.
        points: ``(schedule, points, options) -> points``, a change of them.
        churns: ``(schedule, points, options) -> (alpha, sigma)`` of noise before the first step, or None.
        way: how points that are given may go: only to less noise ("falls"), to more as well ("turns": a method on the
            probability flow, backwards), or also nowhere ("rests": such a method of one step).
        check: of the options together. finish: ``(plan, points, options) -> plan``. listed: whether it is in SAMPLERS.
        given: arguments of the rule that adapters know from tables of theirs; a plan's function has them not.
        texts: what its own options mean. allowed: their words, or (least, greatest) of a number.

    Returns:
        A decorator, which gives the function that makes plans; its ``rule`` is the decorated one.

    Raises:
        TypeError, ValueError: the function that is made raises them for options and schedules that it does not take.
    """

    way_of: Any = way

    def declare(rule: Callable[..., Steps]) -> Sampler:
        signature = inspect.signature(rule).parameters
        own = {name: p for name, p in signature.items() if p.kind is p.KEYWORD_ONLY and name not in ("steps", *given)}
        described = {"prediction": OPTIONS["prediction"]}
        for name in own:
            text, default = OPTIONS.get(name, ("", None))
            described[name] = (texts or {}).get(name, text), allowed.get(name, default)
        described |= {name: OPTIONS[name] for name in ("clip", "spacing", "before")[: 3 if spacing else 1]}

        def chosen(schedule: Schedule, steps: int, given: dict[str, Any]) -> tuple[dict[str, Any], list[Point]]:
            """The options, and the points."""
            unknown = [name for name in given if name not in described]
            if unknown:
                raise TypeError(f"{rule.__name__}() got an unexpected keyword argument {unknown[0]!r}")
            check_schedule(schedule)
            if schedules == "discrete" and not schedule.steps:
                raise ValueError(f"schedule must be a schedule with discrete times, got {schedule.name}")
            if schedules == "flow" and not schedule.is_flow:
                raise ValueError(f"schedule must be a flow schedule, got {schedule.name}")
            options = {name: given.get(name, None if name == "frame" else p.default) for name, p in own.items()}
            for name, value in options.items():
                if described[name][1] is not None and not (value is None and "None" in str(own[name].annotation)):
                    check_option(name, value, described[name][1])
            if check is not None:
                check(options)
            predicts = given.get("prediction", prediction)
            if "frame" in own:
                options["frame"] = choose_frame(schedule, options["frame"])
            way: list[Point] = []
            wanted: Any = None
            if spacing:
                wanted = given.get("spacing", _default_spacing(schedule, spacing, few))
                way = choose_points(schedule, steps, wanted, made.way(options))
            if points is not None:
                way = points(schedule, way, {**options, "steps": steps})
            needs = needs_signal(options) if callable(needs_signal) else needs_signal
            needs = needs and options.get("frame") is not FRAMES["flow"]
            if way[0].alpha == 0 and (needs or not determines_x0(predicts)):
                way = _with_signal(schedule, way, wanted, rule.__name__ if needs else f"a prediction of {predicts}")
            return options, way

        def make(schedule: Schedule, steps: int = steps, **given: Any) -> Plan:
            options, way = chosen(schedule, steps, given)
            predicts = given.get("prediction", prediction)
            u = options["frame"].u if keeps == "frame" else options.get(keeps, keeps)
            rows = Rows(schedule, predicts, given.get("clip", clip), u, raw=raw(options), before=given.get("before", ()))
            if "steps" in signature:
                options["steps"] = steps
            with np.errstate(all="ignore"):
                for i, (here, there) in enumerate(pairwise(way)):
                    rows.add(here, there, rule(here, there, Past(way, i, schedule), **options))
            churn = None if churns is None else churns(schedule, way, options)
            plan = rows.plan(rule.__name__, start=way[0] if churn else rows.points[0], churn=churn)
            return plan if finish is None else finish(plan, way, options)

        made = cast(Any, make)
        shared = {"prediction": prediction, "clip": clip, "spacing": spacing, "before": ()}
        options = {name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=d) for name, d in shared.items()}
        options |= {name: p.replace(default=None, annotation="str | None") if name == "frame" else p for name, p in own.items()}
        in_place = list(inspect.signature(make).parameters.values())[:2]
        parameters = [*in_place, *(options[name] for name in described)]
        need = {"any": "any.", "discrete": "with discrete times.", "flow": "a flow."}[schedules]
        words = _documented(rule, source, described, steps_are, need)
        made.rule, made.schedules, made.alias_of = rule, schedules, ""
        made.way = way_of if callable(way_of) else lambda options: way_of
        made.points = lambda schedule, steps, **given: chosen(schedule, steps, given)[1]
        made.on_sigmas = on_sigmas and schedules != "discrete" and spacing is not None
        return _published(made, rule.__name__, inspect.Signature(parameters, return_annotation=Plan), words, listed)

    return declare


def _published(made: Any, name: str, signature: inspect.Signature, words: str, listed: bool = True) -> Sampler:
    """A function of ``pyfold.diffusion`` by this name, which SAMPLERS lists."""
    made.__name__ = made.__qualname__ = name
    made.__module__, made.__doc__, made.__signature__ = "pyfold.diffusion", words, signature
    if listed:
        SAMPLERS[name] = made
    return cast(Sampler, made)


def alias(name: str, sampler: Sampler, elsewhere: str, **options: Any) -> Sampler:
    """Another name for a sampler with some options, by which it is known elsewhere."""

    def make(schedule: Schedule, steps: int | None = None, **given: Any) -> Plan:
        return sampler(schedule, *(() if steps is None else (steps,)), **{**options, **given})

    made, signature = cast(Any, make), inspect.signature(sampler)
    parameters = [p.replace(default=options.get(p.name, p.default)) for p in signature.parameters.values()]
    words = ", ".join(f"{k}={v!r}" for k, v in options.items())
    words = f"{elsewhere}'s name for :func:`pyfold.diffusion.{sampler.__name__}`{f' with {words}' if words else ''}."
    made.rule, made.schedules, made.on_sigmas = sampler.rule, sampler.schedules, sampler.on_sigmas
    made.alias_of = sampler.__name__
    made.way = lambda given: sampler.way({**options, **given})
    made.points = lambda schedule, steps, **given: sampler.points(schedule, steps, **{**options, **given})
    return _published(made, name, signature.replace(parameters=parameters), f"{words}\n\n{sampler.__doc__ or ''}")


def _default_spacing(schedule: Schedule, spacing: str, few: str | None) -> str:
    """Where it stands for equal steps of the time, those of the schedule; ``few`` where those are no steps of the time."""
    even = spacing == "trailing" or (spacing == "leading" and not schedule.steps)
    if not even:
        return spacing
    return few if few and schedule.even_spacing != "trailing" else schedule.even_spacing


def _with_signal(schedule: Schedule, points: list[Point], spacing: Any, what: str) -> list[Point]:
    """Points that start just below pure noise instead."""
    if not isinstance(spacing, str):
        raise ValueError(
            f"spacing must not start at pure noise (alpha 0) for {what}, got {points[0]}; a spacing by name works (such as "
            f"'karras'), and points that start at schedule.at_ratio({NEARLY_PURE:g})"
        )
    return [schedule.at_ratio(max(NEARLY_PURE, 2 * points[1].ratio)), *points[1:]]


def choose_frame(schedule: Schedule, frame: str | None) -> Frame:
    """The frame of that name; the schedule's own for None."""
    if frame is None:
        frame = "flow" if schedule.is_flow else "noise"
    check_option("frame", frame, tuple(FRAMES))
    return FRAMES[frame]
