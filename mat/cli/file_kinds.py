"""The kind of a file, told by its first bytes."""

import re

HEAD = 512  # bytes by which the kind of a file is told
ZIP, JPEG, PNG, LFS = "a zip archive", "a JPEG image", "a PNG image", "a Git LFS pointer, not the file itself"
UNKNOWN = "of no known kind"
KINDS = (
    (rb"\Z", "empty"),
    (rb"\0+\Z", "nothing but zeros"),
    (rb"\xff\xd8\xff", JPEG),
    (rb"\x89PNG\r\n\x1a\n", PNG),
    (rb"GIF8", "a GIF image"),
    (rb"BM.{4}\0{4}", "a BMP image"),
    (rb"RIFF.{4}WEBP", "a WebP image"),
    (rb"II\*\0|MM\0\*", "a TIFF image"),
    (rb".{4}ftyp(hei|mif|avi)", "a HEIC or AVIF image"),
    (rb"\0\0\0\x0cj(P  |XL )|\xff\x0a|\xff\x4f\xff\x51", "a JPEG 2000 or JPEG XL image"),
    (rb"PK(\x03\x04|\x05\x06|\x07\x08)", ZIP),
    (rb".{257}ustar", "a tar archive"),
    (rb"\x1f\x8b", "a gzip archive"),
    (rb"BZh", "a bzip2 archive"),
    (rb"\xfd7zXZ\0", "an xz archive"),
    (rb"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (rb"Rar!\x1a\x07", "a RAR archive"),
    (rb"(?i:(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|\?xml|!--))", "an HTML page"),
    (rb"\0\x05\x16[\0\x07]", "a macOS resource file"),
    (rb"version https://git-lfs", LFS),
    (rb"(\xff\xfe|\xfe\xff)|[^\0-\x08\x0e-\x1a\x1c-\x1f]+\Z", "text"),
)


def kind_of_file(content):
    """What a file is by its first bytes, in words such as "a GIF image" or "empty".

    Args:
        content: the bytes of the file, or its first `HEAD`.
    """
    return next((kind for start, kind in KINDS if re.match(start, content[:HEAD], re.DOTALL)), UNKNOWN)
