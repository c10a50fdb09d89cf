"""What the localizer says of itself in /diagnostics: how often, how late, how well, and if not, why not.

| key                                      | meaning                                                                  |
|------------------------------------------|--------------------------------------------------------------------------|
| state                                    | initializing, tracking or lost                                           |
| poses_per_second                         | poses published, over the last ten seconds                               |
| latency_seconds                          | from the stamp of the image of the last pose until it was published      |
| seconds                                  | what the last image took to localize                                     |
| matches, inliers, score, belief          | of the last image                                                        |
| landmarks                                | of the last image: features that show one; empty where they gave no pose |
| focal_ratio                              | by what share of its focal length landmarks fit the camera: 1.00, or not |
| refinement                               | of the last image: none, taken and what it cost, or given up and why      |
| sharpening                               | the same of that by the finest features, which follows                   |
| refinements_given_up                     | of all of both that were tried, since the node started                   |
| last_refusal, refused_in_a_row           | why an image was refused the last time, and how many were since a pose   |
| images_received, images_dropped          | dropped: replaced by a newer one before its turn came                    |
| messages_rejected, last_rejected         | messages of any topic that could not be used, and why                    |
| unanswered_stamps                        | of the last images that were worked on and gave no pose, in nanoseconds  |
| image_stamp                              | of the last image that was worked on, in nanoseconds                     |
| submap_age_seconds                       | since the part of the map around the camera came                         |
| odometry_received                        | messages on odom that could be used                                      |
| odometry, last_odometry_jump             | whether odometry made the last prediction, and if not, why               |
| camera_info_frame                        | the frame of camera_info, with a warning where the images' is another    |
| map, checkpoint, device, places          | what is being used                                                       |
"""

from __future__ import annotations

import time
from collections import deque

from rclpy.node import Node

from ep2ploc_core.localization import Localization
from ep2ploc_core.pose.belief import Evidence
from ep2ploc_core.tracker import State, Tracker
from ep2ploc_ros.health import ERROR, OK, WARN, Health
from ep2ploc_ros.inbox import Inbox
from ep2ploc_ros.submap_client import SubmapClient

_RATE_SECONDS = 10.0
_UNANSWERED = 24  # stamps; more than there are images between two heartbeats, and short enough for a value
_GREATEST_LATENCY = 60.0  # seconds; beyond, the clock and the stamps are of different times


class LocalizerHealth(Health):
    """The localizer's entry in /diagnostics."""

    def __init__(self, node: Node, inbox: Inbox) -> None:
        super().__init__(node)
        self._inbox = inbox
        self._published: deque[float] = deque(maxlen=1000)  # when, in monotonic seconds
        self._submaps: SubmapClient | None = None
        self._refined = self._given_up = 0
        self._unanswered: deque[int] = deque(maxlen=_UNANSWERED)
        self.note(state=State.INITIALIZING.value, latency_seconds="no pose yet", last_refusal="none")
        self.note(image_stamp=0, refused_in_a_row=0, seconds="", matches="", inliers="", score="", belief="")
        self.note(landmarks="", focal_ratio="")
        self.note(camera_info_frame="", unanswered_stamps="", refinement="none")
        self.note(sharpening="none", refinements_given_up="0 of 0")

    def watch_submaps(self, submaps: SubmapClient) -> None:
        """Has the age of the submap told too."""
        self._submaps = submaps

    def unanswered(self, stamp: int) -> None:
        """Says that the image of a stamp (ns) was taken up and has no pose, or none yet."""
        self._unanswered.append(stamp)
        self._tell_unanswered()

    def _tell_unanswered(self) -> None:
        self.note(unanswered_stamps=" ".join(map(str, self._unanswered)))

    def camera_frames(self, image_frame: str, info_frame: str) -> None:
        """Tells the frame of camera_info, and warns where the image came in another: it is used all the same."""
        if info_frame in ("", image_frame):
            self.note(camera_info_frame=info_frame)
            return
        problem = (
            f"Images come in the frame '{image_frame}', their camera_info in '{info_frame}'; "
            "if these are two cameras, remap image and camera_info to the same one."
        )
        self.note(camera_info_frame=problem)
        self.remark(problem)

    def odometry_is_used(self, searched: bool, doubted: bool) -> None:
        """Tells whether the odometry, which knows the motion to this image, made the prediction for it."""
        if searched:
            self.note(odometry="not used: the image is searched for in the whole map")
        elif doubted:
            self.note(odometry="not used: after a refusal every other image does without")
        else:
            self.note(odometry="used.")

    def settled(self, stamp: int, found: Localization, tracker: Tracker, believed: bool) -> None:
        """Tells what became of the image of a stamp (ns): a pose that was published, or why there was none."""
        evidence = found.evidence if isinstance(found.evidence, Evidence) else None
        self.note(
            state=tracker.state.value,
            image_stamp=stamp,
            refused_in_a_row=tracker.refusals,
            seconds=f"{found.seconds:.3f}",
            matches=found.num_matches,
            inliers=found.num_inliers,
            score=f"{evidence.score:.3f}" if evidence else "",
            landmarks=evidence.landmarks if evidence and evidence.landmarks is not None else "",
            belief=f"{found.belief:.3f}",
            focal_ratio="" if found.focal_ratio is None else f"{found.focal_ratio:.3f}",
        )
        self._tell_refinements(found)
        if found.reason:
            self.note(last_refusal=found.reason)
        if believed:
            if stamp in self._unanswered:
                self._unanswered.remove(stamp)
            self._tell_unanswered()
            self._published.append(time.monotonic())
            self.note(latency_seconds=self._latency(stamp))
            self.report(OK, "Tracking.")
        elif tracker.state == State.LOST:
            self.report(ERROR, f"Lost: {found.reason or 'waiting for a second pose that agrees'}.")
        elif found.status == "ok":
            self.report(WARN, "Found a pose; waiting for a second one that agrees.")
        else:
            self.report(WARN, f"Image refused: {found.reason}")

    def _tell_refinements(self, found: Localization) -> None:
        self._refined += len(found.refinements)
        self._given_up += sum(bool(one.given_up) for one in found.refinements)
        self.note(
            refinement=found.refinement or "none",
            sharpening=found.sharpening or "none",
            refinements_given_up=f"{self._given_up} of {self._refined}",
        )

    def _latency(self, stamp: int) -> str:
        seconds = (self._node.get_clock().now().nanoseconds - stamp) / 1e9
        if 0 <= seconds < _GREATEST_LATENCY:
            return f"{seconds:.3f}"
        return f"unknown: the clock is {seconds:.1f} s ahead of the image's stamp; for a bag set use_sim_time"

    def live_values(self) -> dict[str, object]:
        """How often poses come, what became of the images, and how old the submap is."""
        now, times = time.monotonic(), tuple(self._published)
        recent = [one for one in times if one > now - _RATE_SECONDS]
        rate = len(recent) / min(_RATE_SECONDS, max(now - times[0], 1.0)) if recent else 0.0
        age = self._submaps.cache.age() if self._submaps is not None else None
        return {
            "poses_per_second": f"{rate:.2f}",
            "images_received": self._inbox.received["image"],
            "images_dropped": self._inbox.dropped["image"],
            "submap_age_seconds": "none" if age is None else f"{age:.1f}",
        }
