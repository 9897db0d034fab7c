"""Photos that are drawn on the spot: tests need none of anybody's."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray


def draw_photo(seed: int, *, width: int = 320, height: int = 240) -> NDArray[np.uint8]:
    """A scene of coloured shapes on a textured ground, RGB uint8 [H, W, 3]; a seed is a scene."""
    random = np.random.default_rng(seed)
    coarse = random.integers(40, 216, (6, 8, 3), np.uint8)
    scene = np.ascontiguousarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))
    for _ in range(random.integers(3, 9)):
        colour = tuple(int(value) for value in random.integers(0, 256, 3))
        x, y = int(random.integers(width)), int(random.integers(height))
        size = int(random.integers(max(2, height // 12), max(3, height // 3)))
        if random.random() < 0.5:
            cv2.circle(scene, (x, y), size, colour, -1, cv2.LINE_AA)
        else:
            cv2.rectangle(scene, (x, y), (x + size, y + size // 2), colour, -1)
    noise = random.integers(-12, 13, scene.shape)
    noisy: NDArray[np.uint8] = np.clip(scene.astype(np.int64) + noise, 0, 255).astype(np.uint8)
    return noisy


def encode(photo: NDArray[np.uint8], extension: str = ".jpg") -> bytes:
    """An RGB photo in the format of a file name's extension."""
    done, encoded = cv2.imencode(extension, cv2.cvtColor(photo, cv2.COLOR_RGB2BGR))
    assert done
    return encoded.tobytes()


def write_photos(folder: Path, count: int, *, start: int = 0) -> list[Path]:
    """Writes `count` different photos into the folder and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for seed in range(start, start + count):
        path = folder / f"photo {seed:04d}.jpg"
        path.write_bytes(encode(draw_photo(seed)))
        paths.append(path)
    return paths
