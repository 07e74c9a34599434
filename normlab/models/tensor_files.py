"""Tensors out of files that may come from anyone."""

import hashlib
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from normlab.errors import UserError

_ZIP = b"PK\x03\x04"  # how a file begins that torch.save wrote since 1.6
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[^.]+")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """By their names, of a safetensors file or of what torch.save wrote: tensors, or those in `state_dict` or `model`.

    Raises UserError on a file that is not there, is damaged, holds more than tensors and plain values, or would take
    more memory than its own bytes. Nothing in it is executed.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    found = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    if isinstance(found, Mapping):
        found = next((found[key] for key in ("state_dict", "model") if isinstance(found.get(key), Mapping)), found)
    tensors = {str(name): t for name, t in found.items() if isinstance(t, Tensor)} if isinstance(found, Mapping) else {}
    if not tensors:
        raise UserError(f"{path}: there are no tensors with names in it")
    size = path.stat().st_size
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.device.type != "cpu":
            raise UserError(f"{path}: {name} is sparse, nested, quantized or without values; expected a plain tensor")
        if tensor.numel() * tensor.element_size() > size:  # one number, repeated
            needed = tensor.numel() * tensor.element_size()
            raise UserError(f"{path}: {name} would take {needed:,} bytes, and the whole file has {size:,}")
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError:
        raise UserError(f"{path}: this is no safetensors file, or it is damaged; nothing in it was executed") from None


def _read_pickle(path: Path) -> object:
    """What torch.save wrote; torch's own reader executes nothing."""
    damaged = UserError(
        f"{path}: this is no checkpoint that holds tensors and plain values alone, or it is damaged; nothing in it "
        "was executed"
    )
    with path.open("rb") as file:
        size, is_zip = path.stat().st_size, file.read(len(_ZIP)) == _ZIP
    try:
        unpacked = sum(part.file_size for part in zipfile.ZipFile(path).infolist()) if is_zip else 0
    except (zipfile.BadZipFile, ValueError, EOFError):
        raise damaged from None
    if unpacked > size:  # torch.save packs nothing
        raise UserError(f"{path}: unpacked, it would take {unpacked:,} bytes, and the file has {size:,}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises whatever the bytes happen to provoke
        raise damaged from None


def check_hash(path: Path) -> None:
    """Raise UserError where a file's name says how its SHA-256 begins, as vgg16-397923af.pth, and it does not."""
    named = _HASH_IN_NAME.search(path.name)
    if named is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(named[1]):
        raise UserError(f"{path}: its SHA-256 begins with {found[:8]}, not as its name says; get it once more")
