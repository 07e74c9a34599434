"""The command line: verbs (verbs.py) as commands (commands.py), completed in a shell (completing.py), run to an exit
status (main.py)."""

from normlab.cli.main import main

__all__ = ["main"]
