"""Samplers as data: a :class:`Plan` is a table of ``affine_step`` coefficients, which :func:`sample` runs.

No sampler needs a base state. Where a formula starts a later stage from the state before the step, that state is affine in
the present one, the ``u`` of the stages between, and their noise, which its counter makes again; the builder solves for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from pyfold import _C
from pyfold.diffusion.predictions import check_prediction, convert
from pyfold.diffusion.schedules import Point, Schedule
from pyfold.ops import AFFINE_STEP_COLUMNS, INITIAL_STREAM, SAMPLER_STREAM, add_noise, affine_step, affine_table, randn

_D1 = AFFINE_STEP_COLUMNS.index("d1")

Model = Callable[[torch.Tensor, torch.Tensor], "torch.Tensor | tuple[torch.Tensor, ...]"]


@dataclass(frozen=True, eq=False)
class Plan:
    """A sampler's steps for one schedule, number of steps and kind of prediction. Immutable, so it can be shared.

    Attributes:
        name: the sampler.
        times: what the model is told at each stage, float64 [stages].
        rows: each stage's coefficients by the names of ``pyfold.ops.AFFINE_STEP_COLUMNS``.
        history: how many earlier values of ``u`` a stage looks back on.
        noisy: whether stages draw noise.
        points: where on the schedule each stage evaluates the model.
        start_std: standard deviation of the noise that sampling starts from.
        start_scale: c_in of the first stage.
        start_churn: (alpha, sigma) of ``alpha x + sigma noise`` before the first stage, or None.
        begins: the stages at which the sampler's steps begin; the stages between are inside a step.
        remembers: what u is: "x0", "epsilon" or "flow".
        replaces: the stages whose u takes the place of the newest earlier one instead of being put in front of it.
        base_output: which of the model's outputs enters the step once more, with the rows' a_base.
        learned: (least, greatest) logarithm of the noise's variance at each stage, None for no noise, where the second half of
            the model's channels says which: the logarithm itself for ``log_variance``, else a part from -1 to 1.
    """

    name: str
    times: np.ndarray
    rows: tuple[Mapping[str, float], ...]
    history: int = 0
    noisy: bool = False
    points: tuple[Point, ...] = ()
    start_std: float = 1.0
    start_scale: float = 1.0
    start_churn: tuple[float, float] | None = None
    begins: tuple[int, ...] = ()
    remembers: str = "x0"
    replaces: frozenset[int] = frozenset()
    base_output: int | None = None
    learned: tuple[tuple[float, float] | None, ...] = ()
    log_variance: bool = False
    _on_device: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def scales_input(self) -> bool:
        """Whether the model sees something else than the state."""
        return any(row.get("c_in", 1.0) != 1.0 for row in self.rows) or self.start_scale != 1.0

    def on(self, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(coefficients float64 [stages + 1, 25], times float32 [stages + 1], counters int64 [stages + 1]), made once.

        The row behind the last stage keeps the state: where samples of one batch are at different stages, those that are
        done wait there.
        """
        device = torch.device(device)
        if device not in self._on_device:
            rows = [{"a_base": 1.0, **row} for row in self.rows]
            table = affine_table([*rows, {"a": 1.0}], device)
            times = torch.tensor([*self.times, self.times[-1]], dtype=torch.float32, device=device)
            self._on_device[device] = table, times, torch.arange(len(table), device=device)
        return self._on_device[device]

    def _stages(self, device: torch.device, samples: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(times [samples], counter [1]) of every stage on the device, made once: two views would cost a small step's time."""
        key = device, samples
        if key not in self._on_device:
            _, times, counters = self.on(device)
            views = times[:-1, None].expand(-1, samples).unbind(), counters[:-1].split(1)
            self._on_device[key] = list(zip(*views, strict=True))
        return self._on_device[key]

    def _next_entry(self, stage: int | None, history: list[torch.Tensor] | None, like: torch.Tensor) -> torch.Tensor | None:
        """Where a stage puts its u: a ring's oldest entry, which is read and overwritten in the same pass, or the newest."""
        if not self.history:
            return None
        if history is None:
            raise ValueError(f"history must be a list that outlives the steps of {self.name}, got None")
        if self.replaces and stage is None:
            raise ValueError(f"stage must be given for {self.name}, whose stages remember in two ways, got None")
        if stage in self.replaces:
            return history[0]
        return history[-1] if len(history) == self.history else torch.empty_like(like)

    def _remember(self, stage: int | None, history: list[torch.Tensor], entry: torch.Tensor | None) -> None:
        if entry is None or stage in self.replaces:
            return
        del history[self.history - 1 :]
        history.insert(0, entry)

    def step(
        self,
        x: torch.Tensor,
        models: torch.Tensor | Sequence[torch.Tensor],
        index: torch.Tensor,
        *,
        history: list[torch.Tensor] | None = None,
        seeds: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        adapt: Sequence[Callable[..., torch.Tensor]] = (),
        stage: int | None = None,
        **outputs: Any,
    ) -> torch.Tensor:
        """One stage, in one pass, without a look at the device.

        Args:
            x: the state [B, ...].
            models: the model's output, or several for :func:`guided`.
            index: int64 [1], or [B] with each sample at a stage of its own.
            history: the caller's list of earlier ``u``, the newest first; this stage's is put in front.
            seeds: int64 [B], for a plan with noise.
            noise: instead of noise from seeds, this, already scaled.
            adapt: changes of each sample's coefficients by what the model said (``pyfold.diffusion.rescale`` and others).
            stage: the number that ``index`` holds, for a plan with ``replaces``: there all samples are at one stage.
            outputs: ``out``, ``next_input``, ``x0_out`` of :func:`pyfold.affine_step`.
        """
        newest = self._next_entry(stage, history, x)
        if self.noisy and seeds is None and noise is None:
            raise ValueError(f"seeds must be given for {self.name}, which draws noise, got None")
        base = noise
        if self.base_output is not None:
            if noise is not None:
                raise ValueError(f"noise must come from seeds for {self.name}, got a tensor")
            base = models[self.base_output].to(x.dtype)
        table = self.on(x.device)[0]
        if adapt:
            table, index = table[index.expand(x.shape[0])], None
            outputs_of_model = (models,) if isinstance(models, torch.Tensor) else tuple(models)
            for change in adapt:
                table = change(table, x, outputs_of_model)
        result = affine_step(
            x,
            models,
            table,
            index,
            base=base,
            history=history or (),
            seeds=seeds if self.noisy and noise is None else None,
            stream=SAMPLER_STREAM,
            history_out=newest,
            **outputs,
        )
        self._remember(stage, history, newest)
        return result

    def log_prob(
        self, x: torch.Tensor, models: torch.Tensor | Sequence[torch.Tensor], index: torch.Tensor, after: torch.Tensor
    ) -> torch.Tensor:
        """log density [B] of the transition from x to ``after``, a Gaussian around the step without its noise.

        Differentiable in ``models``, as policy gradients need it (Black et al. 2024, section 4.2). For plans of one noise and
        no history; a step without noise has no density, its value is NaN.
        """
        if self.history or any(row.get(d) for row in self.rows for d in ("d2", "d3")):
            raise ValueError(f"log_prob needs a plan of one noise a step and no history, got {self.name}")
        table = self.on(x.device)[0]
        mean = affine_step(x, models, table, index)
        std = table[index.expand(x.shape[0]), _D1].to(mean.dtype)
        squares = ((after - mean) ** 2).flatten(1).sum(1)
        count = x[0].numel()
        return -squares / (2 * std**2) - count * (std.log() + 0.5 * math.log(2 * math.pi)) + torch.where(std > 0, 0, torch.nan)


class Stage(NamedTuple):
    """A state inside a step: ``of_x x + sum_j of_u[j] u_j + noise``, from the state x before the step.

    u_j is the prediction at the j-th state of the step, x being the 0-th. Noise is (coefficient, counter) pairs, counter 0
    the noise that the first stage of the step introduces, 1 the second's.
    """

    point: Point
    of_x: float
    of_u: Sequence[float]
    noise: Sequence[tuple[float, int]] = ()


class Builder:
    """Collects rows. The model's kind of prediction, the clip and the input scaling are put in here, not in the samplers.

    Args:
        schedule, prediction: of the model.
        clip: bound on the predicted x0, or None.
        u: what later stages remember of a prediction: "x0", "epsilon" or "flow", made from the clipped x0.
        raw: make u from the model's prediction even where x0 is clipped.
    """

    def __init__(self, schedule: Schedule, prediction: str, clip: float | None, u: str = "x0", *, raw: bool = False):
        check_prediction("prediction", prediction)
        if clip is not None and not (clip > 0 and math.isfinite(clip)):
            raise ValueError(f"clip must be positive, got {clip}")
        self.schedule, self.prediction, self.clip, self.u = schedule, prediction, clip, u
        self.raw = raw or clip is None
        self.rows: list[dict[str, float]] = []
        self.points: list[Point] = []
        self.begins: list[int] = []
        self.replaces: set[int] = set()

    def _predicted(self, here: Point, x0: bool, u: bool) -> dict[str, float]:
        """p, q, r, s, t and the clip: x0 and u from the state and the model."""
        row: dict[str, float] = {}
        where = here.alpha, here.sigma, self.schedule.data_std
        if x0 or (u and (self.u == "x0" or not self.raw)):
            row["p"], row["q"] = convert(self.prediction, "x0", *where)
            if self.clip is not None:
                row |= {"clip_min": -float(self.clip), "clip_max": float(self.clip)}
        if u:
            if self.u == "x0":
                row["t"] = 1.0
            elif self.raw:
                row["r"], row["s"] = convert(self.prediction, self.u, *where)
            else:
                row["r"], row["t"] = convert("x0", self.u, *where)
        return row

    def stage(
        self,
        here: Point,
        *,
        a: float = 0.0,
        c_x0: float = 0.0,
        c_u: float = 0.0,
        b: Sequence[float] = (),
        noise: float | Sequence[tuple[float, int]] = 0.0,
        remembered: bool = True,
    ) -> None:
        """``x' = a x + c_x0 x0 + c_u u + sum_i b_i u_{-i} + sum_k d_k noise(n_k)``, the model evaluated at ``here``.

        ``noise`` is d of this stage's own counter, or up to three (d, n).
        """
        noises = [(noise, len(self.rows))] if isinstance(noise, (int, float)) else list(noise)
        if len(b) > 4 or len(noises) > 3:
            raise AssertionError("a step has at most 4 history terms and 3 noises")
        row = {"a": a, "c_x0": c_x0, "c_u": c_u, **self._predicted(here, c_x0 != 0, c_u != 0 or remembered)}
        row |= {f"b{i + 1}": value for i, value in enumerate(b) if value}
        for k, (d, n) in enumerate(noises):
            row |= {f"d{k + 1}": d, f"n{k + 1}": n}
        self.begins.append(len(self.rows))
        self.rows.append(row)
        self.points.append(here)

    def step(self, here: Point, stages: Sequence[Stage], b: Sequence[float] = ()) -> None:
        """A step of several stages, each written from the state before the step.

        ``b`` are coefficients of what came before the step, in its last stage only.
        """
        first = len(self.rows)
        point, of_x, of_u, noise = here, 1.0, (), ()
        for k, new in enumerate(stages):
            a = new.of_x / of_x
            past = [c - a * (of_u[j] if j < len(of_u) else 0.0) for j, c in enumerate(new.of_u[:k])]
            past += [0.0] * (k - len(past))
            terms = dict.fromkeys((n for _, n in (*new.noise, *noise)), 0.0)
            for d, n in new.noise:
                terms[n] += d
            for d, n in noise:
                terms[n] -= a * d
            last = list(b) if k == len(stages) - 1 else []
            c_u = new.of_u[k] if k < len(new.of_u) else 0.0
            noises = [(d, first + n) for n, d in terms.items() if d] or 0.0
            self.stage(point, a=a, c_u=c_u, b=[*past[::-1], *last], noise=noises)
            point, of_x, of_u, noise = new
        del self.begins[1 - len(stages) or len(self.begins) :]

    def rescale(self, factor: float) -> None:
        """The last stage's result times a factor."""
        row = self.rows[-1]
        row |= {name: row[name] * factor for name in row if name[0] in "abd" or name in ("c_x0", "c_u")}

    def plan(self, name: str, *, start: Point | None = None, churn: tuple[float, float] | None = None) -> Plan:
        """The plan; ``start`` is where the given state lies if the model is first evaluated elsewhere, ``churn`` away."""
        numbers = [v for row in self.rows for key, v in row.items() if not key.startswith("clip")]
        if not all(math.isfinite(v) for v in numbers):
            raise ValueError(
                f"{name} has no finite coefficients: an option is NaN or infinite, or spacing starts at pure noise (alpha 0)"
            )
        scales = [self.schedule.input_scale(p.alpha, p.sigma) for p in self.points]
        for row, scale in zip(self.rows, [*scales[1:], 1.0], strict=True):
            row["c_in"] = scale
        return Plan(
            name,
            np.array([self.schedule.model_time(*p) for p in self.points]),
            tuple(self.rows),
            history=max((i for row in self.rows for i in range(1, 5) if f"b{i}" in row), default=0),
            noisy=churn is not None or any(row.get(f"d{k}") for row in self.rows for k in (1, 2, 3)),
            points=tuple(self.points),
            start_std=self.schedule.start_std(start or self.points[0]),
            start_scale=scales[0],
            start_churn=churn,
            begins=tuple(self.begins),
            remembers=self.u,
            replaces=frozenset(self.replaces),
        )


def inpaint(
    plan: Plan, known: torch.Tensor, mask: torch.Tensor, seeds: torch.Tensor, *, noised: bool = True
) -> Callable[[int, torch.Tensor], None]:
    """A callback for :func:`sample`: where ``mask`` is true, the state is ``known``, noised to the level of each stage.

    Its noise is the start's, so the known part lies on one straight path from there to itself.

    Args:
        plan: being run.
        known: [B, ...], float32. mask: bool, broadcast against it. seeds: int64 [B].
        noised: False for models that see the known part at no noise; then put it into the start, too. Where the known part is
            frames or a rectangle, ``sample(region=...)`` does without this pass.
    """

    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"mask must be a bool tensor, got {getattr(mask, 'dtype', type(mask).__name__)}")

    def callback(stage: int, x: torch.Tensor) -> None:
        if known.shape != x.shape:
            raise ValueError(f"known must have the shape of the state, {tuple(x.shape)}, got {tuple(known.shape)}")
        if not noised:
            x.copy_(torch.where(mask, known.to(x.dtype), x))
            return
        last = stage + 1 == len(plan)
        alpha, sigma = (1.0, 0.0) if last else (plan.points[stage + 1].alpha, plan.points[stage + 1].sigma)
        x.copy_(torch.where(mask, add_noise(known.to(x.dtype), alpha, sigma, seeds, stream=INITIAL_STREAM), x))

    return callback


def _learned_noise(plan: Plan, stage: int, said: torch.Tensor, seeds: torch.Tensor, noise: Any) -> torch.Tensor | None:
    """Noise of the variance that the model says."""
    if plan.learned[stage] is None:
        return torch.zeros_like(said)
    low, high = plan.learned[stage]
    log_variance = said if plan.log_variance else low + (said + 1) / 2 * (high - low)
    z = randn(seeds, said.shape[1:], stream=SAMPLER_STREAM, step=stage, dtype=said.dtype) if noise is None else noise(stage)
    return (log_variance / 2).exp() * z


def initial_noise(
    shape: Sequence[int],
    seeds: torch.Tensor | Sequence[int],
    std: float,
    device: torch.device,
    dtype: torch.dtype,
    x: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(state to start from: noise of the seeds, or a copy of x; seeds on the device)."""
    if isinstance(seeds, str) or not hasattr(seeds, "__iter__"):
        raise TypeError(f"seeds must be an int64 tensor or a sequence of ints, got {type(seeds).__name__}")
    seeds = seeds.to(device) if isinstance(seeds, torch.Tensor) else torch.tensor(list(seeds), dtype=torch.int64, device=device)
    if x is None:
        x = randn(seeds, shape, stream=INITIAL_STREAM, device=device, dtype=dtype)
        return x if std == 1 else x.mul_(std), seeds
    if tuple(x.shape) != (len(seeds), *shape):
        raise ValueError(f"x must have shape {(len(seeds), *shape)}, got {tuple(x.shape)}")
    return (x.clone() if x.dtype == dtype and x.device == device else x.to(device, dtype, copy=True)), seeds


def _region(region: Sequence[slice] | None, shape: Sequence[int], x_given: bool) -> tuple[tuple[slice, ...], dict[str, Any]]:
    """(index of a batch, the window of noise) of a region."""
    if region is None:
        return (slice(None),), {}
    if not x_given:
        raise ValueError("x must be given with region: it holds what is known, got None")
    if len(region) > len(shape):
        raise ValueError(f"region must have at most {len(shape)} slices, got {len(region)}")
    whole = [*region, *[slice(None)] * (len(shape) - len(region))]
    for part in whole:
        if not isinstance(part, slice):
            raise TypeError(f"region must be slices, got {type(part).__name__}")
        if part.step not in (None, 1):
            raise ValueError(f"region must be of slices of step 1, got {part}")
    offset = [part.indices(size)[0] for part, size in zip(whole, shape, strict=True)]
    return (slice(None), *whole), {"offset": offset, "global_shape": list(shape)}


@torch.no_grad()
def sample(
    model: Model,
    plan: Plan,
    shape: Sequence[int],
    seeds: torch.Tensor | Sequence[int],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    x: torch.Tensor | None = None,
    noise: Callable[[int], torch.Tensor] | None = None,
    region: Sequence[slice] | None = None,
    adapt: Sequence[Callable[..., torch.Tensor]] = (),
    callback: Callable[[int, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Runs a plan from noise to samples; the same bits for every batch split, thread count and instruction set of the steps.

    The state is float32 throughout (float64 for a float64 model); a model in bfloat16 or float16 gets its input from the same
    pass. Nothing here waits for the device, so a captured loop is one CUDA graph.

    Args:
        model: ``model(x, t)`` with x [B, *shape] of ``dtype`` and t [B] returns the plan's prediction, or a tuple of up to
            three for :func:`guided`.
        plan: from a sampler.
        shape: of one sample.
        seeds: int64 [B]; sample b depends on ``seeds[b]`` alone.
        device, dtype: where the model runs, and in what.
        x: start from this state instead of noise; it belongs to the first point of the plan.
        noise: ``noise(n)`` gives the n-th standard normal [B, *shape] in place of ``pyfold.randn(..., stream=1, step=n)``: a
            ``torch.Generator``'s, say.
        region: slices of one sample, outside of which ``x`` (then required) is known and kept as it is, at no noise: the first
            frames of a video, say, or what surrounds a rectangle. The model sees the whole; tell it there of each element's
            own time, 0 where it is known. Elements inside have the noise that they have without a region.
        adapt: changes of each sample's coefficients by what the model said, such as ``pyfold.diffusion.rescale(0.7)``.
        callback: called after each stage with its number and the state, which it may change in place (a mask, say).

    Returns:
        float32 [B, *shape], or float64.
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"plan must be a pyfold.diffusion.Plan, got {type(plan).__name__}")
    device = torch.device(device)
    state = torch.float64 if dtype == torch.float64 else torch.float32
    x_given = x is not None
    x, seeds = initial_noise(shape, seeds, plan.start_std, device, state, x)
    inside, window = _region(region, shape, x_given)
    crop = (lambda whole: whole) if region is None else (lambda whole: whole[inside])
    part = crop(x)
    if plan.start_churn is not None:
        keep, add = plan.start_churn
        n = len(plan)
        if noise is None:
            add_noise(part, keep, add, seeds, stream=SAMPLER_STREAM, step=n, out=part, **window)
        else:
            part.copy_(keep * part + add * crop(noise(n)).to(x))
    separate = dtype != state or plan.scales_input
    model_input = (x * plan.start_scale).to(dtype) if separate else x
    history: list[torch.Tensor] = []
    next_input = crop(model_input) if separate else None
    fixed = {"out": part, "next_input": next_input, **window}
    direct = not torch.compiler.is_compiling()
    plain = region is None and not (adapt or plan.learned or noise is not None or plan.base_output is not None)
    table, drawn = plan.on(device)[0], seeds if plan.noisy else None
    for i, (time, counter) in enumerate(plan._stages(device, len(seeds))):
        models = model(model_input, time)
        if plain:
            # What plan.step does, without what it asks again at each stage; small ones are direct calls.
            entry = plan._next_entry(i, history, x) if plan.history else None
            operands = x, models, table, counter, None, history, drawn, SAMPLER_STREAM, x, entry, next_input, None
            if not direct or _C.affine_step(*operands) is None:
                affine_step(x, models, table, counter, history=history, seeds=drawn, history_out=entry, **fixed)
            if entry is not None:
                plan._remember(i, history, entry)
        else:
            given = None
            if plan.learned:
                models, said = models.chunk(2, dim=1)
                given = _learned_noise(plan, i, said, seeds, noise)
            elif noise is not None:
                row = plan.rows[i]
                terms = [row[f"d{k}"] * noise(int(row[f"n{k}"])) for k in (1, 2, 3) if row.get(f"d{k}")]
                given = sum(terms).to(x) if terms else torch.zeros_like(x)
            given = None if given is None else crop(given).to(x.dtype)
            models = [crop(m) for m in ([models] if isinstance(models, torch.Tensor) else models)]
            plan.step(part, models, counter, history=history, seeds=seeds, noise=given, adapt=adapt, stage=i, **fixed)
        if callback is not None:
            callback(i, x)
            if separate:
                model_input.copy_(x * plan.rows[i].get("c_in", 1.0))
    return x
