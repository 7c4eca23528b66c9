"""Every op against eager PyTorch, torch.compile, and what a user would call instead."""

import pytest
import torch
from conftest import SIZES
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

import pyfold
from pyfold import diffusion


def tensors(shape, count):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def compiled(function):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True)


@pytest.mark.parametrize("size", SIZES)
def test_randn(compare, size):
    shape = SIZES[size]
    out, seeds = torch.empty(shape), torch.arange(shape[0])
    forms = {
        "pyfold": lambda: pyfold.randn(seeds, shape[1:], out=out),
        "eager": lambda: torch.randn(shape, out=out),
    }
    compare("randn", size, forms, moved=4 * out.numel())


@pytest.mark.parametrize("size", SIZES)
def test_add_noise(compare, size):
    shape = SIZES[size]
    (x0,) = tensors(shape, 1)
    out, noise = torch.empty(shape), torch.empty(shape)
    alpha = torch.linspace(0.1, 0.9, shape[0])
    sigma, seeds = (1 - alpha**2).sqrt(), torch.arange(shape[0])
    a, s = alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)
    scheduler, t = DDPMScheduler(), torch.arange(shape[0])

    def eager():
        torch.randn(shape, out=noise)
        return torch.addcmul(torch.mul(a, x0, out=out), s, noise, out=out)

    by_compiler = compiled(lambda: a * x0 + s * torch.randn(shape))
    forms = {
        "pyfold": lambda: pyfold.add_noise(x0, alpha, sigma, seeds, out=out),
        "eager": eager,
        "compile": by_compiler,
        "diffusers": lambda: scheduler.add_noise(x0, torch.randn(shape), t),
    }
    compare("add_noise", size, forms, moved=8 * x0.numel())


@pytest.mark.parametrize("size", SIZES)
def test_denoising_loss(compare, size):
    shape = SIZES[size]
    x0, prediction = tensors(shape, 2)
    prediction.requires_grad_()
    alpha = torch.linspace(0.1, 0.9, shape[0])
    sigma, seeds = (1 - alpha**2).sqrt(), torch.arange(shape[0])
    a, s = alpha.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)

    def eager_loss(p, x0):
        noise = torch.randn(shape)
        x_t = a * x0 + s * noise
        return ((p - (a * noise - s * x0)) ** 2).mean((1, 2, 3)).sum() + 0 * x_t[0, 0, 0, 0]

    by_compiler = compiled(eager_loss)

    def ours():
        pyfold.add_noise(x0, alpha, sigma, seeds)
        pyfold.denoising_loss(prediction, x0, alpha, sigma, seeds, target="v").sum().backward()
        prediction.grad = None

    def run(f):
        f(prediction, x0).backward()
        prediction.grad = None

    compare(
        "add_noise + loss, forward + backward",
        size,
        {"pyfold": ours, "eager": lambda: run(eager_loss), "compile": lambda: run(by_compiler)},
    )


def in_place_step(plan, x, model, seeds):
    table, _, counters = plan.on("cpu")
    at, seeds = counters[3:4], seeds if plan.noisy else None
    return lambda: pyfold.affine_step(x, model, table, at, seeds=seeds, out=x)


@pytest.mark.parametrize("size", SIZES)
def test_ddpm_step(compare, size):
    shape = SIZES[size]
    x, model = tensors(shape, 2)
    seeds = torch.arange(shape[0])
    plan = diffusion.ddpm(diffusion.vp_linear(), 50)
    row = plan.rows[3]
    scheduler = DDPMScheduler()
    scheduler.set_timesteps(50)
    t = scheduler.timesteps[3]
    noise, x0, y = torch.empty(shape), torch.empty(shape), x

    def eager():
        """At its best: preallocated, in place, coefficients ready."""
        torch.mul(y, row["p"], out=x0).add_(model, alpha=row["q"]).clamp_(-1, 1)
        torch.randn(shape, out=noise)
        return y.mul_(row["a"]).add_(x0, alpha=row["c_x0"]).add_(noise, alpha=row["d1"])

    def whole(x, model):
        x0 = (row["p"] * x + row["q"] * model).clamp(-1, 1)
        return row["a"] * x + row["c_x0"] * x0 + row["d1"] * torch.randn(shape)

    by_compiler = compiled(whole)
    forms = {
        "pyfold": in_place_step(plan, x, model, seeds),
        "eager": eager,
        "compile": lambda: by_compiler(y, model),
        "diffusers": lambda: scheduler.step(model, t, y).prev_sample,
    }
    compare("DDPM step", size, forms, moved=12 * x.numel())


@pytest.mark.parametrize("size", SIZES)
def test_ddim_step(compare, size):
    shape = SIZES[size]
    x, model = tensors(shape, 2)
    plan = diffusion.ddim(diffusion.vp_linear(), 50)
    row = plan.rows[3]
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(50)
    t = scheduler.timesteps[3]
    x0, y = torch.empty(shape), x

    def eager():
        torch.mul(y, row["p"], out=x0).add_(model, alpha=row["q"]).clamp_(-1, 1)
        return torch.mul(x0, row["c_x0"], out=y).add_(model, alpha=row["c_u"])

    def whole(x, model):
        return row["c_x0"] * (row["p"] * x + row["q"] * model).clamp(-1, 1) + row["c_u"] * model

    by_compiler = compiled(whole)
    forms = {
        "pyfold": in_place_step(plan, x, model, None),
        "eager": eager,
        "compile": lambda: by_compiler(y, model),
        "diffusers": lambda: scheduler.step(model, t, y).prev_sample,
    }
    compare("DDIM step", size, forms, moved=12 * x.numel())


@pytest.mark.parametrize("size", SIZES)
def test_flow_step(compare, size):
    shape = SIZES[size]
    x, model = tensors(shape, 2)
    plan = diffusion.flow_euler(diffusion.flow(), 28)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(28)
    t = scheduler.timesteps[3]
    y = x
    h = plan.rows[3]["c_u"]
    by_compiler = compiled(lambda x, model: x + h * model)

    def theirs():
        scheduler._step_index = 3
        return scheduler.step(model, t, y).prev_sample

    forms = {
        "pyfold": in_place_step(plan, x, model, None),
        "eager": lambda: y.add_(model, alpha=h),
        "compile": lambda: by_compiler(y, model),
        "diffusers": theirs,
    }
    compare("flow Euler step", size, forms, moved=12 * x.numel())


def eager_fold(kind, angle):
    if kind == "abs":
        return torch.abs

    def maxmin(x):
        a, b = x[:, 0::2], x[:, 1::2]
        return torch.stack([torch.minimum(a, b), torch.maximum(a, b)], 2).flatten(1, 2)

    def householder(x):
        a, b = x[:, 0::2], x[:, 1::2]
        t = angle.view(1, -1, 1, 1).to(x.dtype)
        c, s = t.cos(), t.sin()
        m = a * (t / 2).sin() > b * (t / 2).cos()
        return torch.stack([torch.where(m, a * c + b * s, a), torch.where(m, a * s - b * c, b)], 2).flatten(1, 2)

    return maxmin if kind == "maxmin" else householder


@pytest.mark.parametrize("size", [(1, 4, 64, 64), (8, 4, 256, 256), (32, 64, 64, 64)], ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["abs", "maxmin", "householder"])
def test_fold(compare, kind, dtype, size):
    x = tensors(size, 1)[0].to(dtype).requires_grad_()
    gradient = torch.randn_like(x)
    angle = torch.linspace(-3, 3, size[1] // 2)
    plain = eager_fold(kind, angle)
    by_compiler = compiled(plain)

    def run(f):
        f(x).backward(gradient)
        x.grad = None

    forms = {
        "pyfold": lambda: run(lambda x: pyfold.fold(x, kind, angle=angle if kind == "householder" else None)),
        "eager": lambda: run(plain),
        "compile": lambda: run(by_compiler),
    }
    name = f"fold {kind}, forward + backward, {dtype}".replace("torch.", "")
    # Input and output of each direction; the bits are little beside them.
    compare(name, "x".join(map(str, size)), forms, moved=4 * x.numel() * x.element_size(), budget=3)


@pytest.mark.parametrize("kind", ["maxmin", "householder"])
def test_r1_step(compare, kind):
    """Double backward through a small critic: what torch.compile cannot do outside torch.func."""
    angle = torch.linspace(-3, 3, 16)
    first, last = torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.Linear(32 * 256, 1)
    x = tensors((32, 3, 16, 16), 1)[0].requires_grad_()
    parameters = [*first.parameters(), last.weight]

    def run(f):
        logits = last(f(first(x)).flatten(1))
        (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        torch.autograd.grad(gradient.square().sum() + logits.sum(), parameters)

    fused = lambda h: pyfold.fold(h, kind, angle=angle if kind == "householder" else None)  # noqa: E731
    forms = {"pyfold": lambda: run(fused), "eager": lambda: run(eager_fold(kind, angle))}
    compare(f"R1 of a critic with {kind}", "32x3x16x16", forms)
