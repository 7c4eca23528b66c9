"""The command ``pyfold``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyfold.train.config import Config

from pyfold._requirements import need
from pyfold._version import __version__

HELP = {
    "data": "digits, mnist, ring, grid, or a folder of PNG, JPEG, WebP or BMP images",
    "steps": "training steps",
    "batch": "samples in a step",
    "lr": "learning rate",
    "seed": "of weights, batches and noise: the same seed gives the same run",
    "width": "channels of the first level (images), a quarter of the hidden units (points)",
    "activation": "relu, leaky_relu, silu, tanh, or a fold: abs, maxmin, householder",
    "ema": "decay in each step of the average of the weights that samples are made with; 0.5^(batch / images) for a half-life "
    "in images",
    "size": "side that a folder's images are resized to; 4 to 7 times a power of two",
    "broken": "refuse or skip images of a folder that cannot be read",
    "labels": "none, or folders: the names of a folder's subfolders are classes",
    "flips": "none, or horizontal: mirror half of the images of each step",
    "ram": "MiB of a folder's images kept in memory; the others are read at each use",
    "scale": "what points are multiplied by",
    "save_every": "steps between checkpoints",
    "log_every": "steps between TensorBoard scalars",
    "metrics_every": "steps between measurements of samples, kept in history.json; 0 for the end alone",
    "final_samples": "samples drawn at the end, and for each measurement on the way",
    "precision": "float32, or bf16 where autocast finds it safe",
    "objective": "denoising, or of models that sample in one or a few steps: ecm, scm, meanflow, anyflow, shortcut (diffusion)",
    "schedule": "vp_linear, vp_cosine, flow, or another of pyfold.diffusion.SCHEDULES (diffusion)",
    "prediction": "epsilon, x0, v, flow, or another of pyfold.diffusion.PREDICTIONS (diffusion)",
    "sampler": "ddpm, ddim, unipc, flow_euler for the flow schedule, or another of pyfold.diffusion.SAMPLERS; for ecm and scm "
    "it is consistency, for meanflow, anyflow and shortcut flow_map (diffusion)",
    "sampler_steps": "steps of the sampler (diffusion)",
    "latent": "size of the latent code (gan)",
    "loss": "relativistic, non_saturating, minimax, hinge, or another of pyfold.gan.LOSSES; under unrolled dynamics the "
    "generator climbs the discriminator's, which is the value function (gan)",
    "gamma": "weight of the R1 and R2 penalties (gan)",
    "gamma_end": "what gamma falls to, geometrically, before the step size cools down; a given gamma stays (gan)",
    "cooldown": "last part of the run, in which the step size falls to 0; 0 for none (gan)",
    "generator_activation": "activation of the generator where it is another (gan)",
    "lr_discriminator": "learning rate of the discriminator where it is another (gan)",
    "beta1": "of the generator's Adam, and of the discriminator's (gan)",
    "beta2": "of the generator's Adam, and of the discriminator's (gan)",
    "beta1_discriminator": "of the discriminator's Adam where it is another (gan)",
    "beta2_discriminator": "of the discriminator's Adam where it is another (gan)",
    "depth": "hidden layers (points), residual blocks at each resolution (resnet) (gan)",
    "depth_discriminator": "of the discriminator where it is another (gan)",
    "init": "first weights: default, torch's and the networks' own, or orthogonal times init_gain (gan)",
    "init_gain": "of orthogonal first weights (gan)",
    "discriminator_scale": "what the discriminator multiplies its input by (gan)",
    "dynamics": "how the players move: alternating, simultaneous, extragradient, optimistic, proximal, consensus, symplectic, "
    "unrolled (gan)",
    "dynamics_steps": "moves looked ahead (unrolled), gradients taken in each step (proximal) (gan)",
    "dynamics_rate": "step size of the moves looked ahead; 0 for those of the discriminator's optimizer (unrolled) (gan)",
    "dynamics_strength": "of the adjustment (consensus, symplectic) (gan)",
    "network": "for images: dcgan, or resnet, whose width is a multiple of 8 (gan)",
    "pack": "samples that the discriminator judges as one (gan)",
    "augment": "of images that the discriminator sees: none, fixed (DiffAugment), or adaptive (DiffAugment's transforms with a "
    "probability that ADA's controller moves) (gan)",
    "policy": "augmentations: color, translation, cutout, with commas between them (gan)",
}

#: Settings of one kind of model: those whose help says so.
_ONLY = {kind: {name for name, text in HELP.items() if text.endswith(f"({kind})")} for kind in ("diffusion", "gan")}


def _default(name: str, *configurations: Config) -> str:
    """Of a configuration for images and one for points."""
    values = (getattr(configuration, name) for configuration in configurations)
    images, points = (f"{v:.3g}" if isinstance(v, float) else str(v) for v in values)
    return images if points == images or name == "data" else f"{images}; for points {points}"


def _parser() -> argparse.ArgumentParser:
    from pyfold.bench import cli as bench
    from pyfold.train.config import Config, field_type
    from pyfold.train.demo import add_arguments as add_demo_arguments

    parser = argparse.ArgumentParser(
        "pyfold",
        description="Fused diffusion steps and folds for PyTorch: train, sample, demo, bench, verify, info, completion.",
    )
    parser.add_argument("--version", action="version", version=f"pyfold {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a diffusion model or a GAN")
    kinds = train.add_subparsers(dest="model", required=True, metavar="diffusion|gan")
    for kind in ("diffusion", "gan"):
        command = kinds.add_parser(kind, help=f"train a {kind} model", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run")
        command.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in DIR")
        command.add_argument("--config", type=Path, metavar="FILE", help="settings, as config.json of a run; options win")
        command.add_argument("--device", help="cpu, cuda, cuda:1, ...; by default a GPU where there is one")
        defaults = Config(kind, data="digits"), Config(kind, data="ring")
        other = _ONLY["gan" if kind == "diffusion" else "diffusion"]
        for option in dataclasses.fields(Config):
            if option.name == "model" or option.name in other:
                continue
            text = f"{HELP[option.name]} (default: {_default(option.name, *defaults)})"
            command.add_argument(
                f"--{option.name.replace('_', '-')}",
                dest=option.name,
                type=field_type(option),
                default=argparse.SUPPRESS,
                metavar=option.name.upper(),
                help=text,
            )

    sample = commands.add_parser(
        "sample", help="draw samples from a run", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    sample.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    sample.add_argument("--n", type=int, default=64, help="how many samples")
    sample.add_argument("--seed", type=int, default=0, help="of the first sample; the next ones count up")
    sample.add_argument("--out", type=Path, default=Path("samples.png"), metavar="FILE", help="the picture")
    sample.add_argument("--device", help="cpu, cuda, ...; by default a GPU where there is one")

    demo = commands.add_parser(
        "demo",
        help="train a diffusion model and a GAN on handwritten digits, in minutes, and show what they draw",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_demo_arguments(demo)

    bench.add_parser(commands)

    about = "whether this machine makes the promised bits"
    commands.add_parser(
        "verify", help=about, description=f"Say {about}, whichever way they are asked for (docs/noise.md); half a minute."
    )

    about = "versions, libraries, instruction sets and CUDA in use"
    commands.add_parser("info", help=about, description=f"Say {about}, and why not what is not.")

    completion = commands.add_parser(
        "completion", help="print a shell's completion script", description='Use: eval "$(pyfold completion bash)"'
    )
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    return parser


def _settings(arguments: argparse.Namespace) -> Config:
    """A file's settings or those of the run that goes on, and the options given, which win."""
    from pyfold.train.config import Config
    from pyfold.train.run import CONFIG

    given = vars(arguments)
    options = {f.name: given[f.name] for f in dataclasses.fields(Config) if f.name in given}
    settings = Config.read(arguments.config) if arguments.config else {}
    if arguments.resume and (arguments.out / CONFIG).exists() and not arguments.config:
        settings = Config.read(arguments.out / CONFIG)
    try:
        return Config(**{**settings, **options})
    except TypeError as error:
        raise ValueError(error) from error


def _train(arguments: argparse.Namespace) -> None:
    from pyfold.train import parallel
    from pyfold.train.run import check_device, train

    config = _settings(arguments)
    device = check_device(arguments.device)
    metrics = train(config, arguments.out, resume=arguments.resume, device=device, progress=parallel.rank_of_launch() == 0)
    if parallel.rank_of_launch() != 0:
        return
    if metrics is None:
        print(f"stopped; go on with: pyfold train {config.model} --out {arguments.out} --resume")
        raise SystemExit(130)
    for name, value in metrics.items():
        print(f"{name}: {value}")
    print(f"samples: {arguments.out / 'samples.png'}")


def _sample(arguments: argparse.Namespace) -> None:
    import torch

    from pyfold.train.pictures import save_picture
    from pyfold.train.run import check_device, draw, open_run

    if arguments.n < 1:
        raise ValueError(f"--n must be at least 1, got {arguments.n}")
    if not -(2**63) <= arguments.seed <= 2**63 - arguments.n:
        raise ValueError(f"--seed must be in [-2^63, 2^63 - n], got {arguments.seed}")
    trainer, _, step = open_run(arguments.run, check_device(arguments.device))
    seeds = torch.arange(arguments.n) + arguments.seed
    save_picture(draw(trainer, seeds, progress=True), arguments.out)
    print(f"{arguments.n} samples after {step} steps: {arguments.out}")


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    show = warnings.formatwarning
    warnings.formatwarning = lambda message, *_: f"pyfold: {message}\n"
    try:
        if arguments.command == "train":
            _train(arguments)
        elif arguments.command == "sample":
            _sample(arguments)
        elif arguments.command == "demo":
            from pyfold.train.demo import demo

            try:
                demo(arguments.out, arguments.only)
            except KeyboardInterrupt:
                print("stopped; the same command goes on")
                raise SystemExit(130) from None
        elif arguments.command == "bench":
            from pyfold.bench import cli as bench

            if status := bench.run(arguments):
                raise SystemExit(status)
        elif arguments.command == "verify":
            from pyfold import verify

            if status := verify.run():
                raise SystemExit(status)
        elif arguments.command == "completion":
            print(need("shtab").complete(_parser(), arguments.shell))
        else:
            import pyfold

            pyfold.show_config()
    except (ValueError, ImportError, OSError, FloatingPointError) as error:
        print(f"pyfold: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    finally:
        warnings.formatwarning = show


if __name__ == "__main__":
    main()
