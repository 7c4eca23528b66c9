"""pyfold's losses in other people's loops: accelerate, Lightning, torch.compile and torch.export."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pyfold import diffusion
from pyfold.models import MLPDenoiser

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = ["--width", "8", "--batch", "32"]


def run(*words):
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, words)], env=environment, cwd=EXAMPLES.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def accelerated(processes, out, *options):
    """{step: (loss, digest of the noised batch)}, as the example prints them."""
    launch = ["-m", "accelerate.commands.launch", "--num_processes", processes, "--num_machines", 1]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", *(["--multi_gpu"] if processes > 1 else [])]
    printed = run(*launch, EXAMPLES / "accelerate_digits.py", "--out", out, "--save-every", 3, *SMALL, *options)
    found = re.findall(r"(\d+) processes: step (\d+) loss ([\d.]+) batch (\w+)", printed)
    assert found and all(int(count) == processes for count, *_ in found)
    return {int(step): (float(loss), digest) for _, step, loss, digest in found}


@pytest.mark.slow
def test_accelerate_on_any_number_of_processes(tmp_path):
    """Two processes have one's noise to the bit and its losses to rounding; so has a run that two begin and one ends."""
    pytest.importorskip("accelerate")
    one = accelerated(1, tmp_path / "one", "--steps", 6)
    two = accelerated(2, tmp_path / "two", "--steps", 6)
    both = accelerated(2, tmp_path / "both", "--steps", 3) | accelerated(1, tmp_path / "both", "--steps", 6, "--resume")
    assert list(one) == [3, 6] and one[3][1] != one[6][1]
    for other in (two, both):
        assert {step: digest for step, (_, digest) in other.items()} == {step: digest for step, (_, digest) in one.items()}
        assert all(other[step][0] == pytest.approx(one[step][0], abs=2e-5) for step in one)
    # The same number of processes goes on to the bit.
    accelerated(2, tmp_path / "again", "--steps", 3)
    accelerated(2, tmp_path / "again", "--steps", 6, "--resume")
    whole, halves = (load_file(tmp_path / name / "model.safetensors") for name in ("two", "again"))
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


@pytest.mark.slow
def test_two_processes_learn_from_rewards_as_one_does(tmp_path):
    """The same rollouts to the bit; and the same weights, for one process adds the same two micro-batches."""
    lines, weights = [], []
    for processes in (1, 2):
        out = tmp_path / f"{processes}.png"
        launch = ["-m", "torch.distributed.run", "--nproc-per-node", processes, "--rdzv-endpoint", "localhost:0"]
        launch += ["--rdzv-backend", "c10d"] if processes > 1 else []
        printed = run(*(launch if processes > 1 else []), EXAMPLES / "grpo_digits.py", "--quick", "--out", out)
        lines.append(re.findall(r"(\d) processes: update +(\d+) +reward ([\d.]+).* rollout (\w+)", printed))
        weights.append(load_file(out.with_suffix(".safetensors")))
        assert "| bytes that a rollout of 8 keeps, and its states | 64, 8192 |" in printed
        ratios = re.search(r"^\| largest log ratio .* at a time \| (.*) \|$", printed, re.MULTILINE)[1].split(", ")
        assert len(ratios) == 5 and all(float(value) < 1e-6 for value in ratios)
    assert [line[1:] for line in lines[0]] == [line[1:] for line in lines[1]] and len(lines[0]) == 2
    assert [line[0] for line in lines[1]] == ["2", "2"] and lines[0][0][3] != lines[0][1][3]
    assert weights[0].keys() == weights[1].keys() and all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


@pytest.mark.slow
def test_lightning_resumes_exactly(tmp_path):
    pytest.importorskip("lightning")
    example = EXAMPLES / "lightning_digits.py"
    assert "112 steps" in run(example, "--out", tmp_path / "whole", "--epochs", 2, *SMALL)
    run(example, "--out", tmp_path / "halves", "--epochs", 1, *SMALL)
    run(example, "--out", tmp_path / "halves", "--epochs", 2, "--resume", *SMALL)
    whole, halves = (
        torch.load(tmp_path / name / "digits.ckpt", weights_only=False)["state_dict"] for name in ("whole", "halves")
    )
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


@pytest.mark.parametrize("name", ["accelerate_digits.py", "lightning_digits.py"])
def test_the_scripts_are_short(name):
    assert len((EXAMPLES / name).read_text().splitlines()) <= 60


class Loss(nn.Module):
    """Everything of a training step but the optimizer: noise, network, loss."""

    def __init__(self, loss):
        super().__init__()
        torch.manual_seed(0)
        two = isinstance(loss, (diffusion.MeanFlowLoss, diffusion.ShortcutLoss))
        self.loss, self.model = loss, MLPDenoiser(4, 16, activation="maxmin", second_time=two)

    def forward(self, x0, seeds):
        noised = self.loss.noise(x0, seeds)
        if isinstance(self.loss, diffusion.TrainingLoss):
            return self.loss(self.model(noised.x_t, noised.t), noised)
        return self.loss(self.model, noised)


LOSSES = {
    "remade target": lambda: diffusion.TrainingLoss(diffusion.vp_linear(), "v", "min_snr"),
    "kept target": lambda: diffusion.TrainingLoss(diffusion.edm(), "F", "edm", density="lognormal", keep_target=True),
    "extras": lambda: diffusion.TrainingLoss(diffusion.flow(), "flow", offset_noise=0.1, input_perturbation=0.1),
    "ecm": lambda: diffusion.ECMLoss(dropout=False),
    "scm": lambda: diffusion.SCMLoss(dropout=False),
    "shortcut": lambda: diffusion.ShortcutLoss(longer=0.5, dropout=False),
    "meanflow": lambda: diffusion.MeanFlowLoss(dropout=False),
    "anyflow": lambda: diffusion.AnyFlowLoss(dropout=False),
    "meanflow by differences": lambda: diffusion.MeanFlowLoss(tangent="difference", dropout=False),
}


def batches(*sizes):
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(size, 4, generator=generator), torch.arange(size) + 10 * size) for size in sizes]


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "scm"])  # tests/test_objectives.py
def test_compiled_with_a_dynamic_batch(name):
    """One graph for every batch size, schedule's tables and noise inside, and its gradients."""
    module = Loss(LOSSES[name]())
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for x0, seeds in batches(6, 9, 17):
        results = []
        for call in (module, compiled):
            module.zero_grad()
            value = call(x0, seeds)
            value.mean().backward()
            results.append([value.detach(), *(p.grad.clone() for p in module.parameters())])
        for expected, found in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_exported_with_a_dynamic_batch(name):
    """torch.export keeps torch.func.jvp's batch as it was traced; its other form takes any."""
    by_jvp = name in ("meanflow", "scm")
    if by_jvp and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13):
        pytest.skip("torch.export follows torch.func.jvp from torch 2.13 on")
    module, sizes = Loss(LOSSES[name]()), (6,) if by_jvp else (6, 9)
    batch = None if by_jvp else torch.export.Dim("batch", min=2)
    dynamic = None if batch is None else ({0: batch}, {0: batch})
    exported = torch.export.export(module, batches(6)[0], dynamic_shapes=dynamic).module()
    for x0, seeds in batches(*sizes):
        torch.testing.assert_close(exported(x0, seeds), module(x0, seeds), rtol=2e-4, atol=2e-5)


def test_a_replaced_schedule_has_its_own_tables():
    """A copy with other numbers must not run the old ones."""
    schedule = diffusion.vp_linear()
    schedule.coefficients(3)
    other = dataclasses.replace(schedule, alphas=schedule.alphas[::-1].copy(), sigmas=schedule.sigmas[::-1].copy())
    assert other.coefficients(3)[0] == schedule.alphas[-4]
