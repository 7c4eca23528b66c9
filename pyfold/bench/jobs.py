"""Rows of whole jobs, from pixels to pixels, with the peak memory of each form: what fused ops are worth beside a network."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from pyfold import diffusion
from pyfold.bench.ops import eager_fold
from pyfold.bench.rows import Case, Form, Setting, row
from pyfold.bench.samplers import diffusers_loop
from pyfold.gan import non_saturating_d, non_saturating_g, r1_penalty
from pyfold.models import Discriminator, Generator, UNet
from pyfold.nn import Fold

_IMAGES = {"small": (4, 3, 16, 16), "middle": (16, 3, 32, 32)}
_WIDTH = {"small": 8, "middle": 32}


class _EagerFold(nn.Module):
    def __init__(self, fold: Fold):
        super().__init__()
        self.fold = eager_fold(fold.kind)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fold(x)


def _without_pyfold(model: nn.Module) -> nn.Module:
    """The same network and weights with its folds in torch operations."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Fold):
                setattr(parent, name, _EagerFold(child))
    return model


def _step(loss: Callable[[], torch.Tensor], model: nn.Module) -> Form:
    parameters = list(model.parameters())
    return lambda: torch.autograd.grad(loss(), parameters)


@row("U-Net training step", "jobs", shapes=_IMAGES, dtypes=(torch.float32,), floor=0.9)
def _unet(s: Setting) -> Case:
    """Noising, network, v-loss, backward; maxmin as the activation."""
    (x0,) = s.tensors(1)
    seeds = s.seeds()
    torch.manual_seed(0)
    ours = UNet(s.shape[1], s.shape[2], _WIDTH[s.level], "maxmin").to(s.device)
    schedule = diffusion.vp_cosine()
    fused = diffusion.TrainingLoss(schedule, "v")
    steps = schedule.steps

    def with_pyfold() -> torch.Tensor:
        noised = fused.noise(x0, seeds)
        return fused(ours(noised.x_t, noised.t / steps), noised).mean()

    theirs = _without_pyfold(ours)
    alphas, sigmas = (c.float().to(s.device) for c in schedule.coefficients(torch.arange(steps)))

    def by_hand() -> torch.Tensor:
        t = torch.randint(0, steps, (s.shape[0],), device=s.device)
        alpha, sigma = s.per_sample(alphas[t]), s.per_sample(sigmas[t])
        noise = torch.randn_like(x0)
        prediction = theirs(alpha * x0 + sigma * noise, t / steps)
        return nn.functional.mse_loss(prediction, alpha * noise - sigma * x0)

    return Case({"pyfold": _step(with_pyfold, ours), "eager": _step(by_hand, theirs)}, grad=True, memory=True)


@row("GAN training step with R1", "jobs", shapes=_IMAGES, dtypes=(torch.float32,), floor=0.9)
def _gan(s: Setting) -> Case:
    """Discriminator with R1 (double backward), then generator; maxmin as the activation of both."""
    (real,) = s.tensors(1)
    channels, size, width, latent = s.shape[1], s.shape[2], _WIDTH[s.level], 32
    torch.manual_seed(0)
    generator = Generator(channels, size, latent, width, "maxmin").to(s.device)
    discriminator = Discriminator(channels, size, width, "maxmin").to(s.device)
    (z,) = s.tensors(1, (s.shape[0], latent))

    def step(generator: nn.Module, discriminator: nn.Module) -> Form:
        of_d, of_g = list(discriminator.parameters()), list(generator.parameters())

        def run() -> tuple[torch.Tensor, ...]:
            fake = generator(z)
            inputs = real.detach().requires_grad_()
            logits = discriminator(inputs)
            loss = non_saturating_d(logits, discriminator(fake.detach())) + r1_penalty(logits, inputs, 1.0)
            torch.autograd.grad(loss, of_d)
            return torch.autograd.grad(non_saturating_g(discriminator(fake)), of_g)

        return run

    forms: dict[str, Form | None] = {
        "pyfold": step(generator, discriminator),
        "eager": step(_without_pyfold(generator), _without_pyfold(discriminator)),
    }
    return Case(forms, grad=True, memory=True)


@row("20-step sampling with a U-Net", "jobs", shapes=_IMAGES, dtypes=(torch.float32,))
def _sampling(s: Setting) -> Case:
    """DPM-Solver++ 2M: 20 evaluations and 20 steps."""
    schedule, steps = diffusion.vp_linear(), 20
    torch.manual_seed(0)
    ours = UNet(s.shape[1], s.shape[2], _WIDTH[s.level], "maxmin").to(s.device).requires_grad_(False)
    plan = diffusion.dpmpp_multistep(schedule, steps, order=2)
    seeds = s.seeds()

    def denoise(model: nn.Module) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        return lambda x, t: model(x, t.expand(len(x)) / schedule.steps)

    forms: dict[str, Form | None] = {
        "pyfold": lambda: diffusion.sample(denoise(ours), plan, s.shape[1:], seeds, device=s.device)
    }
    if s.peers.diffusers:
        scheduler = s.peers.diffusers.DPMSolverMultistepScheduler()
        scheduler.set_timesteps(steps, device=s.device)
        theirs = denoise(_without_pyfold(ours))
        forms["diffusers"] = diffusers_loop(scheduler, lambda: torch.randn(s.shape, device=s.device), theirs, {})
    return Case(forms, memory=True)
