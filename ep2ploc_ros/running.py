"""How every node starts and ends: Ctrl-C and SIGTERM end it in order, at once, with exit code 0."""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from ep2ploc_core.errors import Ep2plocError

_LOOK_SECONDS = 0.1  # Python hears of a signal between two waits only


class RunnableNode(Node):
    """A node that `run` can start and end."""

    finished = False

    def stop(self) -> None:
        """Ends threads of the node's own, and waits for them for a second at most."""


class _Interruption:
    """Ctrl-C and SIGTERM, as often as they come: under `ros2 launch` Ctrl-C comes twice. They interrupt the start of a
    node; once it has started they only leave word, so that no callback is broken off in the middle of what it writes.

    rclpy's own handlers would shut the context down under the callbacks, and leave the end of the log unwritten."""

    def __init__(self) -> None:
        self.came = False
        self.starting = True
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, self._take)

    def _take(self, number: int, frame: FrameType | None) -> None:
        first, self.came = not self.came, True
        if first and self.starting:
            raise KeyboardInterrupt


def run(make_node: Callable[[], RunnableNode]) -> NoReturn:
    """Spins a node until it is interrupted or has finished, and ends the process: with exit code 2 and a sentence when
    the node cannot start, 1 and a traceback when it fails."""
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    interruption = _Interruption()
    node, code = None, 0
    try:
        node = make_node()
        interruption.starting = False
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while not interruption.came and rclpy.ok() and not node.finished:
            executor.spin_once(timeout_sec=_LOOK_SECONDS)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except Ep2plocError as error:
        print(error, file=sys.stderr)
        code = 2
    except Exception:
        traceback.print_exc()
        code = 1
    interruption.starting = False
    if node is None:
        gc.collect()  # what was half made, with its hold on DDS
        rclpy.try_shutdown()
        sys.exit(code)
    for end in (node.stop, node.destroy_node):
        try:
            end()
        except Exception:
            traceback.print_exc()
            code = 1
    rclpy.try_shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # DDS has left in order by now. Unloading Python and its libraries would take seconds on a busy machine, and would
    # crash under a thread that is deep in a computation.
    os._exit(code)
