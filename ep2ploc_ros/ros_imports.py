"""The one place that picks cv_bridge, tf2_ros and sensor_msgs_py, or the stand-in where only wheels are installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ep2ploc_ros.standalone import point_cloud2
    from ep2ploc_ros.standalone.cv_bridge import CvBridge
    from ep2ploc_ros.standalone.tf2_ros import (
        Buffer,
        StaticTransformBroadcaster,
        TransformBroadcaster,
        TransformException,
        TransformListener,
    )
else:
    try:
        from cv_bridge import CvBridge
    except ImportError:
        from ep2ploc_ros.standalone.cv_bridge import CvBridge
    try:
        from sensor_msgs_py import point_cloud2
    except ImportError:
        from ep2ploc_ros.standalone import point_cloud2
    try:
        from tf2_ros import (
            Buffer,
            StaticTransformBroadcaster,
            TransformBroadcaster,
            TransformException,
            TransformListener,
        )
    except ImportError:
        from ep2ploc_ros.standalone.tf2_ros import (
            Buffer,
            StaticTransformBroadcaster,
            TransformBroadcaster,
            TransformException,
            TransformListener,
        )

__all__ = [
    "Buffer",
    "CvBridge",
    "StaticTransformBroadcaster",
    "TransformBroadcaster",
    "TransformException",
    "TransformListener",
    "point_cloud2",
]
