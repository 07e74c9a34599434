"""One image file to pixels: only the formats that are meant, and the header's size before anything else."""

import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EACCES, EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, ENXIO, EPERM
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from normlab.data.download import one_line

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")  # those of scan.EXTENSIONS; PIL knows others that run programs
MOST_PIXELS, MOST_SIDE, MOST_RATIO = 100_000_000, 30_000, 200
_MOST_BYTES = 2**30  # PIL reads some formats whole

# What the system says about a file itself; other errors (of the disk, the network, too many open files) may pass.
_ABOUT_THE_FILE = {EACCES, EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, ENXIO, EPERM}
_DEEP = ("I", "F")  # modes of more than 8 bits a channel start so; turned into RGB, their pixels would be clipped
_NUMBERS = ("L", "I;16B", "1", "P", "P;4", "P;2", "P;1")  # what a PNG may hold for its numbers to be read as they are
_BITS, _TILE_WIDTH, _TILE_LENGTH = 258, 322, 323  # tags of TIFF
_NOT_READ = {b"GIF8": "a GIF", b"%!PS": "a PostScript file", b"%PDF": "a PDF file"}  # by their first bytes

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # large images are refused here, by name


class DecodeError(Exception):
    """A file that holds no image to use; the message says why, without its path."""


def decode(path: Path, least_side: int | None = None) -> Image.Image:
    """The image in RGB; a JPEG reduced as long as no side falls below least_side.

    Raises:
        DecodeError: the file is missing, unreadable, damaged, of another format, too large, too thin, or has more than
            8 bits a channel.
        OSError: the disk or the system failed; the file may be good.
    """
    with _opened(path, FORMATS) as image:
        _check_depth(image)
        if least_side is not None:
            image.draft(None, (least_side, least_side))
        if image.mode != "RGB":
            return image.convert("RGB")
        image.load()
        return image  # convert would copy it


def decode_bytes(content: bytes) -> Image.Image:
    """The image in RGB that a file of these bytes holds. Raises DecodeError as decode."""
    with _opened(io.BytesIO(content), FORMATS) as image:
        _check_depth(image)
        return image.convert("RGB")


def decode_map(path: Path) -> NDArray[np.integer]:
    """The numbers (H, W) in a PNG: of a palette its indices, else grey values of 8 or 16 bits.

    Raises:
        DecodeError, OSError: as decode; and for a PNG of colours, or of grey values that PIL would scale to 8 bits.
    """
    with _opened(path, ("PNG",)) as image:
        raw = next((str(tile.args) for tile in getattr(image, "tile", [])), image.mode)
        if raw not in _NUMBERS:
            raise DecodeError(f"it is a map of mode {raw}, not of numbers; save it with a palette, or grey with 8 bits")
        return np.asarray(image)


@contextmanager
def _opened(source: Path | io.BytesIO, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """An image whose header is read and whose size is fit; what goes wrong inside with it is a DecodeError too."""
    try:
        if isinstance(source, Path):
            _check_file(source.stat())
        with Image.open(source, formats=formats) as image:
            _check_size(*image.size)
            yield image
    except (DecodeError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise DecodeError(_no_image(source)) from None
    except Image.DecompressionBombError:
        raise DecodeError(f"it has more than {MOST_PIXELS:,} pixels; make it smaller") from None
    except OSError as error:
        if error.errno is not None and error.errno not in _ABOUT_THE_FILE:
            raise
        raise DecodeError(f"cannot be decoded ({error.strerror or one_line(error)})") from None
    except Exception as error:  # damaged bytes make PIL raise SyntaxError, ValueError, struct.error, ...
        raise DecodeError(f"cannot be decoded ({one_line(error)})") from None


def _check_file(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
        raise DecodeError("it is no regular file")
    if status.st_size > _MOST_BYTES:
        raise DecodeError(f"it has {status.st_size:,} bytes, and an image at most {_MOST_BYTES:,}; make it smaller")


def _no_image(source: Path | io.BytesIO) -> str:
    if isinstance(source, Path):
        with source.open("rb") as file:
            start = file.read(4)
    else:
        start = source.getvalue()[:4]
    if not start:
        return "it is empty"
    if start in _NOT_READ:
        return f"it is {_NOT_READ[start]}, which is not read; save it as PNG or JPEG"
    return "it is no image, or one that is damaged"


def _check_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS or max(width, height) > MOST_SIDE:
        raise DecodeError(
            f"it has {width} x {height} pixels, and at most {MOST_PIXELS:,} and {MOST_SIDE:,} on a side are decoded; "
            "make it smaller"
        )
    if max(width, height) > MOST_RATIO * min(width, height):  # resized by its shorter side it would be huge
        raise DecodeError(
            f"it has {width} x {height} pixels, one side more than {MOST_RATIO} times the other; crop it or remove it"
        )


def _check_depth(image: Image.Image) -> None:
    """PIL reduces colours of 16 bits to 8 without a word: only what it is about to decode tells of them."""
    mode, tiles = image.mode, getattr(image, "tile", [])
    deep = mode.startswith(_DEEP)
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        if tags.get(_TILE_WIDTH, 0) * tags.get(_TILE_LENGTH, 0) > MOST_PIXELS:  # however small the image
            raise DecodeError(f"its tiles have more than {MOST_PIXELS:,} pixels; save it again")
        bits = max(tags.get(_BITS, (1,)))
    else:
        arguments = [tile.args if isinstance(tile.args, tuple) else (tile.args,) for tile in tiles]
        if image.format == "PNG":
            bits = 16 if any(str(raw).endswith(";16B") for raw, *_ in arguments) else 8
        elif image.format == "PPM":
            bits = 16 if any(isinstance(last, int) and last > 255 for *_, last in arguments) else 8
        else:
            bits = 8
    if deep or bits > 8:
        mode = mode if deep else f"{mode};{bits}"
        raise DecodeError(f"its pixels are of mode {mode}, not of 8 bits a channel; save it with 8")
