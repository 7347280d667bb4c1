"""The kind of a file, told by its first bytes."""

import re

HEAD = 512  # bytes by which the kind of a file is told
ZIP, JPEG, PNG, LFS = "a zip archive", "a JPEG image", "a PNG image", "a Git LFS pointer, not the file itself"
UNKNOWN = "of no known kind"
_KINDS = (
    (rb"\Z", "empty"),
    (rb"\0+\Z", "nothing but zeros"),
    (rb"\xff\xd8\xff", JPEG),
    (rb"\x89PNG\r\n\x1a\n", PNG),
    (rb"GIF8", "a GIF image"),
    (rb"BM.{4}\0{4}", "a BMP image"),
    (rb"RIFF.{4}WEBP", "a WebP image"),
    (rb"II\*\0|MM\0\*", "a TIFF image"),
    (rb".{4}ftyp(hei|mif|avi)", "a HEIC or AVIF image"),
    (rb"PK(\x03\x04|\x05\x06|\x07\x08)", ZIP),
    (rb".{257}ustar", "a tar archive"),
    (rb"\x1f\x8b", "a gzip archive"),
    (rb"BZh", "a bzip2 archive"),
    (rb"\xfd7zXZ\0", "an xz archive"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (rb"Rar!\x1a\x07", "a RAR archive"),
    (rb"(?i:(\xef\xbb\xbf)?\s*(<(\?xml|!--|!doctype svg).*?)?<svg)", "an SVG drawing, which Pillow does not read"),
    (rb"(?i:(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|\?xml|!--))", "an HTML page"),
    (rb"version https://git-lfs", LFS),
    (rb"(\xff\xfe|\xfe\xff)|[^\0-\x08\x0e-\x1a\x1c-\x1f]+\Z", "text"),
)


def kind_of_file(content: bytes) -> str:
    """What a file is by its bytes, of which the first `HEAD` are enough, in words such as "a GIF image" or "empty"."""
    return next((kind for start, kind in _KINDS if re.match(start, content[:HEAD], re.DOTALL)), UNKNOWN)
