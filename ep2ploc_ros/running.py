"""How every node starts and ends: Ctrl-C and SIGTERM end it in order, at once, with exit code 0."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

from ep2ploc_core.errors import Ep2plocError


class RunnableNode(Node):
    """A node that `run` can start and end."""

    finished = False

    def stop(self) -> None:
        """Ends threads of the node's own, and waits for them for a second at most."""


def run(make_node: Callable[[], RunnableNode]) -> NoReturn:
    """Spins a node until it is interrupted or has finished, and ends the process: with exit code 2 and a sentence when
    the node cannot start."""
    rclpy.init()
    node, code = None, 0
    try:
        node = make_node()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while rclpy.ok() and not node.finished:
            executor.spin_once(timeout_sec=0.5)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except Ep2plocError as error:
        print(error, file=sys.stderr)
        code = 2
    except Exception:
        if rclpy.ok():  # else the interruption took away what a callback was working with
            traceback.print_exc()
            code = 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # under `ros2 launch` Ctrl-C comes twice
    if node is not None:
        node.stop()
        node.destroy_node()
    rclpy.try_shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # DDS has left in order by now. Unloading Python and its libraries would take seconds on a busy machine, and would
    # crash under a thread that is deep in a computation.
    os._exit(code)
