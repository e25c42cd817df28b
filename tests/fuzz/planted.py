"""A target with a bug that chance alone does not find: what fuzzing with coverage must find."""

LIBRARIES = (__name__,)


def seeds() -> list[bytes]:
    """Nothing near it."""
    return [b"hello"]


def run(data: bytes) -> None:
    """Fails for what begins with `quire`."""
    if data[:1] != b"q":
        return
    if data[1:2] != b"u":
        return
    if data[2:3] != b"i":
        return
    if data[3:5] == b"re":
        raise RuntimeError("planted")
