"""Text: that of files, whatever program saved them, and that of messages, short and safe to print."""

import codecs
import reprlib

MAX_SHOWN = 80  # characters of a value in a message
MAX_PRINTABLE = 200  # characters of other text in a message

_REPR = reprlib.Repr()  # its cost does not grow with the value
_REPR.maxlevel = 3
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = 20
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = MAX_SHOWN


def decode_text(content):
    """The text of a file's bytes: UTF-8, or UTF-16 with a byte-order mark, as Windows programs save it; the mark is no part of the text.

    Raises:
        UnicodeDecodeError: it is neither, such as UTF-16 without the mark.
    """
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    text = content.decode(encoding)
    if (position := text.find("\0")) >= 0:
        raise UnicodeDecodeError(encoding, content, position, position + 1, "a zero, as of UTF-16 without a byte-order mark,")
    return text


def format_value(value):
    """A value as a message shows it: short, and in YAML's words."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    try:
        text = _REPR.repr(value)
    except ValueError:  # Python prints no integers of thousands of digits
        return "a very large number"
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def single_line(text):
    """Text of a file as a message shows it: in one line, short, and without what would steer a terminal."""
    text = " ".join(text[: 4 * MAX_PRINTABLE].split())
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= MAX_PRINTABLE else text[: MAX_PRINTABLE - 3] + "..."
