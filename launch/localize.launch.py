"""map_server and localizer, and when asked for a bag player and RViz.

ros2 launch ep2ploc_ros localize.launch.py map:=MAP image:=/camera/image camera_info:=/camera/camera_info
"""

import os

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription

PACKAGE = "ep2ploc_ros"
SHARE = get_package_share_directory(PACKAGE)
ARGUMENTS = {
    "map": ("", "Map directory made by `ep2ploc map build`."),
    "params": (os.path.join(SHARE, "config", "kitti.yaml"), "YAML file with the parameters of the nodes."),
    "image": ("/camera/image", "Topic of the camera images; IMAGE/compressed is used where only that is published."),
    "camera_info": ("/camera/camera_info", "Topic of their calibration."),
    "odom": ("odom", "Topic of the robot's odometry (nav_msgs/Odometry), if it has any."),
    "checkpoint": ("", "Network: a name or a .safetensors file. Empty: as in the parameter file."),
    "use_sim_time": ("", "true or false. Empty: true when a bag is played."),
    "bag": ("", "Bag to play from here, with simulated time."),
    "rviz": ("false", "true: show it in RViz."),
    "namespace": ("", "Namespace of the nodes."),
    "one_host": ("", "true: all nodes are on this machine, use shared memory. Empty: true when a bag is played."),
}


def generate_launch_description() -> LaunchDescription:
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=_start)])


def _start(context: LaunchContext) -> list:
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    with_bag = "true" if given["bag"] else "false"
    sim_time = (given["use_sim_time"] or with_bag).lower() == "true"
    common = {"namespace": given["namespace"], "output": "screen"}
    clock = {"use_sim_time": sim_time}
    map_path = {"map_path": given["map"]} if given["map"] else {}
    checkpoint = {"checkpoint": given["checkpoint"]} if given["checkpoint"] else {}
    actions: list = []
    if (given["one_host"] or with_bag).lower() == "true":
        actions += _shared_memory()
    actions += [
        Node(
            package=PACKAGE,
            executable="map_server",
            name="map_server",
            parameters=[given["params"], clock, map_path],
            **common,
        ),
        Node(
            package=PACKAGE,
            executable="localizer",
            name="localizer",
            parameters=[given["params"], clock, checkpoint],
            remappings=[(name, given[name]) for name in ("image", "camera_info", "odom")],
            **common,
        ),
    ]
    if given["rviz"].lower() == "true":
        config = os.path.join(SHARE, "config", "ep2ploc.rviz")
        actions.append(
            Node(package="rviz2", executable="rviz2", arguments=["-d", config], parameters=[clock], **common)
        )
    if given["bag"]:
        bag = {"bag": given["bag"]}
        actions.append(Node(package=PACKAGE, executable="bag_player", name="bag_player", parameters=[bag], **common))
    return actions


def _shared_memory() -> list:
    """The profile for nodes on one machine, unless the user has set one."""
    profile = os.path.join(SHARE, "config", "fastdds_shm.xml")
    names = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")  # until Jazzy, from Kilted on
    return [SetEnvironmentVariable(name, profile) for name in names if name not in os.environ]
