"""The kinds of fold, one file each: formula, creases, program for the kernels, parameters, and what is true of it."""

from pyfold.folds import (
    abs,
    ball,
    box,
    crelu,
    dihedral,
    groupsort,
    householder,
    hyperplane,
    leaky,
    maxmin,
    soft,
    sortabs,
    sphere,
    tri,
)
from pyfold.folds.kind import REQUIRED, CreaseFamily, FoldKind, Parameter
from pyfold.folds.program import Program

#: The kinds of fold, by name.
FOLDS: dict[str, FoldKind] = {
    file.KIND.name: file.KIND
    for file in (
        abs,
        leaky,
        box,
        tri,
        maxmin,
        groupsort,
        sortabs,
        householder,
        dihedral,
        hyperplane,
        crelu,
        sphere,
        ball,
        soft,
    )
}


def fold_table() -> str:
    """The kinds as a table in Markdown, for the docs.

    Returns:
        Its text.
    """

    def yes(value: bool) -> str:
        return "yes" if value else "no"

    lines = [
        "| kind | rule | parameters | ties | remembers | Lipschitz constant | keeps lengths | keeps volume | unfolds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, kind in FOLDS.items():
        values = {key: 0.0 if p.default is REQUIRED else p.default for key, p in kind.parameters.items()}
        parameters = "; ".join(
            f"{key}{'' if p.default is REQUIRED else f' = {p.default}'}: {p.allowed}" for key, p in kind.parameters.items()
        )
        facts = (
            f"`{name}`", kind.rule.replace("|", "\\|"), parameters or "-", kind.tie, kind.bits, f"{kind.lipschitz(**values):g}",
            yes(kind.preserves_norm(**values)), yes(kind.preserves_volume(**values)), yes(kind.unfolds(**values)),
        )  # fmt: skip
        lines.append("| " + " | ".join(facts) + " |")
    return "\n".join(lines) + "\n"


__all__ = ["FOLDS", "REQUIRED", "CreaseFamily", "FoldKind", "Parameter", "Program", "fold_table"]
