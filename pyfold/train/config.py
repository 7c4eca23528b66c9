"""What a run is made of, in a file that reproduces it."""

from __future__ import annotations

import dataclasses
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyfold.diffusion import PREDICTIONS, SAMPLERS, SCHEDULES, Plan
from pyfold.gan import DYNAMICS, LOSSES
from pyfold.gan.augment import POLICIES
from pyfold.models import ACTIVATIONS
from pyfold.train.data import POINTS
from pyfold.train.files import write_text

#: Settings whose best value depends on what is trained; a field that is None takes its value here.
DEFAULTS: dict[str, dict[str, Any]] = {
    "diffusion": {"lr": 2e-3, "batch": 128, "ema": 0.995},
    # On digits twice the step and half the penalty are worse, and can let the discriminator win for good.
    "gan of images": {"lr": 1e-3, "batch": 64, "ema": 0.995, "latent": 32, "gamma": 2.0, "cooldown": 1 / 3, "depth": 2},
    # A narrow Gaussian wants a discriminator that may become steep, once all of them are found.
    "gan of points": {
        "lr": 2e-3, "batch": 256, "ema": 0.998, "latent": 4, "gamma": 0.03, "gamma_end": 0.003, "cooldown": 0.6,
        "generator_activation": "relu", "depth": 3,
    },
}  # fmt: skip

#: What each training objective is of, and how its models sample.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "denoising": {"schedule": "vp_cosine", "prediction": "v", "sampler": "ddim", "sampler_steps": 50},
    "ecm": {"schedule": "edm", "prediction": "F", "sampler": "consistency", "sampler_steps": 1},
    "scm": {"schedule": "trigflow", "prediction": "trigflow", "sampler": "consistency", "sampler_steps": 1},
    **{
        name: {"schedule": "flow", "prediction": "flow", "sampler": "flow_map", "sampler_steps": 1}
        for name in ("meanflow", "anyflow", "shortcut")
    },
}

#: A run's seed is the upper part of its samples' 64-bit seeds, of which a step takes the next ``batch``.
SEEDS = 2**23


def _tuned(kind: type) -> Any:
    """A field whose default is in DEFAULTS, or another field's value (_FOLLOW)."""
    return dataclasses.field(default=None, metadata={"type": kind})


#: The discriminator's setting is that of the generator where none is given.
_FOLLOW = {
    "lr_discriminator": "lr",
    "beta1_discriminator": "beta1",
    "beta2_discriminator": "beta2",
    "depth_discriminator": "depth",
}


@dataclass(frozen=True)
class Config:
    """Settings of a run; every field is an option of the command line. Those of None become what ``DEFAULTS`` says.

    Raises:
        TypeError: a value of another type than its setting's (a whole number is a float too).
        ValueError: a value out of range, or one that does not go with another.
    """

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
    labels: str = "none"
    flips: str = "none"
    ram: int = 1024
    scale: float = 1.0
    save_every: int = 500
    log_every: int = 50
    metrics_every: int = 0
    final_samples: int = 1000
    precision: str = "float32"
    # diffusion
    objective: str = "denoising"
    schedule: str = _tuned(str)
    prediction: str = _tuned(str)
    sampler: str = _tuned(str)
    sampler_steps: int = _tuned(int)
    # gan
    latent: int = _tuned(int)
    loss: str = "relativistic"
    gamma: float = _tuned(float)
    gamma_end: float = _tuned(float)
    cooldown: float = _tuned(float)
    generator_activation: str = _tuned(str)
    lr_discriminator: float = _tuned(float)
    beta1: float = 0.0
    beta2: float = 0.99
    beta1_discriminator: float = _tuned(float)
    beta2_discriminator: float = _tuned(float)
    depth: int = _tuned(int)
    depth_discriminator: int = _tuned(int)
    init: str = "default"
    init_gain: float = 1.0
    discriminator_scale: float = 1.0
    dynamics: str = "alternating"
    dynamics_steps: int = 5
    dynamics_rate: float = 0.0
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
        self._check_types()
        if self.model not in ("diffusion", "gan"):
            raise ValueError(f"model must be one of diffusion, gan, got {self.model!r}")
        self._fill()
        self._check_choices()
        self._check_numbers()
        if (self.gamma == 0) != (self.gamma_end == 0):
            raise ValueError(f"gamma_end must be 0 where gamma is, and positive elsewhere, got {self.gamma_end}")
        if self.batch % self.pack:
            raise ValueError(f"pack must divide batch, {self.batch}, got {self.pack}")
        unknown = [name for name in self.policy.split(",") if name.strip() not in POLICIES]
        if unknown:
            raise ValueError(f"policy must be names of {', '.join(POLICIES)} with commas between them, got {self.policy!r}")
        if self.model == "diffusion":
            self._check_objective()
            self.plan(clip=None)

    @property
    def second_time(self) -> bool:
        """Whether the model is told where its step ends, beside where it begins."""
        return self.sampler == "flow_map"

    def _check_objective(self) -> None:
        if self.objective == "denoising":
            if self.second_time:
                raise ValueError("sampler must not be flow_map for objective denoising, whose models have one time")
            return
        fixed = ("sampler",) if self.objective == "ecm" else ("sampler", "schedule", "prediction")
        for name in fixed:
            value, wanted = getattr(self, name), OBJECTIVES[self.objective][name]
            if value != wanted:
                raise ValueError(f"{name} must be {wanted} for objective {self.objective}, got {value!r}")

    def _check_types(self) -> None:
        for field in dataclasses.fields(self):
            kind, value = field_type(field), getattr(self, field.name)
            allowed = (int, float) if kind is float else kind
            if value is None and "type" in field.metadata:
                continue
            if isinstance(value, bool) or not isinstance(value, allowed):
                names = {int: "a whole number", float: "a number", str: "a text"}
                raise TypeError(f"{field.name} must be {names[kind]}, got {value!r}")

    def _fill(self) -> None:
        """What is None gets its value."""
        of_objective = OBJECTIVES.get(self.objective, OBJECTIVES["denoising"])
        tuned = {**DEFAULTS["gan of images"], **of_objective, "generator_activation": self.activation, **DEFAULTS[self.kind]}
        if self.gamma is not None or "gamma_end" not in tuned:
            tuned["gamma_end"] = tuned["gamma"] if self.gamma is None else self.gamma
        for name, value in tuned.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name, other in _FOLLOW.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(self, other))

    def _check_choices(self) -> None:
        choices = {
            "activation": ACTIVATIONS,
            "generator_activation": ACTIVATIONS,
            "dynamics": tuple(DYNAMICS),
            "objective": tuple(OBJECTIVES),
            "schedule": tuple(SCHEDULES),
            "prediction": tuple(PREDICTIONS),
            "sampler": tuple(SAMPLERS),
            "loss": tuple(LOSSES),
            "broken": ("refuse", "skip"),
            "labels": ("none", "folders"),
            "flips": ("none", "horizontal"),
            "precision": ("float32", "bf16"),
            "network": ("dcgan", "resnet"),
            "init": ("default", "orthogonal"),
            "augment": ("none", "fixed", "adaptive"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")

    def _check_numbers(self) -> None:
        counts = "steps batch width size ram save_every log_every final_samples sampler_steps latent pack depth"
        for name in (*counts.split(), "depth_discriminator", "dynamics_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.seed < SEEDS:
            raise ValueError(f"seed must be in [0, {SEEDS}), got {self.seed}")
        if self.steps * self.batch >= 2**40:
            raise ValueError(f"steps times batch must be below 2^40, got {self.steps} x {self.batch}")
        for name in ("lr", "lr_discriminator", "gamma", "gamma_end", "dynamics_strength", "dynamics_rate"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a number from 0, got {getattr(self, name)}")
        for name in ("scale", "discriminator_scale", "init_gain"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        for name in ("ema", "beta1", "beta2", "beta1_discriminator", "beta2_discriminator"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not 0 <= self.cooldown <= 1:
            raise ValueError(f"cooldown must be in [0, 1], got {self.cooldown}")
        if self.metrics_every < 0:
            raise ValueError(f"metrics_every must be at least 0 (never), got {self.metrics_every}")

    def plan(self, clip: float | None) -> Plan:
        """The sampler's plan, with x0 clipped where the sampler knows how.

        Raises:
            ValueError: the schedule, sampler, prediction and number of steps do not go together.
        """
        sampler = SAMPLERS[self.sampler]
        if self.second_time:
            clip = None  # a step of a mean velocity goes to r, not through x0
        options = {"clip": clip} if "clip" in inspect.signature(sampler).parameters else {}
        return sampler(SCHEDULES[self.schedule](), self.sampler_steps, prediction=self.prediction, **options)

    def save(self, path: Path) -> None:
        write_text(path, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @staticmethod
    def read(path: Path) -> dict[str, Any]:
        """The settings in a file, not yet checked.

        Raises:
            ValueError: the file is not JSON, holds something other than settings by name, or one that does not exist.
        """
        try:
            settings = json.loads(path.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"{path} is not a configuration: {error}") from error
        if not isinstance(settings, dict):
            raise ValueError(f"{path} is not a configuration: it must hold settings by name, got a {type(settings).__name__}")
        fields = {f.name for f in dataclasses.fields(Config)}
        unknown = sorted(set(settings) - fields)
        if unknown:
            raise ValueError(f"{path} has unknown settings: {', '.join(unknown)}")
        return settings

    @classmethod
    def load(cls, path: Path) -> Config:
        settings = cls.read(path)
        if "model" not in settings:
            raise ValueError(f"{path} is not a configuration: it has no model")
        try:
            return cls(**settings)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error


def field_type(field: dataclasses.Field[Any]) -> type:
    """int, float or str: what a setting is, on the command line too."""
    return field.metadata.get("type") or (str if field.name == "model" else type(field.default))
