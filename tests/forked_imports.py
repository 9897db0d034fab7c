"""What the fork server of forked.py imports: all that the program does, but for the modules that
look at the environment and the terminal as they are imported, `backend.__main__` and
`backend.console`.
"""

import warnings

import PIL.Image
import rich.progress
import rich.table
import rich_pixels

import backend.app
import backend.checking
import backend.remote
import backend.serving.onnx

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it reads its own version through the deprecated pkg_resources
    import milvus_lite.server

__all__ = ["PIL", "backend", "milvus_lite", "rich", "rich_pixels"]
