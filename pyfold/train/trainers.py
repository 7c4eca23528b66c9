"""One training step of each kind of model, and sampling from it.

A step's batch, noise and latents are functions of the step number and the run's seed, so a trainer holds weights, averages
and optimizers, and nothing else that would have to be saved.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import pyfold
from pyfold._torch_private import lerp_
from pyfold.diffusion import (
    SCHEDULES,
    AnyFlowLoss,
    ECMLoss,
    MeanFlowLoss,
    Schedule,
    SCMLoss,
    ShortcutLoss,
    TrainingLoss,
    sample,
    with_next_time,
)
from pyfold.gan import DYNAMICS, LOSSES, r1_penalty
from pyfold.gan.augment import Augment, pack
from pyfold.models import (
    MLP,
    Discriminator,
    Generator,
    MLPCritic,
    MLPDenoiser,
    ResNetDiscriminator,
    ResNetGenerator,
    Scaled,
    UNet,
    orthogonal_,
)
from pyfold.train import parallel
from pyfold.train.config import Config
from pyfold.train.data import Data

#: The stream of a generator's latent codes.
LATENT_STREAM = 16
_ADA_TARGET = 0.6  # Karras et al. 2020
_ECM_STAGES = 8


def step_seeds(config: Config, step: int, device: torch.device) -> torch.Tensor:
    """A seed for each sample of a training step, never used twice in a run."""
    first = (config.seed << 40) + step * config.batch
    return parallel.own_samples(torch.arange(first, first + config.batch, device=device))


def _rows(data: Data, config: Config, step: int, device: torch.device) -> torch.Tensor:
    """This process's samples of a training step."""
    return data.batch(config.seed, step, config.batch, parallel.own_samples).to(device)


def _autocast(config: Config, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")


def _check_batch(config: Config) -> None:
    unit = config.pack * parallel.count()
    if config.batch % unit:
        raise ValueError(f"batch must be a multiple of {unit} (pack x processes), got {config.batch}")


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Exponential moving average of the weights, quick at first: decay is at most (1 + step) / (10 + step).

    The decay is that of one step, whatever the batch. For a half-life in images, as StyleGAN and R3GAN count, it is
    ``0.5 ** (batch / images)``. Buffers are copied.

    Args:
        average, model: modules of one kind; the first is changed in place.
        decay: in [0, 1); 0 copies.
        step: how many steps were taken before this one.
    """
    weight = 1 - min(decay, (1 + step) / (10 + step))
    lerp_(list(average.parameters()), list(model.parameters()), weight)
    for mean, value in zip(average.buffers(), model.buffers(), strict=True):
        mean.copy_(value)


def _dynamic_options(config: Config) -> dict[str, Any]:
    options: dict[str, dict[str, Any]] = {
        "unrolled": {"steps": config.dynamics_steps, "rate": config.dynamics_rate or None},
        "proximal": {"iterations": config.dynamics_steps},
        "consensus": {"strength": config.dynamics_strength},
        "symplectic": {"strength": config.dynamics_strength},
    }
    return options.get(config.dynamics, {})


class DiffusionTrainer:
    """A denoiser trained on the loss that makes its noise again (``pyfold.diffusion.TrainingLoss``), or a model that samples in
    one step, on an objective of two times."""

    def __init__(self, config: Config, data: Data, device: torch.device):
        self.config, self.data, self.device = config, data, device
        _check_batch(config)
        torch.manual_seed(config.seed)
        shape = data.shape
        model: nn.Module
        times = {"second_time": config.second_time, "smooth_time": config.sampler == "consistency"}
        if data.is_image:
            model = UNet(shape[0], shape[1], config.width, config.activation, **times)
        else:
            model = MLPDenoiser(shape[0], 4 * config.width, activation=config.activation, **times)
        self.model = model.to(device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.schedule = SCHEDULES[config.schedule]()
        self.losses = _OBJECTIVES[config.objective](self)
        self.optimizer = torch.optim.Adam(self.model.parameters(), config.lr, betas=(0.9, 0.99))
        self.modules: dict[str, nn.Module] = {"model": self.model, "ema": self.average}
        self.optimizers: dict[str, torch.optim.Optimizer] = {"model": self.optimizer}

    def denoise(self, model: nn.Module, x: torch.Tensor, *times: torch.Tensor) -> torch.Tensor:
        """The model's output; networks take times in [0, 1]."""
        result: torch.Tensor = model(x, *(t / max(self.schedule.steps, 1) for t in times))
        return result

    def step(self, step: int) -> dict[str, torch.Tensor]:
        x0 = _rows(self.data, self.config, step, self.device)
        seeds = step_seeds(self.config, step, self.device)

        def model(x: torch.Tensor, *times: torch.Tensor) -> torch.Tensor:
            with _autocast(self.config, self.device):
                output = self.denoise(self.model, x, *times)
            return output.float()

        loss = self.losses(model, x0, seeds, step).mean()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        parallel.average_gradients(self.model)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.param_groups[0]["lr"] = self.config.lr * (1 - step / self.config.steps) ** 0.5
        self.optimizer.step()
        update_average(self.average, self.model, self.config.ema, step)
        return {"loss": loss.detach()}

    def sample(self, seeds: torch.Tensor) -> torch.Tensor:
        plan = self.config.plan(clip=1.0 if self.data.is_image else None)

        def model(x: torch.Tensor, *times: torch.Tensor) -> torch.Tensor:
            return self.denoise(self.average, x, *times)

        denoiser = with_next_time(model, plan) if self.config.second_time else model
        return sample(denoiser, plan, self.data.shape, seeds, device=self.device)


#: Per-sample losses of (model, x0, seeds, step).
Losses = Callable[[Callable[..., torch.Tensor], torch.Tensor, torch.Tensor, int], torch.Tensor]


def _denoising(trainer: DiffusionTrainer) -> Losses:
    loss = TrainingLoss(trainer.schedule, trainer.config.prediction)

    def losses(model: Callable[..., torch.Tensor], x0: torch.Tensor, seeds: torch.Tensor, step: int) -> torch.Tensor:
        noised = loss.noise(x0, seeds)
        return loss(model(noised.x_t, noised.t), noised)

    return losses


def _ecm(trainer: DiffusionTrainer) -> Losses:
    """Denoising first, then the earlier time comes nearer in equal parts of the run."""
    loss = ECMLoss(trainer.schedule, trainer.config.prediction, dropout=False)

    def losses(model: Callable[..., torch.Tensor], x0: torch.Tensor, seeds: torch.Tensor, step: int) -> torch.Tensor:
        stage = _ECM_STAGES * step // trainer.config.steps - 1
        return loss(model, loss.noise(x0, seeds, stage=stage))

    return losses


def _scm(trainer: DiffusionTrainer) -> Losses:
    """The derivative counts in full from the tenth part of the run on."""
    loss = SCMLoss(trainer.schedule.data_std, dropout=False)

    def losses(model: Callable[..., torch.Tensor], x0: torch.Tensor, seeds: torch.Tensor, step: int) -> torch.Tensor:
        return loss(model, loss.noise(x0, seeds), warmup=min(1.0, 10 * step / trainer.config.steps))

    return losses


def _of_intervals(make: Callable[[Schedule], MeanFlowLoss | ShortcutLoss]) -> Callable[[DiffusionTrainer], Losses]:
    def losses_of(trainer: DiffusionTrainer) -> Losses:
        loss = make(trainer.schedule)
        return lambda model, x0, seeds, step: loss(model, loss.noise(x0, seeds))

    return losses_of


_OBJECTIVES: dict[str, Callable[[DiffusionTrainer], Losses]] = {
    "denoising": _denoising,
    "ecm": _ecm,
    "scm": _scm,
    # Small data sets want the ends of the time, where one step starts, more often than the paper does.
    "meanflow": _of_intervals(lambda flow: MeanFlowLoss(flow, density="uniform", different=0.5, dropout=False)),
    "anyflow": _of_intervals(lambda flow: AnyFlowLoss(flow, dropout=False)),
    "shortcut": _of_intervals(lambda flow: ShortcutLoss(flow, dropout=False)),
}


class GanTrainer:
    """A generator against a discriminator under one of the dynamics of ``pyfold.gan``, with R1 and R2 (Mescheder et al. 2018;
    Huang et al. 2024)."""

    def __init__(self, config: Config, data: Data, device: torch.device):
        self.config, self.data, self.device = config, data, device
        _check_batch(config)
        torch.manual_seed(config.seed)
        generator, discriminator = _players(config, data)
        self.generator, self.discriminator = generator.to(device), discriminator.to(device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.d_loss, self.g_loss = LOSSES[config.loss]
        self.rates = {"generator": config.lr, "discriminator": config.lr_discriminator}
        betas = {"generator": (config.beta1, config.beta2)}
        betas["discriminator"] = config.beta1_discriminator, config.beta2_discriminator
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            name: torch.optim.Adam(module.parameters(), self.rates[name], betas=betas[name])
            for name, module in (("generator", self.generator), ("discriminator", self.discriminator))
        }
        self.dynamic = DYNAMICS[config.dynamics](
            [self.optimizers["discriminator"], self.optimizers["generator"]],
            [self._discriminator_loss, self._generator_loss],
            **_dynamic_options(config),
        )
        if parallel.count() > 1:
            if self.dynamic.mixed:
                raise ValueError(
                    f"dynamics must not be {config.dynamics} with several processes: it takes one batch as a whole"
                )
            self.dynamic.combine = parallel.average
        self.modules: dict[str, nn.Module] = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "ema": self.average,
        }
        self.augment: Augment | None = None
        if config.augment != "none":
            target = _ADA_TARGET if config.augment == "adaptive" else None
            self.augment = self.modules["augment"] = Augment(config.policy, target=target).to(device)
        self._seen_first: dict[str, torch.Tensor] = {}

    def latents(self, seeds: torch.Tensor) -> torch.Tensor:
        return pyfold.randn(seeds, (self.config.latent,), stream=LATENT_STREAM)

    def _seen(self, samples: torch.Tensor, step: int, draw: int) -> torch.Tensor:
        """What the discriminator gets: samples augmented, then packed."""
        if self.augment is not None:
            samples = self.augment(samples, step_seeds(self.config, step, self.device), draw)
        return pack(samples, self.config.pack)

    def _discriminator_loss(self) -> torch.Tensor:
        # The penalties bound the gradient at the discriminator's own inputs.
        with _autocast(self.config, self.device):
            with torch.set_grad_enabled(self.dynamic.mixed):
                fake = self._seen(self.generator(self._latents).float(), self._step, 1)
            both = torch.cat([self._seen(self._real, self._step, 0), fake]).requires_grad_()
            logits = self.discriminator(both).float()
        real_logits, fake_logits = logits.chunk(2)
        loss = self.d_loss(real_logits, fake_logits)
        # R1 and R2: the mean over both halves is half the sum of their means.
        penalty = r1_penalty(logits, both, 2 * self._gamma) if self._gamma else logits.new_zeros(())
        margin = real_logits - fake_logits if self.config.loss == "relativistic" else real_logits
        if not self._seen_first:  # a dynamic may look again, elsewhere
            self._seen_first = {"penalty": penalty.detach(), "sign": margin.detach().sign().mean()}
        return loss + penalty

    def _generator_loss(self) -> torch.Tensor:
        if self.config.dynamics == "unrolled":
            # The whole value function: what does not depend on the generator here does so through the moves ahead.
            return -self._discriminator_loss()
        with _autocast(self.config, self.device):
            with torch.set_grad_enabled(self.dynamic.mixed):
                real_logits = self.discriminator(self._seen(self._real, self._step, 2)).float()
            fake = self._seen(self.generator(self._latents).float(), self._step, 3)
            return self.g_loss(self.discriminator(fake).float(), real_logits)

    def step(self, step: int) -> dict[str, torch.Tensor]:
        config = self.config
        # The last part of the run cools down: the game orbits at a fixed rate, and settles at a falling one.
        progress = step / config.steps
        cooled = min(1.0, (1 - progress) / config.cooldown) if config.cooldown else 1.0
        for name, optimizer in self.optimizers.items():
            optimizer.param_groups[0]["lr"] = self.rates[name] * cooled
        fallen = min(1.0, progress / (1 - config.cooldown)) if config.cooldown < 1 else 1.0
        self._gamma = config.gamma * (config.gamma_end / config.gamma) ** fallen if config.gamma else 0.0
        self._step, self._real = step, _rows(self.data, config, step, self.device)
        self._latents = self.latents(step_seeds(config, step, self.device))

        self._seen_first = {}
        d_loss, g_loss = self.dynamic.step()
        update_average(self.average, self.generator, config.ema, step)
        penalty, sign = self._seen_first["penalty"], self._seen_first["sign"]
        scalars = {"loss_d": d_loss - penalty, "loss_g": g_loss, "penalty": penalty}
        if self.augment is not None and self.augment.target is not None:
            parallel.average([sign])
            self.augment.update(sign, config.batch)
            scalars |= {"ada_sign": sign, "ada_p": self.augment.p.clone()}
        return scalars

    @torch.no_grad()
    def sample(self, seeds: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.average(self.latents(seeds.to(self.device)))
        return result


def _players(config: Config, data: Data) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator, with their first weights."""
    shape, seen = data.shape, config.pack * data.shape[0]
    generator: nn.Module
    discriminator: nn.Module
    if not data.is_image:
        if config.augment != "none":
            raise ValueError(f"augment must be none for points, got {config.augment!r}")
        width = 4 * config.width
        generator = MLP(config.latent, shape[0], width, config.depth, config.generator_activation)
        discriminator = MLPCritic(seen, width, config.depth_discriminator, config.activation)
    elif config.network == "resnet":
        generator = ResNetGenerator(shape[0], shape[1], config.latent, config.width, config.generator_activation, config.depth)
        discriminator = ResNetDiscriminator(seen, shape[1], config.width, config.activation, config.depth_discriminator)
    else:
        generator = Generator(shape[0], shape[1], config.latent, config.width, config.generator_activation)
        discriminator = Discriminator(seen, shape[1], config.width, config.activation)
    if config.init == "orthogonal":
        for module in (generator, discriminator):
            orthogonal_(module, config.init_gain)
    if config.discriminator_scale != 1:
        discriminator = Scaled(discriminator, config.discriminator_scale)
    return generator, discriminator


TRAINERS: dict[str, Callable[[Config, Data, torch.device], DiffusionTrainer | GanTrainer]] = {
    "diffusion": DiffusionTrainer,
    "gan": GanTrainer,
}
