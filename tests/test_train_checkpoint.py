"""Checkpoints of a run: what is damaged is refused and said, what is crafted does nothing, and one process writes at a time."""

import json
import os
import resource
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from test_train import TINY, assert_same_run

from pyfold.train import checkpoint, cli, files, trainers
from pyfold.train.config import Config
from pyfold.train.run import open_run, train


def run(folder, steps=7, **options):
    config = Config("gan", data="ring", steps=steps, **{**TINY, **options})
    train(config, folder, progress=False)
    return config


def test_one_flipped_bit_anywhere_is_noticed(tmp_path):
    """Every part of the file, the facts included: seeded places, and both ends of the data."""
    run(tmp_path, steps=2)
    (path,) = checkpoint.find(tmp_path)
    raw = path.read_bytes()
    header = 8 + int.from_bytes(raw[:8], "little")
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(8 * len(raw), (60,), generator=generator).tolist()
    places += [*torch.randint(8 * header, (40,), generator=generator).tolist(), 8 * header, 8 * len(raw) - 1]
    modules = open_run(tmp_path)[0].modules
    before = [p.clone() for m in modules.values() for p in m.state_dict().values()]
    for place in places:
        damaged = bytearray(raw)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="checkpoint-00000002"):
            checkpoint.load(path, modules)
    for a, b in zip(before, [p for m in modules.values() for p in m.state_dict().values()], strict=True):
        assert torch.equal(a, b)
    path.write_bytes(raw)
    assert checkpoint.load(path, modules) == 2


DAMAGE = {
    "truncated": lambda raw: raw[:-100],
    "header": lambda raw: b"\xff" * 16 + raw[16:],
    "empty": lambda raw: b"",
    "data": lambda raw: raw[:-50] + bytes([raw[-50] ^ 4]) + raw[-49:],
    "text": lambda raw: b"not a checkpoint",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_where_the_newest_is_damaged_the_one_before_is_taken_with_a_warning(damage, tmp_path):
    config = run(tmp_path / "run")
    newest = checkpoint.find(tmp_path / "run")[-1]
    newest.write_bytes(DAMAGE[damage](newest.read_bytes()))
    with pytest.warns(UserWarning, match="checkpoint-00000007.* damaged.*the one before it is taken"):
        assert open_run(tmp_path / "run")[2] == 6
    with pytest.warns(UserWarning, match="checkpoint-00000007"):
        train(config, tmp_path / "run", progress=False, resume=True)
    run(tmp_path / "straight")
    assert_same_run(tmp_path / "run", tmp_path / "straight")


def test_a_damaged_checkpoint_does_not_take_the_place_of_a_whole_one(tmp_path):
    config = run(tmp_path)
    newest = checkpoint.find(tmp_path)[-1]
    newest.write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"):
        train(config, tmp_path, progress=False, resume=True, stop_at=6)
    assert [p.name for p in checkpoint.find(tmp_path)] == ["checkpoint-00000006.safetensors"]
    assert (tmp_path / "checkpoint-00000007.safetensors.damaged").exists()


def test_no_whole_checkpoint(tmp_path, capsys):
    run(tmp_path)
    for path in checkpoint.find(tmp_path):
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ValueError, match="no whole checkpoint is left"):
        open_run(tmp_path)


def rewrite(path, change=lambda record: None, tensors=lambda tensors: None):
    """The file again with other facts or tensors, and a digest that fits."""
    with safetensors.safe_open(str(path), framework="pt") as file:
        record = json.loads(file.metadata()["pyfold"])
        kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    record = change(record) or record
    tensors(kept)
    if isinstance(record, dict):
        record["sha256"] = checkpoint._digest(record, kept)
    safetensors.torch.save_file(kept, path, {"pyfold": record if isinstance(record, str) else json.dumps(record)})


def put(*keys, value):
    def change(record):
        place = record
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        put("step", value=-1),
        put("step", value=1.5),
        put("step", value=True),
        put("step", value="2"),
        put("step", value=5),
        put("format", value=1),
        put("optimizers", value=None),
        put("optimizers", value=[]),
        put("optimizers", value={}),
        put("optimizers", "generator", value=[]),
        put("optimizers", "generator", value=[{}, {}]),
        put("optimizers", "generator", value=[3]),
        put("optimizers", "generator", 0, value={"lr": 1e-3}),
        put("optimizers", "generator", 0, "lr", value={"deep": 1}),
        put("optimizers", "generator", 0, "betas", value=[[0.1], 0.2]),
        lambda record: [record],
        lambda record: "3",
        lambda record: "[" * 100_000,
        lambda record: "{",
    ],
)
def test_crafted_facts_are_an_error_and_change_nothing(change, tmp_path):
    run(tmp_path, steps=2)
    trainer, _, _ = open_run(tmp_path)
    (path,) = checkpoint.find(tmp_path)
    rewrite(path, change)
    fresh = trainers.GanTrainer(trainer.config, trainer.data, torch.device("cpu"))
    before = [p.clone() for p in fresh.generator.parameters()]
    with pytest.raises(ValueError, match="checkpoint-00000002"):
        checkpoint.load(path, fresh.modules, fresh.optimizers)
    assert all(torch.equal(a, b) for a, b in zip(before, fresh.generator.parameters(), strict=True))
    assert not fresh.optimizers["generator"].state


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer.generator.0.exp_avg", torch.zeros(3)),
        ("optimizer.generator.99.exp_avg", torch.zeros(())),
        ("optimizer.generator.x.exp_avg", torch.zeros(())),
        ("optimizer.generator.0", torch.zeros(())),
        ("module.generator.0.weight", torch.zeros(1)),
        ("module.generator.more", torch.zeros(1)),
    ],
)
def test_crafted_tensors_are_an_error(key, value, tmp_path):
    run(tmp_path, steps=2)
    trainer, _, _ = open_run(tmp_path)
    (path,) = checkpoint.find(tmp_path)
    rewrite(path, tensors=lambda kept: kept.update({key: value}))
    with pytest.raises(ValueError, match="checkpoint-00000002.* holds another"):
        checkpoint.load(path, trainer.modules, trainer.optimizers)


def test_a_tensor_that_is_missing_or_more_is_noticed(tmp_path):
    """Of the optimizer too, which would start anew without a word."""
    run(tmp_path, steps=2)
    trainer, _, _ = open_run(tmp_path)
    (path,) = checkpoint.find(tmp_path)
    with safetensors.safe_open(str(path), framework="pt") as file:
        facts, kept = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    less = {name: value for name, value in kept.items() if name != "optimizer.generator.0.exp_avg"}
    more = {**kept, "optimizer.generator.0.more": torch.zeros(())}
    for tensors in (less, more):
        safetensors.torch.save_file(tensors, path, facts)
        with pytest.raises(ValueError, match="damaged"):
            checkpoint.load(path, trainer.modules, trainer.optimizers)


def test_a_file_reaches_the_disk_before_its_name_and_the_name_before_the_return(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, type(tmp_path).replace
    name = lambda descriptor: os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: E731
    monkeypatch.setattr(os, "fsync", lambda d: (events.append(("sync", name(d))), fsync(d))[1])
    monkeypatch.setattr(type(tmp_path), "replace", lambda a, b: (events.append(("rename", b.name)), replace(a, b))[1])
    files.write_text(tmp_path / "facts.json", "{}")
    assert [kind for kind, _ in events] == ["sync", "rename", "sync"]
    assert events[0][1].startswith(".facts") and events[1][1] == "facts.json" and events[2][1] == tmp_path.name


def test_one_process_writes_to_a_run(tmp_path):
    config = run(tmp_path, steps=2)
    code = (
        "import sys; from pathlib import Path; from pyfold.train.config import Config; from pyfold.train.run import train; "
        "train(Config.load(Path(sys.argv[1]) / 'config.json'), Path(sys.argv[1]), resume=True, progress=False)"
    )
    other = lambda: subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)  # noqa: E731
    with files.locked(tmp_path):
        assert f"{tmp_path} is in use by another process (process {os.getpid()})" in other().stderr
        with pytest.raises(ValueError, match="in use by another process"):
            train(config, tmp_path, resume=True, progress=False)
        assert open_run(tmp_path)[2] == 2  # who only reads may
    assert other().returncode == 0


def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_before(tmp_path):
    run(tmp_path / "run", steps=3)
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); from pyfold.train import cli; "
    arguments = ["train", "gan", "--out", str(tmp_path / "run"), "--resume", "--steps", "5"]
    command = [sys.executable, "-c", limit + f"cli.main({arguments})"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("pyfold: ")] == ["pyfold: [Errno 27] File too large"]
    assert "Traceback" not in done.stderr
    assert open_run(tmp_path / "run")[2] == 3
    assert not list((tmp_path / "run").glob(".*"))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 9000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "5"], "is a run with --seed 0, and cannot go on with 5"),
        (["--lr", "0.5"], "is a run with --lr 0.002, and cannot go on with 0.5"),
        (["--data", "grid"], "is a run with --data ring, and cannot go on with grid"),
        (["--steps", "4"], "has taken 7 steps already, more than the 4 of --steps"),
    ],
)
def test_a_run_goes_on_as_what_it_is(options, message, tmp_path, capsys):
    run(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.glob("*.*")}
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["train", "gan", "--out", str(tmp_path), "--resume", *options])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
    assert {p: p.read_bytes() for p in tmp_path.glob("*.*")} == before
    cli.main(["train", "gan", "--out", str(tmp_path), "--resume", "--steps", "9", "--save-every", "1"])
    assert open_run(tmp_path)[2] == 9


def test_history_beyond_the_resumed_step_is_made_again(tmp_path):
    config = Config("gan", data="ring", steps=7, **{**TINY, "metrics_every": 2})
    train(config, tmp_path / "whole", progress=False)
    train(config, tmp_path / "run", progress=False, stop_at=5)
    checkpoint.find(tmp_path / "run")[-1].unlink()
    train(config, tmp_path / "run", progress=False, resume=True)
    one, two = (json.loads((tmp_path / f / "history.json").read_text()) for f in ("whole", "run"))
    assert [entry["step"] for entry in two] == [2, 4, 6]
    assert one == two
    (tmp_path / "run" / "history.json").write_text("[{}]")
    with pytest.raises(ValueError, match=r"history.json is damaged"):
        train(config, tmp_path / "run", progress=False, resume=True)


@pytest.mark.parametrize("step", [0, 1, 9, 1000])
def test_the_average_is_quick_at_first(step):
    """The decay of step n is (1 + n) / (10 + n), until the one that is asked for."""
    average, model = torch.nn.Linear(1, 1, bias=False).double(), torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.constant_(average.weight, 2.0)
    torch.nn.init.constant_(model.weight, 5.0)
    trainers.update_average(average, model, 0.9, step)
    decay = min(0.9, (1 + step) / (10 + step))
    assert average.weight.item() == pytest.approx(2 * decay + 5 * (1 - decay), rel=1e-12)
