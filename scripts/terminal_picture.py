"""Turn a captured terminal screen (text with ANSI colours) into an SVG for the README.

Usage: tmux capture-pane -e -p | python scripts/terminal_picture.py TITLE > docs/quickstart.svg
"""

import io
import sys

from rich.console import Console
from rich.text import Text

screen = sys.stdin.read().rstrip("\n")
lines = Text.from_ansi(screen).split("\n")
console = Console(
    record=True,
    width=max(len(line.plain.rstrip()) for line in lines),
    file=io.StringIO(),
    force_terminal=True,
)
for line in lines:
    line.rstrip()
    console.print(line, no_wrap=True)
print(console.export_svg(title=sys.argv[1]))
