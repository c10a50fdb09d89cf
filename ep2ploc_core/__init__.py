"""EP2P-Loc: where a camera is in a LiDAR map, in six degrees of freedom, from one image."""

__version__ = "0.1.0"
