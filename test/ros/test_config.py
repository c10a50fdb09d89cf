"""The files that come with the package fit the nodes: parameters, RViz displays, shared memory, launch file."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from ep2ploc_core.errors import InputError
from ep2ploc_core.localizer_settings import REFINEMENTS, LocalizerSettings
from ep2ploc_ros.parameters import LocalizerParameters, MapServerParameters, checked
from ep2ploc_ros.shared_files import shared_file

ROOT = Path(__file__).parents[2]
# What the nodes publish for display, by topic: RViz display class and durability.
SHOWN = {
    "/map_points": ("rviz_default_plugins/PointCloud2", "Transient Local"),
    "/matched_points": ("rviz_default_plugins/PointCloud2", "Volatile"),
    "/overlay": ("rviz_default_plugins/Image", "Volatile"),
    "/submap": ("rviz_default_plugins/PointCloud2", "Volatile"),
    "/path": ("rviz_default_plugins/Path", "Volatile"),
    "/pose_with_covariance": ("rviz_default_plugins/PoseWithCovariance", "Volatile"),
}


@pytest.mark.parametrize("file", ["kitti.yaml", "rgbd.yaml"])
def test_every_parameter_in_the_file_is_one_of_a_node_and_usable(file: str) -> None:
    given = yaml.safe_load((ROOT / "config" / file).read_text())["/**"]["ros__parameters"]
    fields = {f.name: f for kind in (MapServerParameters, LocalizerParameters) for f in dataclasses.fields(kind)}
    for name, value in given.items():
        checked(fields[name], value)


def test_the_node_refuses_what_the_core_refuses() -> None:
    defaults = {f.name: f.default for f in dataclasses.fields(LocalizerParameters)}
    assert defaults["least_score"] == LocalizerSettings().least_score
    assert defaults["least_belief"] == LocalizerSettings().least_belief
    assert defaults["refine"] == LocalizerSettings().refine


def test_the_node_refines_by_all_that_the_core_can() -> None:
    (refine,) = (f for f in dataclasses.fields(LocalizerParameters) if f.name == "refine")
    assert refine.metadata["choices"] == REFINEMENTS


def test_rviz_shows_what_the_nodes_publish() -> None:
    manager = yaml.safe_load((ROOT / "config" / "ep2ploc.rviz").read_text())["Visualization Manager"]
    assert manager["Global Options"]["Fixed Frame"] == MapServerParameters().map_frame
    shown = {
        display["Topic"]["Value"]: (display["Class"], display["Topic"]["Durability Policy"])
        for display in manager["Displays"]
        if "Topic" in display
    }
    assert shown == SHOWN
    displays = {display["Class"].split("/")[1]: display for display in manager["Displays"]}
    assert displays["TF"]["Enabled"]
    assert displays["PoseWithCovariance"]["Covariance"]["Value"]
    tools = {tool["Class"]: tool for tool in manager["Tools"]}
    assert tools["rviz_default_plugins/SetInitialPose"]["Topic"]["Value"] == "/initialpose"


def test_topics_shown_are_published_by_the_sources() -> None:
    sources = "".join((ROOT / "ep2ploc_ros" / name).read_text() for name in ("outputs.py", "map_server_node.py"))
    for topic in SHOWN:
        assert f'"{topic[1:]}"' in sources


def test_profile_stays_on_this_machine_and_takes_large_messages() -> None:
    profile = ElementTree.parse(shared_file("config/fastdds_shm.xml")).getroot()
    name = "{http://www.eprosima.com}"
    assert [one.text for one in profile.iter(f"{name}address")] == ["127.0.0.1"]
    assert [one.text for one in profile.iter(f"{name}useBuiltinTransports")] == ["false"]
    assert int(next(profile.iter(f"{name}maxMessageSize")).text) > 30e6


def test_a_shared_file_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match="config/nothing"):
        shared_file("config/nothing")


def test_launch_file_describes_nodes_and_arguments() -> None:
    pytest.importorskip("launch_ros", reason="launch_ros is not installed, so the launch file cannot be loaded")
    spec = importlib.util.spec_from_file_location("localize_launch", ROOT / "launch" / "localize.launch.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    description = module.generate_launch_description()
    names = {argument.name for argument in description.get_launch_arguments()}
    assert names == set(module.ARGUMENTS)
    assert {f"/{topic}" for topic in module.SHOWN} == set(SHOWN)  # in a namespace, too


def test_launch_file_names_executables_that_exist() -> None:
    text = (ROOT / "launch" / "localize.launch.py").read_text()
    scripts = (ROOT / "setup.py").read_text()
    for name in ("map_server", "localizer", "bag_player"):
        assert f'executable="{name}"' in text
        assert f'"{name} = ep2ploc_ros.{name}_node:main"' in scripts
