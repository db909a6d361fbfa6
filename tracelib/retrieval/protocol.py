"""What two evaluations must share for their numbers to be comparable."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Protocol:
    """How queries were asked and rankings judged.

    Args:
        split: `val` or `test`.
        prompt_policy: How instructions were chosen, e.g. `fixed`.
        prompt_seed: Seed of the policy; None where it draws nothing.
        ks: Depths of recall.
        search_depth: Candidates kept per query, which bounds what the reciprocal rank sees.
        data_hashes: Digest of each query, pool, qrels and instruction file, by its path relative to
            the data root.
    """

    split: str
    prompt_policy: str
    prompt_seed: int | None
    ks: tuple[int, ...]
    search_depth: int
    data_hashes: Mapping[str, str]

    @classmethod
    def from_provenance(cls, provenance: Mapping[str, Any]) -> Protocol:
        """Return the protocol among the entries of a provenance.

        Raises:
            ValueError: An entry is missing.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if missing := [name for name in names if name not in provenance]:
            raise ValueError(f"provenance without {', '.join(missing)}; evaluate the run again")
        entries = {name: provenance[name] for name in names}
        return cls(**(entries | {"ks": tuple(provenance["ks"])}))

    def to_provenance(self) -> dict[str, Any]:
        """Return the entries that `from_provenance` reads."""
        return dataclasses.asdict(self)

    def find_differences(self, other: Protocol) -> list[str]:
        """Return a sentence per value or file in which another protocol differs; [] for none."""
        found = []
        for field in dataclasses.fields(self):
            ours, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name != "data_hashes" and ours != theirs:
                found.append(f"{field.name} is {ours!r} in A and {theirs!r} in B")
        for path in sorted({*self.data_hashes, *other.data_hashes}):
            ours, theirs = self.data_hashes.get(path), other.data_hashes.get(path)
            if ours is None or theirs is None:
                found.append(f"{path} was read for {'B' if ours is None else 'A'} only")
            elif ours != theirs:
                found.append(f"{path} has other contents in A ({ours[:12]}) than B ({theirs[:12]})")
        return found
