"""What kind of file something is: by its name, and where that says nothing, by how it begins."""

import mimetypes

UNKNOWN = "application/octet-stream"
#: Bytes of a file's beginning that are looked at.
HEAD = 4096
#: How files begin, whatever they are called.
_BEGINNINGS = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"%PDF-", "application/pdf"),
)
#: No file of the machine's own: every worker is to say the same of the same name.
_BY_NAME = mimetypes.MimeTypes()


def guess(name: str, head: bytes) -> str:
    """The media type of a file of this name that begins with `head`."""
    return _BY_NAME.guess_type(name)[0] or by_content(head) or UNKNOWN


def by_content(head: bytes) -> str | None:
    """What the beginning of a file shows it to be: an image, PDF or text; None when it may be anything."""
    found = next((kind for beginning, kind in _BEGINNINGS if head.startswith(beginning)), None)
    if found is None and head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "image/webp"
    return found or ("text/plain" if is_text(head) else None)


def is_text(head: bytes) -> bool:
    """Whether it is UTF-8 with no control characters but those of text; a last character may be cut off."""
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            return False
        text = head[: error.start].decode()
    return bool(text) and all(char.isprintable() or char in "\t\n\r\f\x1b" for char in text)
