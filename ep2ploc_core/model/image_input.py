"""An image as the network takes it: undistorted, reduced to the network's size, as a tensor."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from ep2ploc_core.camera import Camera
from ep2ploc_core.datasets.sampling import network_size
from ep2ploc_core.errors import InputError


@dataclass
class NetworkImage:
    """`tensor` `(1, 3, H, W)` 0..1, the pinhole `camera` of that size, and its `intrinsics` `(1, 4)`."""

    tensor: Tensor
    camera: Camera
    intrinsics: Tensor


def prepare_image(image: np.ndarray, camera: Camera, width: int, device: torch.device | str) -> NetworkImage:
    """image: `(H, W, 3)` RGB or `(H, W)` grey, uint8; width: the network's `image_width`. Raises InputError when image
    and camera do not fit."""
    check_image(image)
    if image.ndim == 2:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    image, pinhole = camera.undistort(image)
    size = network_size(pinhole, width)
    shrunk = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    small = pinhole.resize(*size)
    tensor = torch.from_numpy(shrunk).permute(2, 0, 1)[None].float().to(device) / 255
    intrinsics = small.intrinsics_tensor()[None].to(device)
    return NetworkImage(tensor.contiguous(memory_format=torch.channels_last), small, intrinsics)


def check_image(image: np.ndarray) -> None:
    """Raises InputError for what is neither `(H, W, 3)` RGB nor `(H, W)` grey, uint8."""
    if image.dtype != np.uint8 or (image.ndim != 2 and (image.ndim != 3 or image.shape[2] != 3)):
        raise InputError(f"The image has shape {image.shape} and type {image.dtype}; give 8-bit grey or RGB.")
