"""What a run is made of, in a file that reproduces it."""

from __future__ import annotations

import dataclasses
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyfold.diffusion import SAMPLERS, SCHEDULES, Plan
from pyfold.gan import LOSSES
from pyfold.gan.augment import POLICIES
from pyfold.models import ACTIVATIONS
from pyfold.ops import TARGETS
from pyfold.train.files import write_text


@dataclass(frozen=True)
class Config:
    """Settings of a run; every field is an option of the command line."""

    model: str
    data: str = "digits"
    steps: int = 3000
    batch: int = 128
    lr: float = 2e-3
    seed: int = 0
    width: int = 32
    activation: str = "maxmin"
    ema: float = 0.995
    size: int = 32
    broken: str = "refuse"
    save_every: int = 500
    log_every: int = 50
    metrics_every: int = 0
    precision: str = "float32"
    # diffusion
    schedule: str = "vp_cosine"
    prediction: str = "v"
    sampler: str = "ddim"
    sampler_steps: int = 50
    # gan
    latent: int = 32
    loss: str = "relativistic"
    gamma: float = 1.0
    network: str = "dcgan"
    pack: int = 1
    augment: str = "none"
    policy: str = "color,translation,cutout"

    def __post_init__(self) -> None:
        choices = {
            "model": ("diffusion", "gan"),
            "activation": ACTIVATIONS,
            "schedule": tuple(SCHEDULES),
            "prediction": tuple(TARGETS),
            "sampler": tuple(SAMPLERS),
            "loss": tuple(LOSSES),
            "broken": ("refuse", "skip"),
            "precision": ("float32", "bf16"),
            "network": ("dcgan", "resnet"),
            "augment": ("none", "fixed", "adaptive"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("steps", "batch", "width", "size", "save_every", "log_every", "sampler_steps", "latent", "pack"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "gamma"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a number from 0, got {getattr(self, name)}")
        if self.metrics_every < 0:
            raise ValueError(f"metrics_every must be at least 0 (never), got {self.metrics_every}")
        if self.batch % self.pack:
            raise ValueError(f"pack must divide batch, {self.batch}, got {self.pack}")
        unknown = [name for name in self.policy.split(",") if name not in POLICIES]
        if unknown:
            raise ValueError(f"policy must be names of {', '.join(POLICIES)} with commas between them, got {self.policy!r}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}")
        if self.model == "diffusion":
            self.plan(clip=None)

    def plan(self, clip: float | None) -> Plan:
        """The sampler's plan, with x0 clipped where the sampler knows how.

        Raises:
            ValueError: the schedule, sampler, prediction and number of steps do not go together.
        """
        sampler = SAMPLERS[self.sampler]
        options = {"clip": clip} if "clip" in inspect.signature(sampler).parameters else {}
        return sampler(SCHEDULES[self.schedule](), self.sampler_steps, prediction=self.prediction, **options)

    def save(self, path: Path) -> None:
        write_text(path, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @staticmethod
    def read(path: Path) -> dict[str, Any]:
        """The settings in a file, not yet checked."""
        try:
            settings = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not a configuration: {error}") from error
        fields = {f.name for f in dataclasses.fields(Config)}
        unknown = sorted(set(settings) - fields)
        if unknown:
            raise ValueError(f"{path} has unknown settings: {', '.join(unknown)}")
        return settings

    @classmethod
    def load(cls, path: Path) -> Config:
        return cls(**cls.read(path))
