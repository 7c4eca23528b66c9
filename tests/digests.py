"""Digests of what pyfold computes, beside those that are noted: what may not change, and where it does.

``python tests/digests.py`` compares and names each entry that differs; ``--update`` notes what this checkout computes;
``--only WORD`` looks at entries whose name has the word. Three files of tests/digests hold

- ops.json: the bits that every op gives, forward, backward and backward of backward, one digest for a variant and an order;
- plans.json: the coefficients of every sampler on every schedule, to 1e-12: a projection of all entries of a plan on random
  weights in float64, and a digest of which entries are 0 or infinite;
- ends.json: the bits at the end of a run of every sampler and every adapter, under models that round nothing.

It runs itself once more with everything pinned on which bits of other libraries depend: one thread, and no instruction set
beyond the baseline for torch, NumPy and the C library's mathematics. pyfold's own instruction set is the machine's, because
its bits are equal on all. Entries that are not noted are ignored, so a new op or sampler fails nothing before ``--update``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "digests"
ROOT = Path(__file__).parent.parent
#: Of every entry's coefficient, absolute and relative: a projection is a sum over asinh of them.
TOLERANCE = 1e-12

Entries = Iterator[tuple[str, Callable[[], Any]]]


def pinned_environment() -> dict[str, str]:
    from numpy._core._multiarray_umath import __cpu_dispatch__

    return {
        "PYFOLD_DIGESTS_PINNED": "1",
        "ATEN_CPU_CAPABILITY": "default",
        "OPENBLAS_CORETYPE": "Haswell",  # NumPy solves a few equations of multistep methods with it, in order of the processor
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "MKL_CBWR": "COMPATIBLE",
        "NPY_DISABLE_CPU_FEATURES": " ".join(__cpu_dispatch__),
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-FMA,-FMA4,-AVX2,-AVX2_Usable,-FMA_Usable",
        "PYTHONWARNINGS": "ignore",
    }


class Digest:
    """SHA-256 of tensors: their shapes, dtypes and bits in logical order; every NaN counts as the same."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()

    def add(self, *values: Any) -> Digest:
        import torch

        for value in values:
            if isinstance(value, torch.Tensor):
                value = value.detach()
                if value.is_floating_point():
                    value = torch.where(value.isnan(), torch.full_like(value, torch.nan), value)
                self.hash.update(f"{value.dtype}{tuple(value.shape)}".encode())
                self.hash.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
            elif isinstance(value, (list, tuple)):
                self.add(*value)
            else:
                self.hash.update(repr(value).encode())
        return self

    def text(self) -> str:
        return self.hash.hexdigest()[:16]


def take_exact_roots() -> None:
    """In place of torch's square roots, in which processors differ: diffusers' classes make tables with them."""
    import numpy as np
    import torch

    sqrt, power = torch.sqrt, torch.Tensor.pow

    def exact(x: torch.Tensor, **options: Any) -> torch.Tensor:
        if options or x.requires_grad or x.dtype not in (torch.float32, torch.float64):
            return sqrt(x, **options)
        return torch.from_numpy(np.asarray(np.sqrt(x.numpy())))

    def exact_power(x: torch.Tensor, exponent: Any) -> torch.Tensor:
        return exact(x) if isinstance(exponent, float) and exponent == 0.5 else power(x, exponent)

    torch.sqrt = torch.Tensor.sqrt = exact  # type: ignore[method-assign, assignment]
    torch.Tensor.pow = torch.Tensor.__pow__ = exact_power  # type: ignore[method-assign, assignment]


def versions() -> dict[str, str]:
    import diffusers
    import numpy
    import torch

    return {"torch": torch.__version__.split("+")[0], "numpy": numpy.__version__, "diffusers": diffusers.__version__}


def sections() -> dict[str, Callable[[], Entries]]:
    import digest_adapters
    import digest_ops
    import digest_plans

    def ends() -> Entries:
        yield from digest_plans.ends()
        yield from digest_adapters.entries()

    return {"ops": digest_ops.entries, "plans": digest_plans.plans, "ends": ends}


def same(noted: Any, found: Any) -> bool:
    """Equal; of a projection, which is noted as (number of entries, sum in hexadecimal, digest of the zeros), to TOLERANCE."""
    if isinstance(noted, dict) and isinstance(found, dict):
        return all(name in found and same(value, found[name]) for name, value in noted.items())
    if isinstance(noted, str) and isinstance(found, str) and noted.count(" ") == 2 == found.count(" "):
        (count, total, zeros), (new_count, new_total, new_zeros) = noted.split(), found.split()
        off = abs(float.fromhex(total) - float.fromhex(new_total))
        # Errors of the entries add up like a random walk; one entry off by this much is noticed.
        return count == new_count and zeros == new_zeros and off <= 4 * TOLERANCE * float(count) ** 0.5
    return bool(noted == found)


def explain(noted: Any, found: Any) -> str:
    if isinstance(noted, dict) and isinstance(found, dict):
        parts = [
            f"{name}: {explain(value, found.get(name, 'missing'))}"
            for name, value in noted.items()
            if name not in found or not same(value, found[name])
        ]
        return "; ".join(parts)
    if isinstance(noted, str) and noted.count(" ") == 2 == str(found).count(" "):
        (count, total, zeros), (new_count, new_total, new_zeros) = noted.split(), found.split()
        if count != new_count:
            return f"{new_count} entries instead of {count}"
        if zeros != new_zeros:
            return "other entries are 0 or infinite"
        return f"coefficients are off by {abs(float.fromhex(total) - float.fromhex(new_total)):.3g}"
    return f"{found} instead of {noted}"


def compute(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        return f"refused: {type(error).__name__}: {str(error)[:200]}"


def compare(only: str) -> list[str]:
    failures = []
    for section, entries in sections().items():
        noted = json.loads((FOLDER / f"{section}.json").read_text())
        waiting = {name for name in noted["entries"] if only in f"{section}/{name}"}
        for name, make in entries():
            if name not in waiting:
                continue
            waiting.discard(name)
            expected, found = noted["entries"][name], compute(make)
            if not same(expected, found):
                failures.append(f"{section}/{name}: {explain(expected, found)}")
        failures += [f"{section}/{name}: vanished" for name in sorted(waiting)]
    return failures


def update(only: str) -> None:
    FOLDER.mkdir(exist_ok=True)
    for section, entries in sections().items():
        path = FOLDER / f"{section}.json"
        noted = json.loads(path.read_text())["entries"] if only else {}
        for name, make in entries():
            # Where a sampler's own spacing does, it is enough.
            if only not in f"{section}/{name}" or name.replace("/sgm_uniform", "/default") in noted.keys() - {name}:
                continue
            found = compute(make)
            if str(found).startswith("refused"):
                print(f"not noted: {section}/{name} {found}")
            else:
                noted[name] = found
        lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in noted.items()]
        text = "\n".join([f'{{"versions": {json.dumps(versions())},', '"entries": {', ",\n".join(lines), "}}", ""])
        with tempfile.NamedTemporaryFile("w", dir=FOLDER, delete=False) as file:
            file.write(text)
        os.chmod(file.name, 0o644)
        os.replace(file.name, path)


def other_versions() -> str:
    """Why the noted digests say nothing here, or an empty string."""
    noted, here = json.loads((FOLDER / "ends.json").read_text())["versions"], versions()
    return "; ".join(f"digests are noted with {k} {v}, here is {here[k]}" for k, v in noted.items() if here[k] != v)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--update", action="store_true", help="note what this checkout computes")
    parser.add_argument("--only", default="", metavar="WORD", help="entries whose name, section/entry, has the word")
    arguments = parser.parse_args()
    if "PYFOLD_DIGESTS_PINNED" not in os.environ:
        paths = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
        environment = {**os.environ, **pinned_environment(), "PYTHONPATH": paths}
        return subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode
    import torch

    torch.set_num_threads(1)
    take_exact_roots()
    if arguments.update:
        update(arguments.only)
        return 0
    if why := other_versions():
        print(f"nothing was compared: {why}")
        return 3
    failures = compare(arguments.only)
    print("\n".join(failures) or "every digest is as noted")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main())
