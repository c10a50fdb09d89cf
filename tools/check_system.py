"""Says in one sentence what this Debian or Ubuntu machine lacks for `make setup`, with the line that mends it.

Run by the system's python3, so it uses nothing but the standard library. `--packages` prints only the apt packages.
"""

import ctypes
import importlib.util
import os
import shutil
import sys
import sysconfig

# What open3d's library loads (soname: apt package); all else comes in the wheels.
LIBRARIES = {
    "libusb-1.0.so.0": "libusb-1.0-0",
    "libGL.so.1": "libgl1",
    "libEGL.so.1": "libegl1",
    "libX11.so.6": "libx11-6",
    "libidn2.so.0": "libidn2-0",
}
COMPILERS = ("gcc", "g++")  # for tools/build_tf2_msgs.py
OLDEST, NEWEST = (3, 10), (3, 13)


def loads(library: str) -> bool:
    """Whether the dynamic linker finds the library."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def missing_packages() -> "list[str]":
    """The apt packages whose contents are not there, in the order in which they would be needed."""
    packages = []
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        packages.append("python3-venv")
    if not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
        packages.append("python3-dev")
    packages += [compiler for compiler in COMPILERS if shutil.which(compiler) is None]
    packages += [package for library, package in LIBRARIES.items() if not loads(library)]
    return packages


def main() -> None:
    """Prints what is missing; exit code 1 if anything is."""
    packages = missing_packages()
    if "--packages" in sys.argv:
        print(" ".join(packages))
    elif not OLDEST <= sys.version_info[:2] <= NEWEST:
        sys.exit(
            "Python 3.10 to 3.13 is needed and {} is {}.{}; run `make setup PYTHON=python3.12` "
            "with one that you have.".format(sys.executable, *sys.version_info[:2])
        )
    elif packages:
        sys.exit(
            "This machine lacks {}; run `sudo apt-get update && sudo apt-get install -y {}`, then make again.".format(
                ", ".join(packages), " ".join(packages)
            )
        )


if __name__ == "__main__":
    main()
