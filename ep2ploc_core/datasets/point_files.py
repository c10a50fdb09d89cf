"""Point cloud files: `.pcd` (ascii, binary, binary_compressed) and `.ply` (ascii, binary of either byte order).

What a header promises is held against the file's size before anything is read. Binary files are memory-mapped and
ASCII ones read line by line, so only one chunk is in memory at a time; a binary_compressed PCD is one compressed block
and lies in memory as a whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ep2ploc_core.datasets.lzf import LONGEST_REFERENCE, decompress
from ep2ploc_core.datasets.trajectory import FARTHEST_PLACE
from ep2ploc_core.errors import InputError

# Names under which programs write intensity; CloudCompare's is scalar_Intensity.
INTENSITY_NAMES = ("intensity", "reflectance", "reflectivity", "i", "scalar_intensity")
_LONGEST_LINE = 1 << 16
_MOST_LINES = 4096  # of a header
_PLY_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8",
}  # fmt: skip


@dataclass(frozen=True)
class Field:
    """One number or array of `count` numbers of each point. `kind`: numpy type code such as `f4`; `start`: bytes before
    it in a point's record; `column`: numbers before it in a point's line."""

    name: str
    kind: str
    count: int
    start: int
    column: int


@dataclass(frozen=True)
class PointFile:
    """What the header of a point file tells. `encoding`: ascii, binary, or lzf; `byte_order`: `<` or `>`; `data`: where
    the points begin, in bytes. `viewpoint` `(3,)`: the place of PCD's VIEWPOINT, None where that is the identity."""

    path: Path
    count: int
    fields: tuple[Field, ...]
    encoding: str
    byte_order: str
    data: int
    viewpoint: np.ndarray | None = None

    @property
    def has_intensity(self) -> bool:
        """Whether the points carry an intensity under any of its names."""
        return len(self._wanted()) == 4

    @property
    def record_size(self) -> int:
        """Bytes of a point in a binary file."""
        return sum(_size(field) for field in self.fields)

    def chunks(self, size: int, first: int = 0) -> Iterator[np.ndarray]:
        """The points, `size` at a time from chunk number `first` on, as `(n, 4)` float64: x, y, z in metres and the
        intensity as it stands in the file (0 without one). Nothing is dropped or scaled."""
        if self.encoding == "ascii":
            yield from self._ascii_chunks(size, first)
            return
        for points in self._binary_chunks(size, first):
            out = np.zeros((len(points), 4))
            with np.errstate(invalid="ignore"):  # NaN of the signalling kind stays NaN
                for column, field in enumerate(self._wanted()):
                    out[:, column] = points[field.name]
            yield out

    def _wanted(self) -> list[Field]:
        """The fields x, y, z and, if there is one, intensity."""
        by_name = {field.name: field for field in reversed(self.fields)}
        names = ("x", "y", "z", next((name for name in INTENSITY_NAMES if name in by_name), ""))
        return [by_name[name] for name in names if name in by_name]

    def _binary_chunks(self, size: int, first: int) -> Iterator[np.ndarray]:
        wanted = self._wanted()
        points: np.ndarray
        if self.encoding == "lzf":
            block = self._unpacked()
            points = np.zeros(self.count, [(field.name, field.kind) for field in wanted])
            for field in wanted:  # all x, then all y, and so on
                column = np.frombuffer(block, "<" + field.kind, self.count * field.count, self.count * field.start)
                points[field.name] = column[:: field.count]
        else:
            names, starts = [field.name for field in wanted], [field.start for field in wanted]
            kinds = [self.byte_order + field.kind for field in wanted]
            record = np.dtype({"names": names, "formats": kinds, "offsets": starts, "itemsize": self.record_size})
            points = np.memmap(self.path, record, "r", self.data, (self.count,))
        for start in range(first * size, self.count, size):
            yield points[start : start + size]

    def _unpacked(self) -> bytes:
        with self.path.open("rb") as stream:
            stream.seek(self.data)
            compressed, plain = np.frombuffer(stream.read(8), "<u4").tolist()
            try:
                return decompress(stream.read(compressed), plain)
            except ValueError as error:
                raise InputError(f"The points of {self.path} cannot be unpacked: {error}; copy it again.") from error

    def _ascii_chunks(self, size: int, first: int) -> Iterator[np.ndarray]:
        wanted = [field.column for field in self._wanted()]
        with self.path.open("rb") as stream:
            stream.seek(self.data)
            lines = (line for line in iter(lambda: stream.readline(_LONGEST_LINE), b"") if line.strip())
            for _ in itertools.islice(lines, first * size):
                pass
            for start in range(first * size, self.count, size):
                length = min(size, self.count - start)
                text = list(itertools.islice(lines, length))
                if len(text) < length:
                    raise _cut_off(self.path, f"{self.count} points", f"{start + len(text)}")
                try:
                    values = np.loadtxt(text, usecols=wanted, ndmin=2, comments=None, encoding="latin-1")
                except (ValueError, IndexError) as error:
                    reason = str(error).splitlines()[0]
                    raise InputError(
                        f"The points of {self.path} after number {start} cannot be read ({reason}); write it again."
                    ) from error
                out = np.zeros((length, 4))
                out[:, : len(wanted)] = values
                yield out


def open_point_file(path: Path | str) -> PointFile:
    """Reads the header of a `.pcd` or `.ply` file; raises InputError when it is none, lacks x, y and z as float32 or
    float64, or promises more than the file holds."""
    path = Path(path)
    reader = {".pcd": _read_pcd_header, ".ply": _read_ply_header}.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path} is no point cloud file; give a .pcd or a .ply.")
    try:
        with path.open("rb") as stream:
            file = reader(path, stream)
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"The point cloud {path} cannot be read: {error.strerror}.") from error
    _check_fields(file)
    _check_size(file, size)
    return file


def _read_pcd_header(path: Path, stream: BinaryIO) -> PointFile:
    entries: dict[str, list[str]] = {}
    for line in _header_lines(path, stream):
        name, *values = line.split() or [""]
        if name and not name.startswith("#"):
            entries[name.upper()] = values
        if name.upper() == "DATA":
            break
    encoding = {"ascii": "ascii", "binary": "binary", "binary_compressed": "lzf"}.get(" ".join(entries["DATA"]).lower())
    if encoding is None:
        raise InputError(f"The header of {path} names the data '{' '.join(entries['DATA'])}', which no PCD file has.")
    try:
        names = entries.get("FIELDS", entries.get("COLUMNS", []))
        counts = [int(count) for count in entries.get("COUNT", ["1"] * len(names))]
        kinds = [
            {"I": "i", "U": "u", "F": "f"}[kind] + str(int(size))
            for kind, size in zip(entries["TYPE"], entries["SIZE"], strict=True)
        ]
        fields = _laid_out(names, kinds, counts)
        width, height = int(entries["WIDTH"][0]), int(entries.get("HEIGHT", ["1"])[0])
        count = int(entries.get("POINTS", [str(width * height)])[0])
        viewpoint = _pcd_viewpoint([float(value) for value in entries.get("VIEWPOINT", [])])
    except (KeyError, ValueError, IndexError, OverflowError) as error:
        raise InputError(
            f"The header of {path} is not that of a PCD file ({_reason(error)}); write it again."
        ) from error
    if count != width * height:
        raise InputError(
            f"The header of {path} contradicts itself: WIDTH {width} x HEIGHT {height} are not POINTS {count}; write "
            "it again."
        )
    return PointFile(path, count, fields, encoding, "<", stream.tell(), viewpoint)


def _pcd_viewpoint(values: list[float]) -> np.ndarray | None:
    """The place of VIEWPOINT tx ty tz qw qx qy qz, or None where it says nothing."""
    if not values or values == [0, 0, 0, 1, 0, 0, 0]:
        return None
    if len(values) != 7 or not np.isfinite(values).all() or np.abs(values[:3]).max() > FARTHEST_PLACE:
        raise ValueError("its VIEWPOINT is no place in metres and quaternion")
    return np.array(values[:3])


def _read_ply_header(path: Path, stream: BinaryIO) -> PointFile:
    encoding, byte_order, count, element = "", "<", -1, ""
    names, kinds = list[str](), list[str]()
    lines = _header_lines(path, stream)
    if next(lines, "").strip() != "ply":
        raise InputError(f"{path} is no PLY file: it does not begin with 'ply'.")
    try:
        for line in lines:
            words = line.split() or [""]
            if words[0] == "end_header":
                break
            if words[0] == "format":
                encoding, byte_order = {
                    "ascii": ("ascii", "<"),
                    "binary_little_endian": ("binary", "<"),
                    "binary_big_endian": ("binary", ">"),
                }[words[1]]
            elif words[0] == "element":
                if not element and words[1] != "vertex":
                    raise ValueError("its first element is not vertex")
                element = words[1]
                count = int(words[2]) if element == "vertex" else count
            elif words[0] == "property" and element == "vertex":
                if words[1] == "list":
                    raise ValueError("its vertices hold lists")
                names.append(words[2])
                kinds.append(_PLY_TYPES[words[1]])
        if not encoding:
            raise ValueError("it names no format")
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(
            f"The header of {path} is not that of a PLY file of points ({_reason(error)}); write it again."
        ) from error
    fields = _laid_out(names, kinds, [1] * len(names))
    return PointFile(path, count, fields, encoding, byte_order, stream.tell())


def _laid_out(names: list[str], kinds: list[str], counts: list[int]) -> tuple[Field, ...]:
    """The fields one after the other, without gaps."""
    fields, start, column = list[Field](), 0, 0
    for name, kind, count in zip(names, kinds, counts, strict=True):
        fields.append(Field(name.lower(), kind, count, start, column))
        start, column = start + _size(fields[-1]), column + count
    return tuple(fields)


def _size(field: Field) -> int:
    """Bytes of the field in a point's record."""
    return int(field.kind[1:]) * field.count


def _header_lines(path: Path, stream: BinaryIO) -> Iterator[str]:
    """The lines of a header; raises InputError where a line is none of text, or the header has no end."""
    for _ in range(_MOST_LINES):
        line = stream.readline(_LONGEST_LINE)
        if not line.endswith(b"\n") or not line.isascii():
            break
        yield line.decode("ascii")
    raise InputError(f"{path} is no {path.suffix.lower()[1:].upper()} file, or its header is cut off; copy it again.")


def _check_fields(file: PointFile) -> None:
    for field in file.fields:
        if field.kind not in _PLY_TYPES.values() and field.kind not in ("i8", "u8"):
            raise InputError(f"The field {field.name} of {file.path} has a type that does not exist; write it again.")
        if field.count < 1:
            raise InputError(f"The field {field.name} of {file.path} has the length {field.count}; write it again.")
    kinds = {field.name: field.kind for field in reversed(file.fields)}
    if any(kinds.get(name) not in ("f4", "f8") for name in "xyz"):
        raise InputError(f"{file.path} lacks x, y and z as float32 or float64; write the points with them.")
    if file.count < 1:
        raise InputError(f"{file.path} holds no points.")


def _check_size(file: PointFile, size: int) -> None:
    """Raises InputError when the file is smaller than its header promises."""
    held = size - file.data
    numbers = sum(field.count for field in file.fields)
    plain = file.count * file.record_size
    promised = f"{file.count} points"
    if file.encoding == "ascii" and held + 1 < 2 * file.count * numbers:  # a digit and a space for each number
        raise _cut_off(file.path, promised, f"only {held} bytes of text for them")
    if file.encoding == "binary" and held < plain:
        raise _cut_off(file.path, promised, f"{held * file.count // plain}")
    if file.encoding == "lzf":
        with file.path.open("rb") as stream:
            stream.seek(file.data)
            sizes = np.frombuffer(stream.read(8), "<u4").tolist() if held >= 8 else [0, 0]
        if sizes[0] > held - 8 or sizes[1] != plain or 3 * plain > LONGEST_REFERENCE * sizes[0]:
            raise _cut_off(file.path, f"{promised} in {plain} bytes", f"{held} bytes for {sizes[1]}")


def _cut_off(path: Path, promised: str, found: str) -> InputError:
    return InputError(f"The header of {path} promises {promised}, but the file holds {found}; copy it again.")


def _reason(error: Exception) -> str:
    """What an exception found, in a few words."""
    text = str(error).splitlines()[0][:80] if str(error) else ""
    return f"no {text}" if isinstance(error, KeyError) else text or type(error).__name__
