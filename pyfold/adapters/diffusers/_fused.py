"""What all schedulers share: a sampler's rule between two of their levels, made one row of ``pyfold.affine_step`` and run."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from diffusers import schedulers as theirs
from diffusers.utils.torch_utils import randn_tensor
from torch.compiler import is_compiling

from pyfold._torch_private import version
from pyfold.adapters.diffusers._float32 import Float32Step
from pyfold.adapters.diffusers._graph import describe, named_step, numbers, register, step_in_graph
from pyfold.adapters.diffusers._rows import (
    HALF,
    Counted,
    Operands,
    Step,
    T,
    Written,
    _read,
    _table,
    as_dtype,
    check_seeds_given,
    seed_tensor,
)
from pyfold.adapters.k_diffusion import SCHEDULE
from pyfold.diffusion import formulas
from pyfold.diffusion.draws import address, level_bits
from pyfold.diffusion.formulas import X0, Form, M, X
from pyfold.diffusion.guidance import dynamic_threshold
from pyfold.diffusion.predictions import convert
from pyfold.diffusion.samplers import Past, Sampler
from pyfold.diffusion.schedule import Point
from pyfold.ops import add_noise, affine_step
from pyfold.ops._tensors import accumulation

W = TypeVar("W")
#: Their names for what a model predicts, and ours.
PREDICTIONS = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
#: Classes that they export only beside packages which these do not use.
_MODULES = {"KarrasVeScheduler": "deprecated.scheduling_karras_ve", "ScoreSdeVpScheduler": "deprecated.scheduling_sde_vp"}
_OUTPUTS = ("DDIMSchedulerOutput", "KarrasVeOutput", "SdeVeOutput", "SchedulerOutput")
#: What diffusers' steps call and pyfold's compute themselves.
_HOOKS = ("convert_model_output", "_threshold_sample", "_get_variance", "_batch_get_variance", "_get_prev_sample")


_STEPS = {"step", "step_pred", "step_correct"}


def _refuse_hooks(cls: type) -> None:
    """A user's class may override ``step``, but not parts of it that would be left out without a word."""
    if "step" in vars(cls):
        return
    for name in vars(cls):
        if name in _HOOKS or name.endswith("_update"):
            raise TypeError(
                f"{cls.__name__} overrides {name}, which pyfold's step does not call: override step as well, or derive from "
                "diffusers' own class"
            )


def _whole_in_graphs(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step that the compiler leaves whole, an operator of its graph: it cannot trace how rows are looked up on the host."""
    eager: Callable[..., Any] = torch.compiler.disable(step)  # type: ignore[no-untyped-call]
    name = named_step(step)

    @wraps(step)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._eager or not is_compiling():
            return step(self, *args, **kwargs)
        traced = self._traced_step(*args, **kwargs)
        if traced is NotImplemented:
            traced = step_in_graph(self, name, args, kwargs)
        return eager(self, *args, **kwargs) if traced is NotImplemented else traced

    return called


def _original(name: str) -> Any:
    """diffusers' class of that name; None where the installed version has none."""
    try:
        module = import_module(f"diffusers.schedulers.{_MODULES[name]}") if name in _MODULES else theirs
    except ModuleNotFoundError:
        return None
    return getattr(module, name, None)


class _BesideTheirs(type):
    """A scheduler here has diffusers' class of its name as its last base; it is ``_absent`` where diffusers has none."""

    def __new__(mcls, name: str, bases: tuple[type, ...], space: dict[str, Any]) -> Any:
        space.setdefault("__module__", sys._getframe(1).f_globals.get("__name__"))
        if name.endswith("Scheduler") and space["__module__"].startswith(f"{__package__}."):
            original = _original(name)
            if original is None:
                return super().__new__(mcls, name, bases, {**space, "_absent": True})
            bases = (*bases, original)
            if type(bases[-1]) is not type:
                # Their placeholder for a package that is not installed.
                mcls = type(mcls.__name__, (mcls, type(bases[-1])), {})
        return super().__new__(mcls, name, bases, space)

    if TYPE_CHECKING:

        def __getattr__(cls, name: str) -> Any: ...


class _Table:
    """A table of diffusers' as it was read, and a look whether it still is, whoever edits it."""

    def __init__(self, table: Any):
        self.table, self._place = table, 0
        self._look: Callable[[], Any]
        if isinstance(table, torch.Tensor):
            self.values = table.detach().cpu().double().numpy().copy()
            if table.is_cpu:
                # NumPy's view sees what torch's version does not count; once the tensor has other memory, it is not looked at.
                self._look, self._place = table.detach().numpy().tobytes, table.data_ptr()
            else:
                self._look = lambda: -1 if table.is_inference() else version(table)
        else:
            self.values = np.array(table, dtype=np.float64)
            self._look = table.tobytes if isinstance(table, np.ndarray) else lambda: tuple(table)
        self._state = self._look()

    def is_still(self, table: Any) -> bool:
        moved = table is not self.table or (self._place and table.data_ptr() != self._place)
        return not moved and self._look() == self._state


def _same(settings: dict[str, Any], before: dict[str, Any]) -> bool:
    """Equal settings; arrays among them are the same where they are one object."""
    try:
        return settings == before
    except (RuntimeError, ValueError):
        return False


@dataclass
class _Memory:
    """What a scheduler here holds beside diffusers' own: tables in float64, rows made of them and of settings, and seeds."""

    host: dict[str, _Table] = field(default_factory=dict)
    rows: dict[Any, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    seeds: Any = None
    way: Any = None
    stages: list[T] = field(default_factory=list)
    number: int = field(default_factory=numbers.__next__)
    #: What the last step in a compiled graph gave, for the next to come after it.
    order: T = field(default_factory=lambda: torch.zeros(()))

    def __reduce__(self) -> Any:
        """A copy has tables of its own, and reads them."""
        return _Memory, (), {"seeds": self.seeds, "way": self.way, "stages": self.stages}


class Fused(metaclass=_BesideTheirs):
    """Mixin before a scheduler of diffusers: what is below replaces its arithmetic, everything else stays.

    Every ``step`` takes diffusers' arguments and ``seeds=``, an int or one for each sample: the noise is then made inside the
    kernel, a function of seed and level alone, the same for every batch split and device. Else it is drawn by torch exactly as
    diffusers draws it. ``timestep`` may be one for each sample where a step needs no history.
    """

    _absent = False
    #: Of a copy that is tried while the compiler traces.
    _eager = False
    _output: Any
    _memory: _Memory
    #: diffusers' own state, which is written here too.
    _step_index: Any
    sample: Any
    prev_derivative: Any
    dt: Any
    model_outputs: list[Any]
    last_sample: Any
    lower_order_nums: int

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        scheduler = super().__new__(cls)
        scheduler._memory = _Memory()
        register(scheduler)
        # A saved pipeline names the module of its scheduler: diffusers', so that it loads without pyfold too.
        if cls.__module__ == __package__ and hasattr(theirs, cls.__name__):
            scheduler.__dict__["__module__"] = theirs.__name__
        return scheduler

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._memory = copy.copy(self._memory)
        register(self)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Pickles name the public module.
        if cls.__module__.startswith(f"{__package__}."):
            cls.__module__ = str(__package__)
            for name in _STEPS & vars(cls).keys():
                setattr(cls, name, _whole_in_graphs(vars(cls)[name]))
        else:
            _refuse_hooks(cls)
        original = next((c for c in cls.__mro__ if c.__module__.startswith("diffusers.")), None)
        if original is not None:
            module = sys.modules[original.__module__]
            names = (f"{cls.__name__}Output", *_OUTPUTS)
            cls._output = next((getattr(module, name) for name in names if hasattr(module, name)), None)

    def _traced_step(self, *args: Any, **kwargs: Any) -> Any:
        """A step in what the compiler traces, its row made of tensors; NotImplemented where there is none."""
        return NotImplemented

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def _described(self, _: Any, *call: Any) -> Any:
        """:func:`describe`, while the compiler traces."""
        return describe(self, *call)

    def set_seeds(self, seeds: int | Sequence[int] | T | None) -> None:
        """Noise from seeds for all steps, whatever generator they are given; None ends it.

        A draw is named by the noise level that it leads to (docs/noise.md, "A sampler's draws"), as in pyfold's own samplers: a
        run that starts at a strength below 1, is resumed, or is split draws what the whole draws.

        Args:
            seeds: one for each sample, ints of 64 bits, an int64 tensor or keys, uint64 [B, 2]; or an int, from which the
                samples count, modulo 2^64.

        Raises:
            TypeError: other seeds. ValueError: an int of more than 64 bits.
        """
        if seeds is not None:
            check_seeds_given(seeds)
        self._memory.seeds, self._memory.way = seeds, None

    def keep_float32(self, keep: bool = True) -> None:
        """A float32 state between the steps of a half-precision pipeline; False ends it.

        The pipeline gets each state rounded to its own dtype, and the next step goes on from the float32 one. A state that
        the pipeline changed in between is taken as it is.
        """
        if keep:
            self.__dict__["step"] = Float32Step(self)
        else:
            self.__dict__.pop("step", None)

    # --- tables on the host, and rows on the device, both kept as long as diffusers' tables stay as they are

    def _host(self, name: str) -> Any:
        """A table of diffusers' in float64; those that are read once are looked at before rows are used again."""
        table, memory = getattr(self, name), self._memory
        seen = memory.host.get(name)
        if seen is None or not seen.is_still(table):
            before, seen = seen, _Table(table)
            if before is not None and not np.array_equal(before.values, seen.values, equal_nan=True):
                memory.rows.clear()
            memory.host[name] = seen
        return seen.values

    def _on(self, name: str, device: torch.device) -> T:
        """The same table on a device, for coefficients that never leave it."""
        values, rows = self._host(name), self._memory.rows
        if (name, device) not in rows:
            with torch.inference_mode(False):
                rows[name, device] = torch.from_numpy(values).to(device)
        on_device: T = rows[name, device]
        return on_device

    def _in_places(self, name: str, places: T) -> T:
        """The table's values in places that :meth:`_places` found, and NaN where it found none."""
        return torch.where(places < 0, math.nan, self._on(name, places.device)[places])

    def _current_rows(self) -> dict[Any, Any]:
        """The rows, if tables and settings are those that they were computed from; else none.

        A setting is an attribute of the configuration, as diffusers' own steps read it, so one that is changed on a live
        scheduler counts at once.
        """
        memory, settings = self._memory, self._internal_dict.__dict__
        for name, seen in memory.host.items():
            if not seen.is_still(getattr(self, name)):
                self._host(name)
        if not _same(settings, memory.settings) or len(memory.rows) > 4096:
            memory.rows.clear()
            memory.settings = {name: [*v] if isinstance(v, list) else v for name, v in settings.items()}
        return memory.rows

    def _number(self, timestep: Any) -> Any:
        """A timestep on the host; one of ``self.timesteps`` is known by its place there, without a look at the device."""
        if not isinstance(timestep, torch.Tensor):
            return timestep
        own = self.timesteps
        if timestep.device.type != "cpu" and isinstance(own, torch.Tensor) and own.device == timestep.device:
            if timestep.untyped_storage().data_ptr() == own.untyped_storage().data_ptr() and timestep.dtype == own.dtype:
                value = self._host("timesteps")[timestep.storage_offset() - own.storage_offset()]
                return float(value) if own.is_floating_point() else int(value)
        return timestep.item()

    def _numbers(self, timestep: Any) -> Any:
        """A number, or a list of one for each sample."""
        return timestep.tolist() if isinstance(timestep, torch.Tensor) and timestep.numel() > 1 else self._number(timestep)

    def _ready(self) -> None:
        if self.num_inference_steps is None:
            raise ValueError("set_timesteps must be called before step, num_inference_steps is None")

    def _enter(self, timestep: Any) -> Any:
        """The index of this step in the tables, or one for each sample."""
        if isinstance(timestep, torch.Tensor) and timestep.numel() > 1:
            # An expanded one needs no look at the device.
            if any(timestep.stride()) and len(set(timestep.flatten().tolist())) > 1:
                return [self.index_for_timestep(t) for t in timestep]
            # One for all after all; a scheduler that is under way does not look at it.
            timestep = timestep.flatten()[0]
        if self._step_index is None:
            self._init_step_index(timestep)
            own: Sequence[float] = (
                self._host("timesteps") if self._step_index == 1 and getattr(self, "begin_index", None) is None else ()
            )
            if len(own) > 1 and own[0] == own[1]:
                # Theirs looks a timestep up, finds the second of two that are equal, and runs out of steps at the end.
                self._step_index = 0
        return self._step_index

    def _enter_together(self, timestep: Any) -> int:
        """The index of this step, which all samples take together because it has a history."""
        place = self._enter(timestep)
        if isinstance(place, list):
            raise ValueError(f"timestep must be one for all samples of {type(self).__name__}, got {timestep.tolist()}")
        return int(place)

    def _advance(self, i: Any) -> None:
        if not isinstance(i, list):
            self._step_index += 1

    # --- noise

    def _way(self, make: Callable[[], W]) -> W:
        """What a scheduler whose run returns to levels remembers of its way; set_timesteps and set_seeds begin another."""
        memory = self._memory
        if memory.way is None or memory.way[0] is not self.timesteps:
            memory.way = self.timesteps, make()
        way: W = memory.way[1]
        return way

    def _draw_at(self, there: Point, visit: int = 0, draw: int = 0) -> Any:
        """The address of a draw that leads to a level, or to one for each sample."""
        on_device = isinstance(there.alpha, torch.Tensor)
        return address(there.sigma / there.alpha if on_device else there.ratio, visit, draw)

    def _visit(self, place: int, stages: int = 1) -> int:
        """How often a run down the table has been at the level of a place before it.

        Args:
            stages: places that a step takes.
        """
        table, rows = self._host("sigmas"), self._memory.rows
        if "levels" not in rows:
            rows["levels"] = np.array([level_bits(self._at(j).ratio) for j in range(len(table))])
        return int((rows["levels"][:place:stages] == rows["levels"][place]).sum())

    def _draw(
        self,
        like: T,
        generator: Any,
        seeds: Any,
        *,
        given: T | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> T | Counted:
        """The given noise, the kernel's, or torch's in the shape of ``like``."""
        if given is not None:
            if seeds is not None:
                raise ValueError("seeds must not be given together with noise")
            return given.to(like.device)
        if seeds is not None and generator is not None:
            raise ValueError("seeds and generator must not be given together")
        # A pipeline passes the generator of its initial noise to every step; set_seeds is said to this scheduler alone.
        seeds = self._memory.seeds if seeds is None else seeds
        if seeds is not None:
            return Counted(seed_tensor(seeds, like.shape[0], like.device))
        drawn: T = randn_tensor(like.shape, generator=generator, device=device or like.device, dtype=dtype or like.dtype)
        return drawn if device is None or like.is_cpu else drawn.to(like.device)

    # --- what a step means

    def _bound(self) -> float | str | None:
        """The clip that the configuration asks for."""
        if getattr(self.config, "thresholding", None):
            return "dynamic"
        return float(getattr(self.config, "clip_sample_range", 1.0)) if getattr(self.config, "clip_sample", None) else None

    def _means(self, wanted: str, at: Point) -> Form:
        """x0, epsilon or the flow: of the state and the model's output, before a clip."""
        prediction = getattr(self.config, "prediction_type", "epsilon")
        if prediction not in PREDICTIONS:
            raise ValueError(
                f"prediction_type must be one of {', '.join(PREDICTIONS)} for {type(self).__name__}, got {prediction!r}"
            )
        of_x, of_model = convert(PREDICTIONS[prediction], wanted, at.alpha, at.sigma)
        return Form(x=of_x, m=of_model)

    def _epsilon_sigma(self, at: Point) -> float:
        """What epsilon of an x0 is divided by."""
        return at.sigma

    def _follow(
        self,
        sampler: Sampler,
        here: Point,
        there: Point,
        past: Sequence[Point] = (),
        *,
        stage: int = 0,
        u: str | Form = "",
        keep: bool = False,
        x0: Form | None = None,
        raw: bool = False,
        shows: bool = True,
        visit: int = 0,
        **options: Any,
    ) -> Step:
        """A stage of a sampler's rule between two levels, with what this scheduler's model means in it.

        Args:
            past: the levels before, the newest first.
            u: what U is: "x0", "epsilon" or a formula. keep: whether the step keeps it.
            x0: what the model says of it, where that is not what it means at the level.
            raw: epsilon is the model's own where x0 is clipped.
            shows: x0 may be asked for; else it is left out where nothing needs it. options: of the rule.
            visit: how often the run has been at the level where its noise leads.
        """
        way = Past((*past[::-1], here, there), len(past), SCHEDULE)
        steps = sampler.rule(here, there, way, **options)
        step = steps if isinstance(steps, formulas.Step) else steps[stage]
        meant = self._meant(step.prev, step.at or here, u, keep, x0, raw, shows)
        return replace(meant, draw=self._draw_at(there, visit, stage))

    def _meant(
        self, prev: Form, at: Point, u: str | Form = "", keep: bool = False, x0: Form | None = None, raw: bool = False,
        shows: bool = True,
    ) -> Step:  # fmt: skip
        """The step of X, M, the clipped X0, BASE, H and N alone."""
        clip, own = self._bound(), x0

        def form(wanted: str) -> Form:
            if x0 is None and (clip is None or (raw and wanted != "x0")):
                return self._means(wanted, at)
            clean = X0 if clip is not None or x0 is None else x0
            return clean if wanted == "x0" else (X - clean * at.alpha) / self._epsilon_sigma(at)

        if own is None and (shows or clip is not None):
            own = self._means("x0", at)
        kept = u if isinstance(u, Form) else form(u) if u else Form()
        meanings = {name: form(name) for name in ("x0", "epsilon") if name in prev.terms}
        return Step(prev.over(u=kept, **meanings), keep=kept if keep else None, x0=own, clip=clip)

    # --- the step

    def _fuse(
        self,
        i: Any,
        rule: Callable[[Any], Step],
        x: T,
        model: T,
        *,
        base: T | None = None,
        history: Sequence[T] = (),
        noise: T | Counted | None = None,
        show: bool = False,
        upcast: bool = False,
        copies: list[T] | None = None,
    ) -> tuple[T, T | None, T | None]:
        """(next state, kept, x0) of the step that ``rule(i)`` writes.

        Args:
            i: what the rule is called with; a list of them for one row each. The rows are kept for it, for what the rule
                closes over, and for the tables and settings: a rule reads nothing else of the scheduler.
            base, history, noise: the tensors that BASE, H and N stand for.
            show: return x0.
            upcast: make a half-precision state float32, as diffusers does, so that x0 has the model's dtype or float32.
            copies: gets a copy of the next state, written in the same pass.
        """
        given = Operands(x.float() if upcast and x.dtype in HALF else x, model, base, history, noise)
        written = self._written(i, rule, given, show)
        shows = show and written.steps[0].clip != "dynamic"
        prev, kept, x0 = self._run(written, given, shows, copies)
        if written.separate is not None and isinstance(noise, torch.Tensor):
            prev = affine_step(prev, noise.to(given.x), written.separate)
            if copies is not None:
                copies[-1] = prev.detach().clone()
        if not show:
            return prev, kept, None
        kept, x0 = (kept, x0) if shows else (None, kept)
        # A model that says x0 itself says it in its own dtype.
        itself = getattr(self.config, "prediction_type", None) in ("sample", "original_sample")
        if x0 is not None and (itself or upcast):
            x0 = as_dtype(x0, model.dtype if itself else accumulation(model.dtype))
        return prev, kept, x0

    def _written(self, i: Any, rule: Callable[[Any], Step], given: Operands, show: bool) -> Written:
        """The rows of a step, kept or made."""
        rows, read = self._current_rows(), _read(rule)
        place = tuple(i) if isinstance(i, list) else i
        key = (read, place, given.slot, given.counted, show, len(given.history), given.x.device)
        written: Written | None = None if read is None else rows.get(key)
        if written is None:
            each = i if isinstance(i, list) else [i]
            # Made under inference mode, they could never serve a step with gradients.
            with np.errstate(all="ignore"), torch.inference_mode(False):
                written = given.write([rule(j) for j in each], show)
            if read is not None:
                rows[key] = written
        return written

    def _run(self, written: Written, given: Operands, shows: bool, copies: list[T] | None) -> tuple[T, T | None, T | None]:
        """The pass; with a gradient one output a pass, in torch operations."""
        step, x, model = written.steps[0], given.x, given.model
        history = [*given.history, as_dtype(model, x.dtype)] if step.model_last else given.history
        seeds = given.noise.seeds if isinstance(given.noise, Counted) else None
        table = self._bounded(written, written.table, x, model)
        kept, x0, copy = None, None, None
        if given.needs_grad:
            prev = affine_step(x, model, table, base=given.base, history=history, seeds=seeds)
            kept = self._alone(written, [one.keep for one in written.steps], x, model)
            x0s = [one.x0 if one.clip is None else X0 for one in written.steps] if shows else [None]
            x0, copy = self._alone(written, x0s, x, model), prev.detach().clone()
        else:
            if step.keep is not None:
                kept = torch.empty_like(x)
            if shows:
                x0 = torch.empty_like(x)
            if copies is not None:
                copy = torch.empty_like(x)
            prev = affine_step(
                x, model, table, base=given.base, history=history, seeds=seeds, history_out=kept, x0_out=x0, next_input=copy
            )
        if copies is not None and copy is not None:
            copies.append(copy)
        return prev, kept, x0

    def _bounded(self, written: Written, table: T, x: T, model: T) -> T:
        """Rows with the bound of each sample's x0, where it is dynamic."""
        if written.steps[0].clip != "dynamic":
            return table
        most = self.config.sample_max_value
        change = dynamic_threshold(self.config.dynamic_thresholding_ratio, min(1.0, most), most)
        return change(table.expand(x.shape[0], -1), x, (model,))

    def _alone(self, written: Written, wanted: Sequence[Form | None], x: T, model: T) -> T | None:
        """A form of x, model and x0 by a pass of its own."""
        steps = [
            Step(form, None, one.x0, one.clip) for form, one in zip(wanted, written.steps, strict=False) if form is not None
        ]
        if not steps:
            return None
        table = _table([formulas.row(step) for step in steps], x.device)
        return affine_step(x, model, self._bounded(written, table, x, model))

    def _finish(self, return_dict: bool, *outputs: Any) -> Any:
        return self._output(*outputs) if return_dict else outputs

    # --- linear combinations with coefficients on the device

    def _combine(self, x: T, of_x: Any, noise: T | None, of_noise: Any, seeds: Any) -> T:
        """``of_x x + of_noise noise``, the coefficients numbers or tensors of one for each sample."""
        samples = max(x.shape[0], *(c.numel() for c in (of_x, of_noise) if isinstance(c, torch.Tensor)), 1)
        if noise is not None:
            samples = max(samples, noise.shape[0])
        x = x.expand(samples, *x.shape[1:])
        if noise is None:
            seeds = self._memory.seeds if seeds is None else seeds
            if seeds is None:
                raise ValueError("noise must be given, or seeds, got neither")
            noised: T = add_noise(x, of_x, of_noise, seed_tensor(seeds, samples, x.device))
            return noised
        if seeds is not None:
            raise ValueError("seeds must not be given together with noise")
        noise = noise.to(x.device)
        if noise.shape != x.shape:
            shape = torch.broadcast_shapes(x.shape, noise.shape)  # type: ignore[no-untyped-call]
            x, noise = x.expand(shape), noise.expand(shape)
        return self._fuse(0, lambda _: Step(X * of_x + M * of_noise), x, noise)[0]

    def _scaled(self, sample: T, i: Any, factor: Callable[[Any], Any]) -> T:
        """The model's input: the state times a number."""
        return self._fuse(i, lambda j: Step(X * factor(j)), sample, sample)[0]

    def _places(self, timesteps: T, device: torch.device, last_if_missing: bool = False, from_begin: bool = True) -> T:
        """The index of each timestep in the tables: the second where it stands twice, as diffusers has it.

        One that is not there is an error where the host may look, and else -1.

        Args:
            last_if_missing: of a timestep that is not in them, instead of an error.
            from_begin: where a pipeline has set the first index, that one or the present.
        """
        own = self.timesteps.to(device)
        timesteps = timesteps.to(device).reshape(-1)
        if from_begin and getattr(self, "begin_index", None) is not None:
            start = self.step_index if self.step_index is not None else self.begin_index
            return torch.full((len(timesteps),), start, device=device)
        found = own[None] == timesteps[:, None]
        count = found.cumsum(1)
        total = count[:, -1:]
        if not last_if_missing and device.type == "cpu" and not bool((total > 0).all()):
            missing = timesteps[(total == 0).flatten()].tolist()
            raise IndexError(f"timesteps must be from scheduler.timesteps, got {missing}")
        place = (found & (count == total.clamp(max=2))).to(torch.uint8).argmax(1)
        return torch.where(total[:, 0] > 0, place, len(own) - 1 if last_if_missing else -1)


class StretchesFlows(Fused):
    """``shift_terminal``, of one step too."""

    def stretch_shift_to_terminal(self, t: Any) -> Any:
        """Noise levels from 1 stretched so that the last is ``shift_terminal``; one step has none to stretch, and stays."""
        return t if len(t) < 2 else super().stretch_shift_to_terminal(t)  # type: ignore[misc]  # diffusers' class has it


def refuse_integers(scheduler: Any, timestep: Any) -> None:
    """Places in a list are not timesteps."""
    if isinstance(timestep, int) or (isinstance(timestep, torch.Tensor) and not timestep.is_floating_point()):
        raise ValueError(
            f"timestep must be one of {type(scheduler).__name__}.timesteps, not its place in them, got the integer {timestep}"
        )
