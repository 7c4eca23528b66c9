"""What all schedulers share: a step written as a formula, turned into one row of ``pyfold.affine_step``, and run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import schedulers as theirs
from diffusers.utils.torch_utils import randn_tensor

from pyfold.diffusion import formulas
from pyfold.diffusion.formulas import X0, Form, H, M, X, absent
from pyfold.diffusion.guidance import dynamic_threshold
from pyfold.diffusion.predictions import convert
from pyfold.ops import AFFINE_STEP_COLUMNS, SAMPLER_STREAM, add_noise, affine_step, randn

_COLUMN = {name: i for i, name in enumerate(AFFINE_STEP_COLUMNS)}
_EMPTY_ROW = [{"g1": 1.0, "c_in": 1.0, "clip_min": -np.inf, "clip_max": np.inf}.get(name, 0.0) for name in AFFINE_STEP_COLUMNS]
#: Their names for what a model predicts, and ours.
PREDICTIONS = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
HALF = (torch.float16, torch.bfloat16)


# --- a step as a formula


@dataclass(frozen=True)
class Step(formulas.Step):
    """A scheduler's step, which keeps nothing for later ones unless it says so."""

    keep: Form | None = None


@lru_cache
def _empty_row(device: torch.device) -> torch.Tensor:
    """Copied to a device once, so that per-sample rows are made there without a wait."""
    with torch.inference_mode(False):
        return torch.tensor([_EMPTY_ROW], dtype=torch.float64).to(device)


def _table(rows: Sequence[dict[str, Any]], samples: int, device: torch.device) -> torch.Tensor:
    """float64 [rows, 25]; a row of tensors is one for each sample. Not finite stays so: their NaN is our NaN."""
    if len(rows) == 1 and any(isinstance(value, torch.Tensor) for value in rows[0].values()):
        table = _empty_row(device).repeat(samples, 1)
        for name, value in rows[0].items():
            table[:, _COLUMN[name]] = value
        return table
    table = [[float(row.get(name, empty)) for name, empty in zip(_COLUMN, _EMPTY_ROW, strict=True)] for row in rows]
    return torch.tensor(table, dtype=torch.float64).to(device)


class Written(NamedTuple):
    """Steps with a place for their noise, their rows, and rows that add the noise where the step has no place left."""

    steps: list[Step]
    table: torch.Tensor
    later: torch.Tensor | None


def _write(
    steps: list[Step], ticks: list[Any], slot: str | None, counted: bool, show: bool, past: int, x: torch.Tensor
) -> Written:
    """``slot``: the tensor that the noise is given as; ``past``: how many tensors of history are."""
    placed, rows, later = [], [], []
    for step, tick in zip(steps, ticks, strict=True):
        of_noise = step.prev["noise"]
        if step.clip == "dynamic" and show:
            # x0 divided by its bound leaves the kernel as u.
            step = replace(step, keep=X0)
        if slot not in (None, "later"):
            step = replace(step, prev=step.prev.over(noise=Form(**{slot: 1.0})))
        if step.clip is not None and step.keep is not None and absent(step.keep["m"]) and not absent(step.prev["m"]):
            step = replace(step, prev=step.prev.over(m=H[past]), model_last=True)
        row = formulas.row(step, show and step.clip != "dynamic")
        if counted:
            row |= {"d1": of_noise, "n1": tick}
        placed.append(step)
        rows.append(row)
        later.append({"a": 1.0, "s": 1.0, "c_u": of_noise})
    samples, device = x.shape[0], x.device
    return Written(placed, _table(rows, samples, device), _table(later, samples, device) if slot == "later" else None)


def _together(x: torch.Tensor, model: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of one shape, and of one dtype, but for a half-precision model beside a float32 state."""
    shape = torch.broadcast_shapes(x.shape, model.shape)
    dtype = torch.promote_types(x.dtype, model.dtype)
    x, model = x.expand(shape).to(dtype), model.expand(shape)
    return x, model if dtype == torch.float32 and model.dtype in HALF else model.to(dtype)


# --- noise


class Counted(NamedTuple):
    """Noise that the kernel makes: a function of seed and step."""

    seeds: torch.Tensor


def check_several(seeds: Any) -> None:
    if isinstance(seeds, torch.Tensor):
        valid = seeds.dim() == 1 and seeds.dtype == torch.int64
    else:
        valid = isinstance(seeds, (list, tuple)) and all(isinstance(s, int) and not isinstance(s, bool) for s in seeds)
    if not valid:
        raise TypeError(f"seeds must be an int, a list of ints or an int64 tensor [B], got {seeds!r}")


def seed_tensor(seeds: Any, samples: int, device: torch.device) -> torch.Tensor:
    """int64 [samples]; one int is the first sample's, the others' follow it."""
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        return torch.arange(seeds, seeds + samples, device=device)
    check_several(seeds)
    if len(seeds) != samples:
        raise ValueError(f"seeds must be one for each of the {samples} samples, got {len(seeds)}")
    return torch.as_tensor(seeds, dtype=torch.int64, device=device)


# --- the scheduler


def base(name: str, module: str = "") -> type:
    """diffusers' class; ``module`` where they export it only beside packages that it does not use."""
    return getattr(import_module(f"diffusers.schedulers.{module}") if module else theirs, name)


#: What diffusers' steps call and pyfold's compute themselves.
_HOOKS = ("convert_model_output", "_threshold_sample", "_get_variance", "_batch_get_variance", "_get_prev_sample")


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


def _state(table: Any) -> Any:
    """What changes with a table's values, whoever edits them: the values where the host has them, else torch's version."""
    if isinstance(table, torch.Tensor):
        if table.device.type == "cpu":
            return table.detach().numpy().tobytes()
        return -1 if table.is_inference() else table._version
    return table.tobytes() if isinstance(table, np.ndarray) else tuple(table)


def _same(settings: dict[str, Any], before: dict[str, Any] | None) -> bool:
    """Equal settings; arrays among them are the same where they are one object."""
    if before is None or settings.keys() != before.keys():
        return False
    plain = (str, int, float, tuple, type(None))
    return all(v is before[k] or (isinstance(v, plain) and v == before[k]) for k, v in settings.items())


_OUTPUTS = ("DDIMSchedulerOutput", "KarrasVeOutput", "SdeVeOutput", "SchedulerOutput")


class Fused:
    """Mixin before a scheduler of diffusers: what is below replaces its arithmetic, everything else stays.

    Every ``step`` takes diffusers' arguments and ``seeds=``, an int or one for each sample: the noise is then made inside the
    kernel, a function of seed and step alone, the same for every batch split and device. Else it is drawn by torch exactly as
    diffusers draws it. ``timestep`` may be one for each sample where a step needs no history.
    """

    #: Tables on which the rows depend, and the number before the first of one.
    _tables: tuple[str, ...] = ()
    _end: str | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        scheduler = super().__new__(cls)
        # A saved pipeline names the module of its scheduler: diffusers', so that it loads without pyfold too.
        if cls.__module__ == __package__ and hasattr(theirs, cls.__name__):
            scheduler.__dict__["__module__"] = theirs.__name__
        return scheduler

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Pickles name the public module.
        if cls.__module__.startswith(f"{__package__}."):
            cls.__module__ = __package__
        else:
            _refuse_hooks(cls)
        original = next((c for c in cls.__mro__ if c.__module__.startswith("diffusers.")), None)
        if original is not None:
            cls._tables = cls._tables if cls._end is None else (*cls._tables, cls._end)
            module = sys.modules[original.__module__]
            names = (f"{cls.__name__}Output", *_OUTPUTS)
            cls._output = next((getattr(module, name) for name in names if hasattr(module, name)), None)

    def set_seeds(self, seeds: int | Sequence[int] | torch.Tensor | None) -> None:
        """Noise from seeds for all steps, whatever generator they are given; None ends it.

        Args:
            seeds: one for each sample, or an int, from which the samples count.
        """
        if seeds is not None and (isinstance(seeds, bool) or not isinstance(seeds, int)):
            check_several(seeds)
        self._memory()["seeds"] = seeds
        self._memory()["tick"] = 0

    # --- tables on the host, and rows on the device, both kept as long as diffusers' tables stay as they are

    def _memory(self) -> dict[str, Any]:
        memory = self.__dict__.get("_pyfold")
        if memory is None:
            memory = self.__dict__["_pyfold"] = {
                "host": {},
                "rows": {},
                "config": None,
                "seeds": None,
                "tick": 0,
                "times": None,
            }
        return memory

    def _host(self, name: str) -> np.ndarray:
        """A table of diffusers' in float64."""
        table = getattr(self, name)
        memory = self._memory()
        seen = memory["host"].get(name)
        state = _state(table)
        if seen is None or seen[0] is not table or seen[1] != state:
            tensor = isinstance(table, torch.Tensor)
            values = table.detach().cpu().double().numpy().copy() if tensor else np.array(table, dtype=np.float64)
            if seen is None or not np.array_equal(seen[2], values, equal_nan=True):
                memory["rows"].clear()
            else:
                values = seen[2]
            seen = memory["host"][name] = table, state, values
        return seen[2]

    def _on(self, name: str, device: torch.device) -> torch.Tensor:
        """The same table on a device, for coefficients that never leave it."""
        values, rows = self._host(name), self._memory()["rows"]
        if (name, device) not in rows:
            with torch.inference_mode(False):
                rows[name, device] = torch.from_numpy(values).to(device)
        return rows[name, device]

    def _number(self, timestep: Any) -> float:
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

    def _enter(self, timestep: Any) -> Any:
        """The index of this step in the tables, or one for each sample."""
        if isinstance(timestep, torch.Tensor) and timestep.numel() > 1:
            # An expanded one needs no look at the device.
            if any(timestep.stride()) and len(set(timestep.flatten().tolist())) > 1:
                return [self.index_for_timestep(t) for t in timestep]
            # One for all after all; a scheduler that is under way does not look at it.
            timestep = timestep.flatten()[0]
        if self.step_index is None:
            self._init_step_index(timestep)
        return self._step_index

    def _enter_together(self, timestep: Any) -> int:
        """The index of this step, which all samples take together because it has a history."""
        place = self._enter(timestep)
        if isinstance(place, list):
            raise ValueError(f"timestep must be one for all samples of {type(self).__name__}, got {timestep.tolist()}")
        return place

    def _advance(self, i: Any) -> None:
        if not isinstance(i, list):
            self._step_index += 1

    def _tick(self) -> int:
        """Counts the draws of a trajectory, for schedulers that know no step; set_timesteps begins one."""
        memory = self._memory()
        if memory["times"] is not self.timesteps:
            memory["times"], memory["tick"] = self.timesteps, 0
        memory["tick"] += 1
        return memory["tick"] - 1

    # --- noise

    def _draw(
        self,
        like: torch.Tensor,
        generator: Any,
        seeds: Any,
        *,
        given: torch.Tensor | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> torch.Tensor | Counted:
        """The given noise, the kernel's, or torch's in the shape of ``like``."""
        if given is not None:
            if seeds is not None:
                raise ValueError("seeds must not be given together with noise")
            return given
        if seeds is not None and generator is not None:
            raise ValueError("seeds and generator must not be given together")
        # A pipeline passes the generator of its initial noise to every step; set_seeds is said to this scheduler alone.
        seeds = self._memory()["seeds"] if seeds is None else seeds
        if seeds is not None:
            return Counted(seed_tensor(seeds, like.shape[0], like.device))
        drawn = randn_tensor(like.shape, generator=generator, device=device or like.device, dtype=dtype or like.dtype)
        return drawn.to(like.device)

    # --- the step

    def _fuse(
        self,
        i: Any,
        rule: Callable[[Any], Step],
        x: torch.Tensor,
        model: torch.Tensor,
        *,
        tag: Any = None,
        base: torch.Tensor | None = None,
        history: Sequence[torch.Tensor] = (),
        noise: torch.Tensor | Counted | None = None,
        tick: int | None = None,
        show: bool = False,
        upcast: bool = False,
        copies: list[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """(next state, kept, x0) of the step that ``rule(i)`` writes.

        Args:
            i: what the rule is called with; a list of them for one row each. None for a rule of tensors, made anew each time.
            tag: what else the rule depends on, but for the tables.
            base, history, noise: the tensors that BASE, H and N stand for.
            tick: the step of the kernel's noise, i by default.
            show: return x0.
            upcast: make a half-precision state float32, as diffusers does, so that x0 has the model's dtype or float32.
            copies: gets a copy of the next state, written in the same pass.
        """
        said = torch.promote_types(torch.float32, model.dtype) if upcast else None
        if upcast and x.dtype in HALF:
            x = x.float()
        itself = model.dtype
        if model.dtype != x.dtype or model.shape != x.shape:
            x, model = _together(x, model)
        history = [h.to(x.dtype) for h in history]
        base = None if base is None else base.to(x.dtype)
        counted = isinstance(noise, Counted)
        slot = None
        if noise is None or counted:
            tick = tick if counted else None
        elif base is None:
            slot, base = "base", noise.to(x)
        elif len(history) < len(H):
            history.append(noise.to(x))
            slot = f"h{len(history)}"
        else:
            slot = "later"

        key = (tag, tuple(i) if isinstance(i, list) else i, tick, slot, counted, show, len(history), x.device)
        rows = self._current_rows()
        written = None if i is None else rows.get(key)
        if written is None:
            each = i if isinstance(i, list) else [i]
            ticks = each if tick is None else [tick] * len(each)
            # Made under inference mode, they could never serve a step with gradients.
            with np.errstate(all="ignore"), torch.inference_mode(False):
                written = _write([rule(j) for j in each], ticks, slot, counted, show, len(history), x)
            if i is not None:
                rows[key] = written
        step, table = written.steps[0], self._bounded(written, written.table, x, model)
        if step.model_last:
            history.append(model.to(x.dtype))
        operands = {"base": base, "history": history, "seeds": noise.seeds if counted else None, "stream": SAMPLER_STREAM}
        shows = show and step.clip != "dynamic"
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, model, base, *history)):
            # One output a pass, in torch operations.
            prev = affine_step(x, model, table, **operands)
            kept = self._alone(written, [one.keep for one in written.steps], x, model)
            shown = [one.x0 if one.clip is None else X0 for one in written.steps] if shows else [None]
            x0 = self._alone(written, shown, x, model)
            copy = None if copies is None else prev.detach().clone()
        else:
            kept = torch.empty_like(x) if step.keep is not None else None
            x0 = torch.empty_like(x) if shows else None
            copy = torch.empty_like(x) if copies is not None else None
            prev = affine_step(x, model, table, **operands, history_out=kept, x0_out=x0, next_input=copy)
        if slot == "later":
            prev = affine_step(prev, noise.to(x), written.later)
            copy = None if copies is None else prev.detach().clone()
        if copies is not None:
            copies.append(copy)
        if not show:
            return prev, kept, None
        kept, x0 = (kept, x0) if shows else (None, kept)
        # A model that says x0 itself says it in its own dtype.
        said = itself if getattr(self.config, "prediction_type", None) in ("sample", "original_sample") else said
        return prev, kept, x0 if said is None else x0.to(said)

    def _current_rows(self) -> dict[Any, Any]:
        """The rows, if tables and settings are those that they were computed from; else none.

        A setting is an attribute of the configuration, as diffusers' own steps read it, so one that is changed on a live
        scheduler counts at once.
        """
        for name in self._tables:
            self._host(name)
        memory = self._memory()
        settings = {name: tuple(v) if isinstance(v, list) else v for name, v in vars(self._internal_dict).items()}
        if not _same(settings, memory["config"]) or len(memory["rows"]) > 4096:
            memory["rows"].clear()
            memory["config"] = settings
        return memory["rows"]

    def _bounded(self, written: Written, table: torch.Tensor, x: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
        """Rows with the bound of each sample's x0, where it is dynamic."""
        if written.steps[0].clip != "dynamic":
            return table
        most = self.config.sample_max_value
        change = dynamic_threshold(self.config.dynamic_thresholding_ratio, min(1.0, most), most)
        return change(table.expand(x.shape[0], -1), x, (model,))

    def _alone(self, written: Written, wanted: list[Form | None], x: torch.Tensor, model: torch.Tensor) -> torch.Tensor | None:
        """A form of x, model and x0 by a pass of its own."""
        if wanted[0] is None:
            return None
        rows = [formulas.row(Step(form, None, one.x0, one.clip)) for form, one in zip(wanted, written.steps, strict=True)]
        return affine_step(x, model, self._bounded(written, _table(rows, x.shape[0], x.device), x, model))

    def _finish(self, return_dict: bool, *outputs: torch.Tensor) -> Any:
        return self._output(*outputs) if return_dict else outputs

    # --- what a model's output says about x0 and epsilon

    def _bound(self) -> float | str | None:
        """The clip that the configuration asks for."""
        if getattr(self.config, "thresholding", None):
            return "dynamic"
        return float(getattr(self.config, "clip_sample_range", 1.0)) if getattr(self.config, "clip_sample", None) else None

    def _known(self, wanted: str, alpha: Any, sigma: Any, scale: Any = 1.0) -> Form:
        """x0 or epsilon from the state, which is the variance-preserving one over ``scale``, and the model's output."""
        prediction = getattr(self.config, "prediction_type", "epsilon")
        if prediction not in PREDICTIONS:
            raise ValueError(
                f"prediction_type must be one of {', '.join(PREDICTIONS)} for {type(self).__name__}, got {prediction!r}"
            )
        of_x, of_model = convert(PREDICTIONS[prediction], wanted, alpha, sigma)
        return X * (of_x * scale) + M * of_model

    # --- linear combinations with coefficients on the device

    def _combine(self, x: torch.Tensor, of_x: Any, noise: torch.Tensor | None, of_noise: Any, seeds: Any) -> torch.Tensor:
        """``of_x x + of_noise noise``, the coefficients numbers or tensors of one for each sample."""
        samples = max(x.shape[0], *(c.numel() for c in (of_x, of_noise) if isinstance(c, torch.Tensor)), 1)
        if noise is not None:
            samples = max(samples, noise.shape[0])
        x = x.expand(samples, *x.shape[1:])
        if noise is None:
            seeds = self._memory()["seeds"] if seeds is None else seeds
            if seeds is None:
                raise ValueError("noise must be given, or seeds, got neither")
            return add_noise(x, of_x, of_noise, seed_tensor(seeds, samples, x.device))
        if seeds is not None:
            raise ValueError("seeds must not be given together with noise")
        noise = noise.to(x.device)
        if noise.shape != x.shape:
            shape = torch.broadcast_shapes(x.shape, noise.shape)
            x, noise = x.expand(shape), noise.expand(shape)
        return self._fuse(None, lambda _: Step(X * of_x + M * of_noise), x, noise)[0]

    def _scaled(self, sample: torch.Tensor, i: Any, factor: Callable[[Any], Any], tag: Any = None) -> torch.Tensor:
        """The model's input: the state times a number."""
        return self._fuse(i, lambda j: Step(X * factor(j)), sample, sample, tag=("input", tag))[0]

    def _places(
        self, timesteps: torch.Tensor, device: torch.device, last_if_missing: bool = False, from_begin: bool = True
    ) -> torch.Tensor:
        """The index of each timestep in the tables: the second where it stands twice, as diffusers has it.

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
        return torch.where(total[:, 0] > 0, place, len(own) - 1)


def noise_tensor(noise: torch.Tensor | Counted, like: torch.Tensor, tick: int) -> torch.Tensor:
    """The noise as a tensor, where a formula is not linear in it."""
    if isinstance(noise, Counted):
        return randn(noise.seeds, like.shape[1:], stream=SAMPLER_STREAM, step=tick, dtype=like.dtype)
    return noise


def refuse_integers(scheduler: Any, timestep: Any) -> None:
    """Places in a list are not timesteps."""
    if isinstance(timestep, int) or (isinstance(timestep, torch.Tensor) and not timestep.is_floating_point()):
        raise ValueError(
            f"timestep must be one of {type(scheduler).__name__}.timesteps, not its place in them, got the integer {timestep}"
        )
