"""Media types of files, by name, or by content where the name tells nothing."""

import mimetypes

UNKNOWN = "application/octet-stream"
#: Bytes of a file's beginning that are examined.
HEAD = 4096
#: First bytes of files of each type.
_BEGINNINGS = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"%PDF-", "application/pdf"),
)
#: Without the machine's own tables, so that every worker gives the same type for the same name.
_BY_NAME = mimetypes.MimeTypes()


def guess(name: str, head: bytes) -> str:
    """Return the media type of a file of this name that begins with `head`."""
    return _BY_NAME.guess_type(name)[0] or by_content(head) or UNKNOWN


def by_content(head: bytes) -> str | None:
    """Return the type that the beginning of a file shows: an image, PDF or text; None if it may be anything."""
    found = next((kind for beginning, kind in _BEGINNINGS if head.startswith(beginning)), None)
    if found is None and head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "image/webp"
    return found or ("text/plain" if is_text(head) else None)


def is_text(head: bytes) -> bool:
    """Return whether it is UTF-8 with only the control characters of text; the last character may be cut off."""
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            return False
        text = head[: error.start].decode()
    return bool(text) and all(char.isprintable() or char in "\t\n\r\f\x1b" for char in text)
