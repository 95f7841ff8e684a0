"""The licences of everything that is installed, one package a line: name, version, licence.

    python scripts/licences.py [FILE]

It reads the packages' own metadata and needs no network. A package that names no licence is listed last.
"""

import importlib.metadata
import sys
from pathlib import Path

UNKNOWN = "unknown: look at the package's page"
LONGEST_NAME = 80
"""Some packages give the whole text of their licence in place of its name."""


def licence_of(metadata: importlib.metadata.PackageMetadata) -> str:
    """A package's licence: its SPDX expression, else its classifiers, else the first line of its text."""
    if expression := metadata.get("License-Expression"):
        return expression
    classifiers = [
        text.rpartition(" :: ")[2]
        for text in metadata.get_all("Classifier") or ()
        if text.startswith("License :: ")
    ]
    text = (metadata.get("License") or "").strip().partition("\n")[0]
    names = [name for name in classifiers if name != "OSI Approved"]
    return " or ".join(names) or text[:LONGEST_NAME] or UNKNOWN


def table() -> str:
    """The list as text."""
    rows = {}
    for found in importlib.metadata.distributions():
        rows[found.name.lower()] = (found.name, found.version, licence_of(found.metadata))
    ordered = sorted(rows.values(), key=lambda row: (row[2] == UNKNOWN, row[0].lower()))
    widths = [max(len(row[column]) for row in ordered) for column in (0, 1)]
    return "".join(
        f"{name:{widths[0]}}  {version:{widths[1]}}  {licence}\n" for name, version, licence in ordered
    )


if __name__ == "__main__":
    if sys.argv[1:]:
        Path(sys.argv[1]).write_text(table(), encoding="utf-8")
    else:
        print(table(), end="")
