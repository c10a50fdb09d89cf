"""A film shows its frames in their order, and is small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ep2ploc_core.visualization.film import film_frame, write_film


def test_film_shows_every_frame(tmp_path: Path) -> None:
    greys = [40, 120, 200]
    frames = [film_frame(np.full((375, 1242, 3), grey, np.uint8), f"image {grey}") for grey in greys]
    write_film(frames, tmp_path / "new" / "film.gif", 0.25)
    film = Image.open(tmp_path / "new" / "film.gif")
    assert film.n_frames == 3
    assert film.size[0] == frames[0].shape[1] < 1242
    for index, grey in enumerate(greys):
        film.seek(index)
        assert film.info["duration"] == 250
        shown = np.asarray(film.convert("RGB")).astype(int)
        assert abs(shown[: film.size[1] // 2] - grey).max() < 4
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["film.gif"]
