"""By which version of the code, and from which data, the records of a table were made. No torch here.

Numbers of two versions do not compare: a claim whose cells are of several has no verdict (verdicts.py).
"""

from collections.abc import Iterable, Mapping, Sequence

from normlab.report.records import Key, Record, key_of

SHOWN = 12  # cells of a version in a report, the others counted


def maker(record: Record) -> str:
    """code 1a2b3c4d, torch 2.14.1, C++ kernels; of older records, which do not say it, the commit and torch.

    Data that do not come with the program are named by their digest.
    """
    versions = record.get("made_by") or [f"commit {record['commit'] or 'unknown'}, torch {_torch(record)}"]
    data = record.get("inputs")
    return ", then ".join(versions) + (f", data {data[:8]}" if data else "")


def _torch(record: Record) -> str:
    return str(record["versions"].get("torch", "unknown"))


def makers(records: Iterable[Record]) -> dict[Key, str]:
    """Of each record."""
    return {key_of(record): maker(record) for record in records}


def cells_by_maker(made: Mapping[Key, str]) -> dict[str, list[str]]:
    """Maker -> its cells, those that made most first."""
    found: dict[str, list[str]] = {}
    for (row, column, seed), name in made.items():
        found.setdefault(name, []).append(f"{row} {column} seed {seed}")
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def shown(cells: Sequence[str]) -> str:
    """bn 8x32 seed 0, bn 8x16 seed 0 and 25 more"""
    more = f" and {len(cells) - SHOWN} more" if len(cells) > SHOWN else ""
    return ", ".join(cells[:SHOWN]) + more
