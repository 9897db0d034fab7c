"""Draws streets and skies in which the detector recognizes cars, buses and aeroplanes."""

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

__all__ = ["draw_scene", "write_scenes"]

_Color = tuple[int, int, int]

_SCALE: Final = 2
"""Drawn so many times larger than shown, so that edges are smooth."""
_SIZES: Final = ((960, 640), (900, 675), (1040, 600), (720, 720), (660, 780))
_SKIES: Final[tuple[tuple[_Color, _Color], ...]] = (
    ((120, 170, 220), (225, 235, 240)),
    ((90, 140, 205), (240, 215, 190)),
    ((150, 165, 185), (220, 222, 225)),
    ((240, 170, 130), (250, 225, 190)),
)
_PAINTS: Final[tuple[_Color, ...]] = (
    (190, 40, 35),
    (30, 90, 160),
    (235, 235, 232),
    (35, 38, 42),
    (225, 170, 40),
    (40, 120, 80),
    (120, 125, 130),
)


def write_scenes(folder: Path, count: int) -> list[Path]:
    """Writes `count` different scenes into the folder and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for seed in range(count):
        path = folder / f"{'sky' if seed % 4 == 3 else 'street'} {seed:03d}.jpg"
        Image.fromarray(draw_scene(seed)).save(path, quality=90)
        paths.append(path)
    return paths


def draw_scene(seed: int) -> NDArray[np.uint8]:
    """A scene, RGB uint8 [H, W, 3]; a seed is a scene, every fourth an aeroplane in the sky."""
    random = np.random.default_rng(seed)
    width, height = _SIZES[int(random.integers(len(_SIZES)))]
    canvas = (width * _SCALE, height * _SCALE)
    picture = _sky(canvas, random) if seed % 4 == 3 else _street(canvas, random, seed % 4 == 1)
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))


def _sky(size: tuple[int, int], random: np.random.Generator) -> Image.Image:
    width, height = size
    picture = _gradient(size, (70, 130, 205), (190, 215, 235))
    clouds = Image.new("L", size, 0)
    brush = ImageDraw.Draw(clouds)
    for _ in range(9):
        x, y = int(random.integers(width)), int(random.integers(height // 5, height))
        for _ in range(6):
            left, top = x - int(random.integers(200)), y - int(random.integers(40))
            right, bottom = x + int(random.integers(100, 300)), y + int(random.integers(30, 90))
            brush.ellipse((left, top, right, bottom), fill=130)
    picture.paste((250, 250, 252), (0, 0), clouds.filter(ImageFilter.GaussianBlur(30)))
    length = width * random.uniform(0.6, 0.75)
    start, above = width * random.uniform(0.1, 0.2), height * random.uniform(0.15, 0.4)
    _aeroplane(ImageDraw.Draw(picture), start, above, length, length * 0.42)
    return picture


def _street(size: tuple[int, int], random: np.random.Generator, only_cars: bool) -> Image.Image:
    width, height = size
    horizon = int(height * random.uniform(0.52, 0.62))
    picture = _gradient(size, *_SKIES[int(random.integers(len(_SKIES)))])
    _houses(ImageDraw.Draw(picture), width, height, horizon, random)
    picture = picture.filter(ImageFilter.GaussianBlur(3))
    pavement = horizon + int(height * 0.05)
    ImageDraw.Draw(picture).rectangle((0, horizon, width, pavement), fill=(150, 148, 142))
    road = _gradient((width, height - pavement), (92, 93, 96), (58, 59, 62))
    picture.paste(road, (0, pavement))
    brush = ImageDraw.Draw(picture)
    for number in range(7):
        begin = number * width // 6
        brush.rectangle(
            (begin, height * 0.86, begin + width // 12, height * 0.875), fill=(225, 220, 200)
        )
    paints = [_PAINTS[int(each)] for each in random.permutation(len(_PAINTS))]
    if not only_cars:
        length = width * random.uniform(0.45, 0.58)
        left, tall = width * random.uniform(0.02, 0.2), length * 0.46
        top = height * 0.83 - tall
        _shadow(picture, left, top, length, tall)
        _bus(ImageDraw.Draw(picture), left, top, length, tall, paints[0])
    for number in range(2 if only_cars else 1):
        length = width * random.uniform(0.32, 0.38)
        start = 0.04 + 0.5 * number if only_cars else 0.6
        left, tall = width * (start + random.uniform(0, 0.04)), length * 0.42
        top = height * 0.93 - tall
        _shadow(picture, left, top, length, tall)
        _car(ImageDraw.Draw(picture), left, top, length, tall, paints[1 + number])
    return picture


def _gradient(size: tuple[int, int], top: _Color, bottom: _Color) -> Image.Image:
    width, height = size
    part = np.linspace(0, 1, height)[:, None, None]
    column = np.array(top) * (1 - part) + np.array(bottom) * part
    return Image.fromarray(np.repeat(column, width, axis=1).astype(np.uint8))


def _shaded(color: _Color, factor: float) -> _Color:
    red, green, blue = (min(255, int(part * factor)) for part in color)
    return red, green, blue


def _shadow(picture: Image.Image, x: float, y: float, w: float, h: float) -> None:
    mask = Image.new("L", picture.size, 0)
    ImageDraw.Draw(mask).ellipse((x - 10, y + h * 0.87, x + w + 10, y + h * 1.05), fill=150)
    picture.paste((15, 15, 18), (0, 0), mask.filter(ImageFilter.GaussianBlur(10)))


def _houses(
    brush: ImageDraw.ImageDraw, width: int, height: int, ground: int, random: np.random.Generator
) -> None:
    left = -50
    while left < width:
        wide = int(random.integers(width // 12, width // 6))
        tall = int(random.integers(int(height * 0.15), int(height * 0.42)))
        grey = int(random.integers(110, 175))
        tint = random.integers(-18, 19, 3)
        wall: _Color = (grey + int(tint[0]), grey + int(tint[1]), grey + int(tint[2]))
        brush.rectangle((left, ground - tall, left + wide, ground), fill=wall)
        for y in range(ground - tall + 20, ground - 30, 44):
            for x in range(left + 16, left + wide - 24, 42):
                light = 0.65 if random.random() < 0.75 else 1.35
                brush.rectangle((x, y, x + 20, y + 26), fill=_shaded(wall, light))
        left += wide + int(random.integers(0, 14))


def _wheel(brush: ImageDraw.ImageDraw, x: float, y: float, radius: float, arch: _Color) -> None:
    for part, color in (
        (1.2, arch),
        (1.0, (22, 22, 24)),
        (0.55, (165, 168, 172)),
        (0.2, (75, 75, 79)),
    ):
        r = radius * part
        brush.ellipse((x - r, y - r, x + r, y + r), fill=color)


def _bus(brush: ImageDraw.ImageDraw, x: float, y: float, w: float, h: float, paint: _Color) -> None:
    brush.rounded_rectangle((x, y, x + w, y + h * 0.86), h * 0.08, fill=paint)
    brush.rectangle((x, y + h * 0.6, x + w, y + h * 0.66), fill=_shaded(paint, 0.6))
    brush.rounded_rectangle((x, y, x + w, y + h * 0.08), h * 0.08, fill=_shaded(paint, 1.25))
    margin = w * 0.03
    step = (w - 2 * margin) / 6
    for number in range(6):
        left = x + margin + number * step
        right = left + step - w * 0.015
        brush.rounded_rectangle(
            (left, y + h * 0.14, right, y + h * 0.52), h * 0.03, fill=(38, 48, 60)
        )
        brush.polygon(
            (
                (left + 4, y + h * 0.16),
                ((left + right) / 2, y + h * 0.16),
                (left + 4, y + h * 0.42),
            ),
            fill=(96, 116, 136),
        )
    brush.rectangle((x + w * 0.8, y + h * 0.14, x + w * 0.87, y + h * 0.84), fill=(50, 60, 72))
    for place in (0.18, 0.72):
        _wheel(brush, x + w * place, y + h * 0.83, h * 0.17, _shaded(paint, 0.35))
    brush.ellipse((x + w * 0.96, y + h * 0.66, x + w * 0.995, y + h * 0.74), fill=(255, 240, 190))


def _car(brush: ImageDraw.ImageDraw, x: float, y: float, w: float, h: float, paint: _Color) -> None:
    def shape(points: tuple[tuple[float, float], ...], color: _Color) -> None:
        brush.polygon([(x + w * right, y + h * down) for right, down in points], fill=color)

    shape(((0.18, 0.45), (0.32, 0.08), (0.68, 0.06), (0.84, 0.45)), _shaded(paint, 0.85))
    shape(((0.24, 0.43), (0.34, 0.14), (0.49, 0.13), (0.49, 0.43)), (60, 72, 84))
    shape(((0.52, 0.43), (0.52, 0.13), (0.66, 0.13), (0.77, 0.43)), (60, 72, 84))
    brush.rounded_rectangle((x, y + h * 0.42, x + w, y + h * 0.82), h * 0.14, fill=paint)
    seam = _shaded(paint, 0.65)
    brush.rectangle((x + w * 0.05, y + h * 0.6, x + w * 0.95, y + h * 0.62), fill=seam)
    brush.rectangle((x + w * 0.505, y + h * 0.43, x + w * 0.51, y + h * 0.78), fill=seam)
    for place in (0.22, 0.78):
        _wheel(brush, x + w * place, y + h * 0.8, h * 0.2, (25, 25, 28))
    brush.ellipse((x + w * 0.94, y + h * 0.48, x + w * 0.995, y + h * 0.58), fill=(255, 244, 200))
    brush.ellipse((x, y + h * 0.48, x + w * 0.04, y + h * 0.58), fill=(200, 40, 30))


def _aeroplane(brush: ImageDraw.ImageDraw, x: float, y: float, w: float, h: float) -> None:
    paint = (238, 240, 243)

    def shape(points: tuple[tuple[float, float], ...], color: _Color) -> None:
        brush.polygon([(x + w * right, y + h * down) for right, down in points], fill=color)

    shape(((0.36, 0.5), (0.18, 0.95), (0.27, 0.95), (0.6, 0.55)), _shaded(paint, 0.72))
    brush.ellipse((x, y + h * 0.36, x + w, y + h * 0.64), fill=paint)
    brush.pieslice((x, y + h * 0.36, x + w, y + h * 0.64), 0, 180, fill=_shaded(paint, 0.82))
    shape(((0.02, 0.48), (-0.02, 0.1), (0.08, 0.1), (0.2, 0.42)), (40, 90, 170))
    shape(((0.4, 0.42), (0.3, 0.12), (0.36, 0.12), (0.58, 0.4)), _shaded(paint, 0.9))
    for number in range(16):
        left = x + w * (0.2 + number * 0.042)
        brush.ellipse((left, y + h * 0.44, left + w * 0.013, y + h * 0.475), fill=(50, 60, 75))
    shape(((0.92, 0.43), (0.965, 0.43), (0.985, 0.48), (0.92, 0.48)), (50, 60, 75))
