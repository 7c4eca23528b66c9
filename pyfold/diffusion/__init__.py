"""Schedules, predictions, samplers and the training loss, on the fused ops."""

from pyfold.diffusion.predictions import convert
from pyfold.diffusion.samplers import SAMPLERS, Plan, ddim, ddpm, flow_euler, guided, sample
from pyfold.diffusion.schedules import SCHEDULES, Schedule, flow, vp_cosine, vp_linear
from pyfold.diffusion.training import TIME_STREAM, WEIGHTINGS, Noised, TrainingLoss

__all__ = [
    "SAMPLERS",
    "SCHEDULES",
    "TIME_STREAM",
    "WEIGHTINGS",
    "Noised",
    "Plan",
    "Schedule",
    "TrainingLoss",
    "convert",
    "ddim",
    "ddpm",
    "flow",
    "flow_euler",
    "guided",
    "sample",
    "vp_cosine",
    "vp_linear",
]
