"""Plays a bag through the real nodes, each a process of its own, and gathers what they said about every image."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ep2ploc_core.errors import Ep2plocError
from ep2ploc_core.evaluation.metrics import error_row
from ep2ploc_core.se3 import pose_error
from ep2ploc_ros.shared_files import shared_file

RECORDED = "replay_bag"  # beside replay.jsonl: what the nodes published
_START_SECONDS = 180.0  # until the nodes are ready; a first start on a busy machine reads a gigabyte of libraries
_QUIET_SECONDS = 3.0  # of silence after the bag until the last image counts as answered
_END_SECONDS = 10.0


@dataclass
class ReplayedImage:
    """What is known of one image of the bag. Poses `(4, 4)`, None where there was none: `truth` from the bag,
    `map_from_camera` from the topic `pose`, `tf` from TF. latency: seconds from the image to its pose. remark: what the
    localizer's diagnostics, which come once a second, said after this image, if it was this one's turn. worked_on: the
    localizer took it up."""

    stamp: int
    truth: np.ndarray | None = None
    map_from_camera: np.ndarray | None = None
    tf: np.ndarray | None = None
    latency: float | None = None
    remark: str = ""
    worked_on: bool = False

    @property
    def status(self) -> str:
        """ok: with a pose. refused: without. dropped: the localizer never worked on it, for a newer one had come, or
        never received it."""
        if self.map_from_camera is not None:
            return "ok"
        return "refused" if self.worked_on else "dropped"


@dataclass
class ReplayResult:
    """The images by stamp, the localizer's last diagnostics values, the nodes' exit codes, the wall time in seconds
    from the first image to the last one or its pose, and the bag of what the nodes published."""

    images: list[ReplayedImage]
    bag: Path
    localizer: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    exit_codes: dict[str, int] = field(default_factory=dict)

    @property
    def truth(self) -> np.ndarray:
        """True poses `(N, 4, 4)` of the images whose truth is known."""
        return np.array([image.truth for image in self.images if image.truth is not None]).reshape(-1, 4, 4)

    @property
    def estimates(self) -> list[np.ndarray | None]:
        """N estimates `(4, 4)` that go with `truth`, None where no pose was published."""
        return [image.map_from_camera for image in self.images if image.truth is not None]

    def rows(self) -> list[dict[str, object]]:
        """A row per image whose truth is known, for `evaluation.metrics.summarize`, which counts those dropped as
        failures in its recalls; seconds are latencies."""
        rows: list[dict[str, object]] = []
        for image in self.images:
            if image.truth is not None:
                seconds = {} if image.latency is None else {"seconds": image.latency}
                errors = error_row(image.map_from_camera, image.truth)
                rows.append({"stamp": image.stamp, "status": image.status, **seconds, **errors})
        return rows

    def summary(self) -> dict[str, object]:
        """How the replay went: counts, rates and latencies in wall time, whether TF and the pose topic agree. Images
        are dropped by the localizer when newer ones replace them, or are not received by it at all."""
        latencies = [image.latency for image in self.images if image.latency is not None]
        pairs = [(image.tf, image.map_from_camera) for image in self.images]
        received, dropped = (int(self.localizer.get(f"images_{what}", 0)) for what in ("received", "dropped"))
        apart = [pose_error(tf, pose)[0] for tf, pose in pairs if tf is not None and pose is not None]
        return {
            "images": len(self.images),
            "poses": len(latencies),
            "transforms": len(apart),
            "tf_differs_from_pose_by_m": round(max(apart, default=0.0), 6),
            "images_dropped": dropped,
            "images_not_received": max(0, len(self.images) - received),
            "images_refused": sum(image.status == "refused" for image in self.images),
            "images_sent_per_second": round(len(self.images) / self.seconds, 2) if self.seconds else None,
            "images_per_second": round((received - dropped) / self.seconds, 2) if self.seconds else None,
            "poses_per_second": round(len(latencies) / self.seconds, 2) if self.seconds else None,
            "latency_p50_s": round(float(np.percentile(latencies, 50)), 3) if latencies else None,
            "latency_p95_s": round(float(np.percentile(latencies, 95)), 3) if latencies else None,
            "exit_codes": self.exit_codes,
        }


def replay(bag: Path, map_path: Path, out: Path, rate: float = 1.0) -> ReplayResult:
    """Plays a bag that `write_kitti_bag` made at `rate` times its speed, through map_server and localizer.

    Leaves in `out` the nodes' logs, `replay.jsonl` and, as a bag, what the nodes published. Raises Ep2plocError when a
    node ends early or never gets ready; the sentence names its log.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    events = out / "replay.jsonl"
    events.unlink(missing_ok=True)
    shutil.rmtree(out / RECORDED, ignore_errors=True)
    environment = _environment()
    camera = {"image": "/camera/image", "camera_info": "/camera/camera_info"}
    with ExitStack() as stack:
        nodes: list[_NodeProcess] = []

        def start(name: str, remaps: dict[str, str] | None = None, **parameters: object) -> _NodeProcess:
            node = stack.enter_context(_NodeProcess(name, environment, out / f"{name}.log", remaps or {}, parameters))
            nodes.append(node)
            return node

        start("recorder", {**camera, "ground_truth/pose": "/ground_truth/pose"}, file=events, use_sim_time=True)
        start("map_server", use_sim_time=True, map_path=Path(map_path).resolve())
        start("localizer", camera, use_sim_time=True, image_reliability="reliable")
        _wait(nodes, lambda: _is_ready(events), "get ready")
        needed = "/camera/image /initialpose /ground_truth/pose"  # localizer and recorder, both
        player = start("bag_player", bag=Path(bag).resolve(), rate=float(rate), wait_for=needed, longest_wait=60.0)
        nodes.remove(player)  # the one that may end
        while player.process.poll() is None:
            _check(nodes)
            time.sleep(0.1)
        _check_player(player)
        _wait(nodes, lambda: time.monotonic() - _last_answer(events) > _QUIET_SECONDS, "fall silent")
    result = _gather(_read(events), out / RECORDED)
    result.exit_codes = {node.name: node.process.returncode for node in [*nodes, player]}
    return result


class _NodeProcess:
    """A node in a process of its own, ended with Ctrl-C when its block ends."""

    def __init__(
        self, name: str, environment: dict[str, str], log: Path, remaps: dict[str, str], parameters: dict[str, object]
    ) -> None:
        self.name, self.log = name, log
        arguments = [word for source, target in remaps.items() for word in ("-r", f"{source}:={target}")]
        arguments += [word for key, value in parameters.items() for word in ("-p", f"{key}:={_yaml(value)}")]
        command = [sys.executable, "-m", f"ep2ploc_ros.{name}_node", "--ros-args", *arguments]
        with log.open("wb") as stream:
            self.process = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)

    def __enter__(self) -> _NodeProcess:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def _environment() -> dict[str, str]:
    """A domain of its own on this machine, with the shared-memory profile; the package is found from a checkout too."""
    path = [str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "ROS_DOMAIN_ID": str(random.SystemRandom().randint(1, 101)),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "FASTRTPS_DEFAULT_PROFILES_FILE": str(shared_file("config/fastdds_shm.xml")),
        "FASTDDS_DEFAULT_PROFILES_FILE": str(shared_file("config/fastdds_shm.xml")),
    }


def _yaml(value: object) -> str:
    """A parameter's value for the command line, which reads it as YAML: paths stay text, whatever they look like."""
    return json.dumps(str(value) if isinstance(value, Path) else value)


def _check(nodes: list[_NodeProcess]) -> None:
    for node in nodes:
        if node.process.poll() is not None:
            raise Ep2plocError(f"The {node.name} ended early with exit code {node.process.returncode}; see {node.log}.")


def _check_player(player: _NodeProcess) -> None:
    if player.process.returncode != 0:
        raise Ep2plocError(f"The bag could not be played (exit code {player.process.returncode}); see {player.log}.")


def _wait(nodes: list[_NodeProcess], condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + _START_SECONDS
    while not condition():
        _check(nodes)
        if time.monotonic() > end:
            raise Ep2plocError(
                f"The nodes did not {what} in {_START_SECONDS:.0f} s; see the logs in {nodes[0].log.parent}."
            )
        time.sleep(0.1)


def _read(events: Path) -> list[dict[str, Any]]:
    """The events so far; a line that is still being written is left for later."""
    if not events.exists():
        return []
    return [json.loads(line) for line in events.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _is_ready(events: Path) -> bool:
    """Whether the localizer waits for images; raises Ep2plocError with its words when it cannot work."""
    said = [one for one in _read(events) if one["kind"] == "diagnostic" and one["level"] == 2]
    if said:
        raise Ep2plocError(f"{said[-1]['node']}: {said[-1]['message']}")
    return any(one["kind"] == "diagnostic" and one["message"].startswith("Ready") for one in _read(events))


def _last_answer(events: Path) -> float:
    return max((one["heard"] for one in _read(events) if one["kind"] in ("image", "pose")), default=0.0)


def _gather(events: list[dict[str, Any]], bag: Path) -> ReplayResult:
    heard: dict[int, float] = {}
    images: dict[int, ReplayedImage] = {}
    localizer: dict[str, str] = {}
    remarks: dict[int, str] = {}
    unanswered: set[int] = set()
    for event in events:
        stamp = event["stamp"]
        if event["kind"] == "image":
            heard.setdefault(stamp, event["heard"])
            images.setdefault(stamp, ReplayedImage(stamp))
        elif event["kind"] == "diagnostic" and event["node"] == "localizer":
            localizer = event["values"]
            remarks[int(localizer.get("image_stamp", 0))] = event["message"]
            unanswered.update(map(int, localizer.get("unanswered_stamps", "").split()))
    for stamp, image in images.items():
        image.remark, image.worked_on = remarks.get(stamp, ""), stamp in unanswered
    for event in events:
        if event["stamp"] not in images or "map_from_camera" not in event:
            continue
        image = images[event["stamp"]]
        pose = np.array(event["map_from_camera"])
        if event["kind"] == "truth":
            image.truth = pose
        elif event["kind"] == "tf":
            image.tf = pose
        else:
            image.worked_on = True
            image.map_from_camera, image.latency = pose, event["heard"] - heard[image.stamp]
    moments = [event["heard"] for event in events if event["kind"] in ("image", "pose")]
    seconds = max(moments) - min(moments) if moments else 0.0
    return ReplayResult([images[stamp] for stamp in sorted(images)], bag, localizer, seconds=seconds)
