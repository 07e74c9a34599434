"""Data of the toy tasks: each sample is made by a function of its index and of a generator that the index seeds."""

from collections.abc import Callable
from typing import Any

import torch


class Samples(torch.utils.data.Dataset):
    def __init__(self, length: int, make: Callable[[int, torch.Generator], Any], on_error: str = "stop") -> None:
        self.length, self.make, self.on_error = length, make, on_error

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: tuple[int | None, int]) -> Any:
        return self.make(key[1], torch.Generator().manual_seed(key[1]))
