"""Writes topics into a bag, as they come over the wire, where rosbag2 is not installed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosbags.rosbag2 import StoragePlugin, Writer, WriterError
from rosbags.typesys import Stores, get_typestore

from ep2ploc_core.datasets.bag_writer import BAG_VERSION, bag_qos
from ep2ploc_core.errors import InputError

_LATCHED = ("/tf_static",)


class BagRecorder:
    """Subscribes to topics on behalf of a node and writes what comes, with the time of the node's clock."""

    def __init__(self, node: Node, bag: Path, topics: dict[str, type]) -> None:
        """topics: message classes by name. Raises InputError when there is no place for a bag at `bag`."""
        self._node = node
        self._early: list[tuple[Any, bytes]] = []
        try:
            self._writer: Writer | None = Writer(bag, version=BAG_VERSION, storage_plugin=StoragePlugin.MCAP)
            self._writer.open()
        except (WriterError, OSError) as error:
            raise InputError(f"No bag can be written at {bag}: {error}") from error
        store = get_typestore(Stores.ROS2_JAZZY)
        for name, kind in topics.items():
            latched = name in _LATCHED
            topic = node.resolve_topic_name(name)
            connection = self._writer.add_connection(
                topic, _type_name(kind), typestore=store, offered_qos_profiles=[bag_qos(latched)]
            )
            qos = QoSProfile(depth=1000)
            qos.durability = DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE
            node.create_subscription(kind, topic, partial(self._take, connection), qos, raw=True)

    def close(self) -> None:
        """Ends the bag; without this it cannot be read."""
        if self._writer is not None:
            self._write_early(1)  # the clock never ran
            self._writer.close()
            self._writer = None

    def _take(self, connection: Any, raw: bytes) -> None:
        now = self._node.get_clock().now().nanoseconds
        if self._writer is None:
            return
        if not now:  # simulated time has not begun
            self._early.append((connection, raw))
            return
        self._write_early(now)
        self._writer.write(connection, now, raw)

    def _write_early(self, now: int) -> None:
        assert self._writer is not None
        for connection, raw in self._early:
            self._writer.write(connection, now, raw)
        self._early.clear()


def _type_name(kind: type) -> str:
    return f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}"
