"""What a run is made of, in a file that reproduces it."""

from __future__ import annotations

import dataclasses
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyfold.diffusion import SAMPLERS, SCHEDULES, Plan
from pyfold.gan import DYNAMICS, LOSSES
from pyfold.gan.augment import POLICIES
from pyfold.models import ACTIVATIONS
from pyfold.ops import TARGETS
from pyfold.train.data import POINTS
from pyfold.train.files import write_text

#: Settings whose best value depends on what is trained; a field that is None takes its value here.
DEFAULTS: dict[str, dict[str, Any]] = {
    "diffusion": {"lr": 2e-3, "batch": 128, "ema": 0.995},
    # On digits twice the step and half the penalty are worse, and can let the discriminator win for good.
    "gan of images": {"lr": 1e-3, "batch": 64, "ema": 0.995, "latent": 32, "gamma": 2.0, "cooldown": 1 / 3},
    # A narrow Gaussian wants a discriminator that may become steep, once all of them are found.
    "gan of points": {
        "lr": 2e-3, "batch": 256, "ema": 0.998, "latent": 4, "gamma": 0.03, "gamma_end": 0.003, "cooldown": 0.6,
        "generator_activation": "relu",
    },
}  # fmt: skip


def _tuned(kind: type) -> Any:
    """A field whose default is in DEFAULTS."""
    return dataclasses.field(default=None, metadata={"type": kind})


@dataclass(frozen=True)
class Config:
    """Settings of a run; every field is an option of the command line. Those of None become what ``DEFAULTS`` says."""

    model: str
    data: str = "digits"
    steps: int = 3000
    batch: int = _tuned(int)
    lr: float = _tuned(float)
    seed: int = 0
    width: int = 32
    activation: str = "maxmin"
    ema: float = _tuned(float)
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
    latent: int = _tuned(int)
    loss: str = "relativistic"
    gamma: float = _tuned(float)
    gamma_end: float = _tuned(float)
    cooldown: float = _tuned(float)
    generator_activation: str = _tuned(str)
    dynamics: str = "alternating"
    dynamics_steps: int = 5
    dynamics_rate: float = 0.03
    dynamics_strength: float = 0.1
    network: str = "dcgan"
    pack: int = 1
    augment: str = "none"
    policy: str = "color,translation,cutout"

    @property
    def kind(self) -> str:
        """The key of DEFAULTS."""
        return "diffusion" if self.model == "diffusion" else f"gan of {'points' if self.data in POINTS else 'images'}"

    def __post_init__(self) -> None:
        if self.model not in ("diffusion", "gan"):
            raise ValueError(f"model must be one of diffusion, gan, got {self.model!r}")
        tuned = {**DEFAULTS["gan of images"], "generator_activation": self.activation, **DEFAULTS[self.kind]}
        if self.gamma is not None or "gamma_end" not in tuned:
            tuned["gamma_end"] = tuned["gamma"] if self.gamma is None else self.gamma
        for name, value in tuned.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        choices = {
            "activation": ACTIVATIONS,
            "generator_activation": ACTIVATIONS,
            "dynamics": tuple(DYNAMICS),
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
        counts = (
            "steps",
            "batch",
            "width",
            "size",
            "save_every",
            "log_every",
            "sampler_steps",
            "latent",
            "pack",
            "dynamics_steps",
        )
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "gamma", "gamma_end", "dynamics_strength"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a number from 0, got {getattr(self, name)}")
        if (self.gamma == 0) != (self.gamma_end == 0):
            raise ValueError(f"gamma_end must be 0 where gamma is, and positive elsewhere, got {self.gamma_end}")
        if not 0 < self.dynamics_rate < float("inf"):
            raise ValueError(f"dynamics_rate must be positive, got {self.dynamics_rate}")
        if not 0 < self.cooldown <= 1:
            raise ValueError(f"cooldown must be in (0, 1], got {self.cooldown}")
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
