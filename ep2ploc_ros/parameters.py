"""Every parameter of every node: declared once, with its type, description and range."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from rcl_interfaces.msg import FloatingPointRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import (
    InvalidParameterTypeException,
    InvalidParameterValueException,
    ParameterImmutableException,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from ep2ploc_core.errors import Ep2plocError, InputError
from ep2ploc_core.localizer_settings import REFINEMENTS

Parameters = TypeVar("Parameters")


def _setting(
    default: Any,
    description: str,
    choices: tuple[str, ...] = (),
    between: tuple[float, float] | None = None,
    changeable: bool = False,
) -> Any:
    metadata = {"description": description, "choices": choices, "between": between, "changeable": changeable}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class MapServerParameters:
    """Parameters of the map_server."""

    map_path: str = _setting("", "Map directory made by `ep2ploc map build`.", changeable=True)
    map_frame: str = _setting("map", "TF frame in which the map's coordinates are given.")
    submap_radius: float = _setting(
        80.0, "Metres of map sent around a requested pose.", (), (10.0, 500.0), changeable=True
    )
    display_points: float = _setting(200_000.0, "Most points in the map_points topic.", (), (1e3, 1e7), changeable=True)


@dataclass(frozen=True)
class LocalizerParameters:
    """Parameters of the localizer."""

    checkpoint: str = _setting(
        "auto", "Network: 'auto' (the one that encoded the map), a name, or a .safetensors file."
    )
    device: str = _setting("auto", "Where the network runs: 'auto', 'cpu' or 'cuda'.")
    tf_mode: str = _setting(
        "map_to_camera",
        "Which transform goes to TF; map_to_base needs base -> camera in TF, map_to_odom also odom -> base.",
        choices=("map_to_camera", "map_to_base", "map_to_odom"),
    )
    map_frame: str = _setting("map", "TF frame of the map.")
    odom_frame: str = _setting("odom", "TF frame of the odometry, for tf_mode map_to_odom.")
    base_frame: str = _setting(
        "base_link",
        "TF frame of the robot, for tf_mode map_to_base and map_to_odom, and for odometry that does not name its own.",
    )
    initial_pose: tuple[float, ...] = _setting(
        (),
        "Pose to start from: x y z in metres and quaternion x y z w in the map frame. Empty: wait for /initialpose.",
        changeable=True,
    )
    initial_pose_of: str = _setting(
        "camera",
        "What initial poses are of: the camera's optical frame (z forward), or the base (x forward, as RViz sends).",
        choices=("camera", "base"),
        changeable=True,
    )
    image_reliability: str = _setting(
        "best_effort",
        "QoS of the image subscription; best_effort takes every publisher.",
        choices=("best_effort", "reliable"),
    )
    least_belief: float = _setting(
        0.7,
        "Images are refused whose pose is right with a lower probability, as far as the evidence tells.",
        between=(0.0, 1.0),
        changeable=True,
    )
    least_score: float = _setting(
        -0.01,
        "Images whose pose has a lower score are refused: the mean log likelihood ratio of the map points' places.",
        between=(-10.0, 10.0),
        changeable=True,
    )
    refine: str = _setting(
        "auto",
        "align: poses are refined by feature alignment, which the network must have learned; align_first: the "
        "predicted pose is, and searched for is only where that is not believed; auto: align where it was learned.",
        choices=REFINEMENTS,
        changeable=True,
    )
    landmarks: bool = _setting(
        True,
        "Features of the mapping images are looked for too, where the map has them: for lost cameras and unsure poses.",
        changeable=True,
    )
    submap_refresh: float = _setting(
        15.0,
        "Metres from the centre of the submap at which the next one is asked for.",
        between=(1.0, 200.0),
        changeable=True,
    )


@dataclass(frozen=True)
class BagPlayerParameters:
    """Parameters of the bag_player."""

    bag: str = _setting("", "Bag directory (mcap or sqlite3) to play.")
    rate: float = _setting(1.0, "Speed of playing: 2.0 is twice as fast as recorded.", between=(0.01, 100.0))
    loop: bool = _setting(False, "Begin again at the end; time then jumps back.")
    wait_for: str = _setting(
        "", "Topics, with spaces between, that must have a subscriber before the start. Empty: the image topics."
    )
    longest_wait: float = _setting(10.0, "Seconds after which it starts all the same.", between=(0.0, 600.0))


@dataclass(frozen=True)
class RecorderParameters:
    """Parameters of the recorder."""

    file: str = _setting("replay.jsonl", "File to write.")


def declare(node: Node, kind: type[Parameters]) -> Parameters:
    """Declares the parameters of a node and returns their values; raises InputError when one cannot be used."""
    values = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        rules = field.metadata
        description = rules["description"]
        if rules["choices"]:
            description += f" One of: {', '.join(rules['choices'])}."
        if not rules["changeable"]:
            description += " Fixed when the node starts."
        # dynamic_typing: `submap_radius: 80` in a YAML file is an integer, and should do.
        descriptor = ParameterDescriptor(
            name=field.name, description=description, read_only=not rules["changeable"], dynamic_typing=True
        )
        if rules["between"]:
            low, high = rules["between"]
            descriptor.additional_constraints = f"between {low:g} and {high:g}"
            descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
        default = list(field.default) or None if isinstance(field.default, tuple) else field.default
        try:
            given = node.declare_parameter(field.name, default, descriptor).value
        except (InvalidParameterTypeException, InvalidParameterValueException, ParameterImmutableException) as error:
            raise InputError(f"The parameter '{field.name}' cannot be used: {error}.") from error
        values[field.name] = checked(field, given)
    return kind(**values)


def follow_changes(node: Node, begin: Parameters, take_over: Callable[[Parameters, set[str]], None]) -> None:
    """Hands every change of parameters to `take_over`: all values as they will be, and the names of those that were
    set. Calls it on the executor's thread; what it raises is the reason for which the change is refused. Changes of
    read-only parameters are refused before by rclpy."""
    fields = {field.name: field for field in dataclasses.fields(begin)}  # type: ignore[arg-type]
    current = begin

    def on_change(parameters: list[Parameter]) -> SetParametersResult:
        nonlocal current
        given = {one.name: one.value for one in parameters if one.name in fields}
        try:
            changed = dataclasses.replace(  # type: ignore[type-var]
                current, **{name: checked(fields[name], value) for name, value in given.items()}
            )
            if given:
                take_over(changed, set(given))
        except (Ep2plocError, OSError, ValueError) as error:
            return SetParametersResult(successful=False, reason=str(error))
        current = changed
        return SetParametersResult(successful=True)

    node.add_on_set_parameters_callback(on_change)


def checked(field: dataclasses.Field, given: Any) -> Any:
    """The value in the type of the field's default; raises InputError when it does not fit the field's rules."""
    default, rules = field.default, field.metadata
    if given is None:
        return default
    number = isinstance(given, (int, float)) and not isinstance(given, bool)
    if isinstance(default, bool):
        right = isinstance(given, bool)
    elif isinstance(default, float):
        right = number and np.isfinite(given)
    elif isinstance(default, tuple):
        right = not isinstance(given, str) and np.ndim(given) == 1 and all(np.isreal(given))
    else:
        right = isinstance(given, str)
    if not right:
        wanted = "list of numbers" if isinstance(default, tuple) else type(default).__name__
        raise InputError(f"The parameter '{field.name}' is {given!r}; give a {wanted}: {rules['description']}")
    value = tuple(float(one) for one in given) if isinstance(default, tuple) else type(default)(given)  # type: ignore[misc]
    if rules["choices"] and value not in rules["choices"]:
        raise InputError(f"The parameter '{field.name}' is '{value}'; give one of {', '.join(rules['choices'])}.")
    if rules["between"] and not rules["between"][0] <= value <= rules["between"][1]:
        low, high = rules["between"]
        raise InputError(f"The parameter '{field.name}' is {value:g}; give a number between {low:g} and {high:g}.")
    return value
