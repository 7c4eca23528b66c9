"""The reference networks on the Hugging Face Hub, by huggingface_hub's own ``PyTorchModelHubMixin``.

A class gets the mixin when it is first saved or loaded, for its import takes longer than pyfold's own.
"""

from __future__ import annotations

import copy
import inspect
import os
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from pyfold._requirements import need
from pyfold._version import __home__, __version__

if TYPE_CHECKING:
    from typing_extensions import Self

GRID = "samples.png"
CARD = """---
{{ card_data }}
---

# {{ name }}

{% if text %}{{ text }}

{% endif %}Weights of `pyfold.models.{{ name }}`, saved by pyfold {{ version }}:
{%- for key, value in settings.items() %}
- {{ key }}: {{ value }}
{%- endfor %}

```python
from pyfold.models import {{ name }}

model = {{ name }}.from_pretrained({{ place }})
```
{% if seeds %}
## Samples
{% if grid %}
![Samples]({{ grid }})
{% endif %}
Seeds, row by row: {{ seeds }}. pyfold's noise of a seed is the same bits on every machine, so the same seeds, sampler and
weights make these samples again.
{% endif %}"""


def _listed(seeds: Sequence[int]) -> str:
    numbers = [int(seed) for seed in seeds]
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def _check_grid(grid: str | os.PathLike[str] | None, seeds: Sequence[int]) -> Path | None:
    if grid is None:
        return None
    path = Path(grid)
    if path.suffix.lower() != ".png" or not path.is_file():
        raise ValueError(f"grid must be a PNG file that exists, got {str(grid)!r}")
    if not len(seeds):
        raise ValueError("seeds must name the seeds of grid, got none")
    return path


@cache
def _with_mixin(cls: type[torch.nn.Module]) -> Any:
    """The class with the mixin over it: the mixin's methods, and what they ask of a library."""
    mixin: Any = need("huggingface_hub", "hub").PyTorchModelHubMixin

    def save(self: Any, save_directory: Path) -> None:
        mixin._save_pretrained(self, save_directory)
        if self._grid is not None and self._grid.resolve() != (save_directory / GRID).resolve():
            shutil.copyfile(self._grid, save_directory / GRID)

    def load(cls: Any, /, *, strict: bool = True, **options: Any) -> Any:
        # Another model's weights are an error, where the mixin's default would leave the first weights as they are.
        return mixin._from_pretrained.__func__(cls, strict=strict, **options)

    def generate_model_card(self: Any, **options: Any) -> Any:
        data = copy.deepcopy(self._hub_mixin_info.model_card_data)
        if self._card["license"]:
            data.license = self._card["license"]
        facts = {"name": cls.__name__, "version": __version__, "settings": self._hub_mixin_config, **self._card, **options}
        return need("huggingface_hub", "hub").ModelCard.from_template(data, template_str=CARD, **facts)

    body = {
        "__module__": cls.__module__,
        "_save_pretrained": save,
        "_from_pretrained": classmethod(load),
        "generate_model_card": generate_model_card,
    }
    return cast(Any, type)(cls.__name__, (mixin, cls), body, library_name="pyfold", repo_url=__home__ or None)


class Hub(torch.nn.Module):
    """A network that can be saved to a folder or to the Hugging Face Hub, and loaded from there.

    Needs the extra ``hub``. A class that inherits takes arguments that JSON can hold.

    Args:
        args, options: those of the network; kept, for config.json.

    Example:
        >>> import tempfile
        >>> from pyfold.models import MLP
        >>> model, x = MLP(2, 1, width=8), torch.randn(3, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_pretrained(folder)
        ...     bool((MLP.from_pretrained(folder)(x) == model(x)).all())
        Loading weights from local directory
        True
    """

    _settings: dict[str, Any]

    def __new__(cls, *args: Any, **options: Any) -> Self:
        self = super().__new__(cls)
        # Partly: a copy is made without arguments, and gets its settings with all else.
        bound = inspect.signature(cls.__init__).bind_partial(self, *args, **options)
        bound.apply_defaults()
        self._settings = dict(list(bound.arguments.items())[1:])
        return self

    def _twin(self, card: dict[str, Any], grid: Path | None) -> Any:
        """The same tensors in the class that has the mixin."""
        mixed = _with_mixin(cast(Any, type(self)))
        twin = copy.copy(self)
        twin.__class__ = mixed
        twin._hub_mixin_config, twin._card, twin._grid = self._settings, card, grid  # type: ignore[assignment]
        return twin

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        seeds: Sequence[int] = (),
        grid: str | os.PathLike[str] | None = None,
        text: str = "",
        license: str | None = None,
        place: str | None = None,
        **options: Any,
    ) -> Any:
        """Writes weights (model.safetensors), arguments (config.json) and a model card (README.md, unless there is one).

        Args:
            save_directory: the folder, made where there is none.
            seeds: of the samples in ``grid``, row by row; the card names them.
            grid: a PNG of samples, as ``pyfold sample`` writes; copied as samples.png.
            text: what the card says of the model: its data, its training.
            license: of the weights, as the Hub names it ("mit"); the card has none where none is given.
            place: what the card's example loads from; by default the folder's name.
            options: of ``PyTorchModelHubMixin.save_pretrained``.

        Returns:
            What the mixin returns: None, or where a commit lies.

        Raises:
            ImportError: huggingface_hub or safetensors is not installed.
            ValueError: ``grid`` is no PNG file, or has no seeds.
        """
        picture = _check_grid(grid, seeds)
        need("safetensors", "hub")
        card = {"text": text, "license": license, "seeds": _listed(seeds), "grid": GRID if picture else None}
        card["place"] = f'"{place or Path(save_directory).name}"'
        return self._twin(card, picture).save_pretrained(save_directory, **options)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        seeds: Sequence[int] = (),
        grid: str | os.PathLike[str] | None = None,
        text: str = "",
        license: str | None = None,
        **options: Any,
    ) -> Any:
        """Makes a repository where there is none, and commits what :meth:`save_pretrained` writes.

        Args:
            repo_id: "user/name".
            seeds, grid, text, license: as for :meth:`save_pretrained`.
            options: of ``PyTorchModelHubMixin.push_to_hub``: ``private=True``, ``token=``, ``branch=``, ``create_pr=``.

        Returns:
            Where the commit lies.

        Raises:
            ImportError, ValueError: as :meth:`save_pretrained`.
        """
        picture = _check_grid(grid, seeds)
        need("safetensors", "hub")
        card = {"text": text, "license": license, "seeds": _listed(seeds), "grid": GRID if picture else None}
        return self._twin({**card, "place": f'"{repo_id}"'}, picture).push_to_hub(repo_id, **options)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any) -> Self:
        """A model that was saved or pushed, in float32 and in evaluation mode.

        Args:
            pretrained_model_name_or_path: a folder, or "user/name" on the Hub.
            options: of ``PyTorchModelHubMixin.from_pretrained``: ``revision=``, ``token=``, ``map_location="cuda"``, and
                arguments of the network that are not to be those of the file.

        Returns:
            The model.

        Raises:
            ImportError: huggingface_hub or safetensors is not installed.
            RuntimeError: the weights are of another model.
        """
        need("safetensors", "hub")
        model = _with_mixin(cast(Any, cls)).from_pretrained(pretrained_model_name_or_path, **options)
        model.__class__ = cls
        model.eval()  # which older mixins leave out
        model._settings = model.__dict__.pop("_hub_mixin_config")
        return cast("Self", model)
