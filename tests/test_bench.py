"""The command pyfold bench: what it prints, writes and compares. No test here looks at how long anything takes."""

import dataclasses
import importlib
import json
import subprocess
import sys

import pytest
import torch

from pyfold import bench
from pyfold.bench.cli import percentage
from pyfold.bench.memory import allocations, peak
from pyfold.bench.ops import TIMED_FOLDS
from pyfold.bench.peers import Peers
from pyfold.ops import OPS
from pyfold.train import cli

CPU = torch.device("cpu")


def run(*options):
    """pyfold bench; its exit status."""
    try:
        cli.main(["bench", *options])
    except SystemExit as stop:
        return stop.code
    return 0


def quick(*options):
    return run("--quick", *options)


def measured(**changes):
    facts = {"row": "DDPM step", "group": "steps", "size": "1x4x64x64", "dtype": "float32", "seconds": 1e-3, "spread": 0.01}
    return bench.Measured(**{**facts, "ratios": {"eager": 4.0, "diffusers": 8.0}, "bandwidth": 0.5, **changes})


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "new folder" / "before.json"
    assert quick("--json", str(path)) == 0
    return path


def doctor(path, target, factor):
    """The file with every ratio multiplied: as if pyfold had been that much faster when it was written."""
    record = json.loads(path.read_text())
    for row in record["rows"]:
        row["ratios"] = {peer: value * factor for peer, value in row["ratios"].items()}
    target.write_text(json.dumps(record))
    return str(target)


def test_quick_prints_a_table_and_writes_it(file, capsys):
    assert quick() == 0
    printed = capsys.readouterr().out
    assert "GB/s by torch.add" in printed and "G normals/s" in printed
    for group in ("ops: ", "gradients: ", "steps: ", "overhead: "):
        assert f"\n{group}" in printed
    rows, record = bench.read_json(file)
    assert {row.row for row in rows} >= {"randn", "DDPM step", "fold maxmin, forward + backward"}
    assert all(row.seconds > 0 and row.ratios["eager"] > 0 for row in rows)
    assert record["machine"]["torch"] == torch.__version__ and record["limits"]["triad bytes per second"] > 0
    step = next(row for row in rows if row.row == "DDPM step")
    assert step.bandwidth > 0 and step.generator > 0 and step.dtype == "float32" and step.size == "1x4x64x64"


def test_what_is_written_is_what_is_read(tmp_path):
    rows = [
        measured(),
        measured(dtype="bfloat16", peak={"pyfold": 10, "eager": 20}, floor=2.0),
        measured(ratios={}, bandwidth=None),
    ]
    bench.write_json(tmp_path / "out.json", rows, budget=0.1)
    read, record = bench.read_json(tmp_path / "out.json")
    assert read == rows and record["budget"] == 0.1
    assert list(tmp_path.iterdir()) == [tmp_path / "out.json"]


def test_a_file_is_printed_again(file, capsys):
    assert quick("--show", str(file), "--markdown") == 0
    printed = capsys.readouterr().out
    assert "| randn | 1x4x64x64 | " in printed and "GB/s" not in printed


def test_compare_passes_and_fails(file, tmp_path, capsys):
    slower_before = doctor(file, tmp_path / "slower.json", 1e-3)
    assert quick("--compare", slower_before, "--fail-above", "10%") == 0
    assert "none is slower by more than 10%" in capsys.readouterr().out
    faster_before = doctor(file, tmp_path / "faster.json", 1e3)
    assert quick("--compare", faster_before, "--fail-above", "10%") == 1
    printed = capsys.readouterr().out
    assert "4 slower by more than 10%" in printed and "DDPM step, 1x4x64x64, float32: " in printed
    assert quick("--compare", faster_before) == 0


def test_comparison_goes_by_ratios():
    now = measured(seconds=5e-3, ratios={"eager": 2.0, "diffusers": 9.0})
    assert bench.compare([measured()], [now]) == {"DDPM step, 1x4x64x64, float32": pytest.approx(1.0)}
    assert bench.compare([measured()], [measured(ratios={"diffusers": 4.0})]) == {now.key: pytest.approx(1.0)}
    assert bench.compare([measured(ratios={})], [measured(ratios={}, bandwidth=0.4)]) == {now.key: pytest.approx(0.25)}
    without = measured(ratios={}, bandwidth=None)
    assert bench.compare([without], [dataclasses.replace(without, seconds=3e-3)]) == {now.key: pytest.approx(2.0)}
    assert bench.compare([measured(size="other")], [now]) == {}
    order = bench.compare([measured(), measured(size="b")], [measured(), measured(size="b", ratios={"eager": 1.0})])
    assert list(order) == ["DDPM step, b, float32", "DDPM step, 1x4x64x64, float32"]


def test_a_row_below_its_floor():
    assert measured(floor=4.5).below_floor
    assert not measured(floor=3.5).below_floor and not measured().below_floor


def test_floors_pass_and_fail(monkeypatch, capsys):
    """A row below its floor gets two longer looks; the best of them counts."""
    looks = {}

    def measure(row, setting, budget, ratio):
        looks.setdefault(row.name, []).append(budget)
        assert setting.level == "middle" and setting.dtype == torch.float32 and row.floor is not None
        return measured(row=row.name, ratios={"eager": row.floor * ratio(row, len(looks[row.name]))}, floor=row.floor)

    def floors(ratio):
        looks.clear()
        monkeypatch.setattr(bench, "measure", lambda row, setting, budget: measure(row, setting, budget, ratio))
        return run("--floors", "--budget", "0.1"), capsys.readouterr().out

    every = {name for name, row in bench.ROWS.items() if row.floor is not None}
    status, printed = floors(lambda row, look: 1.5)
    assert status == 0 and f"all {len(every)} keep their floors" in printed
    assert set(looks) == every and all(budgets == [0.1] for budgets in looks.values())
    status, printed = floors(lambda row, look: 1.5 if row.name != "randn" or look == 2 else 0.5)
    assert status == 0 and looks["randn"] == [0.1, 0.4] and looks["DDPM step"] == [0.1]
    status, printed = floors(lambda row, look: 0.5 if row.name == "randn" else 1.5)
    assert status == 1 and looks["randn"] == [0.1, 0.4, 0.4]
    assert "randn, 1x4x64x64, float32: eager takes 1.00 times as long, at least 2.0 is due" in printed
    assert f"1 of {len(every)} below their floors" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--floors", "--compare", "old.json"], "--floors chooses"),
        (["--compare", "missing.json"], "missing.json"),
        (["--fail-above", "10%"], "--fail-above needs --compare"),
        (["--rows", "no such row"], "--rows 'no such row' matches no row"),
        (["--rows", "("], "--rows must be a regular expression"),
        (["--groups", "everything"], "--groups must be of ops, gradients, steps, loops, jobs, overhead, got everything"),
        (["--budget", "0"], "--budget must be a number of seconds above 0"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--device", "nowhere"], "--device must be one that torch has, got nowhere"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_errors_name_the_option(options, message, capsys):
    assert quick(*options) == 2
    assert message in capsys.readouterr().err


def test_a_file_of_another_kind(tmp_path, capsys):
    for text in ("{", "[]", '{"format": "other", "rows": []}', '{"format": "pyfold bench 1", "rows": [{"row": 1}]}'):
        (tmp_path / "bad.json").write_text(text)
        assert quick("--compare", str(tmp_path / "bad.json")) == 2
        assert "bad.json is not a result of pyfold bench --json" in capsys.readouterr().err


def test_a_percentage():
    assert percentage("10%") == percentage("10 %") == percentage("0.1") == 0.1
    with pytest.raises(Exception, match="must be a percentage"):
        percentage("ten")


def test_help_and_list(capsys):
    assert quick("--list") == 0
    listed = capsys.readouterr().out
    assert all(row in listed for row in bench.ROWS)
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    assert "--fail-above" in capsys.readouterr().out


def test_python_m_pyfold():
    command = [sys.executable, "-m", "pyfold", "bench", "--quick", "--rows", "^randn$", "--markdown"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "| randn | 1x4x64x64 |" in run.stdout


@pytest.mark.parametrize("row", bench.ROWS.values(), ids=bench.ROWS)
def test_every_row_runs_at_its_smallest_size(row):
    """Each form twice, with the libraries that are here; what they compute is tested where it is defined."""
    peers = Peers.found(compiler=False)
    for setting in bench.settings(row, ("small",), row.dtypes, CPU, peers):
        case = row.build(setting)
        with torch.enable_grad() if case.grad else torch.no_grad():
            for form in case.forms.values():
                if form is not None:
                    form()
                    form()
        assert case.forms["pyfold"] is not None


def test_the_table_covers_every_op_and_fold():
    names = " ".join(bench.ROWS)
    for kind in TIMED_FOLDS:
        for what in ("", ", forward + backward", ", backward of backward", ", no gradient", ", with gradient"):
            assert f"fold {kind}{what}" in bench.ROWS
    for op in OPS:
        assert {"affine_step": "step", "denoising_loss": "loss", "mse_loss": "loss", "fold, in torch operations": "fold"}.get(
            op, op
        ) in names


def test_forms_compute_the_same():
    """Where a row compares the same function of the same numbers, its forms agree."""
    setting = bench.Setting((2, 8, 8, 8), torch.float32, CPU, Peers.found(compiler=False), "small")
    checked = 0
    for name, row in bench.ROWS.items():
        if not name.startswith("fold ") or row.group == "overhead":
            continue
        case = row.build(setting)
        with torch.enable_grad() if case.grad else torch.no_grad():
            values = [form() for form in case.forms.values() if form is not None]
        for value in values[1:]:
            torch.testing.assert_close(value, values[0], rtol=1e-5, atol=1e-5)
            checked += 1
    assert checked >= 3 * len(TIMED_FOLDS)
    for name in ("DDIM step", "flow Euler step", "guided multistep, bfloat16 model"):
        results = []
        for form in ("pyfold", "eager"):
            case = bench.ROWS[name].build(setting)
            with torch.no_grad():
                out = case.forms[form]()
            # The last step writes the model's next input; every form works in place on the same state.
            results.append(out.float())
        torch.testing.assert_close(results[0], results[1], rtol=2e-2, atol=2e-2)


def test_memory_is_what_was_allocated():
    def two():
        a = torch.empty(1000)
        del a
        return torch.empty(500)

    changes = allocations({"one": lambda: torch.empty(64), "two": two})
    assert changes["one"] == [256, -256] and sorted(changes["two"]) == [-4000, -2000, 2000, 4000]
    assert peak(two, CPU) == 4000
    assert peak(lambda: [torch.empty(1000), torch.empty(500)], CPU) == 6000


def test_plot_draws_every_group(file, tmp_path, capsys):
    from PIL import Image

    out = tmp_path / "plots" / "bench.png"
    assert quick("--show", str(file), "--plot", str(out)) == 0
    capsys.readouterr()
    assert min(Image.open(out).size) > 300 and [p.name for p in out.parent.iterdir()] == ["bench.png"]
    assert quick("--show", str(file), "--plot", str(tmp_path / "bench.svg")) == 0
    assert (tmp_path / "bench.svg").read_text().count("<svg") == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_class_of_diffusers_can_be_timed():
    """tools/diffusers_speed.py runs each, with both kinds of noise where it draws any, and puts it back after a run."""
    pytest.importorskip("diffusers")
    pytest.importorskip("torchsde")
    speed = importlib.import_module("diffusers_speed")
    noisy = 0
    for name in speed.ours.__all__:
        forms = speed.forms_of(name, (2, 4, 8, 8))
        noisy += "seeds=" in forms
        for form in forms.values():
            form()
            form()
    assert 20 < noisy < len(speed.ours.__all__)


def test_the_table_of_diffusers_classes_says_how_many_times_longer_theirs_take():
    speed = importlib.import_module("diffusers_speed")
    results = {
        "DDPMScheduler": {"small": {"diffusers": 2e-3, "generator=": 1e-3, "seeds=": 5e-4}},
        "PNDMScheduler": {"small": {"diffusers": 3e-3, "generator=": 1e-3}},
    }
    assert list(speed.lines(results))[2:] == [
        "| DDPM | 1x4x64x64 | 2 ms | 2.00x | 4.00x |",
        "| PNDM | 1x4x64x64 | 3 ms | 3.00x |  |",
    ]
