"""Splits a stream that arrives in pieces into lines."""


class Lines:
    """Collects the pieces of a stream. ``rest`` is the incomplete line at the end."""

    def __init__(self) -> None:
        self.rest = bytearray()

    def add(self, piece: bytes) -> list[bytes]:
        """Return the lines that ``piece`` completes, without line ends."""
        whole, newline, rest = piece.rpartition(b"\n")
        if not newline:
            self.rest += rest
            return []
        lines = bytes(self.rest + whole).split(b"\n")
        self.rest = bytearray(rest)
        return lines
