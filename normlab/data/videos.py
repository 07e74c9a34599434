"""Frames of MP4 files, by PyAV: the container's own demuxer alone, and no file beside the one that is named."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from normlab.data.decode import MOST_PIXELS, DecodeError
from normlab.data.download import one_line
from normlab.errors import UserError

_FORMAT = "mov"  # of MP4 too; others may name further files, or addresses


def check_decoder(name: str) -> None:
    """Raise UserError where the package that decodes is not there."""
    if find_spec("av") is None:
        raise UserError(f"data={name}: its videos need a further package; pip install 'normlab[video]'")


def length(path: Path) -> int:
    """How many frames a video says it has, or those that there are. Raises DecodeError."""
    with _opened(path) as (container, stream):
        if stream.frames > 0:
            return stream.frames
        return sum(1 for packet in container.demux(stream) if packet.size)


def read(path: Path, wanted: Sequence[int]) -> Tensor:
    """These frames (T, 3, H, W) in bytes, RGB; `wanted` are in ascending order, and numbered as they are shown.

    Raises DecodeError where one of them is not there.
    """
    frames: list[Tensor] = []
    number = -1
    with _opened(path) as (container, stream):
        for number, frame in enumerate(container.decode(stream)):
            if number == wanted[len(frames)]:
                frames.append(torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1))
                if len(frames) == len(wanted):
                    return torch.stack(frames)
    raise DecodeError(f"it is truncated: of the {wanted[-1] + 1} frames that are needed {number + 1} can be decoded")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """A container and its first video stream; what goes wrong inside is a DecodeError."""
    import av

    try:
        with path.open("rb") as file, av.open(file, format=_FORMAT) as container:
            if not container.streams.video:
                raise DecodeError("there is no video in it")
            stream = container.streams.video[0]
            width, height = stream.codec_context.width, stream.codec_context.height
            if not 0 < width * height <= MOST_PIXELS:
                raise DecodeError(f"its frames have {width} x {height} pixels, and at most {MOST_PIXELS:,} are decoded")
            yield container, stream
    except (DecodeError, MemoryError):
        raise
    except av.FFmpegError as error:
        raise DecodeError(f"it is no MP4, or damaged ({one_line(error.strerror)})") from None
    except OSError as error:
        raise DecodeError(f"cannot be read ({error.strerror or one_line(error)})") from None
    except Exception as error:  # damaged bytes make it raise nearly anything
        raise DecodeError(f"cannot be decoded ({one_line(error)})") from None
