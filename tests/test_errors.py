"""Bad input is refused before a kernel runs, by an error that names the argument, what it was and what it should be."""

import itertools
import math
import random
from collections import Counter

import pytest
import torch

import pyfold
from pyfold import diffusion, gan, nn
from pyfold.ops import affine_table, fold_with_bits, unfold

X = torch.zeros(2, 4, 3)
META = torch.zeros(2, 4, 3, device="meta")
SEEDS = torch.arange(2)
TABLE = affine_table([{"a": 1.0}])

CASES = {
    "randn: negative size": (lambda: pyfold.randn(SEEDS, (3, -1)), ValueError, "shape.*-1"),
    "randn: seeds dtype": (lambda: pyfold.randn(torch.zeros(2), (3,)), TypeError, "seeds.*int64.*float32"),
    "randn: seeds shape": (lambda: pyfold.randn(SEEDS[None], (3,)), ValueError, r"seeds.*\(1, 2\)"),
    "randn: seeds type": (lambda: pyfold.randn("12", (3,)), TypeError, "seeds.*str"),
    "randn: dtype": (lambda: pyfold.randn(SEEDS, (3,), dtype=torch.int32), TypeError, "dtype.*int32"),
    "randn: step": (lambda: pyfold.randn(SEEDS, (3,), step=-1), ValueError, "step.*-1"),
    "randn: stream": (lambda: pyfold.randn(SEEDS, (3,), stream=2**32), ValueError, "stream.*4294967296"),
    "randn: step type": (lambda: pyfold.randn(SEEDS, (3,), step=1.5), TypeError, "step.*float"),
    "randn: step text": (lambda: pyfold.randn(SEEDS, (3,), step="3"), TypeError, "step must be an int, got str"),
    "randn: step bool": (lambda: pyfold.randn(SEEDS, (3,), step=True), TypeError, "step must be an int, got bool"),
    "randn: out shape": (lambda: pyfold.randn(SEEDS, (3,), out=torch.zeros(2, 4)), ValueError, r"out.*\(2, 3\).*\(2, 4\)"),
    "randn: half a window": (lambda: pyfold.randn(SEEDS, (3,), offset=(0,)), ValueError, "go together, got .0,. and None"),
    "randn: negative window": (
        lambda: pyfold.randn(SEEDS, (3,), offset=(-1,), global_shape=(8,)),
        ValueError,
        "leaves global_shape",
    ),
    "randn: window": (lambda: pyfold.randn(SEEDS, (3,), offset=(2,), global_shape=(4,)), ValueError, "leaves global_shape"),
    "randn: device": (lambda: pyfold.randn(SEEDS, (3,), device="meta", dtype=torch.int8), TypeError, "dtype"),
    "add_noise: tensor": (lambda: pyfold.add_noise([1.0], 1, 1, SEEDS), TypeError, "x0.*list"),
    "add_noise: 0-d": (lambda: pyfold.add_noise(torch.zeros(()), 1, 1, SEEDS), ValueError, "x0.*batch"),
    "add_noise: dtype": (lambda: pyfold.add_noise(X.int(), 1, 1, SEEDS), TypeError, "x0.*int32"),
    "add_noise: seeds": (lambda: pyfold.add_noise(X, 1, 1, torch.arange(3)), ValueError, r"seeds.*\(2,\).*\(3,\)"),
    "add_noise: NaN": (lambda: pyfold.add_noise(X, math.nan, 1, SEEDS), ValueError, "alpha.*nan"),
    "add_noise: NaN tensor": (lambda: pyfold.add_noise(X, 1, torch.tensor([1, math.nan]), SEEDS), ValueError, "sigma.*nan"),
    "add_noise: sigma": (lambda: pyfold.add_noise(X, 1, torch.ones(3), SEEDS), ValueError, r"sigma.*\(3,\)"),
    "add_noise: alpha type": (lambda: pyfold.add_noise(X, "1", 1, SEEDS), TypeError, "alpha.*str"),
    "add_noise: target": (lambda: pyfold.add_noise(X, 1, 1, SEEDS, target="eps"), ValueError, "target.*'eps'"),
    "add_noise: out dtype": (lambda: pyfold.add_noise(X, 1, 1, SEEDS, dtype=torch.float64), TypeError, "dtype.*float64"),
    "add_noise: sparse": (lambda: pyfold.add_noise(X.to_sparse(), 1, 1, SEEDS), TypeError, "x0.*sparse"),
    "loss: shape": (lambda: pyfold.denoising_loss(X[:1], X, 1, 1, SEEDS), ValueError, "prediction.*shape"),
    "loss: dtype": (lambda: pyfold.denoising_loss(X.double(), X, 1, 1, SEEDS), TypeError, "prediction.*float64"),
    "loss: target": (lambda: pyfold.denoising_loss(X, X, 1, 1, SEEDS, target="u"), ValueError, "target.*'u'"),
    "loss: no target": (lambda: pyfold.denoising_loss(X, X, 1, 1, SEEDS, target=None), TypeError, "target.*None"),
    "noise: target of three": (lambda: pyfold.add_noise(X, 1, 1, SEEDS, target=(1, 2, 3)), TypeError, "target.*pair"),
    "noise: target pair": (lambda: pyfold.add_noise(X, 1, 1, SEEDS, target=(1, "a")), TypeError, r"target\[1\].*str"),
    "noise: target inf": (lambda: pyfold.add_noise(X, 1, 1, SEEDS, target=(math.inf, 1)), ValueError, r"target\[0\].*inf"),
    "mse: shape": (lambda: pyfold.mse_loss(X[:1], X), ValueError, "prediction.*shape"),
    "mse: dtype": (lambda: pyfold.mse_loss(X.double(), X), TypeError, "prediction.*float64"),
    "mse: no tensor": (lambda: pyfold.mse_loss(X, 3), TypeError, "target.*int"),
    "mse: weight": (lambda: pyfold.mse_loss(X, X, weight=math.inf), ValueError, "weight.*inf"),
    "loss: weight": (lambda: pyfold.denoising_loss(X, X, 1, 1, SEEDS, weight=math.inf), ValueError, "weight.*inf"),
    "step: models": (lambda: pyfold.affine_step(X, [X] * 4, TABLE), ValueError, "models.*4"),
    "step: no model": (lambda: pyfold.affine_step(X, [], TABLE), ValueError, "models.*0"),
    "step: history": (lambda: pyfold.affine_step(X, X, TABLE, history=[X] * 5), ValueError, "history.*5"),
    "step: model shape": (lambda: pyfold.affine_step(X, X[0], TABLE), ValueError, r"models\[0\].*shape"),
    "step: model dtype": (lambda: pyfold.affine_step(X, X.double(), TABLE), TypeError, r"models\[0\].*float64"),
    "step: base dtype": (lambda: pyfold.affine_step(X, X, TABLE, base=X.half()), TypeError, "base.*float16"),
    "step: table dtype": (lambda: pyfold.affine_step(X, X, TABLE.float()), TypeError, "table.*float64"),
    "step: table shape": (lambda: pyfold.affine_step(X, X, TABLE[:, :3]), ValueError, "table.*25"),
    "step: rows": (lambda: pyfold.affine_step(X, X, TABLE.expand(3, 25)), ValueError, "table.*3"),
    "step: index": (lambda: pyfold.affine_step(X, X, TABLE, torch.arange(3)), ValueError, r"index.*\(3,\)"),
    "step: index dtype": (lambda: pyfold.affine_step(X, X, TABLE, SEEDS.int()), TypeError, "index.*int32"),
    "step: seeds": (lambda: pyfold.affine_step(X, X, TABLE, seeds=[1]), ValueError, "seeds"),
    "step: out with gradient": (
        lambda: pyfold.affine_step(X.clone().requires_grad_(), X, TABLE, out=X.clone()),
        ValueError,
        "out=",
    ),
    "table: name": (lambda: affine_table([{"z": 1.0}]), ValueError, "'z'"),
    "table: NaN": (lambda: affine_table([{"a": math.nan}]), ValueError, "a of rows.0..*nan"),
    "table: infinite": (lambda: affine_table([{}, {"d1": math.inf}]), ValueError, "d1 of rows.1..*inf"),
    "table: noise step": (lambda: affine_table([{"n1": -1}]), ValueError, "n1.*-1"),
    "fold: kind": (lambda: pyfold.fold(X, "absolute"), ValueError, "kind.*'absolute'"),
    "fold: odd": (lambda: pyfold.fold(X, "maxmin", dim=2), ValueError, "even.*3"),
    "fold: dim": (lambda: pyfold.fold(X, "maxmin", dim=3), ValueError, "dim.*3"),
    "fold: dim type": (lambda: pyfold.fold(X, "maxmin", dim=1.0), TypeError, "dim.*float"),
    "fold: pairing": (lambda: pyfold.fold(X, "maxmin", pairing="pairs"), ValueError, "pairing.*'pairs'"),
    "fold: gain": (lambda: pyfold.fold(X, "abs", gain=math.nan), ValueError, "gain.*nan"),
    "fold: clamp": (lambda: pyfold.fold(X, "abs", clamp=0.0), ValueError, "clamp.*0"),
    "fold: bias": (lambda: pyfold.fold(X, "abs", bias=torch.zeros(3)), ValueError, r"bias.*\(4,\).*\(3,\)"),
    "fold: no angle": (lambda: pyfold.fold(X, "householder"), ValueError, "angle"),
    "fold: angle": (lambda: pyfold.fold(X, "householder", angle=torch.zeros(4)), ValueError, r"angle.*\(2,\).*\(4,\)"),
    "fold: stray angle": (lambda: pyfold.fold(X, "abs", angle=torch.zeros(4)), ValueError, "angle.*abs"),
    "fold: stray": (lambda: pyfold.fold(X, "box", size=2), ValueError, "size.*box.*length"),
    "fold: slope": (lambda: pyfold.fold(X, "leaky", slope=-1.5), ValueError, r"slope.*\[-1, 1\].*-1.5"),
    "fold: slope shape": (lambda: pyfold.fold(X, "leaky", slope=torch.zeros(3)), ValueError, r"slope.*\(4,\).*\(3,\)"),
    "fold: length": (lambda: pyfold.fold(X, "box", length=0), ValueError, "length.*0"),
    "fold: length None": (lambda: pyfold.fold(X, "box", length=None), ValueError, "length.*positive"),
    "fold: phase": (lambda: pyfold.fold(X, "tri", phase=math.nan), ValueError, "phase.*nan"),
    "fold: offset": (lambda: pyfold.fold(X, "abs", offset="1"), TypeError, "offset.*str"),
    "fold: size": (lambda: pyfold.fold(X, "groupsort", size=3), ValueError, "size.*4.*3"),
    "fold: size 0": (lambda: pyfold.fold(X, "sortabs", size=0), ValueError, "size.*0"),
    "fold: size type": (lambda: pyfold.fold(X, "sortabs", size=2.0), TypeError, "size.*float"),
    "fold: m": (lambda: pyfold.fold(X, "dihedral", m=0), ValueError, "m .*0"),
    "fold: m type": (lambda: pyfold.fold(X, "dihedral", m=2.5), TypeError, "m .*float"),
    "fold: no normal": (lambda: pyfold.fold(X, "hyperplane"), ValueError, "normal"),
    "fold: normal": (lambda: pyfold.fold(X, "hyperplane", normal=torch.zeros(3)), ValueError, r"normal.*\(4,\).*\(3,\)"),
    "fold: normal offset": (
        lambda: pyfold.fold(X, "hyperplane", normal=torch.ones(2, 4), offset=torch.zeros(3)),
        ValueError,
        r"offset.*\(3,\)",
    ),
    "fold: inner": (lambda: pyfold.fold(X, "sphere", inner=2.0), ValueError, "inner.*1.0.*2.0"),
    "fold: radius": (lambda: pyfold.fold(X, "ball", radius=-1), ValueError, "radius.*-1"),
    "fold: epsilon": (lambda: pyfold.fold(X, "soft", epsilon=0.0), ValueError, "epsilon.*0"),
    "with bits: soft": (lambda: fold_with_bits(X, "soft"), ValueError, "soft.*unfold"),
    "with bits: ReLU": (lambda: fold_with_bits(X, "leaky", slope=0.0), ValueError, "leaky.*unfold"),
    "unfold: box": (lambda: unfold(X, torch.zeros(3, dtype=torch.uint8), "box"), ValueError, "bits.*6 bytes"),
    "unfold: crelu": (lambda: unfold(X[:, :3], torch.zeros(3, dtype=torch.uint8), "crelu"), ValueError, "even.*3"),
    "Fold: stray": (lambda: nn.Fold("abs", size=2), ValueError, "size.*abs.*offset"),
    "Fold: learn": (lambda: nn.Fold("box", learn=["length"]), ValueError, "learn.*length"),
    "Fold: no normal": (lambda: nn.Fold("hyperplane", 4), ValueError, "normal"),
    "fold: dtype": (lambda: pyfold.fold(X.int(), "abs"), TypeError, "x.*int32"),
    "unfold: bits": (lambda: unfold(X, torch.zeros(1, dtype=torch.uint8), "abs"), ValueError, "bits.*3 bytes"),
    "Fold: channels": (lambda: nn.Fold("householder"), ValueError, "channels"),
    "Fold: odd": (lambda: nn.Fold("maxmin", 3), ValueError, "even.*3"),
    "Fold: kind": (lambda: nn.Fold("max"), ValueError, "kind.*'max'"),
    "vp_linear: beta": (lambda: diffusion.vp_linear(beta_end=1.5), ValueError, "beta_end.*1.5"),
    "vp_cosine: steps": (lambda: diffusion.vp_cosine(0), ValueError, "steps.*0"),
    "flow: shift": (lambda: diffusion.flow(-1), ValueError, "shift.*-1"),
    "ddpm: steps": (lambda: diffusion.ddpm(diffusion.vp_linear(), 0), ValueError, "steps.*0"),
    "ddpm: too many": (lambda: diffusion.ddpm(diffusion.vp_linear(10), 11), ValueError, r"\[1, 10\].*11"),
    "ddpm: variance": (lambda: diffusion.ddpm(diffusion.vp_linear(), variance="x"), ValueError, "variance.*'x'"),
    "ddim: eta": (lambda: diffusion.ddim(diffusion.vp_linear(), eta=1.5), ValueError, "eta.*1.5"),
    "ddim: eta NaN": (lambda: diffusion.ddim(diffusion.vp_linear(), eta=math.nan), ValueError, "eta.*nan"),
    "ddim: flow": (lambda: diffusion.ddim(diffusion.flow()), ValueError, "schedule.*flow"),
    "ddim: clip": (lambda: diffusion.ddim(diffusion.vp_linear(), clip=-1.0), ValueError, "clip.*-1"),
    "flow_euler: steps": (lambda: diffusion.flow_euler(diffusion.flow(), 2.5), TypeError, "steps.*float"),
    "prediction": (lambda: diffusion.ddim(diffusion.vp_linear(), prediction="noise"), ValueError, "prediction.*'noise'"),
    "guidance": (lambda: diffusion.guided(diffusion.ddim(diffusion.vp_linear()), math.nan), ValueError, "scale.*nan"),
    "loss weighting": (lambda: diffusion.TrainingLoss(diffusion.flow(), "v", "snr2"), ValueError, "weighting.*'snr2'"),
    "gan: pairs": (lambda: gan.relativistic_d(torch.zeros(2), torch.zeros(3)), ValueError, "same shape"),
    "gan: r1": (lambda: gan.r1_penalty(torch.zeros(2), X, 1.0), ValueError, "real.*requires_grad"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name, monkeypatch):
    call, error, pattern = CASES[name]
    with pytest.raises(error, match=pattern):
        call()


def views(base, draw):
    """A slice of base [6, 4] in any steps and order of dimensions, and the places of its elements."""
    parts = []
    for size in base.shape:
        low, step = draw.randrange(size), draw.choice([1, 1, 1, 1, 1, 2])
        parts.append(slice(low, draw.randint(low + 1, size), step))
    turned = draw.random() < 0.3
    return [(t.T if turned else t)[tuple(parts[::-1] if turned else parts)] for t in (base, torch.arange(24).view(6, 4))]


def test_outputs_that_share_memory_are_refused_where_torch_refuses_them():
    """Not where each element lies over itself, whatever the strides of a single one, nor beside all others."""
    draw, base, met = random.Random(0), torch.zeros(6, 4), Counter()
    for _ in range(8000):
        (x, of_x), (out, of_out) = views(base, draw), views(base, draw)
        if x.shape != out.shape:
            continue
        shared = bool(set(of_x.flatten().tolist()) & set(of_out.flatten().tolist()))
        same = of_x.equal(of_out)
        try:
            torch.neg(x, out=out)
            refused = False
        except RuntimeError:
            refused = True
        met["same" if same else "refused" if refused else "shared" if shared else "apart"] += 1
        if refused and not same:
            with pytest.raises(ValueError, match=r"out .*x"):
                pyfold.affine_step(x, torch.zeros(x.shape), TABLE[:1], out=out)
        elif same or not shared:
            pyfold.affine_step(x, torch.zeros(x.shape), TABLE[:1], out=out)
    assert min(met["same"], met["refused"], met["apart"]) > 5, met


@pytest.mark.parametrize(("shape", "limits"), [((2, 3), (9, 4)), ((3, 2), (8, 5)), ((2, 2, 2), (8, 4, 2))])
def test_an_output_of_the_same_strides_is_refused_where_an_element_is_shared(shape, limits):
    """By every element of both: they may lie between each other, or one may end where the other begins."""
    met = Counter()
    for strides in itertools.product(*(range(1, limit + 1) for limit in limits)):
        reaches = [sum((n - 1) * s for n, s in zip(shape[d:], strides[d:], strict=True)) for d in range(1, len(shape) + 1)]
        if any(stride <= reach for stride, reach in zip(strides, reaches, strict=True)):
            continue  # it would overlap itself
        places = torch.arange(64).as_strided(shape, strides).flatten().tolist()
        for first in range(1, places[-1] + 2):
            base = torch.zeros(64)
            pair = [base.as_strided(shape, strides, at) for at in (0, first)]
            shared = not {first + place for place in places}.isdisjoint(places)
            met[shared] += 1
            for x, out in (pair, pair[::-1]):
                if shared:
                    with pytest.raises(ValueError, match=r"out .*x"):
                        pyfold.affine_step(x, torch.zeros(shape), TABLE[:1], out=out)
                else:
                    pyfold.affine_step(x, torch.zeros(shape), TABLE[:1], out=out)
    assert min(met[True], met[False]) > 20, met


def test_outputs_whose_elements_share_memory_are_refused():
    for shape in ((1, 2), (2, 1), (2, 2), (3, 2)):
        for strides in itertools.product(range(5), repeat=2):
            out = torch.zeros(24).as_strided(shape, strides)
            places = torch.arange(24).as_strided(shape, strides).flatten().tolist()
            if len(set(places)) < len(places):
                with pytest.raises(ValueError, match="out .*itself|out .*elements"):
                    pyfold.randn(list(range(shape[0])), shape[1:], out=out)
            elif strides[0] > (shape[1] - 1) * strides[1] or strides[1] > (shape[0] - 1) * strides[0]:
                pyfold.randn(list(range(shape[0])), shape[1:], out=out)


def test_an_unsupported_device_is_named():
    x = torch.zeros(2, 4, device="meta")
    # Meta tensors carry shapes through; every other device without kernels is refused by name.
    assert pyfold.fold(x, "abs").shape == x.shape
    from pyfold.ops._checks import check_tensor

    class Elsewhere(torch.Tensor):
        device = torch.device("xpu")

    with pytest.raises(ValueError, match="x is on device xpu.*cpu and cuda"):
        check_tensor("x", torch.zeros(1).as_subclass(Elsewhere))


def test_a_row_outside_the_table_is_nan(backend):
    x = torch.ones(3, 5, device=backend)
    index = torch.tensor([0, 7, -1], device=backend)
    y = pyfold.affine_step(x, x, TABLE.to(backend), index)
    assert torch.equal(torch.isnan(y).all(1).cpu(), torch.tensor([False, True, True]))
    assert torch.equal(y[0], x[0])


WRITERS = {
    "randn": lambda out: pyfold.randn(SEEDS, out.shape[1:], out=out),
    "add_noise": lambda out: pyfold.add_noise(torch.ones_like(out), 0.5, 0.5, SEEDS, out=out),
    "affine_step": lambda out: pyfold.affine_step(torch.ones_like(out), torch.ones_like(out), TABLE, out=out),
    "history_out": lambda out: pyfold.affine_step(torch.ones_like(out), torch.ones_like(out), TABLE, history_out=out),
    "next_input": lambda out: pyfold.affine_step(torch.ones_like(out), torch.ones_like(out), TABLE, next_input=out),
    "x0_out": lambda out: pyfold.affine_step(torch.ones_like(out), torch.ones_like(out), TABLE, x0_out=out),
}


@pytest.mark.parametrize("dispatched", [False, True], ids=["direct", "dispatched"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_gradient_that_needs_what_was_overwritten_is_refused(name, dispatched):
    x = torch.randn(2, 3, 8).transpose(1, 2) if dispatched else torch.randn(2, 8, 3)
    weight = torch.ones(2, 8, 3, requires_grad=True)
    loss = (weight * x).sum()
    with torch.no_grad():
        WRITERS[name](x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: diffusion.vp_linear(2**40), "steps"),
        (lambda: diffusion.vp_scaled_linear(beta_end=torch.zeros(0)), "beta_end"),
        (lambda: diffusion.vp_cosine(offset=float), "offset"),
        (lambda: diffusion.vp_exp(rate=1e40), "rate"),
        (lambda: diffusion.flow(shift=[1]), "shift"),
        (lambda: diffusion.edm(sigma_max={}), "sigma_max"),
        (lambda: diffusion.spacings.karras("edm", 5), "schedule"),
        (lambda: diffusion.spacings.karras(diffusion.edm(), 2**63), "steps"),
        (lambda: diffusion.spacings.polyexponential(diffusion.edm(), 5, rho="7"), "rho"),
        (lambda: diffusion.spacings.linspace(diffusion.edm(), 5, final=slice(None)), "final"),
        (lambda: diffusion.euler(diffusion.edm(), 5, prediction={}), "prediction"),
        (lambda: diffusion.TrainingLoss(3.0), "schedule"),
        (lambda: diffusion.TrainingLoss(diffusion.edm(), offset_noise="a"), "offset_noise"),
        (lambda: diffusion.BrownianPath([1.5], (2,), 0.0, 1.0), "seeds"),
        (lambda: diffusion.BrownianPath(torch.arange(1), (2.5,), 0.0, 1.0), "shape"),
        (lambda: diffusion.BrownianPath(torch.arange(1), {2}, 0.0, 1.0), "shape"),
        (lambda: diffusion.BrownianPath(torch.arange(1), (2,), 1j, 1.0), "low"),
        (lambda: pyfold.nn.Fold("abs", learn=3), "learn"),
        (lambda: pyfold.nn.Fold("maxmin", 1j), "channels"),
        (lambda: diffusion.euler(diffusion.edm(), spacing=torch.tensor(0.0)), "spacing"),
        (lambda: pyfold.fold(X, "soft", epsilon=1e308), "epsilon"),
        (lambda: pyfold.fold(X.half(), "ball", radius=10**40, bias=torch.zeros(4).half()), "radius"),
        (lambda: pyfold.fold(X, "sphere", inner=1e-308), "inner"),
        (lambda: pyfold.fold(X[:, :0], "hyperplane", normal=torch.zeros(1, 0)), "normal"),
        (lambda: pyfold.fold(X, "box", bias=torch.zeros(4, device="meta")), "bias"),
        (lambda: pyfold.fold(META, "householder", angle=torch.zeros(2)), "angle"),
        (lambda: pyfold.add_noise(META, 1.0, 1.0, SEEDS.to("meta"), stream=-(2**63) - 1), "stream"),
        (lambda: pyfold.affine_step(META, META, TABLE.to("meta"), history=(2, 2)), r"history\[0\]"),
        (lambda: pyfold.affine_step(META, META, TABLE.to("meta"), history=2), "history"),
        (lambda: pyfold.affine_step(META, META, TABLE.to("meta"), base=torch.float32), "base"),
        (lambda: pyfold.affine_step(META, META, TABLE), "table"),
    ],
)
def test_what_no_argument_wants_is_refused_by_its_name(call, name):
    """Found by tests/fuzz.py."""
    with pytest.raises((TypeError, ValueError), match=name):
        call()
