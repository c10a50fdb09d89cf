"""ROS 2 bag files without ROS: opening them, their messages, and one kind of error for all that can be wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rosbags.interfaces import Connection
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore

from ep2ploc_core.errors import InputError

# The standard messages are the same in every ROS 2 release, so definitions in the bag are not needed, and topics of
# types that nobody knows do no harm.
_STORE = get_typestore(Stores.ROS2_JAZZY)


@contextmanager
def open_bag(path: Path) -> Iterator[Reader]:
    """The bag of a directory with `metadata.yaml`, or of a single `.mcap` or `.db3` file. A bag compressed by file is
    unpacked into the temporary directory for as long as it is open. Raises InputError."""
    if not path.exists():
        raise InputError(f"The bag {path} does not exist.")
    if path.suffix not in (".mcap", ".db3") if path.is_file() else not (path / "metadata.yaml").is_file():
        raise InputError(
            f"{path} is no ROS 2 bag: give the directory that holds metadata.yaml, or a .mcap or .db3 file (convert "
            "ROS 1 bags with rosbags-convert)."
        )
    with _foreign_errors(path):
        bag = Reader(path)
        bag.open()
    try:
        yield bag
    finally:
        bag.close()


def read_messages(
    path: Path, bag: Reader, connections: list[Connection], start: int | None = None, stop: int | None = None
) -> Iterator[tuple[Connection, int, bytes]]:
    """Connection, time of recording in nanoseconds and bytes of each message, not decoded; those recorded before
    `start`, and from `stop` on, are passed over. Raises InputError where the file is cut off or garbled."""
    if not connections:  # which rosbags would take for all of them
        return
    with _foreign_errors(path):
        messages = bag.messages(connections, start=start, stop=stop)
    while True:
        with _foreign_errors(path):
            message = next(messages, None)
        if message is None:
            return
        yield message


def decode(data: bytes, connection: Connection) -> Any:
    """The message of these bytes; raises InputError when they are garbled."""
    try:
        return _STORE.deserialize_cdr(data, connection.msgtype)
    except Exception as error:  # rosbags checks nothing: struct, Unicode, value and index errors mean garbled bytes
        raise InputError(f"A message on {connection.topic} is garbled ({_reason(error)}).") from error


def list_topics(bag: Reader) -> str:
    """All topics with their types, for people."""
    return ", ".join(f"{name} ({info.msgtype})" for name, info in sorted(bag.topics.items())) or "no topics at all"


@contextmanager
def _foreign_errors(path: Path) -> Iterator[None]:
    """A file that is cut off or garbled shows in rosbags as any of a dozen kinds of error: of SQLite, zstd, YAML,
    struct and others. For the user they are one."""
    try:
        yield
    except Exception as error:
        raise InputError(
            f"The bag {path} cannot be read ({_reason(error)}); copy it again, or repair it with `ros2 bag reindex` or "
            "`mcap recover`."
        ) from error


def _reason(error: Exception) -> str:
    lines = str(error).rstrip(".").splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines and lines[0] else type(error).__name__
