"""Ended rows as the stream archives them: the same columns, in Parquet files by publish date.

    publish_date=2013-01-31/<bucket>.parquet      rows predicted on, in fold order

Columns are those of the archive (see `streaming.archive_parquet`) but for the two that name a commit; where models
predict, ``prediction_id`` is the id that the stream gives the first model's prediction.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batch.partitions import DAY_US, fold_times
from batch.partitions_spill import count
from serving.client import ModelClient
from serving.client_access import ClientAccess
from shared_features.app import App, Model, Rule
from shared_features.blocks import append_columns, block_schema
from shared_features.errors import ConfigurationError
from shared_features.fingerprint import canonical, check_same
from shared_features.plan import Plan
from shared_features.reactions import ReactionStage, reaction_stages
from streaming import results
from streaming.job import predictor
from streaming.messages import prediction_ids
from streaming.results import Answer

TOO_LATE = "too_late_for_this_history"
"""Rows of the range that came so late that what was read does not decide their features."""

ROW_GROUP_ROWS = 131_072
ASKED_ROWS = 1_024
"""Rows of one request to a model server."""

_STAGE = {"epoch": pa.int32(), "shard": pa.int32(), "position": pa.int64(), "late": pa.bool_()}

Predictor = Callable[[pa.RecordBatch], Future[Answer]]


@dataclass(frozen=True)
class Asking:
    """Where the models are that predict.

    Attributes:
        target: ``host:port`` of the model server, several separated by commas; empty if rules alone predict.
        access: certificates and token.
        versions: of each model that a server holds, by its name, as `asking` found them.
    """

    target: str
    access: ClientAccess | None
    versions: Mapping[str, int]

    def clients(self, app: App) -> dict[str, ModelClient]:
        """A client of each model that a server holds."""
        served = [model for model in app.models if not isinstance(model, Rule)]
        return {model.name: ModelClient(self.target, model.name, access=self.access) for model in served}


def ask_models(app: App, target: str, access: ClientAccess | None = None) -> Asking:
    """Find out which versions a server holds, and that they were made with the app's features.

    Raises:
        FingerprintError: a model was made with others.
        ConfigurationError: the app has no model.
    """
    if not app.models:
        raise ConfigurationError(f"app {app.name!r} has no model: wanted one, or features only (--collect)")
    versions = {}
    for name, client in Asking(target, access, {}).clients(app).items():
        with client:
            described = client.describe()
            if described.fingerprint != app.fingerprint:
                check_same(app.definitions, described.definitions, f"model {name!r}", app.spec)
            versions[name] = described.model_version
    return Asking(target, access, versions)


@dataclass(frozen=True)
class RowsOf:
    """Of a plan the `ArchiveRows`, in a worker: see there."""

    folder: str
    since_us: int
    until_us: int
    grace_us: int
    asking: Asking | None

    def __call__(self, plan: Plan) -> ArchiveRows:
        return ArchiveRows(plan, self)


class Predictions:
    """The models of an app, in a worker, and what they say of rows.

    Args:
        app: with its models and reactions.
        asking: where the models are; None predicts nothing.
    """

    def __init__(self, app: App, asking: Asking | None) -> None:
        self._app, self._asked = app, asking is not None
        self._clients = {} if asking is None else asking.clients(app)
        self._predict = {name: predictor(client) for name, client in self._clients.items()}

    def of(self, block: pa.RecordBatch, memories: Sequence[ReactionStage] = ()) -> pa.RecordBatch:
        """The rows with `streaming.results.with_results` and ``prediction_id``.

        Args:
            memories: stages of reactions that remember; the columns of others are left out.
        """
        app = self._app
        if not self._asked:
            return results.with_results(app, block, None, [])
        answers = {model.name: self._answer(model, block) for model in app.models}
        block = results.with_results(app, block, answers, [*reaction_stages(app)[:1], *memories])
        first = app.models[0].name
        ids = prediction_ids(
            block, app=app.name, fingerprint=app.fingerprint, model=first, model_version=answers[first].version
        )
        return append_columns(block, {"prediction_id": pa.array(ids, pa.string())})

    def _answer(self, model: Model, block: pa.RecordBatch) -> Answer:
        if isinstance(model, Rule):
            return results.apply_rule(self._app, model, block)
        return _asked(self._app, self._predict[model.name], model, block)

    def close(self) -> None:
        """Let go of the model servers."""
        for client in self._clients.values():
            client.close()


class ArchiveRows:
    """Writes buckets of ended rows.

    Args:
        plan: of the app.
        settings: ``folder`` is where the files go; rows outside [``since_us``, ``until_us``) by publish time are left
            out; those that happened before ``grace_us`` are counted as `TOO_LATE`; without ``asking`` nothing is
            predicted. Rows that have been predicted on are taken as they are.
    """

    def __init__(self, plan: Plan, settings: RowsOf) -> None:
        self.plan, self.settings = plan, settings
        self.schema = archive_schema(plan, predicted=settings.asking is not None)
        self.predictions = Predictions(plan.app, settings.asking)

    def memory(self, shard: int) -> None:
        """Nothing is remembered."""

    def open(self, name: str, memory: None = None) -> Bucket:  # noqa: ARG002
        """Begin a bucket."""
        return Bucket(self, name)

    def close(self) -> None:
        """Let go of the model servers."""
        self.predictions.close()


class Bucket:
    """The rows of one bucket, in one file for each publish date."""

    def __init__(self, rows: ArchiveRows, name: str) -> None:
        self._rows, self._name = rows, name
        self._files: dict[int, tuple[Path, pq.ParquetWriter]] = {}
        self._counts: dict[str, int] = {}

    def write(self, block: pa.RecordBatch) -> tuple[()]:
        """Predict, and write what lies in the range."""
        rows, settings = self._rows, self._rows.settings
        times = fold_times(block)
        inside = (times >= settings.since_us) & (times < settings.until_us)
        if not inside.any():
            return ()
        if not inside.all():
            block, times = block.filter(pa.array(inside)), times[inside]
        if "outcome" not in block.schema.names:
            block = rows.predictions.of(block)
        happened = block.column("event_time").cast(pa.int64()).to_numpy()
        count(self._counts, {TOO_LATE: int(np.count_nonzero(happened < settings.grace_us))})
        count(self._counts, {f"rows.{outcome}": number for outcome, number in results.count_outcomes(block).items()})
        fired = (name for name in block.schema.names if name.startswith("reaction."))
        count(self._counts, {name: block.column(name).true_count for name in fired})
        block = conformed_to(block, rows.schema)
        days = times // DAY_US
        bounds = np.flatnonzero(np.diff(days, prepend=days[0] - 1, append=days[-1] + 1)).tolist()
        for start, end in pairwise(bounds):
            part = block.slice(start, end - start)
            self._file(int(days[start])).write_table(pa.Table.from_batches([part]), row_group_size=ROW_GROUP_ROWS)
        return ()

    def close(self) -> Mapping[str, int]:
        """Put the files in place; rows by outcome."""
        for path, writer in self._files.values():
            writer.close()
            Path(writer.where).replace(path)
        return self._counts

    def _file(self, day: int) -> pq.ParquetWriter:
        if day not in self._files:
            date = f"publish_date={np.datetime64(day, 'D')}"
            path = Path(self._rows.settings.folder, date, f"{self._name}.parquet")
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
            self._files[day] = path, writer_of(temporary, self._rows.schema)
        return self._files[day][1]


def _asked(app: App, predict: Predictor, model: Model, block: pa.RecordBatch) -> Answer:
    """A model's answers for all rows, in requests of `ASKED_ROWS`."""
    rows = results.asked_rows(app, block)
    features = results.feature_block(app, block, rows)
    asked = [predict(features.slice(start, ASKED_ROWS)) for start in range(0, len(rows), ASKED_ROWS)]
    answers = [future.result() for future in asked]
    outputs = {name: np.concatenate([answer.outputs[name] for answer in answers]) for name in model.outputs}
    refused = {i * ASKED_ROWS + row: why for i, answer in enumerate(answers) for row, why in answer.refused.items()}
    return Answer(outputs, refused, answers[-1].version)


def archive_schema(plan: Plan, *, predicted: bool) -> pa.Schema:
    """The columns of archived rows, in their order; lists as the archive's Parquet has them."""
    app = plan.app
    fields = list(block_schema(app.event_types))
    for stage in plan.stages:
        fields += [pa.field(f"stage.{stage.name}.{name}", kind) for name, kind in _STAGE.items()]
    for name, value in app.features.items():
        kind = value.arrow_type
        plain = pa.list_(kind.value_field) if pa.types.is_fixed_size_list(kind) else kind
        fields.append(pa.field(f"feature.{name}", plain))
    fields += [pa.field("outcome", pa.string()), pa.field("failure", pa.string())]
    if predicted:
        for model in app.models:
            fields.append(pa.field(f"version.{model.name}", pa.int64()))
            fields += [pa.field(f"prediction.{model.name}.{name}", pa.float64()) for name in model.outputs]
        for memory in reaction_stages(app):
            if memory.key is not None:
                fields += [pa.field(f"stage.{memory.name}.{name}", _STAGE[name]) for name in _STAGE if name != "late"]
            for one in memory.reactions:
                fields += [pa.field(f"reaction.{one.name}", pa.bool_())]
                fields += [pa.field(f"started.{one.name}", pa.bool_())] if one.until is not None else []
        fields.append(pa.field("prediction_id", pa.string()))
    metadata = {
        "sameriver.app": app.name,
        "sameriver.fingerprint": app.fingerprint,
        "sameriver.definitions": canonical(app.definitions),
    }
    return pa.schema(fields, metadata=metadata)


def conformed_to(block: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The columns of ``schema``; those that the block has not are null."""
    arrays = []
    for field in schema:
        index = block.schema.get_field_index(field.name)
        column = block.column(index) if index >= 0 else pa.nulls(block.num_rows, field.type)
        arrays.append(column if column.type == field.type else column.cast(field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def writer_of(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A Parquet file of rows.

    Numbers that hardly repeat are not put into dictionaries first: trying takes twice as long as writing them.
    """
    repeats = [
        field.name
        for field in schema
        if field.name not in ("event_id", "message_id", "prediction_id")
        and not field.name.endswith(".position")
        and (pa.types.is_string(field.type) or pa.types.is_integer(field.type))
    ]
    return pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=repeats, write_page_checksum=True)
