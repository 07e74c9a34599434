"""Which commands read which file of a finished run, and whether they notice that it is not what was written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TABLE, SCALE = "sn_inference", "digits"  # its cells are all of one run where SETTINGS says norm and batch
REPRODUCE = f"reproduce {TABLE} scale={SCALE} SETTINGS jobs=1 out=OUT results=TABLES"
# File of a run -> the commands that read it. RUN stands for the run's folder, OUT for the folder of the runs, TABLES
# for that of the tables' records, ELSEWHERE for a place to write to, SETTINGS for the words of the run.
READERS = {
    "run.json": ("show RUN", "status out=OUT", "eval RUN", "figure learning_curves RUN out=ELSEWHERE/figure.png"),
    "status.json": ("status out=OUT", "train SETTINGS out=OUT", "eval RUN"),
    "summary.json": ("show RUN", "status out=OUT", "train SETTINGS out=OUT"),
    "metrics.jsonl": ("figure learning_curves RUN out=ELSEWHERE/figure.png",),
    "ratios.jsonl": (
        "figure ratios RUN out=ELSEWHERE/figure.png",
        "figure ratio_curves RUN out=ELSEWHERE/figure.png",
    ),
    "estimates.jsonl": (f"{REPRODUCE} seeds=1",),
    "checkpoints/weights.safetensors": (
        "eval RUN",
        "estimate RUN samples=64",
        "plan SETTINGS init=RUN out=OUT",
        "export RUN out=ELSEWHERE/export",
    ),
    "checkpoints/batch_average.safetensors": ("eval RUN", "export RUN out=ELSEWHERE/export"),
    "snapshots/0.5.safetensors": ("plan SETTINGS init=RUN@0.5 out=OUT",),
}


@dataclass(frozen=True)
class Answer:
    """What a command said.

    written: what it wrote besides: the contents of files below ELSEWHERE and TABLES.
    problems: with its end, but for its status.
    """

    status: int | None
    out: str
    err: str
    written: dict[str, bytes] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def is_as(self, other: "Answer") -> bool:
        """Whether it says the same; stderr may tell of more work."""
        return (self.status, self.out, self.written) == (other.status, other.out, other.written)

    def __str__(self) -> str:
        last = (self.err or self.out).strip().rpartition("\n")[2]
        return f"status {self.status}: {last}"


def written(*folders: Path) -> dict[str, bytes]:
    """The files below folders."""
    return {str(path): path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def words(command: str, places: Mapping[str, str], settings: Sequence[str]) -> list[str]:
    """A command of READERS, to type: with its places, RUN and so on, and the settings of the run."""
    found: list[str] = []
    for word in command.split():
        for place, path in places.items():
            word = word.replace(place, path)
        found += settings if word == "SETTINGS" else [word]
    return found


def notices(command: str, name: str, answer: Answer) -> bool:
    """Whether a command refused the file by its name; `status` lists all runs, and says which is damaged."""
    if command.startswith("status"):
        return "damaged" in answer.out
    return answer.status not in (0, None) and Path(name).name in answer.err
