"""Measured figures and what produces them. Uses the service as it is; the service knows none of it.

`quality` measures how good the answers are, `crop_geometry` how objects are best cut out,
`vector_stores` how fast and how large the embedded vector engine is, `thumbnails` what they cost in
each format. README.md says how to run them and what came out.
"""
