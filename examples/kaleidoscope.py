"""Fractals drawn by folds alone: what a deep network does to its input, done to space, and looked at.

Each scene folds a point a dozen times over, like layers with shared weights, and stretches it between the folds. How far the
point has come in the end, divided by how much it was stretched, bounds its distance to the fractal, so a ray may walk so far
without hitting it (sphere tracing). Colours come from how near the orbit came to the origin and to the axes.

  mandelbox     box folds and sphere folds (Tom Lowe's Mandelbox)
  sponge        abs folds and sorts with a turn between them (a Menger sponge, kaleidoscopic)
  kaleidoscope  wedges of a dihedral group and hyperplane folds, in the plane

python examples/kaleidoscope.py --scene sponge --out kaleidoscope.png
"""

import argparse
import math
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

import pyfold
from pyfold.train.files import write

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--scene", default="mandelbox", choices=("mandelbox", "sponge", "kaleidoscope"),
                    help="what to draw (default: %(default)s)")  # fmt: skip
parser.add_argument("--out", type=Path, default=Path("kaleidoscope.png"), help="the picture (default: %(default)s)")
parser.add_argument("--width", type=int, default=720, help="of the picture in pixels; it is 3 to 2 (default: %(default)s)")
parser.add_argument("--smooth", type=int, default=2, help="rays a pixel, squared (default: %(default)s)")
parser.add_argument(
    "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda (default: %(default)s)"
)
parser.add_argument("--quick", action="store_true", help="a small picture, in seconds")
arguments = parser.parse_args()
if arguments.quick:
    arguments.width, arguments.smooth = 180, 1
device = torch.device(arguments.device)
WIDTH, HEIGHT = arguments.width * arguments.smooth, arguments.width * 2 // 3 * arguments.smooth
ROWS = 1 << 18  # rays at a time, so that they stay in the cache


def vector(*values):
    return torch.tensor(values, device=device)


def unit(x):
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)


# --- scenes: points [N, 3] -> lower bounds of their distance to the fractal [N], and two traps of the orbit [N]


def mandelbox(p, scale=-2.0, iterations=14):
    z, stretch = p, torch.ones(len(p), device=device)
    near = axis = torch.full((len(p),), 1e3, device=device)
    for _ in range(iterations):
        z = pyfold.fold(z, "box", length=1.0)
        folded = pyfold.fold(z, "sphere", radius=1.0, inner=0.5)
        stretch = stretch * (folded.norm(dim=1) / z.norm(dim=1).clamp(min=1e-12)) * abs(scale) + 1
        z = scale * folded + p
        near = torch.minimum(near, z.norm(dim=1))
        axis = torch.minimum(axis, z[:, 0].abs())
    return z.norm(dim=1) / stretch, near, axis


def turn(axis, angle):
    """The rotation matrix about an axis (Rodrigues)."""
    x, y, z = unit(vector(*axis)).tolist()
    cross = vector(0.0, -z, y, z, 0.0, -x, -y, x, 0.0).reshape(3, 3)
    return torch.eye(3, device=device) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


TURN, LEFT = turn((1.0, 0.35, 0.2), -0.3).tolist(), vector(-1.0, 0.0, 0.0)


def sponge(p, scale=2.5, iterations=9):
    z, stretch = p, 1.0
    near = axis = torch.full((len(p),), 1e3, device=device)
    for _ in range(iterations):
        z = pyfold.kaleidoscope(z, ["abs"], rotation=TURN)
        z = pyfold.kaleidoscope(z, ["abs", "groupsort"], scale=scale, centre=(1.0, 1.0, 1.0))
        # The smallest coordinate is folded at -1: what lies in a hole belongs to the wall across.
        z = pyfold.fold(z, "hyperplane", normal=LEFT, offset=1.0)
        stretch *= scale
        near = torch.minimum(near, z.norm(dim=1))
        axis = torch.minimum(axis, z[:, 0].abs())
    return (z.abs() - 1).clamp(min=0).norm(dim=1) / stretch, near, axis


SCENES = {
    # scene, camera, looked at, focal length, share of the bound that is safe to walk, sun, palette
    "mandelbox": (mandelbox, (1.5, 2.3, 2.9), (0.35, 0.5, 0.35), 1.6, 0.9, (-0.7, 0.7, 0.5),
                  ("8c3b2a", "d98f4e", "efe0c4", "5f8f92", "23395b")),
    "sponge": (sponge, (2.0, 1.75, 3.3), (0.0, 0.0, 0.0), 2.35, 0.8, (-0.6, 0.8, 0.6),
               ("e9dcc0", "c98b4b", "8a3b35", "3d4a63", "7fa39a")),
}  # fmt: skip


def palette(t, colours):
    """Colours [N, 3] along a closed loop of the given ones, t from 0 to 1 once around."""
    stops = torch.tensor([tuple(bytes.fromhex(c)) for c in colours], device=device) / 255
    stops = stops**2.2  # linear light
    place = (t % 1) * len(stops)
    first = place.floor().long() % len(stops)
    blend = place - place.floor()
    return torch.lerp(stops[first], stops[(first + 1) % len(stops)], (blend * blend * (3 - 2 * blend))[:, None])


def trace(scene, origin, direction, step, steps=110, far=14.0, hit=1.1):
    """Walks along rays until they hit; the distance walked, whether they hit, and how hard it was (0 to 1)."""
    pixel = hit / WIDTH
    walked, effort = torch.full((len(direction),), 0.02, device=device), torch.zeros(len(direction), device=device)
    struck = torch.zeros(len(direction), dtype=torch.bool, device=device)
    active = torch.arange(len(direction), device=device)
    for _ in range(steps):
        bound = step * scene(origin[active] + walked[active, None] * direction[active])[0]
        close = bound < pixel * walked[active]
        struck[active[close]] = True
        walked[active] += torch.where(close, 0.0, bound)
        effort[active] += 1 / steps
        active = active[~close & (walked[active] < far)]
        if len(active) == 0:
            break
    return walked, struck, effort


def render(origin, direction, scene, step, sun, colours):
    """Colours [N, 3] in [0, 1], linear, of rays."""
    walked, struck, effort = trace(scene, origin, direction, step)
    up = direction[:, 1:2]
    sky = torch.lerp(vector(0.36, 0.24, 0.17), vector(0.045, 0.06, 0.11), (0.75 + up).clamp(0, 1))
    colour = sky + 0.35 * effort[:, None] ** 2 * vector(1.0, 0.75, 0.5)  # a glow where rays pass close by
    rows = struck.nonzero().squeeze(1)
    if len(rows) == 0:
        return colour
    ray, reach = direction[rows], walked[rows, None]
    p = origin[rows] + reach * ray
    # The normal from four distances at the corners of a tetrahedron a pixel wide.
    corners = vector(1.0, -1, -1, -1, -1, 1, -1, 1, -1, 1, 1, 1).reshape(4, 3)
    size = 0.7 * reach / WIDTH
    normal = unit(sum(c * scene(p + size * c)[0][:, None] for c in corners))
    normal = torch.where((normal * ray).sum(1, keepdim=True) > 0, -normal, normal)
    _, near, axis = scene(p)

    lifted = p + 2.5 * size * normal
    _, shaded, narrow = trace(scene, lifted, sun.expand_as(lifted), step, steps=48, far=5.0)
    light = (normal @ sun).clamp(min=0) * (~shaded) * (1 - narrow) ** 1.5
    open_ = torch.ones(len(p), device=device)
    for k in range(1, 6):  # how much of the neighbourhood is free
        at = 0.012 * k * k
        open_ -= (at - scene(lifted + at * normal)[0].clamp(0, at)) / at * 0.5**k
    open_ = open_.clamp(0, 1)
    shine = ((unit(sun - ray) * normal).sum(1).clamp(min=0) ** 40) * light
    above, behind = 0.5 + 0.5 * normal[:, 1], (normal @ -sun).clamp(min=0)

    paint = torch.lerp(palette(0.2 * near.clamp(0, 4) + 0.2 * axis.clamp(0, 2), colours), vector(0.83, 0.76, 0.66), 0.1)
    lit = (
        2.6 * light[:, None] * vector(1.0, 0.86, 0.68)
        + 0.75 * (open_ * above)[:, None] * vector(0.55, 0.68, 0.95)
        + 0.28 * (open_ * behind)[:, None] * vector(0.9, 0.5, 0.35)
        + 0.1 * open_[:, None]
    )
    solid = paint * lit + 0.6 * shine[:, None] * vector(1.0, 0.9, 0.75)
    haze = torch.exp(-((0.085 * reach) ** 2))
    colour[rows] = solid * haze + sky[rows] * (1 - haze)
    return colour


def solid_scene(name):
    scene, camera, target, focal, step, sun, colours = SCENES[name]
    sun = unit(vector(*sun))
    forward = unit(vector(*target) - vector(*camera))
    right = unit(torch.linalg.cross(forward, vector(0.0, 1.0, 0.0)))
    axes = torch.stack([right, torch.linalg.cross(right, forward), forward])
    x = (torch.arange(WIDTH, device=device) + 0.5 - WIDTH / 2) / HEIGHT * 2
    y = (HEIGHT / 2 - torch.arange(HEIGHT, device=device) - 0.5) / HEIGHT * 2
    y, x = torch.meshgrid(y, x, indexing="ij")
    rays = unit(torch.stack([x, y, torch.full_like(x, focal)], -1).reshape(-1, 3) @ axes)
    rows = [
        render(vector(*camera).expand_as(part), part, scene, step, sun, colours)
        for part in tqdm(rays.split(ROWS), desc=name, unit="tile")
    ]
    return torch.cat(rows)


def flat_scene():
    """Folding the plane into a wedge, over hyperplanes and over again; the orbit's traps are the colours."""
    y, x = torch.meshgrid(
        torch.linspace(1, -1, HEIGHT, device=device), torch.linspace(-1.5, 1.5, WIDTH, device=device), indexing="ij"
    )
    z = 0.8 * torch.stack([x, y], -1).reshape(-1, 2)
    far = z.norm(dim=1)
    near, line = torch.full_like(far, 1e3), torch.full_like(far, 1e3)
    normal = unit(vector(math.cos(2.2), math.sin(2.2)))
    for _ in tqdm(range(5), desc="kaleidoscope", unit="fold"):
        z = pyfold.fold(z, "dihedral", m=6, angle=0.0)
        z = pyfold.fold(z - vector(0.62, 0.21), "hyperplane", normal=normal[None], offset=vector(0.04))
        z = 1.55 * z
        near = torch.minimum(near, (z - vector(0.15, 0.1)).norm(dim=1))
        line = torch.minimum(line, (z[:, 0] - z[:, 1]).abs())
    colour = palette(0.55 + 0.9 * near.sqrt() + 0.12 * far, ("14213d", "1f6f78", "e9dfc7", "d9822b", "8e2a3a"))
    edge = torch.exp(-14 * line)[:, None]
    vignette = (1.12 - 0.33 * far).clamp(0.1, 1)[:, None]
    return (colour * (0.35 + 0.65 * (1 - edge)) + 0.25 * edge**3 * vector(1.0, 0.82, 0.55)) ** 1.5 * vignette * 1.25


with torch.no_grad():
    colour = flat_scene() if arguments.scene == "kaleidoscope" else solid_scene(arguments.scene)
colour = colour.reshape(HEIGHT, WIDTH, 3)
smooth = arguments.smooth
colour = colour.reshape(HEIGHT // smooth, smooth, WIDTH // smooth, smooth, 3).mean((1, 3))
# The filmic curve of Hable (2010) would be longer; this one keeps colours and bends only what is too bright.
colour = (colour / (1 + 0.32 * colour)).clamp(0, 1) ** (1 / 2.2)
picture = Image.fromarray((255 * colour).round().byte().cpu().numpy())
write(arguments.out, picture.save)
print(f"picture: {arguments.out}, {picture.width} x {picture.height}")
