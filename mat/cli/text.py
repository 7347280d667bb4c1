"""Text of files, whatever program saved them, and of messages, short and safe to print."""

import codecs
from typing import Any

_MAX_VALUE, _MAX_TEXT = 80, 200  # characters in a message


def decode_text(content: bytes) -> str:
    """The text of a file's bytes: UTF-8, or UTF-16 with a byte-order mark, as Windows programs save it, else a `UnicodeDecodeError`."""
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    text = content.decode(encoding)
    if (position := text.find("\0")) >= 0:
        raise UnicodeDecodeError(encoding, content, position, position + 1, "a zero, as of UTF-16 without a byte-order mark,")
    return text


def format_value(value: Any) -> str:
    """A value as a message shows it: short, and in YAML's words."""
    text = {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else repr(value)
    half = _MAX_VALUE // 2 - 2
    return text if len(text) <= _MAX_VALUE else f"{text[:half]}...{text[-half:]}"


def single_line(text: str) -> str:
    """Text of a file as a message shows it: in one line, short, and without control characters."""
    text = "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 3] + "..."
