"""Images of every encoding become the picture that the camera saw, and malformed ones are refused with a sentence."""

from __future__ import annotations

import array

import cv2
import numpy as np
import pytest
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from ep2ploc_core.datasets.image_message import ENCODINGS, image_from_compressed
from ep2ploc_core.errors import InputError
from ep2ploc_ros.messages import image_from_message, image_to_message

RGB = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)
WIDE = np.random.default_rng(2).integers(0, 2**16, (6, 8, 3), dtype=np.uint16)


def image_message(pixels: np.ndarray, encoding: str, padding: int = 0, bigendian: bool = False) -> Image:
    """A message with `padding` bytes of rubbish at the end of each row."""
    stored = pixels.astype(pixels.dtype.newbyteorder(">" if bigendian else "<"))
    rows = np.frombuffer(stored.tobytes(), np.uint8).reshape(len(pixels), -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=77)
    message = Image(height=pixels.shape[0], width=pixels.shape[1], encoding=encoding, step=rows.shape[1])
    message.data = array.array("B", rows.tobytes())
    message.is_bigendian = int(bigendian)
    return message


def to_eight_bits(pixels: np.ndarray) -> np.ndarray:
    return np.floor(pixels / 65535 * 255 + 0.5).astype(np.uint8)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("bigendian", [False, True])
@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8", "8UC3", "8UC4"])
def test_colour_encodings_all_give_rgb(encoding: str, bigendian: bool, padding: int) -> None:
    colours = RGB if encoding.startswith("rgb") else RGB[..., ::-1]
    alpha = np.full((6, 8, 1 if encoding in ("rgba8", "bgra8", "8UC4") else 0), 9, np.uint8)
    message = image_message(np.concatenate([colours, alpha], 2), encoding, padding, bigendian)
    assert np.array_equal(image_from_message(message), RGB)


@pytest.mark.parametrize("padding", [0, 6, 7])
@pytest.mark.parametrize("bigendian", [False, True])
@pytest.mark.parametrize("encoding", ["rgb16", "bgr16", "rgba16", "bgra16"])
def test_sixteen_bits_a_colour_are_scaled_to_eight(encoding: str, bigendian: bool, padding: int) -> None:
    colours = WIDE if encoding.startswith("rgb") else WIDE[..., ::-1]
    alpha = np.full((6, 8, 1 if "a" in encoding else 0), 9, np.uint16)
    message = image_message(np.concatenate([colours, alpha], 2), encoding, padding, bigendian)
    assert np.array_equal(image_from_message(message), to_eight_bits(WIDE))


@pytest.mark.parametrize("encoding", ["mono8", "8UC1"])
def test_grey_images_stay_grey(encoding: str) -> None:
    assert np.array_equal(image_from_message(image_message(RGB[..., 0], encoding, padding=3)), RGB[..., 0])


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("bigendian", [False, True])
def test_grey_of_sixteen_bits_is_scaled_to_eight(bigendian: bool, padding: int) -> None:
    pixels = WIDE[..., 0].copy()
    pixels[0, :4] = 0, 65535, 256, 128
    found = image_from_message(image_message(pixels, "mono16", padding, bigendian))
    assert np.array_equal(found, to_eight_bits(pixels))
    assert found[0, :4].tolist() == [0, 255, 1, 0]


def smooth_picture(height: int, width: int) -> np.ndarray:
    """Three colours that change along different ways, so that none can be taken for another."""
    y, x = np.mgrid[:height, :width].astype(float)
    return np.stack([40 + 4 * x, 200 - 5 * y, 90 + 2 * x - y], axis=2).astype(np.uint8)


def mosaic(picture: np.ndarray, pattern: str) -> np.ndarray:
    """What a sensor sees whose first row begins with the first two letters, and whose second with the others."""
    seen = np.empty(picture.shape[:2], picture.dtype)
    for k, colour in enumerate(pattern):
        row, column = divmod(k, 2)
        seen[row::2, column::2] = picture[row::2, column::2, "rgb".index(colour)]
    return seen


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_patterns_give_the_picture_that_the_sensor_saw(pattern: str, bits: int, padding: int) -> None:
    picture = smooth_picture(24, 32)
    seen = mosaic(picture, pattern)
    for bigendian in (False, True) if bits == 16 else (False,):
        sent = seen.astype(np.uint16) * 257 if bits == 16 else seen
        found = image_from_message(image_message(sent, f"bayer_{pattern}{bits}", padding, bigendian))
        inside = (slice(2, -2), slice(2, -2))
        assert np.abs(found[inside].astype(int) - picture[inside]).max() <= 1
        assert np.abs(found.astype(int) - picture).max() <= 12  # at the border a neighbour is taken


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("encoding", ["yuv422", "uyvy", "yuv422_yuy2", "yuyv"])
def test_yuv_gives_rgb(encoding: str, padding: int) -> None:
    picture = np.repeat(smooth_picture(12, 8), 2, axis=1)  # colour has half the resolution
    # ITU-R BT.601, studio swing.
    red, green, blue = np.moveaxis(picture / 255, 2, 0)
    luma = 16 + 65.481 * red + 128.553 * green + 24.966 * blue
    u = 128 - 37.797 * red - 74.203 * green + 112.0 * blue
    v = 128 + 112.0 * red - 93.786 * green - 18.214 * blue
    chroma = np.empty_like(luma)
    chroma[:, 0::2], chroma[:, 1::2] = u[:, 0::2], v[:, 0::2]
    pair = (luma, chroma) if encoding in ("yuv422_yuy2", "yuyv") else (chroma, luma)
    message = image_message(np.rint(np.stack(pair, axis=2)).astype(np.uint8), encoding, padding)
    assert np.abs(image_from_message(message).astype(int) - picture).max() <= 3


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1", "16SC1"])
def test_depth_images_are_refused_as_such(encoding: str) -> None:
    with pytest.raises(InputError, match="depth image; give the colour or grey image"):
        image_from_message(image_message(WIDE[..., 0], encoding))
    with pytest.raises(InputError, match="depth image; give the colour or grey image"):
        image_from_compressed(CompressedImage(format=f"{encoding}; compressedDepth png", data=b"1234"))


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
@pytest.mark.parametrize("change", ["height", "width", "step", "longer", "shorter", "empty", "huge"])
def test_wrong_sizes_are_refused_in_every_encoding(encoding: str, change: str) -> None:
    known = ENCODINGS[encoding]
    message = image_message(np.zeros((6, 8 * known.channels * known.depth), np.uint8), encoding)
    message.width = 8
    if change in ("height", "width", "step"):
        setattr(message, change, {"height": 7, "width": 10, "step": message.step - 1}[change])
    elif change == "huge":
        message.width = message.height = message.step = 2**32 - 1
    else:
        message.data = {"longer": message.data + message.data, "shorter": message.data[:-1], "empty": b""}[change]
    with pytest.raises(InputError, match="check the camera driver"):
        image_from_message(message)


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_the_smallest_image_is_converted_or_refused_with_a_sentence(encoding: str) -> None:
    known = ENCODINGS[encoding]
    message = image_message(np.zeros((1, known.channels * known.depth), np.uint8), encoding)
    message.width = 1
    try:
        assert image_from_message(message).shape[:2] == (1, 1)
    except InputError as error:
        assert "which cannot be" in str(error) or "cannot be converted" in str(error)


def test_image_round_trip() -> None:
    message = image_to_message(RGB, Header(frame_id="camera"))
    assert message.header.frame_id == "camera"
    assert np.array_equal(image_from_message(message), RGB)


def test_compressed_image_gives_rgb() -> None:
    png = cv2.imencode(".png", RGB[..., ::-1])[1]
    assert np.array_equal(image_from_compressed(CompressedImage(format="png", data=png.tobytes())), RGB)


@pytest.mark.parametrize("kind", ["grey", "alpha", "sixteen bits", "jpeg"])
def test_compressed_images_of_all_kinds_give_rgb(kind: str) -> None:
    picture = smooth_picture(16, 24)
    pixels: np.ndarray = picture[..., ::-1]
    if kind == "grey":
        pixels, picture = picture[..., 0], np.repeat(picture[..., :1], 3, axis=2)
    elif kind == "alpha":
        pixels = np.dstack([pixels, np.full(pixels.shape[:2], 9, np.uint8)])
    elif kind == "sixteen bits":
        pixels = pixels.astype(np.uint16) * 257
    data = cv2.imencode(".jpg" if kind == "jpeg" else ".png", pixels)[1].tobytes()
    found = image_from_compressed(CompressedImage(format=f"rgb8; {kind} compressed bgr8", data=data))
    assert np.abs(found.astype(int) - picture).max() <= (12 if kind == "jpeg" else 0)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff\xe0 no jpeg", bytes(1000)])
def test_broken_compressed_image_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="cannot be decoded"):
        image_from_compressed(CompressedImage(format="jpeg", data=data))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"encoding": "nv21"}, "encoding"),
        ({"encoding": ""}, "encoding"),
        ({"height": 0}, "cannot be"),
        ({"width": 0}, "cannot be"),
        ({"step": 20}, "cannot be"),
        ({"width": 2**31}, "cannot be"),
        ({"height": 2**31}, "bytes"),
        ({"data": b"12"}, "bytes"),
        ({"data": b""}, "bytes"),
    ],
)
def test_malformed_image_is_refused(change: dict, reason: str) -> None:
    message = image_message(RGB, "rgb8")
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(InputError, match=reason):
        image_from_message(message)
