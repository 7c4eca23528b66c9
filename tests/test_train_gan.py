"""The GAN trainer's options, exact resume with all of them, death at any moment, and two processes that train as one."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from test_train import TINY, assert_same_run, weights

from pyfold.train import checkpoint, cli, parallel, trainers
from pyfold.train.config import Config
from pyfold.train.data import load
from pyfold.train.run import open_run, train

ALL = {"pack": 2, "augment": "adaptive", "precision": "bf16", "network": "resnet", "metrics_every": 4}


def trainer(**options):
    config = Config("gan", steps=10, **{**TINY, **options})
    return trainers.GanTrainer(config, load(config.data), torch.device("cpu"))


def test_resume_is_exact_with_every_option(tmp_path):
    config = Config("gan", steps=10, **TINY, **ALL)
    train(config, tmp_path / "whole", progress=False)
    train(config, tmp_path / "halves", progress=False, stop_at=5)
    train(config, tmp_path / "halves", progress=False, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "halves")
    assert weights(tmp_path / "whole")["augment.p"].item() > 0
    one, two = (json.loads((tmp_path / f / "history.json").read_text()) for f in ("whole", "halves"))
    assert [entry["step"] for entry in one] == [4, 8]
    assert one == two
    assert one[0]["frechet"] != one[1]["frechet"]


@pytest.mark.slow
def test_twice_five_hundred_steps_are_a_thousand(tmp_path):
    config = Config("gan", steps=1000, pack=2, augment="adaptive", **{**TINY, "save_every": 200})
    train(config, tmp_path / "whole", progress=False)
    train(config, tmp_path / "halves", progress=False, stop_at=500)
    train(config, tmp_path / "halves", progress=False, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "halves")


def test_measuring_changes_nothing(tmp_path):
    config = {"steps": 6, **TINY}
    train(Config("gan", **config), tmp_path / "without", progress=False)
    train(Config("gan", metrics_every=2, **config), tmp_path / "with", progress=False)
    assert_same_run(tmp_path / "without", tmp_path / "with")


def test_the_discriminator_sees_packs_of_augmented_images():
    player = trainer(pack=4, augment="fixed", policy="cutout")
    seen = []
    player.discriminator.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].detach(), output)))
    player.step(0)
    assert [(tuple(x.shape), tuple(y.shape)) for x, y in seen] == [((4, 4, 8, 8), (4,))] * 4
    real = player.data.batch(0, 0, 16).reshape(4, 4, 8, 8)
    changed = (seen[0][0] != real).flatten(2).any(2)
    assert changed.double().mean() > 0.8
    assert (seen[0][0][seen[0][0] != real] == 0).all()  # cut, and nothing else


def test_half_precision_reaches_the_networks_and_not_the_weights():
    player = trainer(precision="bf16")
    dtypes = []
    player.discriminator.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    scalars = player.step(0)
    assert set(dtypes) == {torch.bfloat16}
    assert {p.dtype for p in player.discriminator.parameters()} == {torch.float32}
    exact = trainer().step(0)
    for name, value in scalars.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact[name], rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pack": 3}, "pack must divide batch, 16, got 3"),
        ({"augment": "some"}, "augment must be one of none, fixed, adaptive, got 'some'"),
        ({"policy": "color,blur"}, "policy must be names of color, translation, cutout.*blur"),
        ({"precision": "fp8"}, "precision must be one of"),
        ({"network": "vit"}, "network must be one of dcgan, resnet"),
        ({"metrics_every": -1}, "metrics_every must be at least 0"),
        ({"data": "ring", "augment": "fixed"}, "augment must be none for points"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        trainer(**options)


KILL = """
import os, signal, sys
from pathlib import Path
from pyfold.train import checkpoint, files
from pyfold.train.config import Config
from pyfold.train.run import train

where, config, out = sys.argv[1], Config.load(Path(sys.argv[2])), Path(sys.argv[3])
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
at = f"checkpoint-{6:08d}"
write, replace = files.write, Path.replace

def watched_write(path, save):
    if path.stem == at and where == "before the file" and path.suffix != ".json":
        die()
    if path.stem == at and where == "in the file" and path.suffix != ".json":
        def half(temporary):
            save(temporary)
            raw = temporary.read_bytes()
            temporary.write_bytes(raw[: len(raw) // 2])
            die()
        write(path, half)
    write(path, save)
    if path.stem == at and where == "after " + path.suffix:
        die()

def watched_replace(self, target):
    if Path(target).stem == at and where == "before the name":
        die()
    return replace(self, target)

checkpoint.write = watched_write
checkpoint.write_text = lambda path, text: watched_write(path, lambda temporary: temporary.write_text(text))
Path.replace = watched_replace
train(config, out, progress=False)
"""


@pytest.mark.parametrize(
    ("where", "left"),
    [("before the file", 3), ("in the file", 3), ("before the name", 3), ("after .safetensors", 6), ("after .json", 6)],
)
def test_sigkill_while_a_checkpoint_is_written(where, left, tmp_path):
    """The last whole checkpoint is there, the run goes on from it to the same end, and no half file stays."""
    config = Config("gan", steps=9, **TINY)
    config.save(tmp_path / "given.json")
    run = tmp_path / "run"
    command = [sys.executable, "-c", KILL, where, tmp_path / "given.json", run]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert open_run(run)[2] == left
    train(config, run, progress=False, resume=True)
    train(config, tmp_path / "straight", progress=False)
    assert_same_run(run, tmp_path / "straight")
    assert not list(run.glob(".*"))


WORKER = """
import sys
from pathlib import Path
import torch
from pyfold.train import parallel, trainers
from pyfold.train.config import Config
from pyfold.train.run import train

torch.set_num_threads(1)
drawn, draw = [], trainers.GanTrainer.latents

def latents(self, seeds):
    z = draw(self, seeds)
    if len(z) < 100:  # not those of the metrics
        drawn.append(z)
    return z

trainers.GanTrainer.latents = latents
out = Path(sys.argv[2])
with parallel.joined(torch.device("cpu")):
    result = train(Config.load(Path(sys.argv[1])), out, device=torch.device("cpu"), progress=False)
    torch.save(drawn[:6], out / f"noise-{parallel.rank()}.pt")
    assert bool(result) == (parallel.rank() == 0)
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    config = Config("gan", steps=6, **{**TINY, "pack": 2, "augment": "adaptive", "metrics_every": 3, "save_every": 2})
    config.save(tmp_path / "config.json")
    (tmp_path / "worker.py").write_text(WORKER)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [tmp_path / "worker.py", tmp_path / "config.json"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for command, out in (([sys.executable], "one"), (launch, "two")):
        done = subprocess.run([*command, *arguments, tmp_path / out], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr

    noise = lambda out, rank: torch.load(tmp_path / out / f"noise-{rank}.pt")  # noqa: E731
    for whole, first, second in zip(noise("one", 0), noise("two", 0), noise("two", 1), strict=True):
        assert torch.equal(whole, torch.cat([first, second]))
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    assert two["augment.p"] == one["augment.p"] > 0
    assert len(checkpoint.find(tmp_path / "two")) == 2


def test_a_batch_is_shared_fairly(monkeypatch):
    rows = torch.arange(8)
    parts = []
    monkeypatch.setattr(parallel, "count", lambda: 4)
    for rank in range(4):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        parts.append(parallel.own_rows(rows))
    assert torch.equal(torch.cat(parts), rows)
    with pytest.raises(ValueError, match=r"batch must be a multiple of 8 \(pack x processes\), got 12"):
        trainer(pack=2, batch=12)


def test_command_line_knows_the_options(tmp_path, capsys):
    options = ["--pack", "2", "--augment", "fixed", "--policy", "color", "--network", "resnet", "--precision", "bf16"]
    small = ["--steps", "2", "--batch", "8", "--width", "8", "--metrics-every", "1"]
    cli.main(["train", "gan", "--out", str(tmp_path), *options, *small])
    assert "frechet" in capsys.readouterr().out
    assert Config.load(tmp_path / "config.json").policy == "color"
