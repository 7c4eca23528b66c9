"""A training run in a folder: configuration, checkpoints, scalars, pictures."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from pyfold._requirements import need
from pyfold.train import checkpoint, parallel
from pyfold.train.config import Config
from pyfold.train.data import Data, load_for
from pyfold.train.files import locked, remove_leftovers, write_text
from pyfold.train.metrics import measure
from pyfold.train.pictures import save_beside
from pyfold.train.trainers import TRAINERS, DiffusionTrainer, GanTrainer

CONFIG = "config.json"
HISTORY = "history.json"
Trainer = DiffusionTrainer | GanTrainer
#: ``callback(trainer, step)`` -> scalars to log beside the step's own.
Callback = Callable[[Trainer, int], Mapping[str, float]]
#: Settings that may change when a run goes on; any other would make it a run that no configuration describes.
MAY_CHANGE = (
    "steps", "broken", "ram", "save_every", "log_every", "metrics_every", "final_samples", "sampler", "sampler_steps",
)  # fmt: skip
#: Values of one chunk of samples, times channels of the first level: about a gigabyte of activations.
_CHUNK, _CHUNK_SAMPLES = 2**24, 1000
_PICTURED = 100  # images of each kind in a picture


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_device(device: torch.device | str | None) -> torch.device:
    """The device to train on; by default a GPU where there is one.

    Raises:
        ValueError: it is no device that pyfold trains on, or not there.
    """
    if device is None:
        return default_device()
    try:
        result = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device must be cpu, cuda, or cuda:1 and so on, got {device!r}") from None
    if result.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu, cuda, or cuda:1 and so on, got {str(device)!r}")
    if result.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            why = "torch finds no GPU" if torch.version.cuda else "this torch is built without CUDA"
            raise ValueError(f"device {str(device)!r} is not there: {why}")
        if (result.index or 0) >= count:
            raise ValueError(f"device {str(device)!r} is not there: torch finds {count}, cuda:0 to cuda:{count - 1}")
    return result


@contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM are kept until the step is whole; a second one stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(*_: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def open_run(folder: Path, device: torch.device | None = None) -> tuple[Trainer, Config, int]:
    """The trainer of a run with its newest whole checkpoint, its configuration, and how many steps it has taken.

    Raises:
        ValueError: the folder holds no run, or none of its checkpoints is whole.
    """
    if not (folder / CONFIG).exists():
        raise ValueError(f"{folder} is not a run: it has no {CONFIG}")
    config = Config.load(folder / CONFIG)
    device = check_device(device)
    trainer = TRAINERS[config.model](config, load_for(config), device)
    return trainer, config, checkpoint.load_newest(folder, trainer.modules, trainer.optimizers)


def train(
    config: Config,
    out: Path,
    *,
    resume: bool = False,
    device: torch.device | None = None,
    progress: bool = True,
    stop_at: int | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any] | None:
    """Runs a configuration to its end in a folder, or goes on with what is there.

    Args:
        config: the settings, also written to ``out``.
        out: the folder of the run; locked while it is written to.
        resume: go on from the newest whole checkpoint in ``out``; without it ``out`` must hold none.
        device: by default a GPU where there is one.
        progress: show a progress bar.
        stop_at: stop after this step with a checkpoint, as Ctrl-C and SIGTERM do.
        callbacks: each is called as ``callback(trainer, step)`` whenever scalars are logged, and returns more of them. It must
            leave the trainer as it is.

    Returns:
        The metrics, also written to ``out``; None if the run was stopped before its end. Under ``torchrun`` the processes
        share each step's batch; the first one writes and returns the metrics, the others return {}.

    Raises:
        ValueError: ``out`` holds a run that does not fit, or is in use; the data, the device or the configuration do not do.
        OSError: the disk is full or not writable.
        FloatingPointError: a scalar became NaN.
    """
    with parallel.joined(check_device(device)) as place:
        return _Run(config, out, resume, place, progress, callbacks).go(stop_at)


class _Run:
    """One call of :func:`train` in one process."""

    def __init__(
        self, config: Config, out: Path, resume: bool, device: torch.device, progress: bool, callbacks: Sequence[Callback]
    ):
        self.config, self.out, self.resume, self.device, self.callbacks = config, out, resume, device, callbacks
        self.writes = parallel.rank() == 0  # the other processes of a parallel run hold the same state
        self.progress = progress and self.writes
        self.history: list[dict[str, Any]] = []

    def go(self, stop_at: int | None) -> dict[str, Any] | None:
        with locked(self.out) if self.writes else nullcontext():
            start = self._open()
            end = min(self.config.steps, stop_at or self.config.steps)
            begin = time.perf_counter()
            step = self._loop(start, end)
            if step < self.config.steps:
                return None
            seconds = time.perf_counter() - begin
            result = self._finish(seconds, step - start) if self.writes else {}
            parallel.wait()
            return result

    def _open(self) -> int:
        """Makes the trainer, restores it where a run goes on, and returns the steps taken; nothing is written before that
        succeeds."""
        config, out = self.config, self.out
        existing = checkpoint.find(out)
        if existing and not self.resume:
            raise ValueError(f"{out} already holds a run; go on with --resume or choose another --out")
        if existing and (out / CONFIG).exists():
            _check_same(Config.load(out / CONFIG), config, out)
        self.data = load_for(config)
        self.trainer = TRAINERS[config.model](config, self.data, self.device)
        start = 0
        if existing:
            start = checkpoint.load_newest(out, self.trainer.modules, self.trainer.optimizers)
        if start > config.steps:
            raise ValueError(f"{out} has taken {start} steps already, more than the {config.steps} of --steps")
        parallel.wait()  # until all have read
        if self.writes:
            remove_leftovers(out)
            for path in checkpoint.find(out):
                if int(path.stem.split("-")[1]) > start:  # damaged: an older one was taken
                    path.rename(path.with_name(path.name + ".damaged"))
            config.save(out / CONFIG)
            self.history = [entry for entry in _read_history(out) if entry["step"] <= start]
        if self.progress and self.data.note:
            print(self.data.note, file=sys.stderr)
        return start

    def _loop(self, start: int, end: int) -> int:
        """Steps until the end or a signal, with a checkpoint there; returns the steps taken."""
        config, step = self.config, start
        board = need("torch.utils.tensorboard")
        writer = board.SummaryWriter(self.out / "tensorboard", purge_step=start) if self.writes else None
        bar = need("tqdm").tqdm(
            total=config.steps,
            initial=start,
            desc=f"{config.model} on {self.data.name}",
            unit="step",
            disable=not self.progress,
        )
        with writer or nullcontext(), bar, _stop_on_signal() as stop:
            while step < end and not parallel.any_of(stop.is_set()):
                scalars = self.trainer.step(step)
                step += 1
                bar.update()
                if step % config.log_every == 0 or step == end:
                    bar.set_postfix({name: f"{value:.3f}" for name, value in self._log(scalars, step, writer).items()})
                if writer and config.metrics_every and step % config.metrics_every == 0:
                    self._measure(step, writer)
                if step % config.save_every == 0 and step < end:
                    self._save(step)
            self._save(step)
        return step

    def _save(self, step: int) -> None:
        if self.writes:
            facts = {"model": self.config.model, "data": self.config.data}
            checkpoint.save(self.out, step, self.trainer.modules, self.trainer.optimizers, facts)

    def _log(self, scalars: dict[str, torch.Tensor], step: int, writer: Any) -> dict[str, float]:
        parallel.average(scalars.values())
        values = {name: float(value) for name, value in scalars.items()}
        for callback in self.callbacks:
            values |= callback(self.trainer, step)
        for name, value in values.items():
            if writer:
                writer.add_scalar(name, value, step)
            if math.isnan(value):
                raise FloatingPointError(f"{name} is not a number at step {step}; lower --lr")
        return values

    def _measure(self, step: int, writer: Any) -> None:
        metrics = measure(self.data, sample_for_metrics(self.trainer, progress=False))
        self.history.append({"step": step, **metrics})
        write_text(self.out / HISTORY, json.dumps(self.history, indent=2) + "\n")
        for name, value in metrics.items():
            if isinstance(value, (int, float)):
                writer.add_scalar(f"metrics/{name}", value, step)

    def _finish(self, seconds: float, steps: int) -> dict[str, Any]:
        samples = sample_for_metrics(self.trainer, progress=self.progress)
        metrics = {
            "model": self.config.model,
            "data": self.data.name,
            "steps": self.config.steps,
            "train_seconds": round(seconds, 1),
            "milliseconds_per_step": round(1000 * seconds / max(steps, 1), 2),
            **measure(self.data, samples),
        }
        save_beside(_panels(self.config, self.data, samples), self.out / "samples.png")
        write_text(self.out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        return metrics


def _panels(config: Config, data: Data, samples: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """Real samples beside generated ones, as many of each."""
    count = min(len(samples), len(data.samples), _PICTURED if data.is_image else len(samples))
    real = data.samples[torch.arange(count) * len(data.samples) // count]
    kind = "a diffusion model" if config.model == "diffusion" else "a GAN"
    return [(f"real: {data.name}", real), (f"generated by {kind} after {config.steps} steps", samples[:count])]


def _check_same(before: Config, now: Config, out: Path) -> None:
    """Refuses to go on with a run under settings that are not its own."""
    for field in dataclasses.fields(Config):
        old, new = getattr(before, field.name), getattr(now, field.name)
        if old != new and field.name not in MAY_CHANGE:
            option = field.name.replace("_", "-")
            raise ValueError(f"{out} is a run with --{option} {old}, and cannot go on with {new}; choose another --out")


def _read_history(out: Path) -> list[dict[str, Any]]:
    if not (out / HISTORY).exists():
        return []
    try:
        entries = json.loads((out / HISTORY).read_text())
        whole = isinstance(entries, list) and all(isinstance(entry["step"], int) for entry in entries)
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise ValueError(f"{out / HISTORY} is damaged; delete it to go on without the measurements so far")
    return list(entries)


@torch.no_grad()
def draw(trainer: Trainer, seeds: torch.Tensor, *, progress: bool = False) -> torch.Tensor:
    """Samples for seeds [N] on the CPU, in chunks whose activations fit into about a gigabyte."""
    config, data = trainer.config, trainer.data
    each = math.prod(data.shape[1:]) * config.width if data.is_image else 1
    size = max(1, min(_CHUNK_SAMPLES, _CHUNK // each))
    with need("tqdm").tqdm(total=len(seeds), desc="samples", unit="sample", disable=not progress, leave=False) as bar:
        parts = []
        for part in torch.split(seeds, size):
            parts.append(trainer.sample(part).cpu())
            bar.update(len(part))
    return torch.cat(parts)


def sample_for_metrics(trainer: Trainer, *, progress: bool) -> torch.Tensor:
    """``final_samples`` samples of seeds that training never uses."""
    count = trainer.config.final_samples
    return draw(trainer, torch.arange(count) - count, progress=progress)
