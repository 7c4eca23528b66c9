"""Samplers as data: a :class:`Plan` is a table of ``affine_step`` coefficients, made of the formulas of a sampler's rule.

No sampler needs a base state. Where a formula starts a later stage from the state before the step, that state is affine in
the present one, the ``u`` of the stages between, and their noise, which its counter makes again; ``Rows`` solves for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from pyfold.diffusion.draws import Addresses, stream_and_step
from pyfold.diffusion.formulas import BASE, KEPT_AS, Form, Step, U, X, row
from pyfold.diffusion.loop import outputs_of
from pyfold.diffusion.loop import stage as run_stage
from pyfold.diffusion.predictions import check_prediction, convert
from pyfold.diffusion.schedule import Point, Schedule, check_number
from pyfold.ops import AFFINE_STEP_COLUMNS, affine_step, affine_table, randn
from pyfold.ops._tensors import accumulation

_D1 = AFFINE_STEP_COLUMNS.index("d1")
Adaptations = Sequence[Callable[..., torch.Tensor]]


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
        draws: the addresses (pyfold.diffusion.draws) of the noise that each stage brings in, and behind them that of
            ``start_churn``'s.
        step_starts: the stages at which the sampler's steps start; the stages between are inside a step.
        overwrites: the stages whose u takes the place of the newest earlier one instead of being put in front of it.
        prediction, data_std: what the model predicts, and the data's standard deviation in "F" and "trigflow".
        base_output: which of the model's outputs enters the step once more, with the rows' a_base.
        learned: (least, greatest) logarithm of the noise's variance at each stage, None for no noise, where the second half of
            the model's channels says which: the logarithm itself for ``log_variance``, else a part from -1 to 1.
        log_variance: what the second half of the channels means, as above.

    Example:
        >>> plan = pyfold.diffusion.heun(pyfold.diffusion.vp_linear(), 3)
        >>> len(plan), plan.name, plan.noisy  # two stages a step, and the last is a step of Euler
        (5, 'heun', False)
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
    draws: tuple[int, ...] = ()
    step_starts: tuple[int, ...] = ()
    overwrites: frozenset[int] = frozenset()
    prediction: str = ""
    data_std: float = 1.0
    base_output: int | None = None
    learned: tuple[tuple[float, float] | None, ...] = ()
    log_variance: bool = False
    _device: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        times = np.array(self.times, np.float64)
        times.flags.writeable = False
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "rows", tuple(MappingProxyType(dict(row)) for row in self.rows))

    def __reduce__(self) -> tuple[Any, ...]:
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        return _restored, ({**values, "rows": tuple(dict(row) for row in self.rows)},)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> Plan:
        """Some of the stages, whole steps: a run of one part after the other has the unbroken run's bits.

        Its noise keeps its addresses. A sampler with a history needs one list through all parts (``sample(history=)``), and a
        part behind the first needs the state, ``x=``.

        Raises:
            TypeError, ValueError: something else than a slice of stages between starts of steps.
        """
        if not isinstance(part, slice):
            raise TypeError(f"a plan is cut by slices, got {part!r}")
        start, stop, stride = part.indices(len(self))
        if stride != 1 or start >= stop or not {start, stop} <= {*self.step_starts, len(self)}:
            raise ValueError(f"a part of {self.name} must be from one of the stages {self.step_starts} to another, got {part}")
        rows, learned = self.rows[start:stop], self.learned[start:stop]
        first = start == 0
        churn = self.start_churn if first else None
        return replace(
            self,
            times=self.times[start:stop],
            rows=rows,
            noisy=churn is not None or any(learned) or any(row.get(d) for row in rows for d in ("d1", "d2", "d3")),
            points=self.points[start:stop],
            start_std=self.start_std if first else math.nan,
            start_scale=self.start_scale if first else self.rows[start - 1].get("c_in", 1.0),
            start_churn=churn,
            draws=(*self.draws[start:stop], self.draws[-1]),
            step_starts=tuple(i - start for i in self.step_starts if start <= i < stop),
            overwrites=frozenset(i - start for i in self.overwrites if start <= i < stop),
            learned=learned,
        )

    def draw(self, n: int, seeds: torch.Tensor | Sequence[int] | int, shape: Sequence[int], **options: Any) -> torch.Tensor:
        """The noise [B, *shape] that stage n brings in, or ``start_churn`` for ``n = len(plan)``: a :func:`pyfold.randn`.

        Args:
            seeds, shape, options: of :func:`pyfold.randn`.
        """
        return randn(seeds, shape, **{**options, **stream_and_step(self.draws[n])})

    @cached_property
    def scales_input(self) -> bool:
        """Whether the model sees something else than the state."""
        return any(row.get("c_in", 1.0) != 1.0 for row in self.rows) or self.start_scale != 1.0

    @cached_property
    def looks_back(self) -> tuple[int, ...]:
        """How many earlier values of u each stage needs, and the row behind the last stage."""
        return (*(max((i for i in range(1, 5) if row.get(f"b{i}")), default=0) for row in self.rows), 0)

    def on(self, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(coefficients float64 [stages + 1, 25], times float32 [stages + 1], counters int64 [stages + 1]), made once.

        The row behind the last stage keeps the state: where samples of one batch are at different stages, those that are
        done wait there.
        """
        device = torch.device(device)
        made: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = self._device.get(device)
        if made is None:
            table = affine_table([*({"a_base": 1.0, **row} for row in self.rows), {"a": 1.0}], device)
            times = torch.tensor([*self.times, self.times[-1]], dtype=torch.float32, device=device)
            made = self._device[device] = table, times, torch.arange(len(table), device=device)
        return made

    def stages(self, device: torch.device, samples: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(times [samples], counter [1]) of every stage on the device; of the last batch size asked for, made once."""
        views: list[tuple[torch.Tensor, torch.Tensor]]
        key, views = self._device.get("views", (None, []))
        if key != (device, samples):
            _, times, counters = self.on(device)
            views = list(zip(times[:-1, None].expand(-1, samples).unbind(), counters[:-1, None].unbind(), strict=True))
            self._device["views"] = (device, samples), views
        return views

    def _table(self, device: torch.device, index: torch.Tensor, at: int | None, past: int) -> torch.Tensor:
        """The rows on the device; those that look further back than ``past`` are an error, or NaN where no host may look."""
        table = self.on(device)[0]
        if past >= self.history:
            return table
        if at is not None or (index.device.type == "cpu" and not torch.compiler.is_compiling()):
            for i in (at,) if at is not None else index.reshape(-1).tolist():
                if 0 <= i < len(self.looks_back) and self.looks_back[i] > past:
                    needs = self.looks_back[i]
                    raise ValueError(f"history must hold {needs} earlier values at stage {i} of {self.name}, got {past}")
            return table
        key = device, "history", past
        if key not in self._device:
            lacks = torch.tensor([n > past for n in self.looks_back], device=device)
            self._device[key] = torch.where(lacks[:, None], torch.nan, table)
        found: torch.Tensor = self._device[key]
        return found

    def step(
        self,
        x: torch.Tensor,
        models: torch.Tensor | Sequence[torch.Tensor],
        index: torch.Tensor,
        *,
        history: list[torch.Tensor] | None = None,
        seeds: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        adapt: Adaptations = (),
        stage: int | None = None,
        **outputs: Any,
    ) -> torch.Tensor:
        """One stage, in one pass, without a look at a device.

        Args:
            x: the state [B, ...].
            models: the model's output, or several for :func:`guided`.
            index: int64 [1], or [B] with each sample at a stage of its own; or of each frame or token, as
                :func:`pyfold.affine_step` has it.
            history: the caller's list of earlier ``u``, the newest first, which outlives the steps; this stage's is put in
                front.
            seeds: int64 [B], for a plan with noise.
            noise: instead of noise from seeds, this, already scaled.
            adapt: changes of each sample's coefficients by the model's output (``pyfold.diffusion.rescale`` and others).
            stage: the number that ``index`` holds, for a plan with ``overwrites``: there all samples are at one stage.
            outputs: ``out``, ``next_input``, ``x0_out`` of :func:`pyfold.affine_step`.

        Raises:
            ValueError: what the plan needs is not given, or ``history`` holds less than the stage looks back on; for an
                index on a device, which is not read, such a sample becomes NaN.
        """
        if self.history and history is None:
            raise ValueError(f"history must be a list that outlives the steps of {self.name}, got None")
        if self.overwrites and stage is None:
            raise ValueError(f"stage must be given for {self.name}, whose stages keep u in two ways, got None")
        if self.noisy and seeds is None and noise is None:
            raise ValueError(f"seeds must be given for {self.name}, which draws noise, got None")
        base = noise
        if self.base_output is not None:
            if noise is not None:
                raise ValueError(f"noise must come from seeds for {self.name}, got a tensor")
            base = models[self.base_output].to(x.dtype)
        past = history if history is not None else []
        table = self._table(x.device, index, stage, len(past))
        place: torch.Tensor | None = index
        if adapt:
            _refuse_segments(index, "adapt=")
            table, place = table[index.expand(x.shape[0])], None
            for change in adapt:
                table = change(table, x, outputs_of(models))
        operands = {"table": table, "index": place, "base": base, "seeds": seeds if self.noisy and noise is None else None}
        return run_stage(affine_step, x, models, past, self.history, stage in self.overwrites, **operands, **outputs)

    def log_prob(
        self, x: torch.Tensor, models: torch.Tensor | Sequence[torch.Tensor], index: torch.Tensor, after: torch.Tensor
    ) -> torch.Tensor:
        """log density [B] of the transition from x to ``after``, a Gaussian around the step without its noise.

        Differentiable in ``models``, as policy gradients need it (Black et al. 2024, section 4.2). For plans of one noise and
        no history; a step without noise has no density, its value is NaN. Computed and summed in float32 or wider, whatever
        the state's dtype: in a half type the sum would not see the policy.
        """
        _refuse_segments(index, "a log-probability")
        if self.history or any(row.get(d) for row in self.rows for d in ("d2", "d3")):
            raise ValueError(f"log_prob needs a plan of one noise a step and no history, got {self.name}")
        table = self.on(x.device)[0]
        wide = accumulation(x.dtype)
        mean = affine_step(x.to(wide), models, table, index)
        std = table[index.expand(x.shape[0]), _D1].to(mean.dtype)
        squares = ((after.to(wide) - mean) ** 2).flatten(1).sum(1)
        count = x[0].numel()
        return -squares / (2 * std**2) - count * (std.log() + 0.5 * math.log(2 * math.pi)) + torch.where(std > 0, 0, torch.nan)


def _refuse_segments(index: torch.Tensor, what: str) -> None:
    if index.dim() > 1:
        raise ValueError(f"index must be one for each sample for {what}, got shape {tuple(index.shape)}")


def _restored(values: dict[str, Any]) -> Plan:
    return Plan(**values)


class Rows:
    """Collects the rows of steps. The model's kind of prediction, the clip and the input scaling are put in here.

    Args:
        schedule, prediction: of the model.
        clip: bound on the predicted x0, or None.
        keeps: what U is: "x0", "epsilon" or "flow", made from the clipped x0; "" where nothing is kept.
        raw: make U from the model's prediction even where x0 is clipped.
        before: points that the run has visited before.
    """

    def __init__(
        self,
        schedule: Schedule,
        prediction: str,
        clip: float | None,
        keeps: str,
        *,
        raw: bool = False,
        before: Sequence[Point] = (),
    ):
        check_prediction("prediction", prediction)
        if clip is not None and not (check_number("clip", clip) > 0 and math.isfinite(clip)):
            raise ValueError(f"clip must be positive, got {clip}")
        self.schedule, self.prediction, self.clip, self.keeps = schedule, prediction, clip, keeps
        self.raw = raw or clip is None
        self.rows: list[dict[str, float]] = []
        self.points: list[Point] = []
        self.step_starts: list[int] = []
        self.overwrites: set[int] = set()
        if not isinstance(before, Sequence) or not all(isinstance(point, Point) for point in before):
            raise TypeError(f"before must be points of pyfold.diffusion.Point, got {before!r}")
        self.addresses = Addresses(before)
        self.draws: list[int] = []

    def _output(self, wanted: str, here: Point, of: str = "") -> Form:
        """x0, epsilon or the flow: of the state and the model's output, or of another of them."""
        of_x, of_model = convert(of or self.prediction, wanted, here.alpha, here.sigma, self.schedule.data_std)
        return Form(x=of_x, **{of or "m": of_model})

    def _resolved(self, step: Step, prev: Form, here: Point) -> dict[str, Any]:
        """The row of a step whose ``prev`` has neither base nor noise."""
        keep, kind = step.keep, self.keeps
        if kind and kind != "x0":
            prev = prev.renamed({kind: "u"})
        if keep is not None and kind:
            own = Form(x0=1.0) if kind == "x0" else self._output(kind, here, "" if self.raw else "x0")
            if keep is not U:
                # u is something else, so the model's output enters the state through x0.
                prev, keep = prev.over(u=self._output(kind, here, "x0")), keep.over(u=own)
            else:
                keep = own
        else:
            keep = None
        needs_x0 = prev["x0"] != 0 or (keep is not None and "x0" in keep.terms)
        x0 = self._output("x0", here) if needs_x0 else None
        return row(Step(prev, keep, x0, self.clip))

    def add(self, here: Point, there: Point, steps: Step | Sequence[Step]) -> None:
        """A step between two points, or the stages of one, from the formulas that a rule gives."""
        steps = [steps] if isinstance(steps, Step) else list(steps)
        draws = self.addresses.step(here, there, [step.churns_to for step in steps])
        self.draws += draws
        # The state before this stage, of BASE and of what came in since.
        start = BASE
        for k, step in enumerate(steps):
            prev = form = step.prev.renamed({"noise": f"noise{k}"})
            if "base" in prev.terms:
                ratio = prev["base"] / start["base"]
                prev = prev.without("base") + X * ratio - start.without("base") * ratio
                # Noise that decays as the state does is in it already: what is left of it is rounding.
                prev = prev.without(*(n for n in prev.terms if n[:5] == "noise" and abs(prev[n]) < 1e-14 * abs(form[n])))
            counters = sorted((int(name[5:]), value) for name, value in prev.terms.items() if name[:5] == "noise" and value)
            made = self._resolved(step, prev, step.at or here)
            noises = [(d, draws[n]) for n, d in counters] or [(0.0, draws[k])]
            assert len(noises) <= 3, "a step has at most 3 noises"
            made |= {f"{name}{j + 1}": value for j, pair in enumerate(noises) for name, value in zip("dn", pair, strict=True)}
            made = {name: value if name[0] == "n" else float(value) for name, value in made.items()}
            if k == 0 or step.starts:
                self.step_starts.append(len(self.rows))
            if step.overwrites:
                self.overwrites.add(len(self.rows))
            self.rows.append(made)
            self.points.append(step.at or here)
            if k + 1 < len(steps):
                start = form.over(x=start).renamed({**KEPT_AS, self.keeps: "h1"})

    def plan(self, name: str, *, start: Point, churn: tuple[float, float] | None = None) -> Plan:
        """The plan; ``start`` is where the given state lies, ``churn`` away from the first evaluation."""
        numbers = [v for row in self.rows for key, v in row.items() if not key.startswith("clip")]
        if not all(math.isfinite(v) for v in numbers):
            raise ValueError(
                f"{name} has no finite coefficients: an option is NaN or infinite, or spacing starts at pure noise (alpha 0)"
            )
        scales = [self.schedule.input_scale(p.alpha, p.sigma) for p in self.points]
        rows = tuple({**row, "c_in": scale} for row, scale in zip(self.rows, [*scales[1:], 1.0], strict=True))
        return Plan(
            name,
            np.array([self.schedule.model_time(*p) for p in self.points]),
            rows,
            history=max((i for row in rows for i in range(1, 5) if f"b{i}" in row), default=0),
            noisy=churn is not None or any(row.get(f"d{k}") for row in rows for k in (1, 2, 3)),
            points=tuple(self.points),
            start_std=self.schedule.start_std(start),
            start_scale=scales[0],
            start_churn=churn,
            draws=(*self.draws, 0 if churn is None else self.addresses.churn(self.points[0])),
            step_starts=tuple(self.step_starts),
            overwrites=frozenset(self.overwrites),
            prediction=self.prediction,
            data_std=self.schedule.data_std,
        )
