"""200 random configurations of diffusers' schedulers; ``python tests/fuzz_diffusers.py --cases 1600`` by hand."""

import warnings
from collections import Counter

import pytest

pytest.importorskip("diffusers")
from fuzz_diffusers import cases, difference


def test_random_configurations_agree():
    counts, differences = Counter(), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in cases(200, seed=1):
            kind, text = difference(*case)
            counts[kind] += 1
            if text:
                differences.append(f"{case}: {text}")
    assert not differences
    # Most configurations do run, so that their numbers are what is compared.
    assert counts["equal"] > 120, counts


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("order", [1, 2])
def test_a_stochastic_step_of_no_length(steps, order):
    """EDM's table ends at sigma_min twice, the second a float32 number above the first."""
    config = {"algorithm_type": "sde-dpmsolver++", "final_sigmas_type": "sigma_min", "solver_order": order}
    assert difference("EDMDPMSolverMultistepScheduler", config, {"steps": steps}) == ("equal", "")


def test_thresholds_below_one():
    """A bound below 1 is the bound itself, and ratio 0 the least value, as torch.clamp and torch.quantile have it."""
    for name in (
        "DDIM",
        "DDPM",
        "DPMSolverMultistep",
        "DEISMultistep",
        "UniPCMultistep",
    ):
        for ratio, most in ((0.9, 0.5), (0.0, 1.0), (0.0, 3.0), (1.0, 0.25)):
            config = {"thresholding": True, "dynamic_thresholding_ratio": ratio, "sample_max_value": most}
            assert difference(f"{name}Scheduler", config, {"steps": 5})[0] in ("equal", "theirs rounds")
