"""Saving and loading the reference networks as the Hub has them, without a network."""

import copy
import json
import pickle
import subprocess
import sys

import pytest
import torch

huggingface_hub = pytest.importorskip("huggingface_hub")
from PIL import Image  # noqa: E402

from pyfold import models  # noqa: E402
from pyfold.models.hub import Hub  # noqa: E402

T = torch.tensor([0.0, 0.3, 1.0])
NETWORKS = {
    "UNet": (lambda: models.UNet(1, 8, 8, "maxmin", second_time=True), [(3, 1, 8, 8), T, T / 2]),
    "MLP": (lambda: models.MLP(4, 2, 8, activation="householder"), [(3, 4)]),
    "MLPDenoiser": (lambda: models.MLPDenoiser(2, width=8, smooth_time=True), [(3, 2), T]),
    "MLPCritic": (lambda: models.MLPCritic(2, 8), [(3, 2)]),
    "Generator": (lambda: models.Generator(1, 8, 4, width=8, normalise=True), [(3, 4)]),
    "Discriminator": (lambda: models.Discriminator(1, 8, width=8, normalise=True), [(3, 1, 8, 8)]),
    "ResNetGenerator": (lambda: models.ResNetGenerator(1, 8, 4, width=8), [(3, 4)]),
    "ResNetDiscriminator": (lambda: models.ResNetDiscriminator(1, 8, 8), [(3, 1, 8, 8)]),
}


def made(name):
    """A network with every parameter and average moved away from where it began, and its input."""
    make, inputs = NETWORKS[name]
    torch.manual_seed(0)
    model = make()
    inputs = [torch.randn(i) if isinstance(i, tuple) else i for i in inputs]
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    model(*inputs)  # averages of batch normalisation
    return model, inputs


def test_every_network_of_the_package_is_here():
    public = [getattr(models, name) for name in models.__all__]
    assert {c.__name__ for c in public if isinstance(c, type) and issubclass(c, Hub)} == {*NETWORKS, "Hub"}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_network_comes_back_bit_for_bit(name, tmp_path):
    model, inputs = made(name)
    assert model.save_pretrained(tmp_path / "first") is None
    back = type(model).from_pretrained(tmp_path / "first")
    assert type(back) is type(model) and not back.training
    assert torch.equal(back(*inputs), model.eval()(*inputs))
    assert json.loads((tmp_path / "first/config.json").read_text()) == model._settings == back._settings
    # Again, from what came back, and from copies of it.
    for i, other in enumerate((back, copy.deepcopy(back), pickle.loads(pickle.dumps(back)))):
        other.save_pretrained(tmp_path / str(i))
        assert (tmp_path / str(i) / "config.json").read_bytes() == (tmp_path / "first/config.json").read_bytes()
        assert (tmp_path / str(i) / "model.safetensors").read_bytes() == (tmp_path / "first/model.safetensors").read_bytes()


def test_saving_leaves_the_model_as_it_was(tmp_path):
    model, inputs = made("UNet")
    before = dict(vars(model))
    model.save_pretrained(tmp_path)
    assert type(model) is models.UNet and vars(model).keys() == before.keys() and model.training


def test_an_argument_may_be_another_than_the_files(tmp_path):
    made("MLPCritic")[0].save_pretrained(tmp_path)
    assert models.MLPCritic.from_pretrained(tmp_path, activation="abs")._settings["activation"] == "abs"


def test_the_card_names_the_seeds_and_no_license(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "grid.png")
    model, _ = made("UNet")
    model.save_pretrained(tmp_path / "digits", seeds=range(5, 69), grid=tmp_path / "grid.png", text="Eight by eight digits.")
    card = huggingface_hub.ModelCard.load(tmp_path / "digits/README.md")
    assert card.data.library_name == "pyfold" and card.data.license is None and "license" not in card.content
    assert "# UNet\n\nEight by eight digits.\n" in card.text
    assert "- activation: maxmin\n" in card.text and "- second_time: True\n" in card.text
    assert 'model = UNet.from_pretrained("digits")\n' in card.text
    assert "![Samples](samples.png)" in card.text and "Seeds, row by row: 5 to 68." in card.text
    assert (tmp_path / "digits/samples.png").read_bytes() == (tmp_path / "grid.png").read_bytes()


def test_a_card_of_few_words(tmp_path):
    made("MLP")[0].save_pretrained(tmp_path / "a", license="mit")
    card = huggingface_hub.ModelCard.load(tmp_path / "a/README.md")
    assert card.data.license == "mit" and "Samples" not in card.text and "Seeds" not in card.text
    made("MLP")[0].save_pretrained(tmp_path / "b", seeds=[3, 5, -1])
    card = huggingface_hub.ModelCard.load(tmp_path / "b/README.md")
    assert card.data.license is None and "Seeds, row by row: 3, 5, -1." in card.text and "![" not in card.text


def test_errors(tmp_path):
    model, _ = made("MLP")
    with pytest.raises(ValueError, match=r"grid must be a PNG file that exists, got 'no\.png'"):
        model.save_pretrained(tmp_path / "a", grid="no.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "grid.png")
    with pytest.raises(ValueError, match="seeds must name the seeds of grid, got none"):
        model.push_to_hub("me/a", grid=tmp_path / "grid.png")
    assert not (tmp_path / "a").exists()
    model.save_pretrained(tmp_path / "a")
    with pytest.raises(RuntimeError, match="Missing key"):
        models.MLPCritic.from_pretrained(tmp_path / "a", size=4)


def test_a_push_sends_weights_arguments_card_and_picture(tmp_path, monkeypatch):
    sent = {}

    class Api:
        def __init__(self, token=None):
            sent["token"] = token

        def create_repo(self, repo_id, private, exist_ok):
            sent.update(repo_id=repo_id, private=private, exist_ok=exist_ok)
            return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

        def upload_folder(self, *, repo_id, folder_path, **options):
            sent["files"] = {p.name: p.read_bytes() for p in folder_path.iterdir()}
            return f"commit of {repo_id}"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    Image.new("RGB", (4, 4)).save(tmp_path / "grid.png")
    model, inputs = made("Generator")
    result = model.push_to_hub("me/digits", seeds=[1, 2], grid=tmp_path / "grid.png", private=True, token="t")
    assert result == "commit of me/digits" and type(model) is models.Generator
    assert (sent["token"], sent["repo_id"], sent["private"], sent["exist_ok"]) == ("t", "me/digits", True, True)
    assert set(sent["files"]) == {"model.safetensors", "config.json", "README.md", "samples.png"}
    card = sent["files"]["README.md"].decode()
    assert 'Generator.from_pretrained("me/digits")' in card and "Seeds, row by row: 1, 2." in card
    # What was sent is the model.
    for name, data in sent["files"].items():
        (tmp_path / name).write_bytes(data)
    assert torch.equal(models.Generator.from_pretrained(tmp_path)(*inputs), model.eval()(*inputs))


def test_without_huggingface_hub_all_else_works(tmp_path):
    """In a process where it cannot be imported; an error says what to install."""
    code = """
import sys
sys.modules["huggingface_hub"] = None
import torch, pyfold
from pyfold.models import MLP
model = MLP(2, 1, width=8)
assert model(torch.zeros(3, 2)).shape == (3, 1)
for call in (model.save_pretrained, model.push_to_hub, MLP.from_pretrained):
    try:
        call("me/model")
    except ImportError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all("huggingface_hub is needed here; install it with: pip install" in line for line in lines)
    assert all("[hub]'" in line for line in lines) and not list(tmp_path.iterdir())


def test_importing_the_networks_imports_no_hub():
    code = "import sys, pyfold.models; assert 'huggingface_hub' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
