"""Builds the ROS 2 message package tf2_msgs into this environment, where ROS came as wheels (they lack that package).

Run by `make setup`; does nothing where `import tf2_msgs.msg` works already, as on a ROS machine. The sources come out
of ROS's own generators, so the type hash is the true one, and nodes on ROS machines understand our /tf. All of it goes
into one extension module, since no other message package builds upon it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

PACKAGE = "tf2_msgs"
DEFINITION = "geometry_msgs/TransformStamped[] transforms\n"
# What Fast DDS needs of a message: how to serialize it, and how it is made up.
TYPESUPPORTS = ("rosidl_typesupport_fastrtps_c", "rosidl_typesupport_introspection_c")
PREFIX = Path(sys.prefix)


def generate(work: Path) -> None:
    """Writes the C, C++ and Python sources of TFMessage under `work`, one folder per generator."""
    logging.getLogger("rosidl_cli").setLevel(logging.ERROR)  # the wheels register one of the generators twice
    os.environ["AMENT_PREFIX_PATH"] = str(PREFIX)  # where the generators look for their templates
    from rosidl_adapter.msg import convert_msg_to_idl
    from rosidl_generator_c.cli import GenerateC
    from rosidl_generator_py.cli import GeneratePython
    from rosidl_typesupport_c.cli import GenerateCTypesupport
    from rosidl_typesupport_fastrtps_c.cli import GenerateFastRTPSCTypesupport
    from rosidl_typesupport_introspection_c.cli import GenerateIntrospectionCTypesupport

    folder = work / PACKAGE / "msg"
    folder.mkdir(parents=True)
    (folder / "TFMessage.msg").write_text(DEFINITION)
    with contextlib.redirect_stdout(io.StringIO()):
        convert_msg_to_idl(work / PACKAGE, PACKAGE, Path("msg/TFMessage.msg"), folder)
    for generator in (
        GenerateC("structs"),
        GenerateFastRTPSCTypesupport("fastrtps"),
        GenerateIntrospectionCTypesupport("introspection"),
        GenerateCTypesupport("typesupport", typesupport_implementations=TYPESUPPORTS),
        GeneratePython("python", typesupport_implementations=["rosidl_typesupport_c"]),
    ):
        generator.generate(
            PACKAGE,
            [f"{work / PACKAGE}:msg/TFMessage.idl"],
            [PREFIX / "share"],
            output_path=work / generator.name / PACKAGE,
        )


def compile_sources(work: Path, target: Path) -> None:
    """Compiles and links everything under `work` into the extension module `target`."""
    import numpy

    includes = [work / "structs", work / "fastrtps", work / "introspection"]
    includes += [PREFIX / "include", *sorted((PREFIX / "include").glob("*/"))]
    includes += [Path(sysconfig.get_paths()["include"]), Path(numpy.get_include())]
    libraries = [
        f"{package}__rosidl_{kind}"
        for package in ("geometry_msgs", "std_msgs", "builtin_interfaces")
        for kind in ("generator_c", "generator_py", "typesupport_fastrtps_c", "typesupport_introspection_c")
    ]
    libraries += ["rosidl_runtime_c", "rosidl_typesupport_c", *TYPESUPPORTS, "rosidl_typesupport_fastrtps_cpp"]
    libraries += ["fastcdr", "rmw", "rcutils", "stdc++"]
    command = ["gcc", "-shared", "-fPIC", "-O2", "-w", f'-DROS_PACKAGE_NAME="{PACKAGE}"', "-o", str(target)]
    command += [f"-I{folder}" for folder in includes]
    command += sorted(str(file) for file in work.rglob("*.c*") if file.suffix in (".c", ".cpp"))
    command += [f"-L{PREFIX / 'lib'}", f"-Wl,-rpath,{PREFIX / 'lib'}", "-Wl,--allow-shlib-undefined"]
    command += [f"-l{library}" for library in libraries]
    subprocess.run(command, check=True)


def main() -> None:
    """Builds aside, then moves the package into place in one step."""
    if importlib.util.find_spec(PACKAGE) is not None:
        return
    site_packages = Path(sysconfig.get_paths()["platlib"])
    with tempfile.TemporaryDirectory(dir=site_packages) as folder:
        work = Path(folder)
        generate(work)
        package = work / "python" / PACKAGE
        module = package / f"{PACKAGE}_s__rosidl_typesupport_c.so"
        try:
            compile_sources(work, module)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = "gcc's complaint is above" if isinstance(error, subprocess.CalledProcessError) else str(error)
            sys.exit(f"tf2_msgs could not be compiled ({reason}); does `python3 tools/check_system.py` name a package?")
        (package / "__init__.py").touch()
        for source in package.rglob("*.c"):
            source.unlink()
        for typesupport in TYPESUPPORTS:  # ROS opens a type support by the name of a library of its own
            link = PREFIX / "lib" / f"lib{PACKAGE}__{typesupport}.so"
            link.unlink(missing_ok=True)
            link.symlink_to(site_packages / PACKAGE / module.name)
        shutil.move(package, site_packages / PACKAGE)
    print(f"built {PACKAGE}")


if __name__ == "__main__":
    main()
