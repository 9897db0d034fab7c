"""Pixels and boxes: pure functions on arrays. No I/O, no awaits, no knowledge of models or stores.

Photos are RGB, uint8, [H, W, 3], upright. Boxes are float32 [N, 4] xyxy: edges in pixels of the
image named, 0-based, so that a box's width is x2 - x1.
"""
