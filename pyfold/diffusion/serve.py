"""Many requests, one launch: a batch whose samples are runs of different plans, each at a step of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pyfold.diffusion.loop import churned, initial_noise
from pyfold.diffusion.plan import Plan
from pyfold.ops import AFFINE_STEP_COLUMNS, affine_step, affine_table

#: As many earlier u as a step takes.
HISTORY = 4
_COLUMNS = len(AFFINE_STEP_COLUMNS)

__all__ = ["Batch", "Table", "shifted_rows"]


def shifted_rows(plan: Plan) -> list[dict[str, float]]:
    """The plan's rows for a history that every stage puts its u in front of: where a stage of the plan overwrites the newest
    instead, later ones look one further back.

    Args:
        plan: from a sampler.

    Returns:
        A mapping a stage, by the names of ``pyfold.ops.AFFINE_STEP_COLUMNS``.

    Raises:
        ValueError: a stage would look back further than a step can.
    """
    rows, past = [], list[int]()
    for i, row in enumerate(plan.rows):
        made = {name: value for name, value in row.items() if name not in ("b1", "b2", "b3", "b4")}
        if plan.base_output is None:
            made["a_base"] = 0.0
        for k, stage in enumerate(past[: plan.history], 1):
            if value := row.get(f"b{k}", 0.0):
                if i - stage > HISTORY:
                    raise ValueError(f"plan {plan.name} looks back on u of {i - stage} stages ago, and a step on {HISTORY}")
                made[f"b{i - stage}"] = value
        rows.append(made)
        past = [i, *past[1 if i in plan.overwrites else 0 :]]
    return rows


class Table:
    """The rows of many plans in one table on the device. Rows that are in use stay where they are.

    Args:
        rows: how many there is room for. A plan takes one a stage and one behind them, which keeps the state.
        device: of the table.

    Attributes:
        coefficients: float64 [rows, 25]; times: float32 [rows]. Row 0 keeps the state.
    """

    def __init__(self, rows: int, device: torch.device):
        self.coefficients = torch.zeros(rows, _COLUMNS, dtype=torch.float64, device=device)
        self.times = torch.zeros(rows, dtype=torch.float32, device=device)
        self.coefficients[0] = affine_table([{"a": 1.0}], device)[0]
        self._free = [(1, rows)]
        self._places: dict[Plan, int] = {}
        self._users: dict[Plan, int] = {}

    def acquire(self, plan: Plan) -> int:
        """The first row of the plan, which stays until as many :meth:`release`."""
        if plan not in self._places:
            rows = affine_table([*shifted_rows(plan), {"a": 1.0}], self.times.device)
            first = self._room(len(rows))
            self.coefficients[first : first + len(rows)] = rows
            self.times[first : first + len(rows)] = plan.on(self.times.device)[1]
            self._places[plan], self._users[plan] = first, 0
        self._users[plan] += 1
        return self._places[plan]

    def release(self, plan: Plan) -> None:
        """One user less. The rows stay for the next one until their place is needed."""
        self._users[plan] -= 1

    def _room(self, count: int) -> int:
        if (first := self._take(count)) is not None:
            return first
        for plan in [p for p, users in self._users.items() if not users]:
            first = self._places.pop(plan)
            del self._users[plan]
            self._give(first, first + len(plan) + 1)
        if (first := self._take(count)) is not None:
            return first
        self._grow(count)
        return self._room(count)

    def _take(self, count: int) -> int | None:
        for i, (start, end) in enumerate(self._free):
            if end - start >= count:
                self._free[i] = (start + count, end)
                return start
        return None

    def _give(self, start: int, end: int) -> None:
        merged: list[tuple[int, int]] = []
        for a, b in sorted([*self._free, (start, end)]):
            if merged and merged[-1][1] == a:
                merged[-1] = (merged[-1][0], b)
            elif b > a:
                merged.append((a, b))
        self._free = merged

    def _grow(self, count: int) -> None:
        old = len(self.times)
        more = max(old, count)
        self.coefficients = torch.cat([self.coefficients, self.coefficients.new_zeros(more, _COLUMNS)])
        self.times = torch.cat([self.times, self.times.new_zeros(more)])
        self._give(old, old + more)


@dataclass
class _Run:
    plan: Plan
    left: int


class Batch:
    """Requests that join and leave at any step, and one ``affine_step`` for all of them a model call.

    A request's bits are those of running alone (:func:`pyfold.diffusion.sample`), where the model's output for a sample does
    not depend on the batch. Nothing is read from the device, and nothing moves: state, history, rows and counters keep their
    memory. ::

        batch = serve.Batch(64, (3, 32, 32))
        slot = batch.join(diffusion.unipc(schedule, 12), seed=7)
        for slot in batch.step(model):
            send(batch.take(slot))

    Args:
        slots: how many requests may run at once.
        shape: of one sample.
        device, dtype: where the model runs, and in what; states are float32.
        rows: what the table of all plans has room for at first. It doubles where plans in use need more; rows in use keep their
            numbers, but a recorded graph must then be recorded anew.

    Example:
        >>> batch = Batch(2, (3,))
        >>> plan = pyfold.diffusion.euler(pyfold.diffusion.flow(), 1, prediction="flow")
        >>> slot = batch.join(plan, seed=7)
        >>> batch.step(lambda x, t: 0 * x) == [slot]  # done
        True
    """

    def __init__(
        self,
        slots: int,
        shape: Sequence[int],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        rows: int = 4096,
    ):
        if not isinstance(slots, int) or slots < 1:
            raise ValueError(f"slots must be an int from 1, got {slots!r}")
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise TypeError(f"dtype must be float32, bfloat16 or float16, got {dtype}")
        self.shape, self.device, self.dtype = tuple(shape), torch.device(device), dtype
        self.table = Table(max(rows, 2), self.device)
        self.x = torch.zeros(slots, *self.shape, device=self.device)
        self.model_input = torch.zeros(slots, *self.shape, dtype=dtype, device=self.device)
        self._history = [torch.zeros_like(self.x) for _ in range(HISTORY)]
        self.index, self._advance = (torch.zeros(slots, dtype=torch.int64, device=self.device) for _ in range(2))
        # Keys: a seed, and the block that its noise begins with, 0 for seeds.
        self._keys = torch.zeros(slots, 2, dtype=torch.int64, device=self.device)
        self._runs: list[_Run | None] = [None] * slots

    @property
    def seeds(self) -> torch.Tensor:
        """Each slot's key, uint64 [slots, 2]; a seed's is (seed, 0)."""
        return self._keys.view(torch.uint64)

    def __len__(self) -> int:
        """How many slots are taken."""
        return sum(run is not None for run in self._runs)

    def join(self, plan: Plan, seed: int | torch.Tensor, *, x: torch.Tensor | None = None) -> int:
        """A request's first step will be in the next call of :meth:`step`.

        Args:
            plan: from a sampler; :func:`guided` ones too, all of the outputs that the batch's model gives.
            seed: of the sample, any 64-bit number; or its key, uint64 [2] or [1, 2] (docs/keys.md).
            x: [1, *shape] to start from instead of noise.

        Returns:
            its slot.

        Raises:
            RuntimeError: no slot is free.
            TypeError, ValueError: a seed or a state of another type or shape, or a plan of learned variances, which no row has.
        """
        if plan.learned:
            raise ValueError(f"plan must be of known variances, got {plan.name} with learned ones")
        if None not in self._runs:
            raise RuntimeError(f"all {len(self._runs)} slots are taken")
        several: torch.Tensor | list[int] = [seed]  # type: ignore[list-item]
        if isinstance(seed, torch.Tensor):
            several = seed.reshape(1, -1) if seed.dtype == torch.uint64 else seed.reshape(-1)
            if len(several) != 1:
                raise ValueError(f"seed must be one, got shape {tuple(seed.shape)}")
        state, seeds = initial_noise(self.shape, several, plan.start_std, self.device, torch.float32, x)
        state = churned(plan, state, seeds, None)
        first = self.table.acquire(plan)
        slot = self._runs.index(None)
        self.x[slot : slot + 1] = state
        self.model_input[slot : slot + 1] = state * plan.start_scale
        self._keys[slot] = 0
        self._keys[slot, : seeds.shape[1] if seeds.dim() > 1 else 1] = seeds.view(torch.int64).reshape(-1)
        self.index[slot].fill_(first)
        self._advance[slot].fill_(1)
        self._runs[slot] = _Run(plan, len(plan))
        return slot

    def step(self, model: Callable[[torch.Tensor, torch.Tensor], torch.Tensor | Sequence[torch.Tensor]]) -> list[int]:
        """One evaluation for all requests, and their steps in one pass.

        Args:
            model: ``model(x, t)`` with x [n, *shape] of the batch's dtype and t [n], n up to the highest slot that is taken;
                returns what the plans predict, or a tuple of up to three for guided ones.

        Returns:
            the slots whose run ended with this step; :meth:`take` frees them.
        """
        taken = [slot for slot, run in enumerate(self._runs) if run is not None and run.left]
        if not taken:
            return []
        n = taken[-1] + 1
        index, x = self.index[:n], self.x[:n]
        models = model(self.model_input[:n], self.table.times[index])
        base = None
        if any(run is not None and run.plan.base_output is not None for run in self._runs[:n]):
            base = models[1].to(x.dtype)
        newest = self._history[-1]
        affine_step(
            x, models, self.table.coefficients, index, base=base, seeds=self.seeds[:n], out=x,
            history=[h[:n] for h in self._history], history_out=newest[:n], next_input=self.model_input[:n],
        )  # fmt: skip
        self._history = [newest, *self._history[:-1]]
        index += self._advance[:n]
        ended = []
        for slot in taken:
            run = self._runs[slot]
            assert run is not None
            run.left -= 1
            if not run.left:
                self._advance[slot].fill_(0)
                ended.append(slot)
        return ended

    def take(self, slot: int) -> torch.Tensor:
        """A copy of a request's state [*shape], and its slot is free."""
        state = self.x[slot].clone()
        self.leave(slot)
        return state

    def leave(self, slot: int) -> None:
        """A request, ended or not, gives its slot back."""
        run = self._runs[slot]
        if run is None:
            raise ValueError(f"slot must be one that is taken, got {slot}")
        self.table.release(run.plan)
        self._runs[slot] = None
        self.index[slot].fill_(0)
        self._advance[slot].fill_(0)
        # What a model makes of an abandoned state is nobody's; NaN would spread through layers that mix samples.
        self.x[slot].zero_()
        self.model_input[slot].zero_()
