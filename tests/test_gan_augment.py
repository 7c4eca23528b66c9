"""What the discriminator sees: each augmentation against its definition, the same for real and generated, and packs."""

import pytest
import torch

from pyfold.gan import augment
from pyfold.gan.augment import Augment, pack


def images(count=6, channels=3, side=8):
    return torch.randn(count, channels, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def u(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_colours():
    x = images(1)
    torch.testing.assert_close(augment.brightness(x, u([0.75, 0])), x + 0.25)
    grey = x.mean(1, keepdim=True)
    torch.testing.assert_close(augment.saturation(x, u([0, 0])), grey.expand_as(x))
    torch.testing.assert_close(augment.saturation(x, u([0.5, 0])), x)
    torch.testing.assert_close(augment.saturation(x[:, :1], u([0.9, 0])), x[:, :1])
    torch.testing.assert_close(augment.contrast(x, u([1, 0])), x.mean() + 1.5 * (x - x.mean()))
    torch.testing.assert_close(augment.contrast(x, u([0.5, 0])), x)


def test_translation_shifts_and_fills_with_zero():
    x = images(3)
    y = augment.translation(x, u([0.0, 0.5], [0.5, 0.99], [0.5, 0.5]))  # one pixel of eight: -1, 0 or 1
    torch.testing.assert_close(y[0, :, 1:], x[0, :, :-1])
    assert not y[0, :, 0].any()
    torch.testing.assert_close(y[1, :, :, :-1], x[1, :, :, 1:])
    assert not y[1, :, :, -1].any()
    torch.testing.assert_close(y[2], x[2])


def test_every_shift_and_every_cut_is_as_likely():
    values = torch.linspace(0, 1, 9001, dtype=torch.float64)[:-1]
    one = torch.zeros(9000, 1, 8, 1, dtype=torch.float64)
    one[:, :, 4] = 1
    row = augment.translation(one, torch.stack([values, values * 0 + 0.5], 1)).flatten(1).argmax(1)
    assert row.bincount().tolist() == [0, 0, 0, 3000, 3000, 3000]
    cut = augment.cutout(torch.ones(9000, 1, 8, 8), torch.stack([values, values], 1))
    area = (1 - cut).sum((1, 2, 3))
    assert area.max() == 16
    assert area.min() == 4  # a centre at the corner


def test_the_centre_of_a_cut_is_as_likely_at_either_edge():
    """Of eight pixels four are cut, around each of the nine places between and beside them alike."""
    values = (torch.arange(9000, dtype=torch.float64) + 0.5) / 9000
    cut = augment.cutout(torch.ones(9000, 1, 8, 8), torch.stack([values, values * 0 + 0.5], 1))
    rows = (cut == 0).any(3).flatten(1).sum(0)
    assert rows.tolist() == [3000, 4000, 4000, 4000, 4000, 4000, 4000, 3000]


def test_augmentation_is_differentiable_and_a_function_of_the_seed():
    layer = Augment().double()
    x = images().requires_grad_()
    torch.autograd.gradcheck(lambda x: layer(x, range(6)), (x,))
    torch.autograd.gradgradcheck(lambda x: layer(x, range(6)).square(), (x,))
    whole = layer(x, range(6))
    torch.testing.assert_close(whole[3:], layer(x[3:], range(3, 6)), rtol=0, atol=0)
    assert not torch.equal(whole, layer(x, range(6), step=1))


def test_the_probability_is_that_of_each_transform():
    layer = Augment("cutout", target=0.6)
    x = torch.ones(4000, 1, 8, 8)
    assert torch.equal(layer(x, range(4000)), x)  # p starts at 0
    layer.p.fill_(0.3)
    changed = (layer(x, range(4000)) != x).flatten(1).any(1)
    assert changed.double().mean().item() == pytest.approx(0.3, abs=0.03)


def test_p_follows_the_heuristic():
    layer = Augment("color", target=0.6, images=1000)
    for _ in range(5):
        layer.update(torch.tensor(0.9), 100)
    assert layer.p.item() == pytest.approx(0.5)
    layer.update(torch.tensor(0.1), 200)
    assert layer.p.item() == pytest.approx(0.3)
    for _ in range(9):
        layer.update(torch.tensor(-1.0), 100)
    assert layer.p.item() == 0
    fixed = Augment("color")
    fixed.update(torch.tensor(-1.0), 100)
    assert fixed.p.item() == 1
    assert "p" in layer.state_dict()


def test_packs_hold_whole_samples_in_order():
    x = torch.arange(24.0).reshape(4, 3, 2)
    y = pack(x, 2)
    assert y.shape == (2, 6, 2)
    assert torch.equal(y[1], torch.cat([x[2], x[3]]))
    assert torch.equal(pack(x[:, :, 0], 4), x[:, :, 0].reshape(1, 12))
    with pytest.raises(ValueError, match="size must divide the batch of 4, got 3"):
        pack(x, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Augment("color,blur"), "policy must be names of.*'color,blur'"),
        (lambda: Augment(target=1.5), "target must be between 0 and 1.*1.5"),
        (lambda: Augment(images=0), "images must be at least 1"),
        (lambda: Augment()(torch.ones(2, 3), [1, 2]), r"x must be images.*\(2, 3\)"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
