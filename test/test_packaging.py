"""The package as its users get it: dependencies named, programs there, files inside."""

import ast
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ep2ploc_core

ROOT = Path(__file__).resolve().parents[1]
MANIFEST = ElementTree.parse(ROOT / "package.xml").getroot()
# Names under which rosdep knows Python packages; torch comes with torchvision, what maps to None has no key.
ROSDEP = {
    "PIL": "python3-pil", "cv2": "python3-opencv", "kiss_icp": None, "matplotlib": "python3-matplotlib",
    "numpy": "python3-numpy", "omegaconf": None, "open3d": "python3-open3d-pip", "rerun": None,
    "rich": "python3-rich", "rosbags": "python3-rosbags-pip", "safetensors": None, "scipy": "python3-scipy",
    "tensorboard": "python3-tensorboard-pip", "timm": "python3-timm-pip", "torch": "python3-torchvision-pip",
    "typer": "python3-typer", "yaml": "python3-yaml",
}  # fmt: skip
HIDDEN = {"rerun": "rerun-sdk"}  # its folder is put on the path by a .pth file, so its metadata do not name the package
OURS = {"ep2ploc_core", "ep2ploc_ros"}
REQUIREMENTS = ("requirements.in", "requirements.docs.in")
OPTIONAL = {"MinkowskiEngine"}  # imported on request only; who has none is told so


def imported(*folders: str) -> set[str]:
    """Top-level names of what must be there to import under these folders; not the standard library, not ourselves."""
    names = set()
    for folder in folders:
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    names.update(alias.name.split(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                    names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - OURS - OPTIONAL


def test_package_xml_names_everything_that_is_imported():
    named = {element.text for kind in ("depend", "exec_depend") for element in MANIFEST.findall(kind)}
    needed = {ROSDEP.get(name, name) for name in imported("ep2ploc_core", "ep2ploc_ros", "launch")} - {None}
    assert needed <= named


def test_package_xml_is_an_ament_python_package_of_format_3():
    assert MANIFEST.get("format") == "3"
    assert MANIFEST.findtext("export/build_type") == "ament_python"
    assert MANIFEST.findtext("name") == "ep2ploc_ros"
    assert MANIFEST.findtext("license") == "Apache-2.0"


def test_the_core_knows_no_ros():
    messages = {name for name in imported("ep2ploc_core") if name.endswith("_msgs")}
    assert not messages | ({"rclpy", "tf2_ros", "cv_bridge", "sensor_msgs_py", "launch"} & imported("ep2ploc_core"))


def test_setup_py_names_every_package_that_the_core_imports():
    required = {canonicalize_name(Requirement(text).name) for text in distribution("ep2ploc_ros").requires or []}
    for name in imported("ep2ploc_core"):
        providers = {
            canonicalize_name(provider) for provider in packages_distributions().get(name, [HIDDEN.get(name, name)])
        }
        assert providers & required, f"{name} ({providers}) is not among the requirements"


def test_the_version_is_the_same_everywhere():
    assert distribution("ep2ploc_ros").version == ep2ploc_core.__version__ == MANIFEST.findtext("version")


@pytest.mark.parametrize("name", ["ep2ploc", "map_server", "localizer", "bag_player"])
def test_every_program_has_something_to_call(name):
    (entry,) = [point for point in distribution("ep2ploc_ros").entry_points if point.name == name]
    if entry.module.startswith("ep2ploc_ros"):
        pytest.importorskip("rclpy", reason="needs ROS 2")
    assert callable(entry.load())


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_the_lock_pins_every_requirement_once_for_each_python(python):
    environment = {
        "python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux",
        "platform_machine": "x86_64", "platform_python_implementation": "CPython",
    }  # fmt: skip
    pins: dict[str, str] = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate(environment):
                assert pin.name not in pins
                assert re.fullmatch(r"==[\w.]+", str(pin.specifier))
                pins[canonicalize_name(pin.name)] = str(pin.specifier).removeprefix("==")
    lines = [line for file in REQUIREMENTS for line in (ROOT / file).read_text().splitlines()]
    asked = [line.split("#")[0].strip() for line in lines]
    asked += distribution("ep2ploc_ros").requires or []
    for text in filter(None, asked):
        wanted = Requirement(text)
        assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)], prereleases=True), text


@pytest.mark.parametrize("file", [*REQUIREMENTS, "requirements.lock", "setup.py", "pyproject.toml", "Makefile"])
def test_no_file_says_where_packages_come_from(file):
    assert not re.search(r"https?://|index-url|find-links|--trusted-host", (ROOT / file).read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel, built from a copy of what the package is made of."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("ep2ploc_core", "ep2ploc_ros", "launch", "config", "resource"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "package.xml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, source]
    subprocess.run(command, check=True)
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_the_wheel_carries_code_weights_and_licence(wheel):
    files = set(wheel.namelist())
    for package in OURS:
        for file in (ROOT / package).rglob("*.py"):
            assert str(file.relative_to(ROOT)) in files
    for pattern in ("weights/*.safetensors", "weights/*.md", "configs/*.yaml"):
        for file in (ROOT / "ep2ploc_core").glob(pattern):
            assert str(file.relative_to(ROOT)) in files
    assert any(name.endswith("LICENSE") for name in files)
    assert not any(name.startswith(("test", "tools", "benchmarks")) for name in files)


def test_the_wheel_carries_what_ros_looks_for(wheel):
    shared = {name.split(".data/data/")[1] for name in wheel.namelist() if ".data/data/" in name}
    assert {"share/ament_index/resource_index/packages/ep2ploc_ros", "share/ep2ploc_ros/package.xml"} <= shared
    for folder in ("launch", "config"):
        for file in (ROOT / folder).glob("*.*"):
            assert f"share/ep2ploc_ros/{folder}/{file.name}" in shared
