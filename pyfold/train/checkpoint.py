"""Checkpoints: one safetensors file that holds everything, with its facts as JSON inside and, to read, beside it.

Nothing is pickled. Batches, noise and latents are functions of the step number, so weights, their averages, the optimizers
and the step are all the state that a run has.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

from pyfold._requirements import need
from pyfold.train.files import write, write_text

_PATTERN = re.compile(r"checkpoint-(\d+)\.safetensors")
_KEEP = 2


def _optimizer_tensors(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{prefix}.{i}.{name}": value for i, entry in state.items() for name, value in entry.items()}


def save(
    folder: Path,
    step: int,
    modules: dict[str, torch.nn.Module],
    optimizers: dict[str, torch.optim.Optimizer],
    facts: dict[str, Any] | None = None,
) -> Path:
    """Writes the state after ``step`` steps and drops all but the newest two checkpoints."""
    safetensors = need("safetensors.torch")
    tensors = {f"module.{m}.{name}": value for m, module in modules.items() for name, value in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        tensors |= _optimizer_tensors(f"optimizer.{name}", optimizer)
    groups = {
        name: [{k: v for k, v in g.items() if k != "params"} for g in optimizer.state_dict()["param_groups"]]
        for name, optimizer in optimizers.items()
    }
    record = {"format": 1, "step": step, "tensors": len(tensors), "optimizers": groups, **(facts or {})}
    text = json.dumps(record, indent=2)
    tensors = {name: value.detach().contiguous().cpu().clone() for name, value in tensors.items()}
    path = folder / f"checkpoint-{step:08d}.safetensors"
    write(path, lambda temporary: safetensors.save_file(tensors, temporary, {"pyfold": text}))
    write_text(path.with_suffix(".json"), text + "\n")
    for old in find(folder)[:-_KEEP]:
        old.unlink()
        old.with_suffix(".json").unlink(missing_ok=True)
    return path


def find(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(p for p in folder.glob("checkpoint-*.safetensors") if _PATTERN.fullmatch(p.name))


def load(
    path: Path,
    modules: dict[str, torch.nn.Module],
    optimizers: dict[str, torch.optim.Optimizer] | None = None,
) -> int:
    """Restores what :func:`save` wrote and returns its step; nothing is changed if the file is not whole.

    Raises:
        ValueError: the file is truncated, damaged, or of another model.
    """
    safetensors = need("safetensors")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            record = json.loads((file.metadata() or {}).get("pyfold", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (safetensors.SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}); delete it to go on from the one before") from error
    if record.get("format") != 1 or record.get("tensors") != len(tensors):
        raise ValueError(f"{path} is not a whole pyfold checkpoint; delete it to go on from the one before")

    parts = {name: _strip(tensors, f"module.{name}.") for name in modules}
    for name, module in modules.items():
        expected = module.state_dict()
        if {k: v.shape for k, v in expected.items()} != {k: v.shape for k, v in parts[name].items()}:
            raise ValueError(f"{path} holds another {name} than this configuration makes")
    for name, module in modules.items():
        module.load_state_dict(parts[name])
    for name, optimizer in (optimizers or {}).items():
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in _strip(tensors, f"optimizer.{name}.").items():
            index, entry = key.split(".", 1)
            state.setdefault(int(index), {})[entry] = value
        groups = optimizer.state_dict()["param_groups"]
        for group, saved in zip(groups, record["optimizers"][name], strict=True):
            group.update({k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()})
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    return int(record["step"])


def _strip(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
