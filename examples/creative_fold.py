"""Is creativity folding space?  An experiment whose measures and bars were written down before it was run.

A variational autoencoder gives handwritten digits a latent space of N(0, I). A fold across the hyperplane between two kinds of
digit, a and b, offers (1) counterparts: this 4, as a 9, by a reflection; (2) children: codes on the crease, as far from one
parent as from the other. Both are put beside simpler ways. Half of the digits (A) train the autoencoder, the folds and a small
diffusion model; the other half (B) trains the judges (a support vector machine, which decides, and a small network of another
kind, shown beside it), and its images are what is folded: none was seen in training. Nothing is tuned on a judge.

The hypotheses, over all 90 ordered or 45 unordered pairs of digits and at least 5 seeds:

  H1  transfer.  score = (share judged b) x (mean correlation of ink, slant and width before and after). Holds if the learned
      fold's score is at least the translation's, z - mean a + mean b, on 60 % of the pairs (means over seeds), and the
      bootstrap 95 % interval of the mean difference does not lie below 0.
  H2  blends.  For random parents a, b and five children each: blend = 2 min(p_a, p_b) by the network; density (Naeem et al.
      2020, k = 5) beside real images in its hidden layer; diversity = mean distance of siblings in pixels. Holds if crease
      children, after a short denoising, have at least slerp's density and blend after the same (intervals of the differences
      not below 0), and three times its diversity.
  H3  exactness.  |Hz| = |z|, H H z = z, |child - a| = |child - b|, and marginals of H z that pass a Kolmogorov-Smirnov test.

Negative controls: a = b must change nothing; a fold learned on permuted labels and a random hyperplane must not transfer.
Intervals resample seeds and pairs, both with replacement.

python examples/creative_fold.py --out creative.png
"""

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np
import torch
from scipy.stats import kstest
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC
from torch.nn.functional import mse_loss
from tqdm import tqdm

import pyfold
from pyfold import diffusion
from pyfold.gan import latent
from pyfold.models import MLP, MLPDenoiser
from pyfold.train.files import write_text
from pyfold.train.pictures import image_grid

matplotlib.use("Agg")
import matplotlib.pyplot as plt

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("creative.png"), help="the picture; the figures go beside it as .json")
parser.add_argument("--seeds", type=int, default=5, help="repetitions, each with a split, networks and folds of its own")
parser.add_argument("--steps", type=int, default=3000, help="training steps of the autoencoder and of the diffusion model")
parser.add_argument("--quick", action="store_true", help="a few steps and two seeds, to see that it runs")
arguments = parser.parse_args()
if arguments.quick:
    arguments.seeds, arguments.steps = 2, 20
KINDS, FIT_STEPS, PARENTS, CHILDREN = (3, 2, 2, 2) if arguments.quick else (10, 150, 8, 5)

D, DENOISE_FROM = 16, 300  # codes; steps of 1000 that a child is noised by before it is denoised
PAIRS = [(a, b) for a in range(KINDS) for b in range(KINDS) if a != b]
FOLDS = ("fold, bisector", "fold, learned", "fold, permuted labels", "fold, random hyperplane")
WAYS = (*FOLDS, "translation", "nearest real b", "random real b")
BLENDS = ("lerp", "slerp", "crease, spread 0.5", "crease", "random code")
bunch = load_digits(n_class=KINDS)
ALL_X = torch.tensor(bunch.images, dtype=torch.float32).flatten(1) / 8 - 1
ALL_Y = torch.from_numpy(bunch.target)


def autoencoder(x, seed):
    """Encoder to means [N, D] and decoder, trained on reconstruction and divergence from N(0, I) (Kingma and Welling 2014)."""
    torch.manual_seed(seed)
    encoder, decoder = MLP(64, 2 * D, 192, 2, "maxmin"), MLP(D, 64, 192, 2, "maxmin")
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 2e-3)
    for step in range(arguments.steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / arguments.steps)
        rows = x[torch.randint(len(x), (128,))]
        mean, log_var = encoder(rows).chunk(2, 1)
        z = mean + (log_var / 2).exp() * torch.randn_like(mean)
        divergence = (mean.square() + log_var.exp() - log_var - 1).sum(1).mean() / 2
        loss = 64 * mse_loss(decoder(z).tanh(), rows) + 0.15 * divergence
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (lambda x: encoder(x)[:, :D].detach()), (lambda z: decoder(z).tanh().detach())


def denoiser(x, seed):
    """``denoise(x, seeds)``: noises images to DENOISE_FROM and brings them back by DDIM."""
    schedule = diffusion.vp_cosine()
    objective, model = diffusion.TrainingLoss(schedule, "v"), MLPDenoiser(64, 192, 2, "maxmin")
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for step in range(arguments.steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / arguments.steps)
        first = (seed << 40) + step * 128
        noised = objective.noise(x[torch.randint(len(x), (128,))], torch.arange(first, first + 128))
        loss = objective(model(noised.x_t, noised.t / 1000), noised).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    alphas, sigmas = torch.from_numpy(schedule.alphas), torch.from_numpy(schedule.sigmas)

    @torch.no_grad()
    def denoise(x, seeds):
        times = torch.linspace(DENOISE_FROM, 0, 13).long().tolist()
        x = alphas[times[0]] * x + sigmas[times[0]] * pyfold.randn(seeds, (64,), stream=33)
        for now, after in zip(times[:-1], times[1:], strict=True):
            v = model(x.float(), torch.full((len(x),), now / 1000))
            x0, eps = alphas[now] * x - sigmas[now] * v, sigmas[now] * x + alphas[now] * v
            x = alphas[after] * x0 + sigmas[after] * eps if after else x0
        return x.float().clamp(-1, 1)

    return denoise


def attributes(x):
    """Ink, slant and width of images [N, 64]."""
    ink = (x.reshape(-1, 8, 8) + 1) / 2 + 1e-6
    grid = torch.arange(8.0) - 3.5
    total = ink.sum((1, 2))
    cx, cy = (ink.sum(1) * grid).sum(1) / total, (ink.sum(2) * grid).sum(1) / total
    dx, dy = grid[None, None, :] - cx[:, None, None], grid[None, :, None] - cy[:, None, None]
    moment = lambda m: (ink * m).sum((1, 2)) / total  # noqa: E731
    return torch.stack([total, moment(dx * dy) / moment(dy * dy), moment(dx * dx).sqrt()], 1)


def correlation(x, y):
    """Mean of the three attributes' correlations; one without spread counts as 0."""
    values = []
    for p, q in zip(attributes(x).T, attributes(y).T, strict=True):
        values.append(torch.corrcoef(torch.stack([p, q]))[0, 1].item() if min(p.std(), q.std()) > 1e-6 else 0.0)
    return float(np.mean(values))


def density(fake, real, k=5):
    """How many k-neighbourhoods of real features each fake one lies in, by k; [N], of mean 1 for real data."""
    radius = torch.cdist(real, real).kthvalue(k + 1, dim=1).values
    return (torch.cdist(fake, real) < radius).double().sum(1) / k


def one_seed(seed, bar):
    order = torch.randperm(len(ALL_X), generator=torch.Generator().manual_seed(1000 + seed))
    half = len(order) // 2
    xa, ya, xb, yb = ALL_X[order[:half]], ALL_Y[order[:half]], ALL_X[order[half:]], ALL_Y[order[half:]]
    encode, decode = autoencoder(xa, seed)
    denoise = denoiser(xa, seed)
    svm = SVC().fit(xb.numpy(), yb.numpy())
    network = MLPClassifier((96, 48), alpha=1e-2, max_iter=20 if arguments.quick else 400, random_state=seed).fit(xb, yb)
    bar.update()

    def features(x):
        h = x.numpy()
        for weight, bias in zip(network.coefs_[:-1], network.intercepts_[:-1], strict=True):
            h = np.maximum(h @ weight + bias, 0)
        return torch.from_numpy(np.asarray(h, np.float64))

    za, zb = encode(xa), encode(xb)
    means = {c: za[ya == c].mean(0) for c in range(KINDS)}
    generator = torch.Generator().manual_seed(seed)

    # H1: transfer
    folds = {}
    for a in range(KINDS):
        for b in range(a + 1, KINDS):
            both, count = torch.cat([za[ya == a], za[ya == b]]), int((ya == a).sum())
            mixed = both[torch.randperm(len(both), generator=generator)]
            for name, codes in (("fold, learned", both), ("fold, permuted labels", mixed)):
                fold = latent.LearnedFold.between(codes[:count], codes[count:]).fit(
                    codes[:count], codes[count:], steps=FIT_STEPS
                )
                folds[name, a, b] = folds[name, b, a] = lambda z, fold=fold: fold.translate(z).detach()
            bar.update()
    transfer = {}
    random_normal = torch.randn(D, generator=generator)
    for a, b in PAIRS:
        z, x, real = zb[yb == a], xb[yb == a], xa[ya == b]
        made = {name: decode(folds[name, a, b](z)) for name in ("fold, learned", "fold, permuted labels")}
        made["fold, bisector"] = decode(latent.counterpart(z, means[a], means[b]))
        made["fold, random hyperplane"] = decode(latent.reflect(z, random_normal))
        made["translation"] = decode(z - means[a] + means[b])
        made["nearest real b"] = real[torch.cdist(x, real).argmin(1)]
        made["random real b"] = real[torch.randint(len(real), (len(x),), generator=generator)]
        for name, y in made.items():
            flip, second = ((judge.predict(y.numpy()) == b).mean() for judge in (svm, network))
            kept = correlation(x, y)
            transfer[name, a, b] = (flip * kept, flip, kept, second, density(features(y), features(xb)).mean().item())

    # H2: blends
    real_features = features(xb)
    to_real = torch.cdist(real_features, real_features).fill_diagonal_(torch.inf).min(1).values
    low, high = to_real.quantile(0.5), to_real.quantile(0.99)
    blends = {}
    for a in range(KINDS):
        for b in range(a + 1, KINDS):
            children = {name: [] for name in BLENDS}
            for i in range(PARENTS):
                pick = [zb[yb == c][torch.randint(int((yb == c).sum()), (1,), generator=generator)[0]] for c in (a, b)]
                first = ((seed * 100 + 10 * a + b) * PARENTS + i) * CHILDREN
                seeds = list(range(first, first + CHILDREN))
                repeat = lambda z: z.expand(CHILDREN, D)  # noqa: E731
                children["lerp"].append(repeat(latent.lerp(*pick, 0.5)))
                children["slerp"].append(repeat(latent.slerp(*pick, 0.5)))
                children["crease, spread 0.5"].append(latent.crease_children(*pick, seeds, spread=0.5))
                children["crease"].append(latent.crease_children(*pick, seeds))
                children["random code"].append(pyfold.randn(seeds, (D,), stream=34))
            for name, codes in children.items():
                decoded = decode(torch.cat(codes))
                noise = torch.arange(len(decoded)) + ((seed * 100 + 10 * a + b) << 20)
                for suffix, y in (("", decoded), (", denoised", denoise(decoded, noise))):
                    p = network.predict_proba(y.numpy())[:, [a, b]]
                    f = features(y)
                    nearest = torch.cdist(f, real_features).min(1).values
                    siblings = np.mean([torch.pdist(group).mean().item() for group in y.split(CHILDREN)])
                    blends[name + suffix, a, b] = (
                        2 * p.min(1).mean(), density(f, real_features).mean().item(), siblings,
                        ((nearest > low) & (nearest < high)).double().mean().item(),
                    )  # fmt: skip
    bar.update()

    # H3: exactness, in float64, and the controls
    z = pyfold.randn(range(20_000), (D,), stream=35, dtype=torch.float64)
    a, b = latent.equalise(z[0], z[1])
    image, kids = latent.counterpart(z, a, b), latent.crease_children(a, b, range(1000))
    exact = {
        "norm": (image.norm(dim=1) - z.norm(dim=1)).abs().max().item(),
        "involution": (latent.counterpart(image, a, b) - z).abs().max().item(),
        "equidistance": ((kids - a).norm(dim=1) - (kids - b).norm(dim=1)).abs().max().item(),
        "smallest p of KS": min(kstest(m.numpy(), "norm").pvalue for m in image.T),
        "a = b": (latent.counterpart(z, a, a) - z).abs().max().item(),
        "norm after translation, by before": ((zb - means[KINDS - 2] + means[KINDS - 1]).norm(dim=1) / zb.norm(dim=1))
        .mean()
        .item(),
        "svm right on A": svm.score(xa.numpy(), ya.numpy()),
        "network right on A": network.score(xa.numpy(), ya.numpy()),
        "reconstructions judged right": float((svm.predict(decode(zb).numpy()) == yb.numpy()).mean()),
    }
    table = []
    for a, b in ((a, b) for a in range(KINDS) for b in range(KINDS)):
        z = zb[yb == a][:1]
        table.append(decode(z if a == b else folds["fold, learned", a, b](z)))
    one, other = (zb[yb == c][0] for c in (KINDS // 2 - 1, KINDS - 1))
    walk = latent.slerp(one, other, torch.tensor([0, 0.5, 1.0]))
    children = latent.crease_children(one, other, range(7), spread=0.5)
    family = torch.cat([walk, children, latent.variations(one, latent.Hyperplanes.random(3, D, 1), range(10))])
    decoded = decode(family)
    pictures = torch.cat(table), torch.cat([decoded, denoise(decoded, torch.arange(20))])
    return transfer, blends, exact, pictures


def interval(difference, draws=4000):
    """Bootstrap 95 % interval of the mean of [seeds, pairs], both resampled."""
    rng = np.random.default_rng(0)
    seeds, pairs = difference.shape
    means = [difference[rng.integers(seeds, size=seeds)][:, rng.integers(pairs, size=pairs)].mean() for _ in range(draws)]
    return [float(difference.mean()), *np.quantile(means, [0.025, 0.975]).tolist()]


with tqdm(total=arguments.seeds * (2 + len(PAIRS) // 2), desc="seeds, pair by pair") as bar:
    runs = [one_seed(seed, bar) for seed in range(arguments.seeds)]


def gather(part, name, column):
    """[seeds, pairs] of one way and one measure."""
    return np.array([[v[column] for k, v in run[part].items() if k[0] == name] for run in runs])


report = {"transfer": {}, "blends": {}, "exactness": [run[2] for run in runs]}
print(f"\n{'transfer':26}{'score':>7}   95 % interval   flips  kept  flips (2nd)  density")
for name in WAYS:
    score = interval(gather(0, name, 0))
    flips, kept, second, dense = (float(gather(0, name, i).mean()) for i in range(1, 5))
    report["transfer"][name] = {"score": score, "flips": flips, "kept": kept, "flips_second": second, "density": dense}
    line = f"{name:26}{score[0]:7.3f}   {score[1]:.3f} to {score[2]:.3f}"
    print(f"{line}   {flips:.3f} {kept:6.3f} {second:9.3f} {dense:10.3f}")
print(f"\n{'blends':30}{'blend':>7}{'density':>9}{'diversity':>11}{'novel':>7}")
for name in [b + s for s in ("", ", denoised") for b in BLENDS]:
    row = [interval(gather(1, name, i)) for i in range(4)]
    report["blends"][name] = dict(zip(("blend", "density", "diversity", "novel"), row, strict=True))
    print(f"{name:30}{row[0][0]:7.3f}{row[1][0]:9.3f}{row[2][0]:11.3f}{row[3][0]:7.3f}")

gain = gather(0, "fold, learned", 0) - gather(0, "translation", 0)
share, gained = float((gain.mean(0) >= 0).mean()), interval(gain)
h1 = share >= 0.6 and gained[2] >= 0
crease, slerp = "crease, denoised", "slerp, denoised"
blend, dense = (interval(gather(1, crease, i) - gather(1, slerp, i)) for i in (0, 1))
diverse = report["blends"][crease]["diversity"][0] / max(report["blends"][slerp]["diversity"][0], 1e-12)
h2 = blend[2] >= 0 and dense[2] >= 0 and diverse >= 3
worst = {k: max(run[2][k] for run in runs) for k in ("norm", "involution", "equidistance", "a = b")}
h3 = max(worst.values()) < 1e-12 and min(run[2]["smallest p of KS"] for run in runs) > 1e-4
controls = all(report["transfer"][name]["score"][2] < report["transfer"]["fold, bisector"]["score"][1] for name in FOLDS[2:])
report["hypotheses"] = {
    "H1": {"holds": bool(h1), "pairs_at_least_translation": share, "difference": gained},
    "H2": {"holds": bool(h2), "blend_difference": blend, "density_difference": dense, "diversity_ratio": diverse},
    "H3": {"holds": bool(h3), **worst},
    "controls_fail_as_they_must": bool(controls),
}
say = lambda difference: f"{difference[0]:+.3f} ({difference[1]:+.3f} to {difference[2]:+.3f})"  # noqa: E731
verdict = {True: "holds", False: "FAILS"}
print(f"\nH1 {verdict[bool(h1)]}: learned fold - translation {say(gained)}; at least it on {100 * share:.0f} % of the pairs")
print(f"H2 {verdict[bool(h2)]}: crease - slerp, denoised: blend {say(blend)}, density {say(dense)}, diversity x {diverse:.1f}")
print(f"H3 {verdict[bool(h3)]}: " + ", ".join(f"{k} {v:.1e}" for k, v in worst.items()))
outcome = "do not transfer, as they must not" if controls else "TRANSFER: the measure is broken"
print("not trained: none of this means anything" if arguments.quick else f"controls {outcome}")
write_text(arguments.out.with_suffix(".json"), json.dumps(report, indent=2) + "\n")

figure, axes = plt.subplot_mosaic([["table", "transfer"], ["family", "blends"]], figsize=(13, 11), layout="constrained")
table, family = runs[0][3]
axes["table"].imshow(image_grid(table.reshape(-1, 1, 8, 8), KINDS))
if arguments.quick:
    figure.suptitle("NOT TRAINED: a few steps, to see that it runs; no number here means anything", fontsize=16)
axes["table"].set_title("counterparts by the learned fold: row a as column b")
axes["family"].imshow(image_grid(family.reshape(-1, 1, 8, 8), 10))
axes["family"].set_title("a, slerp, b, seven crease children; fold-unfold variations of a;\nboth rows again, denoised")
for name in ("table", "family"):
    axes[name].set_axis_off()
scores = np.array([report["transfer"][name]["score"] for name in WAYS])
axes["transfer"].barh(WAYS, scores[:, 0], xerr=[scores[:, 0] - scores[:, 1], scores[:, 2] - scores[:, 0]], color="#4878a8")
axes["transfer"].invert_yaxis()
axes["transfer"].set_title(f"transfer: judged b x attributes kept\nH1 {verdict[bool(h1)]}")
for name, row in report["blends"].items():
    marker = "o" if name.endswith("denoised") else "x"
    colour = f"C{BLENDS.index(name.removesuffix(', denoised'))}"
    size = 30 + 40 * row["diversity"][0]
    axes["blends"].scatter(row["blend"][0], row["density"][0], s=size, marker=marker, color=colour, label=name)
axes["blends"].set(xlabel="blend", ylabel="density", title=f"blends; larger marks are more diverse\nH2 {verdict[bool(h2)]}")
axes["blends"].legend(fontsize=8)
figure.savefig(arguments.out, dpi=90)
