"""Checkpoints: one safetensors file that holds everything, with its facts as JSON inside and, to read, beside it.

Nothing is pickled. Batches, noise and latents are functions of the step number, so weights, their averages, the optimizers
and the step are all the state that a run has. A digest of facts and tensors tells a whole file from one in which a bit fell.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pyfold._requirements import need
from pyfold.train.files import write, write_text

_PATTERN = re.compile(r"checkpoint-(\d+)\.safetensors")
_FORMAT = 2
_KEEP = 2

Tensors = dict[str, torch.Tensor]


class DamagedError(ValueError):
    """A file that is not what :func:`save` wrote."""


def _digest(record: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the facts and of every tensor's name, dtype, shape and bytes."""
    facts = {name: value for name, value in record.items() if name != "sha256"}
    result = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        result.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        result.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return result.hexdigest()


def _optimizer_tensors(prefix: str, optimizer: torch.optim.Optimizer) -> Tensors:
    state = optimizer.state_dict()["state"]
    return {f"{prefix}.{i}.{name}": value for i, entry in state.items() for name, value in entry.items()}


def save(
    folder: Path,
    step: int,
    modules: Mapping[str, torch.nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    facts: dict[str, Any] | None = None,
) -> Path:
    """Writes the state after ``step`` steps and drops all but the newest two checkpoints.

    Raises:
        OSError: the disk is full, or the folder cannot be written; what was there stays.
    """
    safetensors = need("safetensors.torch")
    state = {f"module.{m}.{name}": value for m, module in modules.items() for name, value in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        state |= _optimizer_tensors(f"optimizer.{name}", optimizer)
    groups = {
        name: [{k: v for k, v in g.items() if k != "params"} for g in optimizer.state_dict()["param_groups"]]
        for name, optimizer in optimizers.items()
    }
    tensors = {name: value.detach().contiguous().cpu().clone() for name, value in state.items()}
    # Through text, so that the digest is that of what a reader gets.
    record = json.loads(json.dumps({"format": _FORMAT, "step": step, "optimizers": groups, **(facts or {})}))
    record["sha256"] = _digest(record, tensors)
    text = json.dumps(record, indent=2)
    path = folder / f"checkpoint-{step:08d}.safetensors"
    raw = safetensors.save(tensors, {"pyfold": text})
    write(path, lambda temporary: temporary.write_bytes(raw))
    write_text(path.with_suffix(".json"), text + "\n")
    for old in find(folder)[:-_KEEP]:
        old.unlink()
        old.with_suffix(".json").unlink(missing_ok=True)
    return path


def find(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = [(int(match[1]), p) for p in folder.glob("checkpoint-*.safetensors") if (match := _PATTERN.fullmatch(p.name))]
    return [p for _, p in sorted(found)]


def load(
    path: Path,
    modules: Mapping[str, torch.nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer] | None = None,
) -> int:
    """Restores what :func:`save` wrote and returns its step; nothing is changed if the file is not whole.

    Raises:
        DamagedError: the file is truncated or damaged: its digest is another than it says, or its facts make no sense.
        ValueError: it is of another model, or of another format.
    """
    record, tensors = _read(path)
    parts = {name: _strip(tensors, f"module.{name}.") for name in modules}
    for name, module in modules.items():
        expected = module.state_dict()
        if {k: v.shape for k, v in expected.items()} != {k: v.shape for k, v in parts[name].items()}:
            raise ValueError(f"{path} holds another {name} than this configuration makes")
    states = {
        name: _optimizer_state(path, name, optimizer, record, _strip(tensors, f"optimizer.{name}."))
        for name, optimizer in (optimizers or {}).items()
    }
    for name, module in modules.items():
        module.load_state_dict(parts[name])
    for name, optimizer in (optimizers or {}).items():
        optimizer.load_state_dict(states[name])
    return int(record["step"])


def load_newest(
    folder: Path,
    modules: Mapping[str, torch.nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer] | None = None,
) -> int:
    """Restores the newest checkpoint of a run that is whole, and returns its step; a warning names what is damaged.

    Args:
        folder: of the run.
        modules, optimizers: as for :func:`load`.

    Raises:
        ValueError: there is no checkpoint, all are damaged, or the newest whole one is of another model.
    """
    paths = find(folder)
    if not paths:
        raise ValueError(f"{folder} has no checkpoint yet")
    for path in reversed(paths):
        try:
            step = load(path, modules, optimizers)
        except DamagedError as error:
            if path == paths[0]:
                raise ValueError(f"{error}; no whole checkpoint is left in {folder}") from error
            warnings.warn(f"{error}; the one before it is taken", stacklevel=2)
        else:
            return step
    raise AssertionError


def _read(path: Path) -> tuple[dict[str, Any], Tensors]:
    """Facts and tensors of a file that is whole."""
    safetensors = need("safetensors")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            record = json.loads((file.metadata() or {}).get("pyfold", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is truncated or damaged ({error})") from error
    if not isinstance(record, dict):
        raise DamagedError(f"{path} is not a checkpoint of pyfold, or damaged: it has no facts")
    if record.get("format") != _FORMAT:
        raise ValueError(f"{path} has format {record.get('format')!r}; this version of pyfold reads format {_FORMAT}")
    if record.get("sha256") != _digest(record, tensors):
        raise DamagedError(f"{path} is damaged: its digest is not the one that it was written with")
    step, match = record.get("step"), _PATTERN.fullmatch(path.name)
    if isinstance(step, bool) or not isinstance(step, int) or step < 0 or (match and int(match[1]) != step):
        raise DamagedError(f"{path} is damaged: its step is {step!r}")
    return record, tensors


def _optimizer_state(
    path: Path, name: str, optimizer: torch.optim.Optimizer, record: dict[str, Any], tensors: Tensors
) -> dict[str, Any]:
    """The optimizer's ``state_dict`` from the file."""
    present = optimizer.state_dict()["param_groups"]
    saved = (record.get("optimizers") or {}).get(name) if isinstance(record.get("optimizers"), dict) else None
    if not isinstance(saved, list) or len(saved) != len(present):
        raise ValueError(f"{path} holds another optimizer of the {name} than this configuration makes")
    groups = []
    for group, options in zip(present, saved, strict=True):
        if not isinstance(options, dict) or options.keys() != group.keys() - {"params"}:
            raise ValueError(f"{path} holds other settings of the {name}'s optimizer than this configuration makes")
        for key, value in options.items():
            numbers = (bool, int, float, type(None))
            if not isinstance(value, numbers) and not (isinstance(value, list) and all(isinstance(v, numbers) for v in value)):
                raise ValueError(f"{path} holds {key} = {value!r} among the settings of the {name}'s optimizer")
        groups.append({**group, **{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}})
    shapes = [p.shape for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, Tensors] = {}
    for key, value in tensors.items():
        index, _, entry = key.partition(".")
        valid = index.isascii() and index.isdigit() and int(index) < len(shapes) and entry
        if not valid or (value.dim() and value.shape != shapes[int(index)]):
            raise ValueError(f"{path} holds another optimizer of the {name} than this configuration makes: {key!r}")
        state.setdefault(int(index), {})[entry] = value
    return {"state": state, "param_groups": groups}


def _strip(tensors: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
