"""Downloads through torchvision, which knows the addresses and the checksums."""

from http.client import HTTPException
from pathlib import Path

from normlab.errors import UserError


def download(dataset: str, root: Path, *, archives: str, into: Path) -> None:
    """Let torchvision's class of this name download into root and unpack; what is there already is kept.

    Archives that the user put where the download would go are unpacked, without a network.

    Raises:
        UserError: no network, or a file differs from its checksum or is damaged.
    """
    import torchvision

    try:
        getattr(torchvision.datasets, dataset)(root, download=True)
    except (OSError, RuntimeError, HTTPException) as error:
        raise UserError(
            f"{dataset} could not be downloaded ({one_line(error)}); "
            f"without a network put {archives} into {into} and run this again"
        ) from None
    except Exception as error:  # it also reads what is there, and damaged bytes make it raise nearly anything
        reason = f"{type(error).__name__}: {one_line(error)[:200]}"
        raise UserError(f"{dataset}: a file in {into} is damaged ({reason}); remove it and run this again") from None


def one_line(message: object) -> str:
    """A message, or that of an error, without its line breaks."""
    return " ".join(str(message).split())
