"""One version of a model in this process: the tensors that a server would be sent, and what it would answer.

For a look at single predictions, and where a version is served nowhere any more. The request is made by the client's
own encoder and read back, so that the tensors shown are those of the wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from serving import wire
from serving.loading import Loader, LoadSettings
from serving.metrics import Metrics
from serving.prediction import read_outputs
from serving.request import RequestEncoder, Signature
from serving.tensorflow_c import TensorFlowError
from serving.tensors import numbers, strings

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class InputTensor:
    """What a model is given for one feature.

    Attributes:
        dtype: TensorFlow's name, such as ``DT_FLOAT``.
        shape: [rows], or [rows, n].
        values: row by row; texts as ``str``.
    """

    dtype: str
    shape: tuple[int, ...]
    values: list[Any]


class InProcessModel:
    """A version loaded from its folder; close it when done.

    Args:
        name: of the model.
        version: number.
        folder: of the version, with its ``saved_model.pb``.

    Raises:
        ConfigurationError: there is no such version, or it cannot be loaded.
    """

    def __init__(self, name: str, version: int, folder: Path) -> None:
        from shared_features.errors import ConfigurationError

        if not (folder / "saved_model.pb").is_file():
            raise ConfigurationError(
                f"version {version} of model {name!r} is not in {folder}: give the folder of models that has it, or a "
                "server that serves it"
            )
        self.name, self.version = name, version
        try:
            self._servable = Loader(LoadSettings(warm_up=False), Metrics())(name, version, folder, None)
        except TensorFlowError as error:
            raise ConfigurationError(
                f"version {version} of model {name!r} in {folder} cannot be loaded ({error}): export it again"
            ) from None
        signature = Signature.from_proto(self._servable.signatures["serving_default"], version)
        self._encoder = RequestEncoder(name, signature)

    def close(self) -> None:
        """Free the memory."""
        self._servable.close()

    def tensors(self, block: pa.RecordBatch) -> dict[str, InputTensor]:
        """See `input_tensors`."""
        return _tensors(self._request(block))

    def predict(self, block: pa.RecordBatch) -> dict[str, npt.NDArray[np.float64]]:
        """The model's answer for all rows: output name to float64 [rows]."""
        answer = self._servable.predict(self._request(block))
        outputs, _ = read_outputs(answer.SerializeToString(), block.num_rows, self._encoder.outputs)
        return outputs

    def _request(self, block: pa.RecordBatch) -> Any:
        return wire.PredictRequest.FromString(self._encoder.encode(block))


def input_tensors(model: str, signature: Signature, block: pa.RecordBatch) -> dict[str, InputTensor]:
    """The input tensors of one Predict call for all rows of a block of features, by input."""
    return _tensors(wire.PredictRequest.FromString(RequestEncoder(model, signature).encode(block)))


def _tensors(request: Any) -> dict[str, InputTensor]:
    return {name: _tensor(request.inputs[name]) for name in sorted(request.inputs)}


def _tensor(proto: Any) -> InputTensor:
    dtype = wire.DataType(proto.dtype).name
    if dtype == "DT_STRING":
        texts, shape = strings(proto)
        return InputTensor(dtype, shape, [text.decode() for text in texts])
    array = numbers(proto)
    return InputTensor(dtype, array.shape, array.tolist())
