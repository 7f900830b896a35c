"""From a version's folder to a servable that may answer: checked, loaded by TensorFlow, warmed up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from serving import warmup
from serving.batch_parameters import BatchingParameters, read_batching
from serving.batching import Batcher
from serving.graph_check import check_operations
from serving.metrics import Metrics
from serving.servable import Servable
from serving.status import Code, RefusalError
from serving.tensorflow_c import LoadedModel, TensorFlowError

BATCHING_FILE = "batching_params.pbtxt"


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """How versions are loaded.

    Attributes:
        tags: of the graph in a SavedModel.
        intra_op_threads: of one TensorFlow operation, 0 for one a core; the first server of a process decides.
        inter_op_threads: TensorFlow operations at once, the same.
        answer_as_content: answer in ``tensor_content`` instead of typed fields.
        warm_up: answer the requests recorded with a version before it serves.
        warm_up_iterations: times that each is answered.
        check_operations: refuse models with operations that do more than compute.
        allowed_operations: that a model may have besides.
        check_method_names: refuse signatures whose ``method_name`` is not that of the call.
        batching: how requests are put together; None runs each by itself.
        batching_per_model: a version has its own parameters in ``batching_params.pbtxt``, or none.
    """

    tags: tuple[str, ...] = ("serve",)
    intra_op_threads: int = 0
    inter_op_threads: int = 0
    answer_as_content: bool = False
    warm_up: bool = True
    warm_up_iterations: int = 1
    check_operations: bool = True
    allowed_operations: tuple[str, ...] = ()
    check_method_names: bool = False
    batching: BatchingParameters | None = None
    batching_per_model: bool = False


class Loader:
    """Makes servables; `stop` ends the threads that run their batches."""

    def __init__(self, settings: LoadSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._batcher = None if settings.batching is None else Batcher(settings.batching, metrics)

    def __call__(self, name: str, version: int, folder: Path, before: Servable | None) -> Servable:
        """Load a version.

        Args:
            name: of the model.
            version: number.
            folder: with its files.
            before: the version that it follows, whose latest requests warm it up where none are recorded.

        Raises TensorFlowError with the reason if it cannot be loaded or a warm-up request fails.
        """
        wanted = self._settings
        if wanted.check_operations:
            check_operations(folder, wanted.allowed_operations)
        model = LoadedModel(folder, wanted.tags, wanted.intra_op_threads, wanted.inter_op_threads)
        try:
            servable = Servable(
                name, version, model, wanted.answer_as_content, self._metrics, check_methods=wanted.check_method_names
            )
            if wanted.warm_up:
                try:
                    count = warmup.warm_up(servable, folder, self._metrics, wanted.warm_up_iterations)
                except OSError as error:
                    raise TensorFlowError(Code.NOT_FOUND, f"its warm-up requests cannot be read ({error})") from error
                if not count and before is not None:
                    warmup.imitate(servable, before.latest_requests())
            if self._batcher is not None:
                parameters = self._parameters(folder)
                if parameters is not None:
                    servable.batch_by(self._batcher, parameters)
        except RefusalError as refusal:
            model.close()
            raise TensorFlowError(refusal.code, refusal.text) from None
        except BaseException:
            model.close()
            raise
        return servable

    def _parameters(self, folder: Path) -> BatchingParameters | None:
        wanted = self._settings
        if not wanted.batching_per_model:
            return wanted.batching
        path = folder / BATCHING_FILE
        try:
            return read_batching(path, wanted.batching) if path.is_file() else None
        except OSError as error:
            raise TensorFlowError(Code.NOT_FOUND, f"{path} cannot be read ({error.strerror})") from error

    def stop(self) -> None:
        """Run what waits, then end."""
        if self._batcher is not None:
            self._batcher.stop()
