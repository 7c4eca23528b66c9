"""The documentation site: the pages of this folder, and a reference made of the docstrings (make docs)."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from sphinx.ext.napoleon import Config, GoogleDocstring

HERE = Path(__file__).parent
facts: dict[str, str] = {}
exec((HERE.parent / "pyfold" / "_version.py").read_text(), facts)

project = "pyfold"
author = "The pyfold developers"
release = version = facts["__version__"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "pyfold"
html_static_path: list[str] = []
if facts["__home__"]:
    html_theme_options = {"source_repository": facts["__home__"], "source_branch": "main", "source_directory": "docs/"}
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["myst.header", "ref.python"]  # The README starts with its own title; Any stands in several modules.
nitpicky = False
autodoc_typehints = "none"  # The signature's own are the ones to read.
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_use_rtype = False
napoleon_use_ivar = True
NAPOLEON = Config(napoleon_use_rtype=False)
default_role = "code"

#: The reference: a page a module, in the order of the site.
MODULES = [
    "pyfold", "pyfold.ops", "pyfold.nn", "pyfold.lipschitz", "pyfold.diffusion", "pyfold.diffusion.serve",
    "pyfold.diffusion.rl", "pyfold.gan", "pyfold.folding", "pyfold.models", "pyfold.bench", "pyfold.adapters.diffusers",
    "pyfold.adapters.k_diffusion",
]  # fmt: skip


def names(module: ModuleType) -> list[str]:
    """What a module has for its users; modules among it have pages of their own."""
    found = getattr(module, "__all__", None)
    if found is None:
        found = [n for n, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__ and n[0] != "_"]
    return sorted((name for name in found if not isinstance(getattr(module, name), ModuleType)), key=str.lower)


def indented(lines: list[str]) -> list[str]:
    return [f"   {line}" if line else "" for line in lines]


def entry(module: str, name: str) -> list[str]:
    """A directive for one name."""
    value = getattr(importlib.import_module(module), name)
    if isinstance(value, type):
        members = [] if "adapters" in module else ["   :members:"]
        return [f".. autoclass:: {module}.{name}", *members, ""]
    if callable(value):
        # Not autofunction: a sampler's function has the signature of its declaration, which autodoc does not read.
        doc = GoogleDocstring(escaped(inspect.getdoc(value) or "").splitlines(), NAPOLEON, what="function")
        return [f".. py:function:: {module}.{name}{signature(value)}", "", *indented(str(doc).splitlines()), ""]
    text = ", ".join(f"``{key}``" for key in value) if isinstance(value, (dict, tuple, list)) else f"``{value!r}``"
    return [f".. py:data:: {module}.{name}", f"   :type: {type(value).__name__}", "", f"   {text}", ""]


def signature(function: Any) -> str:
    """Its arguments and defaults; the types stand in the text."""
    own = inspect.signature(function)
    arguments = [parameter.replace(annotation=parameter.empty) for parameter in own.parameters.values()]
    return re.sub(r"<(\w+)[^>]*>", r"\1", str(own.replace(parameters=arguments, return_annotation=own.empty)))


def escaped(text: str) -> str:
    """Docstrings use no emphasis: a star or a bar outside literals is itself."""
    parts = re.split(r"(``.*?``|`.*?`)", text, flags=re.DOTALL)
    return "".join(part if part.startswith("`") else re.sub(r"([*|])", r"\\\1", part) for part in parts)


def escape_lines(_: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    lines[:] = escaped("\n".join(lines)).split("\n")


def page(name: str) -> str:
    module = importlib.import_module(name)
    doc = GoogleDocstring(escaped(inspect.getdoc(module) or "").splitlines(), NAPOLEON, what="module")
    lines = [name, "=" * len(name), "", f".. py:module:: {name}", "", *str(doc).splitlines(), ""]
    return "\n".join([*lines, *(line for member in names(module) for line in entry(name, member))])


def write_reference(_: Any) -> None:
    folder = HERE / "api"
    folder.mkdir(exist_ok=True)
    for name in MODULES:
        path, text = folder / f"{name}.rst", page(name)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def setup(app: Any) -> None:
    app.connect("builder-inited", write_reference)
    app.connect("autodoc-process-docstring", escape_lines, priority=400)  # before napoleon's own
