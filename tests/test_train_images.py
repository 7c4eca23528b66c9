"""Own images as people have them: what a viewer shows is what a model learns, and what is left out is said."""

import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from test_train import TINY

from pyfold.train import cli, data, images, metrics
from pyfold.train.config import Config
from pyfold.train.run import train

RNG = np.random.default_rng(0)


def noise(height=40, width=50, channels=3):
    return Image.fromarray(RNG.integers(0, 255, (height, width, channels), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "images"
    (path / "inner").mkdir(parents=True)
    return path


def pixels(path, size=8):
    """float64 [3, size, size] in [0, 1]."""
    array = images.read_image(path, size)
    return array / 255.0 if array.dtype == np.uint8 else array.astype(np.float64)


def test_every_common_format_and_what_is_left_out(folder, capsys):
    for i, name in enumerate(["a.png", "b.jpg", "inner/c.PNG", "d.webp", "e.bmp", "inner/f.jpeg"]):
        noise(40 + i).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    (folder / "g.gif").write_bytes(b"")
    (folder / ".hidden").write_text("")
    loaded = data.load(str(folder), size=16)
    assert loaded.samples.shape == (6, 3, 16, 16) and loaded.shape == (3, 16, 16) and loaded.is_image
    batch = loaded.samples[torch.arange(6)]
    assert batch.dtype == torch.float32 and -1 <= batch.min() < -0.3 < 0.3 < batch.max() <= 1
    assert loaded.note == f"{folder}: images used: 6; 2 left out: not PNG, JPEG, WebP or BMP"
    (folder / "broken.png").write_bytes(b"\x89PNG and no more")
    with pytest.raises(ValueError, match=r"1 of 7 images cannot be used:\n.*broken.png: cannot be read"):
        data.load(str(folder), size=16)
    with pytest.warns(UserWarning, match=r"broken.png"):
        loaded = data.load(str(folder), size=16, broken="skip")
    assert len(loaded.samples) == 6 and "1 left out: cannot be read; 2 left out: not PNG" in loaded.note
    options = ["--data", str(folder), "--size", "16", "--broken", "skip", "--steps", "2", "--batch", "4", "--width", "8"]
    cli.main(["train", "diffusion", "--out", str(folder.parent / "run"), "--sampler-steps", "2", *options])
    assert "images used: 6; 1 left out: cannot be read" in capsys.readouterr().err
    assert "class_share" not in json.loads((folder.parent / "run" / "metrics.json").read_text())


def test_photographs_are_upright(folder):
    """A picture that is bright at its top, stored in each of the eight ways that EXIF knows."""
    upright = Image.fromarray(np.linspace(250, 5, 40).astype(np.uint8)[:, None].repeat(30, 1)).convert("RGB")
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what the camera did: Image.Transpose, whose opposite EXIF asks for
    for orientation in range(1, 9):
        stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = folder / f"{orientation}.jpg"
        stored.save(path, exif=exif, quality=95)
        assert np.abs(pixels(path) - pixels(folder / "1.jpg")).max() < 0.03, orientation
    top = pixels(folder / "6.jpg")
    assert (top[:, 0] > 0.75).all() and (top[:, -1] < 0.25).all()


def with_hidden_colours(mode):
    """Left half opaque red, right half transparent over green."""
    array = np.zeros((16, 16, 4), np.uint8)
    array[:, :8] = [255, 0, 0, 255]
    array[:, 8:] = [0, 255, 0, 0]
    image = Image.fromarray(array)
    if mode == "P":
        image = Image.fromarray((np.arange(16) // 8)[None].repeat(16, 0).astype(np.uint8), "P")
        image.putpalette([255, 0, 0, 0, 255, 0])
    return image.convert(mode) if mode in ("RGBA", "LA") else image


@pytest.mark.parametrize("name", ["RGBA.png", "RGBA.webp", "LA.png", "P.png"])
def test_what_is_transparent_lies_on_white(name, folder):
    image = with_hidden_colours(name.split(".")[0])
    image.save(folder / name, **({"transparency": 1} if name == "P.png" else {"lossless": True}))
    seen = pixels(folder / name, 16)
    assert (seen[:, :, 9:] == 1).all()
    red = 76 / 255 if name == "LA.png" else None
    np.testing.assert_allclose(seen[:, 5, 3], [red] * 3 if red else [1, 0, 0], atol=0.01)
    half = np.full((4, 4, 4), (0, 0, 0, 128), np.uint8)
    Image.fromarray(half).save(folder / "half.png")
    np.testing.assert_allclose(pixels(folder / "half.png"), 127 / 255, atol=0.005)


def test_a_colour_that_means_transparent(folder):
    array = np.zeros((8, 8, 3), np.uint8)
    array[:, 4:] = [9, 9, 9]
    Image.fromarray(array).save(folder / "key.png", transparency=(9, 9, 9))
    seen = pixels(folder / "key.png")
    assert (seen[:, :, :4] == 0).all() and (seen[:, :, 4:] == 1).all()


def test_palettes_grey_and_other_modes(folder):
    ramp = np.linspace(0, 255, 64).astype(np.uint8)[None].repeat(64, 0)
    for mode in ("L", "P", "1", "CMYK", "YCbCr"):
        path = folder / f"{mode}.{'jpg' if mode in ('CMYK', 'YCbCr') else 'png'}"
        Image.fromarray(ramp).convert("RGB").convert(mode).save(path)
        assert pixels(path).mean() == pytest.approx(0.5, abs=0.02), mode
        assert pixels(path)[:, :, 0].mean() < 0.1 and pixels(path)[:, :, -1].mean() > 0.9, mode


def test_sixteen_bits_keep_their_range_and_their_steps(folder):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(256, 0)
    Image.fromarray(ramp).save(folder / "ramp.png")
    seen = pixels(folder / "ramp.png", 64)
    assert seen.mean() == pytest.approx(0.5, abs=1e-3)
    assert seen.shape == (3, 64, 64) and seen.min() >= 0 and seen.max() <= 1
    fine = np.linspace(30000, 30200, 64).astype(np.uint16)[None].repeat(64, 0)
    Image.fromarray(fine).save(folder / "fine.png")
    seen = pixels(folder / "fine.png", 64)
    np.testing.assert_allclose(seen[0, 0], fine[0] / 65535, atol=1e-6)  # eight bits would make one step of it
    loaded = data.load(str(folder), size=64)
    np.testing.assert_allclose(loaded.samples[torch.tensor([0])][0, 0, 0], 2 * fine[0] / 65535 - 1, atol=1e-6)


def bomb(path, side):
    """A PNG of side x side that is a few bytes of the same line."""
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))  # noqa: E731
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b""))


@pytest.mark.parametrize("side", [10_000, 14_000])  # 100 and 196 million: Pillow warns of one and refuses the other
def test_bombs_are_left_out_or_refused_like_what_is_broken(side, folder):
    noise().save(folder / "a.png")
    bomb(folder / "bomb.png", side)
    with pytest.raises(ValueError, match=r"1 of 2 images cannot be used:\n.*bomb.png: more than 89478485 pixels"):
        data.load(str(folder))
    with pytest.warns(UserWarning, match="bomb.png"):
        loaded = data.load(str(folder), broken="skip")
    assert "images used: 1; 1 left out: more than 89478485 pixels" in loaded.note


def test_labels_are_the_names_of_subfolders(folder, tmp_path):
    for i, name in enumerate(["cat", "dog", "owl"]):
        (folder / name / "more").mkdir(parents=True)
        for k in range(6):
            Image.fromarray(np.full((9, 9, 3), 20 + 100 * i + k, np.uint8)).save(folder / name / f"{k}.png")
        noise().save(folder / name / "more" / "deep.png")
    loaded = data.load(str(folder), size=8, labels="folders")
    assert loaded.classes == ("cat", "dog", "owl") and loaded.labels.bincount().tolist() == [7, 7, 7]
    assert "images used: 21 of 3 classes" in loaded.note
    owls = loaded.samples[torch.nonzero(loaded.labels == 2).flatten()]
    assert metrics.image_metrics(loaded, owls)["class_share"]["owl"] > 0.8
    config = Config("gan", data=str(folder), labels="folders", flips="horizontal", size=8, steps=2, **TINY)
    assert set(train(config, tmp_path / "run", progress=False)["class_share"]) == {"cat", "dog", "owl"}
    noise().save(folder / "alone.png")
    with pytest.raises(ValueError, match=r"every image must be in a subfolder, got .*alone.png"):
        data.load(str(folder), labels="folders")


def test_flips_mirror_half_of_a_step_and_are_a_function_of_it():
    ramp = torch.linspace(-1, 1, 8).expand(50, 1, 8, 8)
    flipped = data.Data("ramp", ramp, flips=True)
    batch = flipped.batch(3, 5, 400)
    mirrored = batch[:, 0, 0, 0] > 0
    assert torch.equal(batch[mirrored], ramp[:1].flip(-1).expand(int(mirrored.sum()), 1, 8, 8))
    assert torch.equal(batch[~mirrored], ramp[:1].expand(int((~mirrored).sum()), 1, 8, 8))
    assert 150 < mirrored.sum() < 250
    assert torch.equal(batch, flipped.batch(3, 5, 400))
    assert not torch.equal(batch, flipped.batch(3, 6, 400)) and not torch.equal(batch, flipped.batch(4, 5, 400))
    halves = [flipped.batch(3, 5, 400, lambda rows, k=k: rows[200 * k : 200 * k + 200]) for k in (0, 1)]
    assert torch.equal(torch.cat(halves), batch)
    assert (data.Data("ramp", ramp).batch(3, 5, 400)[:, 0, 0, 0] < 0).all()


def test_memory_stays_within_the_budget_and_changes_nothing(folder, monkeypatch):
    for i in range(6):
        noise().save(folder / f"{i}.png")
    rows = torch.tensor([5, 0, 3, 5, 1])
    whole = images.scan(folder, 16, broken="refuse", labels="none", budget=2**20).images
    part = images.scan(folder, 16, broken="refuse", labels="none", budget=2 * 3 * 16 * 16 + 100).images
    assert sorted(whole.kept) == list(range(6)) and whole.used == 6 * 3 * 16 * 16
    assert sorted(part.kept) == [0, 1] and part.used == sum(v.nbytes for v in part.kept.values()) <= part.budget
    read, seen = images.read_image, []
    monkeypatch.setattr(images, "read_image", lambda path, size: (seen.append(path.name), read(path, size))[1])
    assert torch.equal(whole[rows], part[rows])
    assert seen == ["5.png", "3.png", "5.png"]
    assert part.used <= part.budget
    (folder / "5.png").unlink()
    with pytest.raises(ValueError, match=r"5.png was readable when the run began"):
        part[rows]
    config = Config("diffusion", data=str(folder), size=16, ram=1, steps=2, batch=4, width=8)
    assert data.load_for(config).samples.budget == 2**20
