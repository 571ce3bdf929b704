"""The one header that a file of a bundle has in an archive: POSIX ustar (IEEE Std 1003.1), written and read strictly.

A reader expects exactly what the writer writes. So there is nothing in an archive that two programs could take for two
different things; what differs is refused, and `refusal` finds the word for it.
"""

from __future__ import annotations

from pipelines.errors import ConfigError
from stages.release.manifest import lies_inside

BLOCK = 512  # bytes
END = bytes(2 * BLOCK)
LARGEST = 8**11 - 1  # bytes of a file: eleven octal digits
KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"5": "a folder's entry",
    b"6": "a FIFO",
    b"7": "a contiguous file",
    b"x": "a pax header, which could rename or resize what follows",
    b"g": "a pax header, which could rename or resize what follows",
    b"S": "a sparse file of GNU tar's",
    b"L": "a long name of GNU tar's",
    b"K": "a long link of GNU tar's",
    b"D": "a folder of GNU tar's",
    b"M": "a part of a file",
    b"V": "a volume's label",
}


def header(path: str, size: int) -> bytes:
    """Return the header of a plain file, 512 bytes. Raises ConfigError for what ustar cannot hold."""
    prefix, name = split(path)
    if size > LARGEST:
        raise ConfigError(f"{path!r}: {size} bytes; an archive holds files of up to {LARGEST}", hint="use the folder")
    block = b"".join(
        (
            name.ljust(100, b"\0"),
            b"0000644\0",  # mode
            b"0000000\0" * 2,  # user and group
            b"%011o\0" % size,
            b"00000000000\0",  # time
            b" " * 8,  # where the sum will be
            b"0".ljust(101, b"\0"),  # a plain file, which links to nothing
            b"ustar\x0000".ljust(72, b"\0"),  # without names of user and group
            b"0000000\0" * 2,  # device
            prefix.ljust(167, b"\0"),
        )
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def split(path: str) -> tuple[bytes, bytes]:
    """Return a path as ustar's prefix (up to 155 bytes) and name (up to 100). Raises ConfigError."""
    whole = path.encode()
    if len(whole) <= 100:
        return b"", whole
    for place, character in enumerate(whole):
        if character == ord("/") and place <= 155 and len(whole) - place - 1 <= 100:
            return whole[:place], whole[place + 1 :]
    raise ConfigError(
        f"{path!r} is too long for an archive: it must split at a '/' into up to 155 and up to 100 bytes",
        hint="use the folder, or shorter names",
    )


def padding(size: int) -> int:
    """How many zeros follow a file of this size, to the end of its last block."""
    return -size % BLOCK


def number(field: bytes) -> int | None:
    """Return a number in octal digits, or in GNU's base 256; None for what is neither."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return None


def path_in(block: bytes) -> str:
    """Return the path that a header names; it may be anything."""
    name, prefix = block[:100].partition(b"\0")[0], block[345:500].partition(b"\0")[0]
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "backslashreplace")


def refusal(block: bytes, expected: str, size: int | None, listed: dict[str, int], seen: set[str]) -> str:
    """Say why a block is not the header of the file that is `expected` there ("": the end is).

    size: of that file; None where any will do. listed: {path: size} by the manifest. seen: the paths before it.
    """
    awaited = f"{expected!r} is expected" if expected else "the end is expected"
    if block == bytes(BLOCK):
        return f"it ends where {awaited}: {expected!r} is missing"
    if block[257:262] != b"ustar":
        return f"no tar header where {awaited}" if expected else "something else follows the last file"
    claimed, total = number(block[124:136]), number(block[148:156])
    if claimed is None or total != sum(block[:148]) + sum(block[156:]) + 8 * ord(" "):
        return f"a damaged header where {awaited}"
    found = path_in(block)
    if block[156:157] not in (b"0", b"\0"):
        kind = KINDS.get(block[156:157], f"an entry of the unknown type {block[156:157]!r}")
        return f"{found!r} is {kind}; only plain files belong into it"
    if found.startswith("/"):
        return f"{found!r} is an absolute path"
    if ".." in found.split("/"):
        return f"{found!r} leads out of the bundle"
    if not lies_inside(found):
        return f"{found!r} is no plain path"
    if found in seen:
        return f"{found!r} stands in it twice"
    if found != expected:
        if not seen:
            return f"its first file is {found!r}, expected {expected!r}"
        if found not in listed:
            return f"{found!r} is not in the manifest"
        return f"{expected!r} is missing, or not in its place: there is {found!r}"
    if size is not None and claimed != size:
        return f"{found!r} is said to have {claimed} bytes, and the manifest says {size}"
    return f"{found!r}: its mode, owner, time or format is not that of an archive of Tapeout's"
