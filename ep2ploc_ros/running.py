"""How every node starts and ends: Ctrl-C and SIGTERM end it in order, with exit code 0."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

from ep2ploc_core.errors import Ep2plocError


class RunnableNode(Node):
    """A node that `run` can start and end."""

    finished = False

    def stop(self) -> bool:
        """Ends threads of the node's own; False when one was still computing after a second."""
        return True


def run(make_node: Callable[[], RunnableNode]) -> int:
    """Spins a node until it is interrupted or has finished. Returns the exit code: 2 when it cannot start."""
    rclpy.init()
    node = None
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
        return 2
    finally:
        idle = node is None or node.stop()
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
        if not idle:
            # A thread is deep in a computation; unloading Python under it would crash. DDS has left in order by now.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
    return 0
