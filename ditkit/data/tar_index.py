"""What lies where in a .tar shard: a scan of its headers, grouped into samples, and the small file that keeps it."""

from __future__ import annotations

import io
import json
import os
import posixpath
import secrets
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ditkit.data.pictures import ENDINGS, one_line
from ditkit.data.source import DataError

BLOCK = 512
VERSION = 2
LABELS = ("label", "cls")  # names of the label in a sample's .json
PARTS = ("image", "txt", "synthetic.txt", "json")
LINKS = (b"1", b"2")  # hard and symbolic
LONGEST_CHAIN = 40  # links that lead to links, as on Linux
LARGEST_TEXT = 2**20  # bytes of a .cls or .json that is looked into


class Member(NamedTuple):
    """A regular file of a tar: its name, the first byte of its data, their number.

    link: of a hard or symbolic link, the name of the member that it leads to; its offset is -1.
    """

    name: str
    offset: int
    size: int
    link: str = ""


class Shard(NamedTuple):
    """The samples of one .tar file in the order in which their images stand.

    names: (n) of the image members. where: (n, 4, 2) int64, offset and size of the image, .txt, .synthetic.txt and
    .json, -1 where there is none. labels: (n) of .cls, or of the label in .json; "" where there is none. captioned:
    (n,) bool, whether .json has a text or caption. others: endings of what is not read. damage: what is wrong, or "".
    """

    names: tuple[str, ...]
    where: np.ndarray
    labels: tuple[str, ...]
    captioned: np.ndarray
    others: Counter[str]
    damage: str


def read_shard(path: Path) -> Shard:
    """The index of `path`: the one kept beside it where that is of this very file, else of a scan, which it keeps.

    It is kept only where the folder can be written. DataError where the file is no tar archive.
    """
    kept = index_path(path)
    try:
        now = path.stat()
        stamp = [VERSION, now.st_size, now.st_mtime_ns]
        if (found := _load(kept, stamp)) is not None:
            return found
        shard = _group(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or one_line(error)}") from error
    _save(kept, shard, stamp)
    return shard


def index_path(path: Path) -> Path:
    """Where the index of a shard is kept."""
    return path.with_name(f".{path.name}.index.npz")


def scan_tar(path: Path) -> Iterator[Member]:
    """The files and links of an uncompressed tar, in order; reads headers alone. DataError at the first damaged one.

    Knows ustar, GNU long names and pax; directories and devices are passed over. A member that is cut off is
    handed out like any other. Format: POSIX.1-2001 (pax), GNU tar's manual.
    """
    with path.open("rb", buffering=0) as file:
        total, place, extra = os.fstat(file.fileno()).st_size, 0, dict[str, str]()
        if not total:
            raise DataError(f"{path}: an empty file (0 bytes), no tar archive")
        while place < total:
            header = os.pread(file.fileno(), BLOCK, place)
            if header.count(0) == BLOCK:
                return  # the end mark
            if len(header) < BLOCK and place:
                break
            size, kind = _size(header, extra), header[156:157]
            if size is None:
                raise DataError(_broken(path, header, place))
            data, place = place + BLOCK, place + BLOCK + -(-size // BLOCK) * BLOCK
            if kind in (b"L", b"K", b"x"):
                content = os.pread(file.fileno(), min(size, LARGEST_TEXT), data)
                extra |= _pax(content) if kind == b"x" else {"path" if kind == b"L" else "linkpath": _text(content)}
                continue
            if kind in (b"0", b"\0", b"7", *LINKS):
                prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
                name = f"{prefix}/{_text(header[:100])}" if prefix else _text(header[:100])
                name = extra.get("path", name)
                if kind in LINKS:
                    to = extra.get("linkpath", _text(header[157:257]))
                    yield Member(name, -1, 0, to if kind == LINKS[0] else posixpath.join(posixpath.dirname(name), to))
                else:
                    yield Member(name, data, size)
            if kind != b"g":  # which speaks of all others
                extra = {}
        raise DataError(f"{path}: cut off after {total} bytes, its end mark is missing")


def _group(path: Path) -> Shard:
    """Scan and group: one sample an image; what shares its name up to the first dot of the file name belongs to it."""
    members: dict[str, Member] = {}
    damage, twice, lost = "", 0, 0
    try:
        for member in scan_tar(path):
            name = posixpath.normpath(member.name) if member.link else member.name.removeprefix("./")
            if "/." in f"/{name}":  # hidden
                continue
            twice += name in members
            members[name] = member._replace(name=name)
    except DataError as error:
        if not members:
            raise
        damage = str(error).removeprefix(f"{path}: ")
    if twice:
        damage = "; ".join(filter(None, (damage, f"{twice} members stand in it twice, the last one counts")))
    for name, member in [(name, member) for name, member in members.items() if member.link]:
        if (target := _follow(member, members)) is None:
            lost += 1
            del members[name]
        else:
            members[name] = target._replace(name=name)
    if lost:
        damage = "; ".join(filter(None, (damage, f"{lost} links lead to no file in it and are not read")))
    parts: dict[str, dict[str, Member]] = {}
    for name, member in members.items():
        key, ending = split_name(name)
        parts.setdefault(key, {})[ending] = member
    with path.open("rb", buffering=0) as file:
        return _samples(file.fileno(), members, parts, damage)


def _follow(member: Member, members: dict[str, Member]) -> Member | None:
    """The file that a link leads to, over other links too; None where that is not in the archive."""
    found: Member | None = member
    for _ in range(LONGEST_CHAIN):
        if found is None or not found.link:
            return found
        found = members.get(posixpath.normpath(found.link))
    return None


def _samples(number: int, members: dict[str, Member], parts: dict[str, dict[str, Member]], damage: str) -> Shard:
    rows, names, labels, captioned, used = [], [], [], [], set[str]()
    for key, sample in parts.items():
        for ending in _pictures(sample):
            stem = ending.rpartition(".")[0]
            of = [sample.get(f"{stem}.{part}") for part in PARTS[1:]]
            cls = sample.get(f"{stem}.cls")
            label, has_caption = _label(number, cls, of[-1])
            names.append(sample[ending].name)
            labels.append(label)
            captioned.append(has_caption)
            rows.append([(m.offset, m.size) if m else (-1, -1) for m in (sample[ending], *of)])
            used |= {key + ending, *(key + f"{stem}.{part}" for part in (*PARTS[1:], "cls"))}
    others = Counter(split_name(name)[1] or "no ending" for name in members if _lowered(name) not in used)
    where = np.array(rows, dtype=np.int64).reshape(-1, len(PARTS), 2)
    return Shard(tuple(names), where, tuple(labels), np.array(captioned, dtype=bool), others, damage)


def _pictures(sample: dict[str, Member]) -> list[str]:
    """The picture of a sample: 000.jpg, not 000.mask.png beside it; all of them where all names hold more dots."""
    plain = [ending for ending in sample if ending in ENDINGS]
    return plain[:1] or [ending for ending in sample if ending.endswith(ENDINGS)]


def _lowered(name: str) -> str:
    return "".join(split_name(name))


def split_name(name: str) -> tuple[str, str]:
    """('a/b.c.PNG') -> ('a/b', '.c.png'): up to the first dot of the file name, as webdataset groups samples."""
    folder, slash, file = name.rpartition("/")
    stem, dot, ending = file.partition(".")
    return folder + slash + stem, (dot + ending).lower()


def _label(number: int, cls: Member | None, about: Member | None) -> tuple[str, bool]:
    """(label or "", whether .json has a caption)."""
    label = "" if cls is None else os.pread(number, min(cls.size, LARGEST_TEXT), cls.offset).decode(errors="replace")
    if about is None:
        return _clean(label), False
    found = parse_about(os.pread(number, min(about.size, LARGEST_TEXT), about.offset))
    stated = next((found[name] for name in LABELS if found.get(name) not in (None, "")), "")
    return _clean(label) or _clean(str(stated)), bool(found.get("text") or found.get("caption"))


def _clean(text: str) -> str:
    return " ".join(text.replace("\0", " ").split())


def parse_about(data: bytes) -> dict:
    """A sample's .json; empty where it is not a JSON object."""
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _size(header: bytes, extra: dict[str, str]) -> int | None:
    """Bytes of a member's data; None where the header is no header, which its checksum tells (two kinds are known)."""
    if len(header) < BLOCK:
        return None
    rest = header[:148] + b" " * 8 + header[156:]
    try:
        stated, size = _number(header[148:156]), int(extra.get("size") or _number(header[124:136]))
    except ValueError:
        return None
    sound = stated == sum(rest) or stated == sum(rest) - 256 * sum(byte > 127 for byte in rest)
    return size if sound and size >= 0 else None


def _number(field: bytes) -> int:
    """Octal digits, or base 256 where the first bit is set."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    return int(field.split(b"\0")[0].strip() or b"0", 8)


def _pax(content: bytes) -> dict[str, str]:
    """The records 'LENGTH KEY=VALUE' of a pax header, of which path, linkpath and size count here."""
    found: dict[str, str] = {}
    while (length := content.split(b" ", 1)[0]).isdigit() and int(length):
        record, content = content[len(length) + 1 : int(length)], content[int(length) :]
        key, _, value = record.rstrip(b"\n").partition(b"=")
        if key in (b"path", b"linkpath", b"size"):
            found[key.decode()] = _text(value)
    return found


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "surrogateescape")


def _broken(path: Path, header: bytes, place: int) -> str:
    if place == 0:
        packed = header[:2] == b"\x1f\x8b" or header[:3] == b"BZh" or header[:4] in (b"\xfd7zX", b"\x28\xb5\x2f\xfd")
        why = "it is compressed, which allows no random access: unpack it to a plain .tar" if packed else "no header"
        return f"{path}: not a tar archive ({why})"
    return f"{path}: damaged at byte {place}: what follows is not read"


def _load(kept: Path, stamp: list[int]) -> Shard | None:
    """The kept index, if it is there, whole, and of the file as it is now."""
    try:
        with np.load(kept, allow_pickle=False) as stored:
            if stored["stamp"].tolist() != stamp:
                return None
            about = json.loads(stored["about"].tobytes())
            shard = Shard(
                _split(stored["names"]), stored["where"], _split(stored["labels"]), stored["captioned"],
                Counter(about["others"]), about["damage"],
            )  # fmt: skip
    except Exception:  # none, another version's, torn: numpy, zip and JSON each raise their own kinds
        return None
    count = len(shard.where)
    return shard if len(shard.names) == len(shard.labels) == len(shard.captioned) == count else None


def _save(kept: Path, shard: Shard, stamp: list[int]) -> None:
    """Keep the index; under a name of its own until it is whole, since several processes may write it at once."""
    draft = kept.with_name(f"{kept.name}.{secrets.token_hex(4)}.part")
    about = json.dumps({"others": shard.others, "damage": shard.damage}).encode()
    content = io.BytesIO()
    np.savez(
        content, stamp=np.array(stamp, dtype=np.int64), names=_join(shard.names), where=shard.where,
        labels=_join(shard.labels), captioned=shard.captioned, about=np.frombuffer(about, dtype=np.uint8),
    )  # fmt: skip
    try:
        draft.write_bytes(content.getvalue())
        os.replace(draft, kept)
    except OSError:  # a folder that cannot be written, or a full disk: the next run scans again
        try:
            draft.unlink(missing_ok=True)
        except OSError:
            return


def _join(texts: tuple[str, ...]) -> np.ndarray:
    return np.frombuffer("".join(text + "\0" for text in texts).encode("utf-8", "surrogateescape"), dtype=np.uint8)


def _split(stored: np.ndarray) -> tuple[str, ...]:
    return tuple(stored.tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1])
