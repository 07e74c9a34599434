"""Downloads through torchvision, which knows the addresses and the checksums; archives that the user has."""

import zlib
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from normlab.errors import UserError


def download(dataset: str, root: Path, *, archives: str, into: Path) -> None:
    """Let torchvision's class of this name download into root and unpack; what is there already is kept.

    Archives that the user put where the download would go are unpacked, without a network.

    Raises:
        UserError: no network, or a file differs from its checksum or is damaged.
    """
    import torchvision
    from torchvision.datasets import utils

    differing: list[Path] = []  # torchvision downloads such a file again, and then speaks of the network alone

    def noted(path: str | Path, md5: str | None = None) -> bool:
        good = check_integrity(path, md5)
        if not good and Path(path).is_file():
            differing.append(Path(path))
        return good

    check_integrity, utils.check_integrity = utils.check_integrity, noted
    try:
        getattr(torchvision.datasets, dataset)(root, download=True)
    except (OSError, RuntimeError, HTTPException) as error:
        if differing:
            raise UserError(
                f"{dataset}: the checksum of {differing[-1]} differs from the published one; remove it and run "
                f"this again, or without a network put {archives} into {into}"
            ) from None
        raise UserError(
            f"{dataset} could not be downloaded ({one_line(error)}); "
            f"without a network put {archives} into {into} and run this again"
        ) from None
    except Exception as error:  # it also reads what is there, and damaged bytes make it raise nearly anything
        reason = f"{type(error).__name__}: {one_line(error)[:200]}"
        raise UserError(f"{dataset}: a file in {into} is damaged ({reason}); remove it and run this again") from None
    finally:
        utils.check_integrity = check_integrity


def unpack(archives: Sequence[str], root: Path, *, into: Path, source: str) -> None:
    """Unpack zip archives that the user put into root; those of a source that gives them to its members alone.

    Raises:
        UserError: one is missing or damaged.
    """
    for name in archives:
        try:
            with ZipFile(root / name) as archive:
                archive.extractall(into)
        except FileNotFoundError:
            raise UserError(f"{root} has no {name}; put {' and '.join(archives)} from {source} there") from None
        except (BadZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
            raise UserError(f"{root / name} is damaged ({one_line(error)}); get it anew from {source}") from None
        except OSError as error:
            raise UserError(f"{root / name} could not be unpacked into {into} ({one_line(error)})") from None


def one_line(message: object) -> str:
    """A message, or that of an error, without its line breaks."""
    return " ".join(str(message).split())
