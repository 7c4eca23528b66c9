"""The GAN trainer's options, exact resume with all of them, death at any moment, and two processes that train as one."""

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_train import TINY, assert_same_run, weights

from pyfold import gan
from pyfold.gan import DYNAMICS
from pyfold.train import checkpoint, cli, parallel, trainers
from pyfold.train.config import Config
from pyfold.train.data import load
from pyfold.train.run import open_run, train

# A quick discriminator, so that ADA has something to answer within a few steps.
ALL = {"pack": 2, "augment": "adaptive", "precision": "bf16", "network": "resnet", "metrics_every": 4, "lr": 4e-3, "gamma": 0.1}


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
    # Real and generated ones in one pass for its own loss, then real ones and generated ones for the generator's.
    assert [(tuple(x.shape), tuple(y.shape)) for x, y in seen] == [((n, 4, 8, 8), (n,)) for n in (8, 4, 4)]
    real, first = player.data.batch(0, 0, 16).reshape(4, 4, 8, 8), seen[0][0][:4]
    changed = (first != real).flatten(2).any(2)
    assert changed.double().mean() > 0.8
    assert (first[first != real] == 0).all()  # cut, and nothing else


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
        ({"dynamics": "chaotic"}, "dynamics must be one of simultaneous, alternating.*'chaotic'"),
        ({"dynamics_steps": 0}, "dynamics_steps must be at least 1, got 0"),
        ({"dynamics_rate": -0.1}, "dynamics_rate must be a number from 0, got -0.1"),
        ({"beta1": 1.0}, r"beta1 must be in \[0, 1\), got 1.0"),
        ({"lr_discriminator": -1.0}, "lr_discriminator must be a number from 0, got -1.0"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"init": "zeros"}, "init must be one of default, orthogonal, got 'zeros'"),
        ({"init_gain": 0.0}, "init_gain must be positive and finite, got 0.0"),
        ({"dynamics_strength": -1.0}, "dynamics_strength must be a number from 0, got -1.0"),
        ({"generator_activation": "gelu"}, "generator_activation must be one of.*'gelu'"),
        ({"cooldown": 1.5}, r"cooldown must be in \[0, 1\], got 1.5"),
        ({"gamma": 0.0, "gamma_end": 1.0}, "gamma_end must be 0 where gamma is.*1.0"),
        ({"gamma": 1.0, "gamma_end": 0.0}, "gamma_end must be 0 where gamma is.*0.0"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        trainer(**options)


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_resume_is_exact_under_every_dynamic(dynamics, tmp_path):
    config = Config("gan", data="ring", steps=6, dynamics=dynamics, dynamics_steps=2, **TINY)
    train(config, tmp_path / "whole", progress=False)
    train(config, tmp_path / "halves", progress=False, stop_at=3)
    train(config, tmp_path / "halves", progress=False, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "halves")
    remembered = {name.rsplit(".", 1)[1] for name in weights(tmp_path / "whole")}
    assert ("gradient_before" in remembered) == (dynamics == "optimistic")


def test_every_dynamic_moves_in_its_own_way():
    ends, starts = {}, set()
    for name in DYNAMICS:
        player = trainer(data="ring", dynamics=name, dynamics_steps=2 if name == "unrolled" else 3, dynamics_strength=0.5)
        for step in range(3):
            scalars = player.step(step)
            assert all(torch.isfinite(value) for value in scalars.values()), name
            if step == 0:
                starts.add((round(scalars["loss_d"].item(), 6), round(scalars["penalty"].item(), 6)))
        ends[name] = torch.cat([p.detach().flatten() for p in player.generator.parameters()])
    assert len(starts) == 1  # reported is where a step starts, wherever it looked
    pairs = [(a, b) for a in ends for b in ends if a < b]
    assert len(pairs) == 28
    for a, b in pairs:
        assert (ends[a] - ends[b]).abs().max() > 1e-6, (a, b)


@pytest.mark.parametrize("loss", ["relativistic", "non_saturating"])
def test_a_step_is_what_the_formulas_say(loss):
    """The discriminator's loss with R1 and R2, its move, then the generator's against the discriminator that has moved."""
    player = trainer(data="ring", gamma=0.3, loss=loss)
    d_loss, g_loss = gan.LOSSES[loss]
    g, d = copy.deepcopy(player.generator), copy.deepcopy(player.discriminator)
    optimizers = [torch.optim.Adam(m.parameters(), player.config.lr, betas=(0.0, 0.99)) for m in (d, g)]
    for step in range(3):
        real = player.data.batch(0, step, 16).requires_grad_()
        z = player.latents(trainers.step_seeds(player.config, step, torch.device("cpu")))
        fake = g(z).detach().requires_grad_()
        real_logits, fake_logits = d(real), d(fake)
        game = d_loss(real_logits, fake_logits)
        penalty = gan.r1_penalty(real_logits, real, 0.3) + gan.r2_penalty(fake_logits, fake, 0.3)
        optimizers[0].zero_grad()
        (game + penalty).backward()
        optimizers[0].param_groups[0]["lr"] = optimizers[1].param_groups[0]["lr"] = 2e-3 * min(1, (1 - step / 10) / 0.6)
        optimizers[0].step()
        optimizers[1].zero_grad()
        g_loss(d(g(z)), d(real)).backward()
        optimizers[1].step()
        scalars = player.step(step)
        torch.testing.assert_close(scalars["loss_d"], game.detach())
        torch.testing.assert_close(scalars["penalty"], penalty.detach())
    for ours, theirs in ((player.generator, g), (player.discriminator, d)):
        for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            # A relativistic loss has no gradient in the last bias but rounding's, and Adam makes whole steps of that.
            if a.shape != (1,) or loss != "relativistic":
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_defaults_fit_what_is_trained():
    images, points = Config("gan"), Config("gan", data="grid")
    assert (images.lr, images.batch, images.gamma, images.gamma_end) == (1e-3, 64, 2.0, 2.0)
    assert (points.lr, points.batch, points.gamma, points.gamma_end) == (2e-3, 256, 0.03, 0.003)
    assert (images.generator_activation, points.generator_activation) == ("maxmin", "relu")
    assert Config("gan", data="grid", gamma=0.5).gamma_end == 0.5  # a weight that is given stays
    assert Config("gan", activation="tanh").generator_activation == "tanh"
    assert Config("diffusion").lr == 2e-3


def test_the_penalty_falls_and_the_step_size_cools_down():
    player = trainer(data="ring", gamma=0.1, gamma_end=0.001, cooldown=0.5)
    seen = []
    for step in range(10):
        player.step(step)
        seen.append((player._gamma, player.optimizers["generator"].param_groups[0]["lr"]))
    gammas, rates = zip(*seen, strict=True)
    assert gammas[:5] == pytest.approx([0.1 * 0.01 ** (i / 5) for i in range(5)])
    assert gammas[5:] == pytest.approx([0.001] * 5)
    assert rates == pytest.approx([2e-3] * 5 + [2e-3 * (1 - i / 5) for i in range(5)])


def test_mixed_dynamics_refuse_several_processes(monkeypatch):
    monkeypatch.setattr(parallel, "count", lambda: 2)
    for name in ("consensus", "symplectic", "unrolled"):
        with pytest.raises(ValueError, match=f"dynamics must not be {name} with several processes"):
            trainer(data="ring", dynamics=name)
    assert trainer(data="ring", dynamics="extragradient").dynamic.combine is parallel.average


METZ = {
    "data": "ring", "scale": 2.0, "latent": 256, "batch": 512, "width": 32, "depth": 2, "depth_discriminator": 1,
    "activation": "relu", "init": "orthogonal", "init_gain": 0.8, "discriminator_scale": 0.25, "lr": 1e-4, "beta1": 0.5,
    "beta2": 0.999, "loss": "minimax", "gamma": 0.0, "cooldown": 0.0, "ema": 0.0, "dynamics": "unrolled",
    "dynamics_steps": 2,
}  # fmt: skip


def test_the_configuration_can_say_the_settings_of_metz():
    """Appendix A: layers, first weights, the input of the discriminator, both players' Adam, data of radius 2."""
    player = trainers.GanTrainer(
        Config("gan", steps=10, **METZ, lr_discriminator=2e-4, beta1_discriminator=0.4, beta2_discriminator=0.9),
        load("ring", scale=2.0),
        torch.device("cpu"),
    )
    shapes = lambda module: [tuple(p.shape) for p in module.parameters() if p.dim() == 2]  # noqa: E731
    assert shapes(player.generator) == [(128, 256), (128, 128), (2, 128)]
    assert shapes(player.discriminator) == [(128, 2), (1, 128)]
    for module in (player.generator, player.discriminator):
        for p in module.parameters():
            if p.dim() == 2:
                torch.testing.assert_close(torch.linalg.svdvals(p.detach()), torch.full((min(p.shape),), 0.8))
            else:
                assert not p.any()
    assert player.data.centres.norm(dim=1).mean().item() == pytest.approx(2)
    assert player.data.std == pytest.approx(0.02)
    x = torch.randn(5, 2)
    assert torch.equal(player.discriminator(x), player.discriminator.model(x / 4))
    groups = {name: o.param_groups[0] for name, o in player.optimizers.items()}
    player.step(3)
    assert (groups["generator"]["lr"], groups["generator"]["betas"]) == (1e-4, (0.5, 0.999))
    assert (groups["discriminator"]["lr"], groups["discriminator"]["betas"]) == (2e-4, (0.4, 0.9))


@pytest.mark.parametrize("loss", ["minimax", "non_saturating"])
def test_unrolled_training_is_eq_10_of_metz(loss):
    """By differences, in one weight of the generator: the value after two moves of the discriminator's own Adam."""
    player = trainer(**{**METZ, "width": 4, "latent": 4, "batch": 64, "loss": loss, "lr": 1e-2})
    player.step(0)
    config, cpu = player.config, torch.device("cpu")
    generator, critic = copy.deepcopy(player.generator).double(), copy.deepcopy(player.discriminator).double()
    real = player.data.batch(0, 1, 64).double()
    z = player.latents(trainers.step_seeds(config, 1, cpu)).double()
    state = copy.deepcopy(player.optimizers["discriminator"].state_dict())

    def ahead(place):
        d = copy.deepcopy(critic)
        adam = torch.optim.Adam(d.parameters(), config.lr, betas=(0.5, 0.999))
        adam.load_state_dict(copy.deepcopy(state))
        with torch.no_grad():
            generator[2].weight[1, 2] = place
        value = lambda: -gan.non_saturating_d(d(real), d(generator(z)))  # noqa: E731
        for _ in range(2):
            adam.zero_grad()
            (-value()).backward()
            adam.step()
        return value().item()

    h, place = 1e-4, generator[2].weight[1, 2].item()
    truth = (ahead(place + h) - ahead(place - h)) / (2 * h)
    seen = []
    player.optimizers["generator"].register_step_pre_hook(
        lambda o, *_: seen.append(player.generator[2].weight.grad[1, 2].item())
    )
    player.step(1)
    assert seen == [pytest.approx(truth, rel=1e-3)]


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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["diffusion", "gan", "gan-2"])
def test_sigkill_at_any_moment(name):
    """Three of the moments of ``make kill-test``; the last is a GAN on two processes."""
    root = Path(__file__).parent.parent
    command = [sys.executable, root / "tools" / "kill_runs.py", "--moments", "3", "--runs", name]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{name}: 3 of 3 kills end with the same bits" in done.stdout


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
@pytest.mark.parametrize("dynamics", ["alternating", "optimistic", "extragradient"])
def test_two_processes_train_as_one(dynamics, tmp_path):
    options = {"pack": 2, "augment": "adaptive", "metrics_every": 3, "save_every": 2, "lr": 2e-3, "dynamics": dynamics}
    # Not the relativistic loss, whose gradient in the last bias is rounding alone, of which Adam makes whole steps.
    options["loss"] = "non_saturating"
    config = Config("gan", steps=6, **{**TINY, **options})
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


def test_what_several_processes_have_is_averaged(monkeypatch):
    """Not summed, of which Adam would show nothing; every tensor keeps its shape."""
    others = [torch.tensor([[2.0, -4.0]]), torch.tensor(6.0)]
    mine = [torch.tensor([[4.0, 4.0]]), torch.tensor(0.0)]
    monkeypatch.setattr(parallel, "count", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: flat.add_(torch.cat([o.flatten() for o in others])))
    parallel.average(mine)
    assert torch.equal(mine[0], torch.tensor([[3.0, 0.0]])) and mine[1].item() == 3


@pytest.mark.slow
def test_two_processes_train_a_diffusion_model_as_one(tmp_path):
    """Its gradients to rounding (Adam makes whole steps of the smallest, so not its weights), and twice to the bit."""
    config = Config("diffusion", steps=1, **TINY)
    config.save(tmp_path / "config.json")
    code = "import torch; torch.set_num_threads(1); from pyfold.train.cli import main; import sys; main(sys.argv[1:])"
    (tmp_path / "worker.py").write_text(code)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [tmp_path / "worker.py", "train", "diffusion", "--config", tmp_path / "config.json", "--device", "cpu", "--out"]
    for command, out in (([sys.executable], "one"), (launch, "two"), (launch, "again")):
        done = subprocess.run([*command, *arguments, tmp_path / out], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    averages = [name for name in one if name.endswith(".exp_avg")]
    largest = max(one[name].abs().max() for name in averages)
    for name in averages:
        assert (one[name] - two[name]).abs().max() < 1e-6 * largest, name
    assert largest > 1e-3
    assert_same_run(tmp_path / "two", tmp_path / "again")


def test_a_batch_is_shared_fairly(monkeypatch):
    rows = torch.arange(8)
    parts = []
    monkeypatch.setattr(parallel, "count", lambda: 4)
    for rank in range(4):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        parts.append(parallel.own_samples(rows))
    assert torch.equal(torch.cat(parts), rows)
    with pytest.raises(ValueError, match=r"batch must be a multiple of 8 \(pack x processes\), got 12"):
        trainer(pack=2, batch=12)


def test_command_line_knows_the_options(tmp_path, capsys):
    options = ["--pack", "2", "--augment", "fixed", "--policy", "color", "--network", "resnet", "--precision", "bf16"]
    options += ["--dynamics", "optimistic", "--gamma", "0.5"]
    small = ["--steps", "2", "--batch", "8", "--width", "8", "--metrics-every", "1"]
    cli.main(["train", "gan", "--out", str(tmp_path), *options, *small])
    assert "frechet" in capsys.readouterr().out
    config = Config.load(tmp_path / "config.json")
    assert (config.policy, config.dynamics, config.gamma_end, config.lr) == ("color", "optimistic", 0.5, 1e-3)


@pytest.mark.slow
def test_the_defaults_find_every_mode(tmp_path):
    """A quarter of the run of docs/mode_collapse.md, in which quality is on its way; the whole one reaches 0.96."""
    result = train(Config("gan", data="ring", steps=1200), tmp_path, progress=False)
    assert result["modes"] == 8
    assert result["high_quality"] > 0.7
    assert result["kl"] < 0.6
