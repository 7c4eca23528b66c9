"""A training run in a folder: configuration, checkpoints, scalars, pictures."""

from __future__ import annotations

import json
import signal
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
from pyfold.train.data import Data, load
from pyfold.train.files import remove_leftovers, write_text
from pyfold.train.metrics import measure
from pyfold.train.pictures import save_picture
from pyfold.train.trainers import TRAINERS, DiffusionTrainer, GanTrainer

CONFIG = "config.json"
HISTORY = "history.json"
_METRIC_SAMPLES = 1000
#: ``callback(trainer, step)`` -> scalars to log beside the step's own.
Callback = Callable[[DiffusionTrainer | GanTrainer, int], Mapping[str, float]]


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def _stop_on_interrupt() -> Iterator[threading.Event]:
    """Ctrl-C is kept until the step is whole; a second one stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(*_: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def open_run(folder: Path, device: torch.device | None = None) -> tuple[DiffusionTrainer | GanTrainer, Config, int]:
    """The trainer of a run with its newest checkpoint, its configuration, and how many steps it has taken."""
    if not (folder / CONFIG).exists():
        raise ValueError(f"{folder} is not a run: it has no {CONFIG}")
    config = Config.load(folder / CONFIG)
    data = load(config.data, size=config.size, broken=config.broken)
    trainer = TRAINERS[config.model](config, data, device or default_device())
    checkpoints = checkpoint.find(folder)
    if not checkpoints:
        raise ValueError(f"{folder} has no checkpoint yet")
    return trainer, config, checkpoint.load(checkpoints[-1], trainer.modules, trainer.optimizers)


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
        out: the folder of the run.
        resume: go on from the newest checkpoint in ``out``; without it ``out`` must hold none.
        device: by default a GPU where there is one.
        progress: show a progress bar.
        stop_at: stop after this step with a checkpoint, as Ctrl-C does.
        callbacks: each is called as ``callback(trainer, step)`` whenever scalars are logged, and returns more of them. It must
            leave the trainer as it is.

    Returns:
        The metrics, also written to ``out``; None if the run was stopped before its end. Under ``torchrun`` the processes
        share each step's batch; the first one writes and returns the metrics, the others return {}.
    """
    with parallel.joined(device or default_device()) as device:
        return _train(config, out, resume, device, progress, stop_at, callbacks)


def _train(
    config: Config,
    out: Path,
    resume: bool,
    device: torch.device,
    progress: bool,
    stop_at: int | None,
    callbacks: Sequence[Callback],
) -> dict[str, Any] | None:
    writes = parallel.rank() == 0  # the other processes of a parallel run hold the same state
    existing = checkpoint.find(out)
    if existing and not resume:
        raise ValueError(f"{out} already holds a run; go on with --resume or choose another --out")
    data = load(config.data, size=config.size, broken=config.broken)
    trainer = TRAINERS[config.model](config, data, device)
    start = checkpoint.load(existing[-1], trainer.modules, trainer.optimizers) if existing else 0
    parallel.wait()  # until all have read
    history: list[dict[str, Any]] = []
    if writes:
        remove_leftovers(out)
        config.save(out / CONFIG)
        history = [entry for entry in _read_history(out) if entry["step"] <= start]
    end = min(config.steps, stop_at or config.steps)

    def save(step: int) -> None:
        if writes:
            checkpoint.save(out, step, trainer.modules, trainer.optimizers, {"model": config.model, "data": config.data})

    writer = need("torch.utils.tensorboard").SummaryWriter(out / "tensorboard", purge_step=start) if writes else None
    bar = need("tqdm").tqdm(
        total=config.steps, initial=start, desc=f"{config.model} on {data.name}", unit="step", disable=not (progress and writes)
    )
    begin, step = time.perf_counter(), start
    with writer or nullcontext(), bar, _stop_on_interrupt() as stop:
        while step < end and not parallel.any_of(stop.is_set()):
            scalars = trainer.step(step)
            step += 1
            bar.update()
            if step % config.log_every == 0 or step == end:
                parallel.average(scalars.values())
                values = {name: float(value) for name, value in scalars.items()}
                for callback in callbacks:
                    values |= callback(trainer, step)
                bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()})
                for name, value in values.items():
                    if writer:
                        writer.add_scalar(name, value, step)
                    if value != value:
                        raise FloatingPointError(f"{name} is not a number at step {step}; lower --lr")
            if writer and config.metrics_every and step % config.metrics_every == 0:
                metrics = measure(data, _metric_samples(trainer))
                history.append({"step": step, **metrics})
                write_text(out / HISTORY, json.dumps(history, indent=2) + "\n")
                for name, value in metrics.items():
                    if isinstance(value, (int, float)):
                        writer.add_scalar(f"metrics/{name}", value, step)
            if step % config.save_every == 0 and step < end:
                save(step)
        save(step)
    if step < config.steps:
        return None
    result = _finish(config, data, trainer, out, time.perf_counter() - begin, step - start) if writes else {}
    parallel.wait()
    return result


def _read_history(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / HISTORY).read_text()) if (out / HISTORY).exists() else []


def _metric_samples(trainer: DiffusionTrainer | GanTrainer) -> torch.Tensor:
    return trainer.sample(torch.arange(_METRIC_SAMPLES) - _METRIC_SAMPLES).cpu()  # seeds that training never uses


def _finish(config: Config, data: Data, trainer: Any, out: Path, seconds: float, steps: int) -> dict[str, Any]:
    samples = _metric_samples(trainer)
    metrics = {
        "model": config.model,
        "data": data.name,
        "steps": config.steps,
        "train_seconds": round(seconds, 1),
        "milliseconds_per_step": round(1000 * seconds / max(steps, 1), 2),
        **measure(data, samples),
    }
    save_picture(samples[:100] if data.is_image else samples, out / "samples.png")
    write_text(out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    return metrics
