"""What ``help(name)`` shows: every argument by its name, the result, and examples that run."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import pyfold

MODULES = [
    "pyfold", "pyfold.adapters.k_diffusion", "pyfold.bench", "pyfold.diffusion", "pyfold.diffusion.rl",
    "pyfold.diffusion.serve", "pyfold.folding", "pyfold.gan", "pyfold.gan.latent", "pyfold.gan.metrics",
    "pyfold.lipschitz", "pyfold.models", "pyfold.nn", "pyfold.ops",
]  # fmt: skip


def public(module):
    """(name, function or class) of what a module has for its users."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__ and n[0] != "_"]
    return [(name, getattr(module, name)) for name in names if callable(getattr(module, name))]


def lacks(value):
    """What a docstring does not say."""
    text = inspect.getdoc(value) or ""
    missing = [] if text else ["a docstring"]
    arguments = [
        name for name in inspect.signature(value).parameters if name not in ("self", "args", "kwargs") and name[0] != "_"
    ]
    described = "".join(re.findall(r"^(?:Args|Attributes):\n((?: +.*\n?|\n)*)", text, re.MULTILINE))
    missing += [f"argument {name}" for name in arguments if not re.search(rf"\b{re.escape(name)}\b[^\n]*:", described)]
    if not isinstance(value, type) and inspect.signature(value).return_annotation not in (None, "None"):
        missing += [] if "Returns:\n" in text else ["the result"]
    return missing


@pytest.mark.parametrize("name", MODULES)
def test_arguments_and_results_are_described(name):
    module = importlib.import_module(name)
    found = {n: missing for n, value in public(module) if (missing := lacks(value))}
    assert not found, "\n".join(f"{n} lacks {', '.join(missing)}" for n, missing in found.items())


#: Families, which are the files that define public names, whose docstrings have no example, and why.
WITHOUT_EXAMPLE = {
    "pyfold._library": "it says what this machine has",
    "pyfold.bench.measure": "measures this machine; docs/performance.md has the command",
    "pyfold.bench.peers": "as measure",
    "pyfold.bench.report": "as measure",
    "pyfold.bench.rows": "as measure",
    "pyfold.diffusion": "functions that are made of declarations; sample, guided and Plan show one",
    "pyfold.diffusion.samplers._declare": "every file beside it declares one",
    "pyfold.folding.creases": "what line and plane return",
    "pyfold.folding.probe": "what line and plane return",
    "pyfold.folds": "a table for the docs",
    "pyfold.ops._declare": "for the tests of the ops",
}


def families():
    """Public values by the file that defines them."""
    found = {}
    for name in MODULES:
        for _, value in public(importlib.import_module(name)):
            found.setdefault(value.__module__, set()).add(value)
    return found


def test_every_family_has_an_example():
    texts = {name: [importlib.import_module(name), *values] for name, values in families().items()}
    without = {name for name, values in texts.items() if not any(">>>" in (value.__doc__ or "") for value in values)}
    assert without == set(WITHOUT_EXAMPLE)


#: Files whose public names have no source, by what they are; in others the names that have none, and why.
WITHOUT_SOURCE = {
    "pyfold._library": "says what this machine has",
    "pyfold.adapters.k_diffusion": "k-diffusion's names for pyfold's samplers, which name theirs",
    "pyfold.bench": "measures",
    "pyfold.diffusion.serve": "a way to call the samplers",
    "pyfold.models": "networks as the files' own docstrings have them",
    "pyfold.nn": "modules of the functions beside them",
    "pyfold.ops": "folds as the table of docs/folds.md has them",
    "pyfold.folds": "as pyfold.ops",
}
NO_SOURCE_NEEDED = {
    "a record or a protocol, whose maker names it": [
        "Attempt", "ClassFolding", "Creases", "FoldingReport", "Layer", "LayerFolding", "Line", "Noised", "NoisedInterval",
        "ModeCoverage", "NoisedPair", "Plan", "Plane", "Point", "ReflectionGroup", "Schedule", "Wasserstein1",
    ],
    "a definition of a line": [
        "SignFlips", "Permutations", "Hyperplanes", "convert", "equalise", "fold_hyperplane", "from_alpha_bar", "lerp",
        "reflect", "rescale",
    ],
    "a way to call what names its source": [
        "FoldingCallback", "GameMonitor", "lines", "replay", "sample", "sampler", "with_gradient", "with_next_time",
    ],
    "pyfold's own": ["LearnedFold", "counterpart", "crease_children", "fold_depth", "plane", "variations"],
    "a choice of pairs": ["class_pairs"],
    "in the file's docstring": [
        "LipschitzConvCritic", "LipschitzCritic", "OrthogonalDownsample", "fit_critic", "orthogonal_linear",
    ],
}  # fmt: skip
SOURCE = re.compile(r"\b(18|19|20)\d\d[a-z]?\b|^Sources?: ", re.MULTILINE)


def test_sources_are_named():
    """A paper's year, or a line of sources; an alias names the function that it stands for."""
    without = {
        value.__name__
        for name, values in families().items()
        for value in values
        if not SOURCE.search(inspect.getdoc(value) or "")
        and not re.search(r" name for :func:", inspect.getdoc(value) or "")
        and not any(name == part or name.startswith(f"{part}.") for part in WITHOUT_SOURCE)
    }
    exceptions = [name for names in NO_SOURCE_NEEDED.values() for name in names]
    assert without == set(exceptions), sorted(without ^ set(exceptions))
    assert len(exceptions) == len(set(exceptions))


def test_errors_of_a_function_are_described():
    """Those that its own body raises."""
    found = []
    for values in families().values():
        for value in values:
            if inspect.isfunction(value) and re.search(r"raise (Type|Value)Error", inspect.getsource(inspect.unwrap(value))):
                found += [] if "Raises:" in (value.__doc__ or "") else [f"{value.__module__}.{value.__name__}"]
    assert not found, "no errors are described of " + ", ".join(sorted(found))


def test_a_lack_is_noticed():
    def undescribed(x: int) -> int:
        """Twice x."""
        return 2 * x

    assert lacks(undescribed) == ["argument x", "the result"]
    assert lacks(pyfold.randn) == []


def test_examples_run():
    """Those of the docstrings; the pages' are run by tests/test_examples.py."""
    attempted = 0
    for _, name, _ in pkgutil.walk_packages(pyfold.__path__, "pyfold."):
        if name.startswith(("pyfold.adapters.comfyui", "pyfold._C", "pyfold.__main__")):
            continue
        result = doctest.testmod(importlib.import_module(name), extraglobs={"pyfold": pyfold, "torch": torch})
        assert result.failed == 0, name
        attempted += result.attempted
    assert attempted >= 50


def test_every_page_is_on_the_site():
    """A page that no table of contents names is a warning, which fails make docs."""
    docs = Path(__file__).parents[1] / "docs"
    named = re.findall(r"^[\w.-]+$", (docs / "index.md").read_text(), re.MULTILINE)
    assert {page.stem for page in docs.glob("*.md")} - {"index"} <= set(named)
