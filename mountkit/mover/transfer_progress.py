"""How far a transfer of many files has come: what `warm` and `pull` count alike."""

from __future__ import annotations

from dataclasses import dataclass, field

_NAMED_FAILURES = 5


@dataclass(slots=True)
class TransferProgress:
    """Totals grow while the files are still being listed (`listing`)."""

    files: int = 0
    bytes: int = 0
    files_done: int = 0
    bytes_done: int = 0
    failed: int = 0
    listing: bool = True
    failures: list[str] = field(default_factory=list)
    """What the first few that failed said."""

    def found(self, size_bytes: int) -> None:
        """One more file is to be transferred."""
        self.files += 1
        self.bytes += size_bytes

    def fail(self, sentence: str) -> None:
        """One could not be."""
        self.failed += 1
        if len(self.failures) < _NAMED_FAILURES:
            self.failures.append(sentence)
