"""What `init` names: the weights that a run begins from. No torch here.

init=RUN                its final weights; a RUN is a folder, or a name or an id in `out`
init=RUN@0.3            the snapshot at 30% of its updates, which snapshots=[0.3] has kept; RUN@1 is RUN
init=RUN@0.3:ratios     of that, the ratios of the norm layers alone; everything else starts fresh
init=FILE.safetensors   tensors by their names in the model; of these too :ratios takes the ratios alone
"""

import hashlib
import os
import re
from pathlib import Path
from typing import NamedTuple

from normlab import schema
from normlab.errors import UserError
from normlab.reading import read_json

_WORDS = re.compile(r"(?P<source>.+?)(?:@(?P<at>[^@:/]*))?(?P<ratios>:ratios)?", re.DOTALL)
RUN_ID = re.compile("[0-9a-f]{8}")
_ALLOWED = "allowed: none, a run's folder, name or id, a file; RUN@0.3 is its snapshot at 30% of training"


class Initial(NamedTuple):
    """A setting `init` other than none, taken apart.

    Attributes:
        source: a folder, a file, or the name or id of a run.
        at: share of the run's updates; 1: its final weights.
        only_ratios: whether nothing but the ratios is taken.
    """

    source: str
    at: float
    only_ratios: bool

    @classmethod
    def parse(cls, init: str) -> "Initial":
        """What is there by the whole name counts, whatever is in it. Raises UserError on a share that is none."""
        for source in (init, init.removesuffix(":ratios")):
            if os.path.exists(source):
                return cls(source, 1.0, source != init)
        words = _WORDS.fullmatch(init)
        if words is None:
            raise UserError(f"init={init}: {_ALLOWED}")
        at = words["at"]
        if at is not None and not (re.fullmatch(r"[0-9]*\.?[0-9]+", at) and 0 < float(at) <= 1):
            raise UserError(
                f"init={init}: there is no such file; expected a share of the run's updates behind the @, as 0.3; 1 is "
                "its end"
            )
        return cls(words["source"], float(at or 1), words["ratios"] is not None)

    def path(self, out: Path) -> Path | None:
        """The run's folder, or the file; None for an id that is not in `out`, or not yet.

        Raises UserError if it is neither.
        """
        if os.path.isfile(os.path.join(self.source, "run.json")):
            return Path(self.source)
        if os.path.isfile(self.source):
            if self.at < 1:
                raise UserError(f"init={self.source}@{self.at:g}: this is a file; snapshots are those of runs")
            return Path(self.source)
        found = find_runs(self.source, out)
        if len(found) > 1:
            raise UserError(f"init={self.source}: {len(found)} runs in {out} end so; expected the name of one")
        if not found and not RUN_ID.fullmatch(self.source):
            raise UserError(f"init={self.source}: there is no such run or file; {_ALLOWED}")
        return found[0] if found else None

    def identity(self, out: Path) -> str:
        """A run stands for itself by its id, a file by its bytes. Raises UserError as `path` does."""
        path = self.path(out)
        if path is None:
            source = self.source
        elif path.is_dir():
            source = read_json(path / "run.json", {"id": schema.Parameter(str)})["id"]
        else:
            with path.open("rb") as file:
                source = hashlib.file_digest(file, "sha256").hexdigest()
        return source + (f"@{self.at:g}" if self.at < 1 else "") + (":ratios" if self.only_ratios else "")


def find_runs(name: str, out: Path) -> list[Path]:
    """The folders of the runs in `out` of this name or id."""
    try:
        names = sorted(os.listdir(out))  # a look into each folder would take seconds beside thousands of runs
    except OSError:
        return []
    named = (out / run for run in names if run == name or run.endswith(f"-{name}"))
    return [run for run in named if (run / "run.json").is_file()]
