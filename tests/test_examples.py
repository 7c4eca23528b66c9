"""The README's Python runs, its commands parse, and the examples do their work, small."""

import importlib
import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyfold import diffusion
from pyfold.gan import DYNAMICS
from pyfold.train import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
#: Settings that make an example quick.
EXAMPLES = {
    "folding_measure.py": ["--quick"],
    "saddle.py": ["--quick"],
    "kaleidoscope.py": ["--quick", "--scene", "sponge"],
    "creative_fold.py": ["--quick"],
    "shampoo_soup.py": ["--quick"],
    "dcgan_digits.py": ["--quick"],
    "stacked_digits.py": ["--quick"],
    "ring.py": ["--quick"],
    "grid.py": ["--quick", "--recipes", "unrolled", "recommended", "--seeds", "0", "1", "--jobs", "2"],
    "train_diffusion.py": ["--steps", "3", "--batch", "16"],
    "train_gan.py": ["--steps", "3", "--batch", "16"],
    "langevin.py": ["--quick"],
    "sampler_orders.py": ["--quick"],
    "noise_everywhere.py": ["--quick"],
    "state_precision.py": ["--quick"],
    "wasserstein.py": ["--quick"],
    "condition_energy.py": ["--quick"],
    "inception_score.py": ["--quick"],
    "latent_walk.py": ["--quick"],
    "spins.py": ["--quick"],
    "one_step.py": ["--quick"],
    "xor.py": ["--quick"],
    "number_line.py": ["--quick"],
    "regions.py": ["--quick"],
    "heat.py": ["--quick"],
    "serve.py": ["--quick"],
}
#: Quick, and still more than ten seconds.
SLOW = {
    "condition_energy.py",
    "creative_fold.py",
    "dcgan_digits.py",
    "folding_measure.py",
    "grid.py",
    "noise_everywhere.py",
    "sampler_orders.py",
    "shampoo_soup.py",
}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_readme_python_runs():
    assert len(blocks("python")) == 5
    exec("\n".join(blocks("python")), {})


def test_korean_page_runs():
    page = (ROOT / "docs" / "start.ko.md").read_text()
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(code) == 3
    exec("\n".join(code), {})


def test_sampling_guide_runs():
    """Its Python, and the samplers, spacings and functions that it names."""
    page = (ROOT / "docs" / "sampling.md").read_text()
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(code) == 5
    exec("\n".join(code), {})
    for name in re.findall(r"`(?:diffusion\.)?(\w+)\(", page):
        assert hasattr(diffusion, name), name


@pytest.mark.parametrize("name", ["training", "serving", "rl"])
def test_guides_run(name):
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{name}.md").read_text(), re.DOTALL)
    assert code
    exec("\n".join(code), {})


def test_readme_examples_are_short():
    assert all(len(block.splitlines()) <= 15 for block in blocks("python"))


def test_readme_commands_parse():
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("pyfold ")]
    assert len(lines) >= 4
    pages = "\n".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    lines += re.findall(r"^pyfold (?:train|sample) .*$", pages, re.MULTILINE)
    parser = cli._parser()
    for line in lines:
        parser.parse_args(shlex.split(line, comments=True)[1:])
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(blocks("bash")), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_readme_links():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_example_is_tested():
    loops = {"accelerate_digits.py", "lightning_digits.py", "grpo_digits.py"}  # tests/test_other_loops.py
    assert set(EXAMPLES) | loops == {p.name for p in (ROOT / "examples").glob("*.py")}


def table(text):
    """The rows of a printed table, by their first cell."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return rows[0], rows[2:]


def check_saddle(text, out):
    """Each dynamic moves by its exact factor; only the simultaneous one leaves, and the alternating one stays."""
    rows = re.findall(r"^([a-z ]+?) +(\d\.\d{9}) +(\d\.\d{9})$", text, re.MULTILINE)
    assert len(rows) == len(DYNAMICS) + 1  # one of them with momentum as well
    for name, measured, exact in rows:
        assert abs(float(measured) - float(exact)) < (1e-5 if name == "negative momentum" else 1e-8), name
    assert [name for name, measured, _ in rows if float(measured) > 1] == ["simultaneous"]


def check_langevin(text, out):
    """Near Boltzmann's density; cold particles that never left their first well would be 0.4 away."""
    distances = [float(number) for number in re.findall(r"density (\d\.\d+)", text)]
    assert len(distances) == 3 and max(distances) < 0.1
    with Image.open(out.with_suffix(".gif")) as animation:
        assert animation.n_frames >= 6


def check_orders(text, out):
    _, rows = table(text)
    measured = {name: float(slope) for name, _, slope, *_ in rows}
    for name, order in {"euler (DDIM)": 1, "heun": 2, "dpm++ 2M": 2, "dpm++ 3M as published": 2, "dpm-solver 3": 3}.items():
        assert abs(measured[name] - order) < 0.25, (name, measured[name])
    assert measured["dpm++ 3M exact"] > 2.4 and measured["unipc 2"] > 2.7


def check_noise(text, out):
    columns, rows = table(text)
    assert columns[1:3] == ["pyfold", "diffusers"] and len(rows) >= 7
    assert len({row[1] for row in rows}) == 1
    assert sum("differs" in row[2] for row in rows) >= 3


def check_precision(text, out):
    """A bfloat16 state is worse at any number of steps, and the float32 state is as good at 100 as at 28."""
    columns, rows = table(text)
    assert columns[-1] == "bf16 / float32 state" and len(rows) == 12
    assert all(float(row[-1]) > 2 for row in rows)
    for name, by_kind in json.loads(out.with_suffix(".json").read_text())["errors"].items():
        assert by_kind["float32 state"][2] < 1.5 * by_kind["float32 state"][0], name
        assert max(by_kind["float32 state and model"]) < 1e-6


def check_modes(text, out):
    """The table is that of the file; real data are at the ceiling, and a few steps of training are not."""
    report = json.loads(out.with_suffix(".json").read_text())
    of = {"ring": 8, "grid": 25}[report["data"]]
    columns, rows = table(text)
    assert [row[0] for row in rows] == [*report["recipes"], "real data"]
    assert report["real"]["modes"] == of and abs(report["real"]["high_quality"] - 0.98889) < 0.003
    for row, recipe in zip(rows, report["recipes"].values(), strict=False):
        assert row[1] == f"{', '.join(str(run['modes']) for run in recipe['runs'])} of {of}"
        quality = np.mean([run["high_quality"] for run in recipe["runs"]])
        assert row[3].startswith(f"{quality:.3f} ") and 0 <= quality < 0.2
        assert all(run["curve"][-1]["step"] == recipe["config"]["steps"] for run in recipe["runs"])
    configs = {name: recipe["config"] for name, recipe in report["recipes"].items()}
    assert configs["unrolled"]["dynamics"] == "unrolled" and configs["recommended"]["loss"] == "relativistic"
    with Image.open(out.with_suffix(".gif")) as animation:
        assert animation.n_frames >= 4


def check_heat(text, out):
    """Heat makes the cloud a ball, by and by; cooling passes the same clouds, and ends at pictures that no ball is."""
    _, rows = table(text)
    ball, cooled, chance = ([float(row[i]) for row in rows] for i in (1, 2, 3))
    assert ball[0] > 0.6 and ball[0] > ball[1] > ball[2] and ball[-1] < 1.3 * chance[-1]
    assert cooled[0] < 0.7 * ball[0] and max(c - n for c, n in zip(cooled[1:], chance[1:], strict=True)) < 0.1


def check_number_line(text, out):
    _, rows = table(text)
    assert [list(map(int, row)) for row in rows] == [[n, 2**n, n + 1] for n in (1, 2, 3, 4)]


def check_regions(text, out):
    """Learning makes regions, and the spirals are told apart better than by chance."""
    _, rows = table(text)
    assert len(rows) == 4 and int(rows[-1][1]) > 20
    assert float(rows[-1][2].rstrip("%")) > max(60, float(rows[0][2].rstrip("%")))


def check_spins(text, out):
    """The modern magnet reads what counting reads; Hebb's rule nothing, its letters being alike."""
    _, rows = table(text)
    share = {name: [float(cell.rstrip("%")) / 100 for cell in cells] for name, *cells in rows}
    assert share["Hebb"] == [0] * 4
    assert share["modern"][0] > 0.9 and share["projection"][0] > 0.6
    assert max(abs(a - b) for a, b in zip(share["modern"], share["nearest letter, by counting"], strict=True)) < 0.1


def check_energy(text, out):
    """The more weight, the better either wish is met, on either schedule."""
    _, rows = table(text)
    for schedule in ("cosine", "EDM"):
        for wish in ("classifier", "mask"):
            energies = [float(row[4]) for row in rows if row[:2] == [schedule, wish]]
            assert len(energies) == 4 and energies == sorted(energies, reverse=True) and energies[-1] < 0.6 * energies[0]


def check_inception(text, out):
    """Noise and ten pictures score like real digits; coverage tells them apart."""
    _, rows = table(text)
    score, _, _, coverage = ({row[0]: float(row[i]) for row in rows} for i in range(1, 5))
    assert score["collapsed"] > 9.9 and min(score["real"], score["fooled"]) > 9
    assert coverage["real"] > 0.9 and coverage["fooled"] < 0.05 and coverage["collapsed"] < 0.15


def check_walk(text, out):
    """No jump, and a sum leans more than what it is added to, if not so soon after three steps of training."""
    _, rows = table(text)
    steps = [float(row[1].rstrip(" %")) for row in rows[:3]]
    assert 1 <= steps[0] < 10 and min(steps) > 0
    names, judged, leaning = zip(*rows[-3:], strict=True)
    assert names == ("leaning a - upright a + b", "some a - other a + b", "b")
    assert all(0 <= float(cell.rstrip(" %")) <= 100 for cell in (*judged, *leaning)) and leaning[-1] == "0 %"


def check_serve(text, out):
    """Nobody's answer is lost or another's, and who hangs up leaves no slot taken."""
    assert "40 of 40 requests answered, 40 with the bits of a run alone" in text
    assert "2 more hung up; 0 slots taken at the end" in text
    _, rows = table(text[text.index("| | in flight") :])
    assert [row[0] for row in rows] == ["one request at a time", "a loop over diffusers' schedulers", "pyfold"]


def check_one_step(text, out):
    columns, rows = table(text)
    assert columns[1:5] == ["1 step", "2 steps", "4 steps", "50 steps"]
    assert [row[0] for row in rows] == ["denoising", "ecm", "anyflow"]
    assert all(float(cell) > 0 for row in rows for cell in row[1:4]) and float(rows[0][4]) > 0


def check_words(text, out):
    """Between its parents a blend is nearer than between others, few words or many."""
    report = json.loads(out.with_suffix(".json").read_text())
    assert report["pairs"] == 6 and report["controls"]["midpoint - midpoint, shuffled"]["holds"]
    assert len(report["ways"]) == 9 and all(len(near) == 10 for near in report["soup"].values())


CHECKS = {
    "shampoo_soup.py": check_words,
    "one_step.py": check_one_step,
    "serve.py": check_serve,
    "inception_score.py": check_inception,
    "latent_walk.py": check_walk,
    "condition_energy.py": check_energy,
    "spins.py": check_spins,
    "number_line.py": check_number_line,
    "regions.py": check_regions,
    "heat.py": check_heat,
    "ring.py": check_modes,
    "grid.py": check_modes,
    "saddle.py": check_saddle,
    "langevin.py": check_langevin,
    "sampler_orders.py": check_orders,
    "noise_everywhere.py": check_noise,
    "state_precision.py": check_precision,
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in EXAMPLES])
def test_example(name, tmp_path):
    out = tmp_path / "out.png"
    command = [sys.executable, ROOT / "examples" / name, "--out", out, *EXAMPLES[name]]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert min(Image.open(out).size) > 100
    if name in CHECKS:
        CHECKS[name](result.stdout, out)


def test_a_float32_state_loses_less_in_a_pipeline_too():
    command = [sys.executable, ROOT / "examples" / "state_precision.py", "--quick", "--pipeline", "--steps", "60"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (row,) = table(result.stdout)[1]
    theirs, ours, kept = map(float, row[1:])
    assert 0.8 < ours / theirs < 1.25 and theirs > 2 * kept > 1e-5


def test_runs_that_are_kept_are_not_done_again(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    ring = importlib.import_module("ring")
    first = ring.run("ring", "R1 + R2", 0, 4, 4, tmp_path)
    other = ring.run("ring", "R1 + R2", 1, 4, 4, tmp_path)
    assert first[0]["modes"] >= 0 and not np.array_equal(first[2], other[2])
    monkeypatch.setattr(ring, "train", None)
    again = ring.run("ring", "R1 + R2", 0, 4, 4, tmp_path)
    assert again[0] == first[0] and np.array_equal(again[1], first[1]) and np.array_equal(again[2], first[2])
    with pytest.raises(TypeError):  # other settings: it has to train
        ring.run("ring", "R1 + R2", 0, 5, 4, tmp_path)


@pytest.mark.parametrize("scene", ["sponge", "kaleidoscope"])
def test_scenes(scene, tmp_path):
    out = tmp_path / "out.png"
    command = [sys.executable, ROOT / "examples" / "kaleidoscope.py", "--quick", "--scene", scene, "--out", out]
    subprocess.run(command, check=True, capture_output=True)
    assert np.asarray(Image.open(out)).std() > 20


def test_noise_specification_names_the_constants():
    """docs/noise.md and the kernel hold the same numbers."""
    page = (ROOT / "docs" / "noise.md").read_text()
    header = (ROOT / "csrc" / "core" / "normal.h").read_text()
    constants = re.findall(r"-?\d\.\d{6,}(?=f)", header)
    assert len(constants) == 15
    for constant in constants:
        assert constant in page, constant


def test_gallery(monkeypatch):
    """Every picture is there, small, and has a command whose options exist."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    gallery = importlib.import_module("gallery")
    pictures = re.findall(r"\]\(pictures/(\w+)\.png\)", gallery.PAGE.read_text())
    assert pictures == list(gallery.commands()) and len(pictures) >= 6
    sizes = [(gallery.PAGE.parent / "pictures" / f"{name}.png").stat().st_size for name in pictures]
    assert max(sizes) <= gallery.LARGEST and sum(sizes) <= gallery.ALL
    for script, *options in gallery.commands().values():
        source = (ROOT / script).read_text()
        assert all(f'"{option}"' in source for option in options if option.startswith("--")), script


def test_pictures_are_made_to_fit(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    gallery = importlib.import_module("gallery")
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    data = gallery.fitted(Image.fromarray(noise), 20_000)
    assert len(data) <= 20_000
    assert abs(Image.open(io.BytesIO(data)).width / Image.open(io.BytesIO(data)).height - 1.5) < 0.05
