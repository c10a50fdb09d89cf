from glob import glob

from setuptools import find_packages, setup

PACKAGE = "ep2ploc_ros"

setup(
    name=PACKAGE,
    version="0.1.0",
    description="Visual localization of a camera image in a LiDAR map, for ROS 2",
    license="Apache-2.0",
    author="The ep2ploc_ros authors",
    python_requires=">=3.10",
    packages=find_packages(include=["ep2ploc_core*", "ep2ploc_ros*"]),
    package_data={"ep2ploc_core": ["weights/*.safetensors", "weights/*.md", "configs/*"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        (f"share/{PACKAGE}/launch", sorted(glob("launch/*.py"))),
        (f"share/{PACKAGE}/config", sorted(glob("config/*"))),
    ],
    # rclpy and the message packages are not named here: a ROS 2 machine has them, others get them by requirements.in.
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "timm>=1.0.9",
        "numpy>=1.26",
        "scipy>=1.11",
        "opencv-python-headless>=4.9",
        "open3d-cpu>=0.18",
        "rosbags>=0.11,<0.12",
        "kiss-icp>=1.2",
        "safetensors>=0.4.3",
        "omegaconf>=2.3",
        "typer>=0.12",
        "rich>=13",
        "PyYAML>=6",
        "matplotlib>=3.8",
        "pillow>=9",
        "tensorboard>=2.16",
    ],
    # Recordings for its viewer. Apart, since it wants a newer numpy than the ROS 2 of Ubuntu 24.04 is compiled for.
    extras_require={"rerun": ["rerun-sdk>=0.26,<0.27"]},
    zip_safe=True,
    entry_points={
        "console_scripts": [
            "ep2ploc = ep2ploc_core.cli:main",
            "map_server = ep2ploc_ros.map_server_node:main",
            "localizer = ep2ploc_ros.localizer_node:main",
            "bag_player = ep2ploc_ros.bag_player_node:main",
        ]
    },
)
