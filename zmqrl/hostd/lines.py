"""Lines out of a stream that comes in pieces. Standard library only."""


class Lines:
    """Gathers pieces; ``rest`` is the line that is not complete yet."""

    def __init__(self) -> None:
        self.rest = bytearray()

    def add(self, piece: bytes) -> list[bytes]:
        """The lines that ``piece`` completes, without their ends."""
        whole, newline, rest = piece.rpartition(b"\n")
        if not newline:
            self.rest += rest
            return []
        lines = bytes(self.rest + whole).split(b"\n")
        self.rest = bytearray(rest)
        return lines
