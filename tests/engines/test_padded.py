"""A model with a session for each size of a batch, on the processor; its GPU takes the same way."""

import numpy as np
import onnxruntime as ort
import pytest

from tests.engines.onnxruntime.padded import GPU_PROVIDER, PaddedModel, gpu_provider
from tests.service import REPOSITORY, SMALL_PAIR

_PATH = REPOSITORY / "model_repository" / SMALL_PAIR["EMBEDDER_MODEL"] / "1" / "model.onnx"
_CPU = "CPUExecutionProvider"


@pytest.fixture(scope="module")
def model() -> PaddedModel:
    return PaddedModel(_PATH, 4, _CPU)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 9])
def test_a_batch_of_any_size_is_answered_as_without_padding(model: PaddedModel, rows: int) -> None:
    session = ort.InferenceSession(_PATH, providers=[_CPU])
    [given] = session.get_inputs()
    batch = np.random.default_rng(0).integers(0, 256, (rows, *given.shape[1:]), dtype=np.uint8)
    [vectors] = model.run(batch)
    [expected] = session.run(None, {given.name: batch})
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_a_largest_batch_that_is_no_power_of_two_is_taken() -> None:
    model = PaddedModel(_PATH, 3, _CPU)
    [given] = ort.InferenceSession(_PATH, providers=[_CPU]).get_inputs()
    [vectors] = model.run(np.zeros((3, *given.shape[1:]), np.uint8))
    assert len(vectors) == 3


@pytest.mark.skipif(GPU_PROVIDER in ort.get_available_providers(), reason="there is a GPU")
def test_a_processor_does_not_take_a_gpus_place_unnoticed() -> None:
    with pytest.raises(RuntimeError, match="CUDA"):
        PaddedModel(_PATH, 1, gpu_provider())
