"""The figures of conf/figure that a run's own records can show, drawn into its folder."""

import logging
from collections.abc import Iterable
from pathlib import Path

from normlab.config import node_of
from normlab.errors import DiskFullError, UserError
from normlab.figures.style import save
from normlab.runs.folder import RunFolder
from normlab.runs.records import Run
from normlab.schema import bind

_log = logging.getLogger(__name__)


def draw(folder: RunFolder, names: Iterable[str]) -> list[Path]:
    """Those figures of conf/figure that the run's records can show, into its folder; no other error fails the run."""
    run, drawn = Run.load(folder), []
    for name in names:
        path = folder.path / f"{name}.png"
        try:
            save(bind(node_of("figure", name))([run]), path)
        except UserError:
            continue  # it shows other records, or several runs
        except DiskFullError:
            raise
        except Exception as error:
            _log.warning("figure %s cannot be drawn: %s: %s", name, type(error).__name__, error)
            continue
        drawn.append(path)
    return drawn
