"""The `localizer`: says where the camera is in the map, for the newest image.

The executor only puts messages into an inbox; one worker thread takes the newest of each kind and owns all state. While
it works on one image those that arrive replace each other, so it never falls behind.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from std_msgs.msg import Header, String
from std_srvs.srv import Trigger

from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.image_message import camera_from_message
from ep2ploc_core.errors import Ep2plocError, InputError
from ep2ploc_core.localization import Localization
from ep2ploc_core.localizer import Localizer
from ep2ploc_core.localizer_settings import LocalizerSettings
from ep2ploc_core.map.place_index import NO_PLACES
from ep2ploc_core.tracker import State, Tracker
from ep2ploc_ros.clouds import places_from_cloud
from ep2ploc_ros.health import ERROR, WARN
from ep2ploc_ros.image_input import ImageInput, pixels_of
from ep2ploc_ros.inbox import Inbox
from ep2ploc_ros.initial_pose import pose_from_numbers, pose_in_map
from ep2ploc_ros.localizer_health import LocalizerHealth
from ep2ploc_ros.map_info import MapDescription
from ep2ploc_ros.messages import nanoseconds
from ep2ploc_ros.network_choice import device_for, network_for
from ep2ploc_ros.odometry import OdometryInput
from ep2ploc_ros.outputs import Outputs
from ep2ploc_ros.parameters import LocalizerParameters, declare, follow_changes
from ep2ploc_ros.running import RunnableNode, run
from ep2ploc_ros.submap_client import SubmapClient
from ep2ploc_ros.transforms import FORWARD_BASE_FROM_CAMERA, MissingTransformError, Transforms

_NO_INITIAL_POSE = "No initial pose is known; publish one on /initialpose or set the parameter initial_pose."
_LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class LocalizerNode(RunnableNode):
    """Subscriptions and services around a Localizer, a Tracker and the last submap."""

    def __init__(self) -> None:
        super().__init__("localizer")
        self._settings = declare(self, LocalizerParameters)
        self._inbox = Inbox()
        self._health = LocalizerHealth(self, self._inbox)
        transforms = Transforms(
            self, self._settings.tf_mode, self._settings.map_frame, self._settings.odom_frame, self._settings.base_frame
        )
        self._transforms = transforms
        self._outputs = Outputs(self, self._settings.map_frame, transforms)
        self._tracker = Tracker()
        self._localizer: Localizer | None = None
        self._described: MapDescription | None = None
        self._submaps = SubmapClient(
            self, self._settings.map_frame, self._settings.submap_refresh, self._inbox.take_one
        )
        self._health.watch_submaps(self._submaps)
        self._odometry = OdometryInput(self, transforms, self._health)
        self._places = NO_PLACES
        self._camera: Camera | None = None
        self._camera_frame = ""
        self._camera_problem = f"No camera_info has arrived on {self.resolve_topic_name('camera_info')} yet."
        self._image: tuple[Header, np.ndarray] | None = None  # the one to work on next
        self._given = pose_from_numbers(self._settings.initial_pose)  # an initial pose, not yet handed to the tracker
        self._assumed: np.ndarray | None = None  # one of the base, handed over with a guess of where the camera sits
        self._subscribe()
        self._health.report(WARN, "Waiting for the map_server's map_info.")
        self._worker = threading.Thread(target=self._work, name="localizer", daemon=True)
        self._worker.start()

    def stop(self) -> None:
        """Ends the worker, unless it goes on computing for more than a second."""
        self._inbox.close()
        self._worker.join(timeout=1.0)

    # ---- executor thread: nothing but handing over

    def _subscribe(self) -> None:
        ImageInput(self, self._settings.image_reliability, lambda message: self._inbox.put("image", message))
        self._receive(CameraInfo, "camera_info", "camera_info", qos_profile_sensor_data)
        self._receive(PoseWithCovarianceStamped, "/initialpose", "initial_pose", QoSProfile(depth=1))
        self._receive(PointCloud2, "submap", "submap", QoSProfile(depth=2))
        self._receive(PointCloud2, "submap_landmarks", "submap_landmarks", QoSProfile(depth=2))
        self._receive(String, "map_info", "map_info", _LATCHED)
        self._receive(PointCloud2, "map_places", "map_places", _LATCHED)
        self.create_service(Trigger, "~/relocalize", self._on_relocalize)
        self.create_service(Trigger, "~/reset", self._on_reset)
        follow_changes(self, self._settings, self._on_settings)

    def _receive(self, kind: type, topic: str, slot: str, qos: QoSProfile) -> None:
        self.create_subscription(kind, topic, lambda message: self._inbox.put(slot, message), qos)

    def _on_settings(self, changed: LocalizerParameters, names: set[str]) -> None:
        pose = pose_from_numbers(changed.initial_pose)  # refuses what is no pose while somebody waits for an answer
        if (localizer := self._localizer) is not None:  # another thread may replace it
            localizer.check(self._localizer_settings(changed))
        self._inbox.put("settings", changed)
        if "initial_pose" in names:  # also when it is the same one: whoever sets it wants to start from it
            self._inbox.put("initial_pose_parameter", pose)

    def _on_relocalize(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        searchable = self._searchable()
        response.success = searchable or self._tracker.has_initial or self._given is not None
        if response.success:
            self._inbox.put("relocalize", None)
            response.message = "Searching the map." if searchable else "Starting again from the last initial pose."
        else:
            response.message = f"{_NO_INITIAL_POSE} The map has no places to search."
        return response

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._inbox.put("reset", None)
        response.success, response.message = True, "Forgetting all poses."
        return response

    # ---- worker thread

    def _work(self) -> None:
        handlers: dict[str, Callable[[Any], None]] = {
            "settings": self._take_settings,
            "reset": self._reset,
            "relocalize": lambda _: self._relocalize(),
            "initial_pose_parameter": self._take_initial_pose_parameter,
            "map_places": self._take_places,
            "map_info": self._take_map_info,
            "camera_info": self._take_camera_info,
            "submap": self._submaps.take,
            "submap_landmarks": self._submaps.take_landmarks,
            "initial_pose": self._take_initial_pose,
            "image": self._take_image,
        }
        while not self._inbox.closed:
            news = self._inbox.take(timeout=0.5)
            for kind, handler in handlers.items():
                if kind in news:
                    self._guarded(handler, news[kind])
            if self._image is not None and self._localizer is not None:
                self._guarded(lambda waiting: self._advance(*waiting), self._image)

    def _guarded(self, handler: Callable[[Any], None], item: Any) -> None:
        """A message may hold anything: whatever it causes becomes a diagnostic, and the node goes on."""
        try:
            handler(item)
        except Exception as error:
            if self._inbox.closed:  # the node is ending, which takes away what the handler was working with
                return
            if isinstance(error, InputError):
                self._health.reject(str(error))
            known = isinstance(error, Ep2plocError)
            self._health.report(WARN if known else ERROR, str(error) if known else f"{type(error).__name__}: {error}")

    def _reset(self, _: None) -> None:
        self._tracker.reset()
        self._outputs.clear_path()
        self._assumed = None
        self._given = pose_from_numbers(self._settings.initial_pose)
        self._health.report(WARN, "Reset.", state=self._tracker.state.value)

    def _relocalize(self) -> None:
        """Searches the map, or where it cannot be searched starts from the last initial pose."""
        if self._searchable():
            self._tracker.forget()
            self._given = self._assumed = None
        else:
            self._tracker.restart()
        self._outputs.clear_path()

    def _searchable(self) -> bool:
        localizer = self._localizer  # another thread may replace it
        return localizer is not None and localizer.places is not None

    def _take_settings(self, changed: LocalizerParameters) -> None:
        self._settings = changed
        self._submaps.refresh = changed.submap_refresh
        if self._localizer is None:
            self._open_map()  # perhaps this was what it could not be opened with
            return
        try:
            self._localizer.settings = self._localizer_settings(changed)
            self._use_places()
        except Ep2plocError as error:  # they were set before the network was known that cannot do it
            self._localizer = None
            self._health.report(ERROR, f"{error}")

    def _take_initial_pose_parameter(self, pose: np.ndarray | None) -> None:
        self._given = pose

    @staticmethod
    def _localizer_settings(parameters: LocalizerParameters) -> LocalizerSettings:
        return LocalizerSettings(
            least_score=parameters.least_score,
            least_belief=parameters.least_belief,
            refine=parameters.refine,
            landmarks=parameters.landmarks,
        )

    def _take_initial_pose(self, message: PoseWithCovarianceStamped) -> None:
        self._given = pose_in_map(message, self._settings.map_frame)
        if self._localizer is not None:
            self._submaps.ensure(message.header, self._given)

    def _take_map_info(self, message: String) -> None:
        described = MapDescription.from_message(message)
        if described == self._described:
            return
        if self._described is not None and self._described.path != described.path:
            self._tracker.reset()  # a pose in another map says nothing about this one
            self._outputs.clear_path()
        self._described = described
        self._open_map()

    def _open_map(self) -> None:
        """Makes the localizer for the map that was described last, or says why it cannot."""
        described, self._localizer = self._described, None
        if described is None:
            return
        try:
            network = network_for(described, self._settings.checkpoint)
            device = device_for(self._settings.device)
            settings = self._localizer_settings(self._settings)
            submaps = self._submaps.begin(
                network.fingerprint, described.voxel_size, settings.landmarks and described.landmarks > 0
            )
            self._localizer = Localizer(network, submaps, device, settings)
        except Exception as error:
            self._health.report(ERROR, f"{error}")  # stays until the map or a parameter is put right
            return
        self._use_places()
        values = {
            "map": described.path,
            "checkpoint": described.checkpoint,
            "device": device,
            "places": described.places,
        }
        self._health.report(WARN, "Ready; waiting for images.", **values)

    def _take_places(self, message: PointCloud2) -> None:
        self._places = NO_PLACES  # also when the new ones are of no use
        self._use_places()
        self._places = places_from_cloud(message)
        self._use_places()

    def _use_places(self) -> None:
        """Gives the localizer its map's places once both are here; they come as two messages, in any order."""
        if self._localizer is not None and self._described is not None:
            fit = len(self._places) == self._described.places > 0
            fit &= self._places.is_learned or self._settings.landmarks
            self._localizer.places = self._places if fit else None

    def _take_camera_info(self, message: CameraInfo) -> None:
        try:
            self._camera, self._camera_frame = camera_from_message(message), message.header.frame_id
        except InputError as error:
            self._camera, self._camera_problem = None, str(error)
            raise

    def _take_image(self, message: Image | CompressedImage) -> None:
        # Read before its stamp is believed: that of a broken image would make time jump.
        image = (message.header, pixels_of(message))
        if self._image is not None:  # it waited for a submap
            self._inbox.count_dropped("image")
        self._image = image

    def _advance(self, header: Header, image: np.ndarray) -> None:
        """Works on the image that waits, unless it has to wait on for a submap."""
        assert self._localizer is not None
        self._hand_over_initial_pose(header.frame_id)
        motion = self._motion(header)
        prior = self._tracker.predict(nanoseconds(header.stamp), motion)
        if self._localizer.places is not None and self._tracker.wants_search():
            prior = None
        elif prior is not None and not self._submaps.ensure(header, prior):
            self._health.report(WARN, "Waiting for a submap from the map_server.")
            return
        self._image = None
        self._health.unanswered(nanoseconds(header.stamp))  # until it is
        if prior is None and self._localizer.places is None:
            self._health.report(WARN, _NO_INITIAL_POSE)
            return
        if self._camera is None:
            self._health.report(WARN, self._camera_problem)
            return
        self._health.camera_frames(header.frame_id, self._camera_frame)
        if motion is not None:
            self._health.odometry_is_used(prior is None, self._tracker.doubts)
        found = self._localizer.localize(image, self._camera, prior)
        self._settle(header, image, self._camera, found, prior is None, motion)

    def _motion(self, header: Header) -> np.ndarray | None:
        """How the camera moved since the pose that the tracker has, where the odometry tells."""
        return self._odometry.camera_motion(self._tracker.motion_wanted(nanoseconds(header.stamp)), header.frame_id)

    def _settle(
        self,
        header: Header,
        image: np.ndarray,
        camera: Camera,
        found: Localization,
        searched: bool,
        motion: np.ndarray | None,
    ) -> None:
        """Tells the tracker, the diagnostics and the listeners what became of an image."""
        stamp, believed = nanoseconds(header.stamp), False
        if found.status == "ok" and found.map_from_camera is not None:
            believed = self._tracker.accept(stamp, found.map_from_camera, searched, motion)
        else:
            self._tracker.refuse()
        self._health.settled(stamp, found, self._tracker, believed)
        if believed:
            assert self._localizer is not None
            self._outputs.publish(header, image, camera, found, self._localizer.point_map)

    def _hand_over_initial_pose(self, camera_frame: str) -> None:
        """The initial pose that was given last. One of the base that came before TF told where the camera sits on it is
        handed over once more when TF does, unless the camera was found all the same."""
        again = self._given is None
        given = self._assumed if again else self._given
        if given is None or (again and self._tracker.state != State.INITIALIZING):
            return
        base_from_camera, self._assumed = np.eye(4), None
        if self._settings.initial_pose_of == "base":
            try:
                base_from_camera = self._transforms.base_from_camera(camera_frame, "initial_pose_of base")
            except MissingTransformError as error:
                self._assumed = given
                if again:
                    return
                base_from_camera = FORWARD_BASE_FROM_CAMERA
                self._health.remark(f"The camera is taken to look along the robot's x axis: {error}")
        self._given = None
        self._tracker.set_initial(given @ base_from_camera)


def main() -> int:
    """Entry point of the executable."""
    # A second thread hardly makes an image faster; where the other cores have work it waits for them and makes it slow.
    torch.set_num_threads(1)
    return run(LocalizerNode)


if __name__ == "__main__":
    sys.exit(main())
