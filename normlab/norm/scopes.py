"""Scopes: the pixel sets that statistics are taken over. Declarations only, no tensors (pooling.py has those).

| scope   | pools over                                | across samples | the papers' name |
|---------|-------------------------------------------|----------------|------------------|
| in      | nothing                                   | no             | IN               |
| ln      | all channels of a sample                  | no             | LN               |
| gn, gnG | the channels of one of G groups           | no             | GN               |
| bn      | the samples of a replica                  | yes            | BN               |
| en, enG | samples of a replica, channels of a group | yes            | EN, EN_Gn        |
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from normlab.errors import UserError

KINDS = ("in", "ln", "bn", "gn", "en")


def fit_groups(groups: int, num_channels: int) -> int:
    """The largest number of equal groups, at most `groups`, that leaves two channels or more in each.

    A group of one channel would turn GN into IN and EN into BN. On the papers' networks, of 64 channels and more,
    32 groups stay 32.
    """
    return max((g for g in range(1, min(groups, num_channels // 2) + 1) if num_channels % g == 0), default=1)


@dataclass(frozen=True)
class Scope:
    """One pixel set. `name` is as declared ("gn", "en32"); `groups` is what fits the layer's channels."""

    name: str
    kind: str
    groups: int

    @classmethod
    def parse(cls, name: str, groups: int, num_channels: int) -> "Scope":
        """`groups` serves a bare "gn" or "en". Raises UserError on a name that is no scope."""
        match = re.fullmatch(r"(in|ln|bn|gn|en)([1-9]\d*)?", name)
        if match is None or (match[2] and match[1] not in ("gn", "en")):
            raise UserError(
                f"scope '{name}' does not exist; allowed: {', '.join(KINDS)}, and gn or en with a number of groups, "
                "as in gn16"
            )
        kind = match[1]
        wanted = int(match[2]) if match[2] else groups
        return cls(name, kind, fit_groups(wanted, num_channels) if kind in ("gn", "en") else 1)

    @property
    def across_samples(self) -> bool:
        return self.kind in ("bn", "en")

    def width(self, num_channels: int) -> int:
        """Statistics that a row holds: C (in, bn), 1 (ln) or the number of groups (gn, en)."""
        return num_channels if self.kind in ("in", "bn") else self.groups

    def size(self, num_samples: int, num_channels: int, num_positions: int) -> int:
        """Values in one pixel set, of a replica of `num_samples`."""
        samples = num_samples if self.across_samples else 1
        return samples * num_positions * (num_channels // self.width(num_channels))


def check_declaration(mean: Sequence[str], var: Sequence[str], tied: bool = False, path: str = "norm") -> None:
    """Refuse (UserError) what no number of channels could make a normalizer of; `path` names it in the message."""
    for what, names in (("mean", mean), ("var", var)):
        listed = f"{path}.{what}=[{','.join(names)}]"
        if not names:
            raise UserError(f"{listed} names no scope; allowed: {', '.join(KINDS)}")
        if len(set(names)) < len(names):
            raise UserError(f"{listed} names a scope twice; allowed: each scope once")
        for name in names:
            try:
                Scope.parse(name, 1, 1)
            except UserError as error:
                raise UserError(f"{listed}: {error}") from None
    if tied and list(mean) != list(var):
        raise UserError(
            f"{path}.tied=true needs the same scopes in {path}.mean=[{','.join(mean)}] and {path}.var=[{','.join(var)}]"
        )


def check_profile(profile: str, mean: Sequence[str], var: Sequence[str], sync: bool, path: str = "norm") -> None:
    """Refuse (UserError) a profile that does not exist, or the official one of what has no released code here."""
    if profile not in ("paper", "official"):
        raise UserError(f"{path}.profile={profile} does not exist; allowed: paper, official")
    known = all(set(names) <= {"in", "ln", "bn"} for names in (mean, var)) and max(len(mean), len(var)) > 1
    if profile == "official" and (sync or not known):
        raise UserError(
            f"{path}.profile=official is the released code of SN: expected a mixture of in, ln and bn without sync, "
            f"not {path}.mean=[{','.join(mean)}] {path}.var=[{','.join(var)}]{f' {path}.sync=true' if sync else ''}"
        )
