"""What a node says about itself: a line in its log and an entry in /diagnostics, once a second."""

from __future__ import annotations

import threading

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
_REPEAT_SECONDS = 5.0
_LONGEST = 500  # characters: a sentence may quote what came in a message


class Health:
    """The state of one node, published as its heartbeat.

    The heartbeat runs on wall time, so that it goes on when simulated time stands still.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._clock = Clock(clock_type=ClockType.STEADY_TIME)
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._lock = threading.Lock()
        self._level, self._message = WARN, "starting"
        self._values = {"messages_rejected": "0"}
        self._rejected = 0
        self._logged: dict[str, int] = {}
        node.create_timer(1.0, self._beat, clock=self._clock)

    def report(self, level: bytes, message: str, **values: object) -> None:
        """Sets the state; what is not OK goes into the log too, the same sentence at most once in five seconds."""
        message = message[:_LONGEST]
        with self._lock:
            self._level, self._message = level, message
        self.note(**values)
        if level != OK:
            self._log(level, message)

    def reject(self, message: str) -> None:
        """Says that a message was turned down, counts it, and leaves the state as it is."""
        with self._lock:
            self._rejected += 1
        message = message[:_LONGEST]
        self.note(messages_rejected=self._rejected, last_rejected=message)
        self.remark(message)

    def remark(self, message: str) -> None:
        """Says something in the log alone, the same sentence at most once in five seconds."""
        self._log(WARN, message)

    def live_values(self) -> dict[str, object]:
        """Values that change while nothing happens; asked for at each heartbeat, on the executor's thread."""
        return {}

    def note(self, **values: object) -> None:
        """Sets values beside the state."""
        with self._lock:
            self._values.update({name: str(value)[:_LONGEST] for name, value in values.items()})

    def _log(self, level: bytes, message: str) -> None:
        now = self._clock.now().nanoseconds
        with self._lock:
            if now - self._logged.get(message, -(10**18)) < _REPEAT_SECONDS * 1e9:
                return
            if len(self._logged) > 100:
                self._logged.clear()
            self._logged[message] = now
        if level == ERROR:
            self._node.get_logger().error(message)
        else:
            self._node.get_logger().warning(message)

    def _beat(self) -> None:
        self.note(**self.live_values())
        with self._lock:
            status = DiagnosticStatus(
                level=self._level,
                name=self._node.get_fully_qualified_name().lstrip("/"),
                hardware_id="",
                message=self._message,
                values=[KeyValue(key=name, value=value) for name, value in self._values.items()],
            )
        array = DiagnosticArray(status=[status])
        array.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(array)
