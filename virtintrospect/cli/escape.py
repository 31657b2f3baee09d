"""Guest strings are bytes from a stranger: the one place that makes them harmless to show."""

from __future__ import annotations


def printable(text: bytes | str) -> str:
    r"""Text that no terminal, log or parser will take for anything but text.

    Printable UTF-8 stays as it is. Every other byte (control characters, escape sequences,
    invalid UTF-8, bidirectional overrides and other invisible characters) appears as ``\x1b``.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    # Python's way to have a byte of a file's name in text (PEP 383).
    how = "surrogateescape" if "\udc80" <= character <= "\udcff" else "surrogatepass"
    raw = character.encode("utf-8", how)
    return "".join(f"\\x{byte:02x}" for byte in raw)
