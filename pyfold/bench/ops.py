"""Rows of the ops and of single steps: against eager PyTorch at its best (preallocated, in place, coefficients ready),
torch.compile, and what a user would call instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import pyfold
from pyfold import diffusion
from pyfold._torch_private import stateless_generator
from pyfold.bench.rows import FEATURES, IMAGES, Case, Form, Setting, row
from pyfold.ops import FOLDS, OPS


@row("randn", "ops", floor=2.0)
def _randn(s: Setting) -> Case:
    seeds, out = s.seeds(), torch.empty(s.shape, dtype=s.dtype, device=s.device)
    forms = {
        "pyfold": lambda: pyfold.randn(seeds, s.shape[1:], out=out),
        "eager": lambda: torch.randn(s.shape, dtype=s.dtype, device=s.device, out=out),
    }
    return Case(forms, moved=out.numel() * out.element_size(), normals=out.numel())


@row("randn of keys", "ops", shapes={"small": IMAGES["small"], "middle": (4, 4, 256, 256)}, floor=5.0)
def _randn_of_keys(s: Setting) -> Case:
    out, theirs = (torch.empty(s.shape, dtype=s.dtype, device=s.device) for _ in range(2))
    keys = torch.stack([s.seeds(), 2**40 * s.seeds()], 1).view(torch.uint64)
    each, torchs = keys.reshape(-1, *[1] * (len(s.shape) - 1), 2), stateless_generator(s.device)
    forms = {
        "pyfold": lambda: pyfold.randn(keys, s.shape[1:], out=out),
        "eager": torchs and (lambda: torchs.normal_(each, theirs)),
    }
    return Case(forms, moved=out.numel() * out.element_size(), normals=out.numel())


class _Noising:
    """One noise level for each sample, as numbers [B] and as columns against x0."""

    def __init__(self, s: Setting):
        self.seeds = s.seeds()
        self.alpha = torch.linspace(0.1, 0.9, s.shape[0], device=s.device)
        self.sigma = (1 - self.alpha**2).sqrt()
        self.a, self.s = s.per_sample(self.alpha), s.per_sample(self.sigma)


@row("add_noise", "ops", floor=1.5)
def _add_noise(s: Setting) -> Case:
    (x0,) = s.tensors(1)
    at, out, noise = _Noising(s), torch.empty_like(x0), torch.empty_like(x0)

    def eager() -> torch.Tensor:
        torch.randn(s.shape, dtype=s.dtype, device=s.device, out=noise)
        return torch.addcmul(torch.mul(at.a, x0, out=out), at.s, noise, out=out)

    forms: dict[str, Form | None] = {
        "pyfold": lambda: pyfold.add_noise(x0, at.alpha, at.sigma, at.seeds, out=out),
        "eager": eager,
        "compile": s.peers.compiled(lambda: at.a * x0 + at.s * torch.randn_like(x0)),
    }
    if s.peers.diffusers:
        scheduler, t = s.peers.diffusers.DDPMScheduler(), torch.arange(s.shape[0], device=s.device)
        forms["diffusers"] = lambda: scheduler.add_noise(x0, torch.randn_like(x0), t)
    return Case(forms, moved=2 * x0.numel() * x0.element_size(), normals=x0.numel())


@row("add_noise, forward + backward", "gradients")
def _add_noise_backward(s: Setting) -> Case:
    x0, gradient = s.tensors(2)
    at = _Noising(s)
    x0.requires_grad_()

    def run(f: Callable[[], Any]) -> Form:
        return lambda: torch.autograd.grad(f(), x0, gradient)

    eager = lambda: at.a * x0 + at.s * torch.randn_like(x0)  # noqa: E731
    compiled = s.peers.compiled(eager)
    forms = {
        "pyfold": run(lambda: pyfold.add_noise(x0, at.alpha, at.sigma, at.seeds)),
        "eager": run(eager),
        "compile": compiled and run(compiled),
    }
    return Case(forms, moved=4 * x0.numel() * x0.element_size(), normals=x0.numel(), grad=True)


def _eager_loss(at: _Noising) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The v-prediction loss of a batch, noising included, as one would write it."""

    def loss(prediction: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
        noise = torch.randn_like(x0)
        x_t = at.a * x0 + at.s * noise
        squared = (prediction - (at.a * noise - at.s * x0)) ** 2
        return squared.mean((1, 2, 3)).sum() + 0 * x_t[0, 0, 0, 0]

    return loss


def _add_loss_rows(name: str, kept: bool, floor: float) -> None:
    @row(name, "gradients", floor=floor)
    def noising_and_loss(s: Setting) -> Case:
        x0, prediction = s.tensors(2)
        at = _Noising(s)
        prediction.requires_grad_()

        def ours() -> object:
            if kept:
                x_t, target = pyfold.add_noise(x0, at.alpha, at.sigma, at.seeds, target="v")
                del x_t  # as after the network's first layer in the other forms
                loss = pyfold.mse_loss(prediction, target)
            else:
                pyfold.add_noise(x0, at.alpha, at.sigma, at.seeds)
                loss = pyfold.denoising_loss(prediction, x0, at.alpha, at.sigma, at.seeds, target="v")
            return torch.autograd.grad(loss.sum(), prediction)

        def run(f: Callable[..., torch.Tensor]) -> Form:
            return lambda: torch.autograd.grad(f(prediction, x0), prediction)

        compiled = s.peers.compiled(_eager_loss(at))
        forms = {"pyfold": ours, "eager": run(_eager_loss(at)), "compile": compiled and run(compiled)}
        # Noising reads and writes, and writes the target if it is kept; the loss reads two, its backward writes the third.
        draws, arrays = (1, 8) if kept else (3, 7)
        normals, moved = draws * x0.numel(), arrays * x0.numel() * x0.element_size()
        return Case(forms, moved=moved, normals=normals, grad=True, memory=True)


# The target kept, as add_noise returns it; or noise and target made again from the seeds wherever they are needed.
_add_loss_rows("noising + loss, forward + backward", True, floor=1.8)
_add_loss_rows("noising + loss, nothing kept, forward + backward", False, floor=1.3)


@row("loss, backward of backward", "gradients", dtypes=(torch.float32,))
def _loss_twice(s: Setting) -> Case:
    """A Hessian-vector product: what a penalty on the gradient of the loss needs."""
    x0, prediction, direction = s.tensors(3)
    at = _Noising(s)
    prediction.requires_grad_()

    def run(f: Callable[[], torch.Tensor]) -> Form:
        def both() -> object:
            (gradient,) = torch.autograd.grad(f(), prediction, create_graph=True)
            return torch.autograd.grad(gradient, prediction, direction)

        return both

    def ours() -> torch.Tensor:
        return pyfold.denoising_loss(prediction, x0, at.alpha, at.sigma, at.seeds, target="v").sum()

    forms = {"pyfold": run(ours), "eager": run(lambda: _eager_loss(at)(prediction, x0))}
    return Case(forms, grad=True)


# --- single steps


def step_form(plan: diffusion.Plan, x: torch.Tensor, model: torch.Tensor, seeds: torch.Tensor) -> Form:
    """Step 3 of a plan, in place, as a sampling loop does it."""
    table, _, counters = plan.on(x.device)
    at, drawn = counters[3:4], seeds if plan.noisy else None
    return lambda: pyfold.affine_step(x, model, table, at, seeds=drawn, out=x)


def _scheduler_step(s: Setting, name: str, steps: int, x: torch.Tensor, model: torch.Tensor) -> Form | None:
    """The same step of diffusers' class, which is told where it is on every call."""
    if s.peers.diffusers is None:
        return None
    scheduler = getattr(s.peers.diffusers, name)()
    scheduler.set_timesteps(steps, device=s.device)
    t = scheduler.timesteps[3]

    def step() -> object:
        scheduler._step_index = 3
        return scheduler.step(model, t, x).prev_sample

    return step


@row("DDPM step", "steps", floor=2.0)
def _ddpm_step(s: Setting) -> Case:
    x, model = s.tensors(2)
    plan = diffusion.ddpm(diffusion.vp_linear(), 50)
    c = plan.rows[3]
    noise, x0 = torch.empty_like(x), torch.empty_like(x)

    def eager() -> torch.Tensor:
        torch.mul(x, c["p"], out=x0).add_(model, alpha=c["q"]).clamp_(-1, 1)
        torch.randn(s.shape, dtype=s.dtype, device=s.device, out=noise)
        return x.mul_(c["a"]).add_(x0, alpha=c["c_x0"]).add_(noise, alpha=c["d1"])

    def whole(x: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
        x0 = (c["p"] * x + c["q"] * model).clamp(-1, 1)
        return c["a"] * x + c["c_x0"] * x0 + c["d1"] * torch.randn_like(x)

    compiled = s.peers.compiled(whole)
    forms = {
        "pyfold": step_form(plan, x, model, s.seeds()),
        "eager": eager,
        "compile": compiled and (lambda: compiled(x, model)),
        "diffusers": _scheduler_step(s, "DDPMScheduler", 50, x, model),
    }
    return Case(forms, moved=3 * x.numel() * x.element_size(), normals=x.numel())


@row("DDIM step", "steps", floor=0.4)
def _ddim_step(s: Setting) -> Case:
    x, model = s.tensors(2)
    plan = diffusion.ddim(diffusion.vp_linear(), 50)
    c = plan.rows[3]
    x0 = torch.empty_like(x)

    def eager() -> torch.Tensor:
        torch.mul(x, c["p"], out=x0).add_(model, alpha=c["q"]).clamp_(-1, 1)
        return torch.mul(x0, c["c_x0"], out=x).add_(model, alpha=c["c_u"])

    compiled = s.peers.compiled(lambda x, model: c["c_x0"] * (c["p"] * x + c["q"] * model).clamp(-1, 1) + c["c_u"] * model)
    forms = {
        "pyfold": step_form(plan, x, model, s.seeds()),
        "eager": eager,
        "compile": compiled and (lambda: compiled(x, model)),
        "diffusers": _scheduler_step(s, "DDIMScheduler", 50, x, model),
    }
    return Case(forms, moved=3 * x.numel() * x.element_size())


@row("flow Euler step", "steps", floor=0.15)
def _flow_step(s: Setting) -> Case:
    x, model = s.tensors(2)
    plan = diffusion.flow_euler(diffusion.flow(), 28)
    h = plan.rows[3]["c_u"]
    compiled = s.peers.compiled(lambda x, model: x + h * model)
    forms = {
        "pyfold": step_form(plan, x, model, s.seeds()),
        "eager": lambda: x.add_(model, alpha=h),
        "compile": compiled and (lambda: compiled(x, model)),
        "diffusers": _scheduler_step(s, "FlowMatchEulerDiscreteScheduler", 28, x, model),
    }
    return Case(forms, moved=3 * x.numel() * x.element_size())


@row("guided multistep, bfloat16 model", "steps", dtypes=(torch.float32,), floor=0.6)
def _guided_step(s: Setting) -> Case:
    """Guidance, a DPM-Solver++ 2M step on a float32 state, and the next model input in bfloat16: one pass of ours."""
    x, *models = s.tensors(3)
    low = [m.to(torch.bfloat16) for m in models]
    plan = diffusion.guided(diffusion.dpmpp_multistep(diffusion.vp_linear(), 20, order=2, clip=1.0), 4.0)
    c = plan.rows[3]
    table, _, counters = plan.on(s.device)
    (before,) = s.tensors(1)
    u, next_input, e = torch.empty_like(x), torch.empty_like(low[0]), torch.empty_like(low[0])

    def ours() -> torch.Tensor:
        return pyfold.affine_step(x, low, table, counters[3:4], history=[before], history_out=u, next_input=next_input, out=x)

    def eager() -> torch.Tensor:
        torch.mul(low[0], c["g1"], out=e).add_(low[1], alpha=c["g2"])
        torch.mul(x, c["p"], out=u).add_(e, alpha=c["q"]).clamp_(-1, 1)
        x.mul_(c["a"]).add_(before, alpha=c["b1"]).add_(u, alpha=c["c_u"])
        return next_input.copy_(x)

    return Case({"pyfold": ours, "eager": eager}, moved=(4 * 4 + 3 * 2) * x.numel())


# --- folds


def eager_fold(kind: str, **parameters: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """A kind of fold in torch operations at their quickest, or as its declaration writes it."""
    if (eager := FOLDS[kind].eager) is not None:
        return eager(**parameters)
    return lambda x: OPS["fold"].reference(x, kind, **parameters).to(x.dtype)


#: Folds that are timed: what follows "fold" in the row's name -> kind, parameters that are numbers, the least ratio against
#: eager, forward and backward.
TIMED_FOLDS: dict[str, tuple[str, dict[str, Any], float]] = {
    "abs": ("abs", {}, 0.3),
    "leaky": ("leaky", {"slope": 0.2}, 0.3),
    "box": ("box", {"length": 1.0}, 0.8),
    "maxmin": ("maxmin", {}, 3.0),
    "groupsort(8)": ("groupsort", {"size": 8}, 2.5),
    "householder": ("householder", {}, 3.0),
    "dihedral(6)": ("dihedral", {"m": 6}, 3.0),
    "hyperplane": ("hyperplane", {}, 1.0),
}


def _torchlip_fold(s: Setting, kind: str) -> Callable[[torch.Tensor], torch.Tensor] | None:
    if s.peers.torchlip is None:
        return None
    return {"maxmin": s.peers.torchlip.group_sort_2, "groupsort(8)": lambda x: s.peers.torchlip.group_sort(x, 8)}.get(kind)


def fold_forms(s: Setting, name: str) -> tuple[torch.Tensor, dict[str, Callable[[torch.Tensor], torch.Tensor] | None]]:
    """x, and each form as a function of it."""
    kind, numbers, _ = TIMED_FOLDS[name]
    sample = OPS["fold"].sample(s.shape, s.dtype, s.device, torch.Generator().manual_seed(0), kind=kind, **numbers)
    assert sample is not None, s.shape
    x = sample.pop("x")
    eager = eager_fold(**{**FOLDS[kind].defaults(), **sample})
    return x, {
        "pyfold": lambda x: pyfold.fold(x, **sample),
        "eager": eager,
        "compile": s.peers.compiled(eager),
        "torchlip": _torchlip_fold(s, name),
    }


def _add_fold_rows(name: str, floor: float) -> None:
    @row(f"fold {name}", "ops", shapes=FEATURES)
    def forward(s: Setting) -> Case:
        x, folds = fold_forms(s, name)
        forms = {form: fold and (lambda fold=fold: fold(x)) for form, fold in folds.items()}
        return Case(forms, moved=2 * x.numel() * x.element_size())

    @row(f"fold {name}, forward + backward", "gradients", shapes=FEATURES, floor=floor)
    def backward(s: Setting) -> Case:
        x, folds = fold_forms(s, name)
        gradient = torch.randn_like(x)
        x.requires_grad_()
        forms = {form: fold and (lambda fold=fold: torch.autograd.grad(fold(x), x, gradient)) for form, fold in folds.items()}
        return Case(forms, moved=4 * x.numel() * x.element_size(), grad=True)

    @row(f"fold {name}, backward of backward", "gradients", shapes=FEATURES, dtypes=(torch.float32,))
    def twice(s: Setting) -> Case:
        """What a gradient penalty runs: forward, backward, and the derivative of that in its cotangent."""
        x, folds = fold_forms(s, name)
        gradient, direction = torch.randn_like(x).requires_grad_(), torch.randn_like(x)
        x.requires_grad_()

        def run(fold: Callable[[torch.Tensor], torch.Tensor]) -> Form:
            def both() -> object:
                (to_x,) = torch.autograd.grad(fold(x), x, gradient, create_graph=True)
                return torch.autograd.grad(to_x, gradient, direction)

            return both

        # torch.compile has no second derivative.
        forms = {form: fold and run(fold) for form, fold in folds.items() if form != "compile"}
        return Case(forms, moved=6 * x.numel() * x.element_size(), grad=True)


for _name in TIMED_FOLDS:
    _add_fold_rows(_name, TIMED_FOLDS[_name][2])


@row(
    "kaleidoscope, 8 rounds of box, abs and sort",
    "ops",
    shapes={"small": (4096, 3), "middle": (1 << 17, 3), "large": (1 << 20, 3)},
)
def _kaleidoscope(s: Setting) -> Case:
    """Points in space, folded and stretched eight times over, as a fractal's picture asks for."""
    (x,) = s.tensors(1)
    options: dict[str, Any] = {"folds": ["box", "abs", "groupsort"], "scale": 1.7, "centre": (1.0, 1.0, 1.0), "iterations": 8}
    eager = lambda: OPS["kaleidoscope"].reference(x, **options)  # noqa: E731
    forms = {"pyfold": lambda: pyfold.kaleidoscope(x, **options), "eager": eager, "compile": s.peers.compiled(eager)}
    return Case(forms, moved=2 * x.numel() * x.element_size())
