"""The command ``pyfold``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

HELP = {
    "data": "digits, mnist, ring, grid, or a folder of PNG or JPEG images",
    "steps": "training steps",
    "batch": "samples in a step",
    "lr": "learning rate",
    "seed": "of weights, batches and noise: the same seed gives the same run",
    "width": "channels of the first level (images), a quarter of the hidden units (points)",
    "activation": "relu, leaky_relu, silu, tanh, or a fold: abs, maxmin, householder",
    "ema": "decay of the average of the weights that samples are made with",
    "size": "side that a folder's images are resized to; 4 to 7 times a power of two",
    "broken": "refuse or skip images of a folder that cannot be read",
    "save_every": "steps between checkpoints",
    "log_every": "steps between TensorBoard scalars",
    "metrics_every": "steps between measurements of samples, kept in history.json; 0 for the end alone",
    "precision": "float32, or bf16 where autocast finds it safe",
    "schedule": "vp_linear, vp_cosine, flow, or another of pyfold.diffusion.SCHEDULES (diffusion)",
    "prediction": "epsilon, x0, v or flow (diffusion)",
    "sampler": "ddpm, ddim, unipc, flow_euler for the flow schedule, or another of pyfold.diffusion.SAMPLERS (diffusion)",
    "sampler_steps": "steps of the sampler (diffusion)",
    "latent": "size of the latent code (gan)",
    "loss": "relativistic, non_saturating, hinge, or another of pyfold.gan.LOSSES (gan)",
    "gamma": "weight of the R1 and R2 penalties (gan)",
    "gamma_end": "what gamma falls to, geometrically, before the step size cools down; a given gamma stays (gan)",
    "cooldown": "last part of the run, in which the step size falls to 0 (gan)",
    "generator_activation": "activation of the generator where it is another (gan)",
    "dynamics": "how the players move: alternating, simultaneous, extragradient, optimistic, proximal, consensus, symplectic, "
    "unrolled (gan)",
    "dynamics_steps": "moves looked ahead (unrolled), gradients taken in each step (proximal) (gan)",
    "dynamics_rate": "step size of the moves looked ahead (unrolled) (gan)",
    "dynamics_strength": "of the adjustment (consensus, symplectic) (gan)",
    "network": "for images: dcgan, or resnet, whose width is a multiple of 8 (gan)",
    "pack": "samples that the discriminator judges as one (gan)",
    "augment": "none, fixed (DiffAugment) or adaptive (ADA): images that the discriminator sees (gan)",
    "policy": "augmentations: color, translation, cutout, with commas between them (gan)",
}

_ONLY = {
    "diffusion": {"schedule", "prediction", "sampler", "sampler_steps"},
    "gan": {
        "latent", "loss", "gamma", "gamma_end", "cooldown", "generator_activation", "dynamics", "dynamics_steps",
        "dynamics_rate", "dynamics_strength", "network", "pack", "augment", "policy",
    },
}  # fmt: skip


def _default(kind: str, name: str) -> str:
    from pyfold.train.config import Config

    values = (getattr(Config(kind, data=data), name) for data in ("digits", "ring"))
    images, points = (f"{v:.3g}" if isinstance(v, float) else str(v) for v in values)
    return images if points == images or name == "data" else f"{images}; for points {points}"


def _parser() -> argparse.ArgumentParser:
    from pyfold.bench import cli as bench
    from pyfold.train.config import Config

    parser = argparse.ArgumentParser(
        "pyfold", description="Fused diffusion steps and folds for PyTorch: train, sample, bench, info."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train a diffusion model or a GAN")
    kinds = train.add_subparsers(dest="model", required=True, metavar="diffusion|gan")
    for kind in ("diffusion", "gan"):
        command = kinds.add_parser(kind, help=f"train a {kind} model", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run")
        command.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in DIR")
        command.add_argument("--config", type=Path, metavar="FILE", help="settings, as config.json of a run; options win")
        command.add_argument("--device", help="cpu, cuda, cuda:1, ...; by default a GPU where there is one")
        other = _ONLY["gan" if kind == "diffusion" else "diffusion"]
        for option in dataclasses.fields(Config):
            if option.name == "model" or option.name in other:
                continue
            text = f"{HELP[option.name]} (default: {_default(kind, option.name)})"
            command.add_argument(
                f"--{option.name.replace('_', '-')}",
                dest=option.name,
                type=option.metadata.get("type", type(option.default)),
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

    bench.add_parser(commands)

    about = "versions, libraries, instruction sets and CUDA in use"
    commands.add_parser("info", help=about, description=f"Say {about}, and why not what is not.")
    return parser


def _train(arguments: argparse.Namespace) -> None:
    import torch

    from pyfold.train import parallel
    from pyfold.train.config import Config
    from pyfold.train.run import CONFIG, train

    given = vars(arguments)
    options = {f.name: given[f.name] for f in dataclasses.fields(Config) if f.name in given}
    settings = Config.read(arguments.config) if arguments.config else {}
    if arguments.resume and (arguments.out / CONFIG).exists() and not arguments.config:
        settings = Config.read(arguments.out / CONFIG)
    config = Config(**{**settings, **options})
    device = torch.device(arguments.device) if arguments.device else None
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
    from pyfold.train.run import open_run

    if arguments.n < 1:
        raise ValueError(f"--n must be at least 1, got {arguments.n}")
    device = torch.device(arguments.device) if arguments.device else None
    trainer, _, step = open_run(arguments.run, device)
    seeds = torch.arange(arguments.seed, arguments.seed + arguments.n)
    save_picture(trainer.sample(seeds).cpu(), arguments.out)
    print(f"{arguments.n} samples after {step} steps: {arguments.out}")


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "train":
            _train(arguments)
        elif arguments.command == "sample":
            _sample(arguments)
        elif arguments.command == "bench":
            from pyfold.bench import cli as bench

            if status := bench.run(arguments):
                raise SystemExit(status)
        else:
            import pyfold

            pyfold.show_config()
    except (ValueError, ImportError, OSError, FloatingPointError) as error:
        print(f"pyfold: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
