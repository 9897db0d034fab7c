"""The engines that run models in the process, by the names that INFERENCE_ENGINE has for them."""

from pathlib import Path

from backend.serving.local import LocalServer
from backend.serving.openvino import OpenVinoServer
from backend.settings import InferenceEngine

__all__ = ["open_local_server"]


async def open_local_server(engine: InferenceEngine, repository: Path) -> LocalServer:
    """A server of that engine, without models.

    Raises:
        ConfigurationError: the engine is not installed, or of no use on this processor.
    """
    match engine:
        case "onnxruntime":
            # Imported late: where a server runs the models, its start need not wait for this.
            from backend.serving.onnx import OnnxServer

            return OnnxServer(repository)
        case "openvino-f32":
            return await OpenVinoServer.open(repository, "f32")
        case "openvino-bf16":
            return await OpenVinoServer.open(repository, "bf16")
