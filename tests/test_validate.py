"""History rows: checked by the rules, and with the reason codes, of live messages."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shared_features.decode import validate_block
from shared_features.errors import HistoryError
from tests.sample_events import DECODER, SCHEMAS, Message, departed, only


def test_history_rows_are_checked_by_the_same_rules() -> None:
    good = only(departed(delay=1.0, seats=5))
    other = only(Message(b'{"at": 1}', {"event_type": "noted"}))
    far = datetime(2101, 1, 1, tzinfo=timezone(timedelta(0)))
    cases: list[tuple[str, dict[str, Any]]] = [
        ("unknown_event_type", {"event_type": "landed"}),
        ("unknown_event_type", {"event_type": None}),
        ("missing_event_id", {"event_id": None}),
        ("missing_event_id", {"event_id": ""}),
        ("out_of_range", {"event_id": "x" * 1025}),
        ("missing_field", {"event_time": None}),
        ("missing_field", {"departed.distance": None}),
        ("not_finite", {"departed.delay": float("nan")}),
        ("not_finite", {"departed.delay": float("-inf")}),
        ("out_of_range", {"departed.seats": -(2**31) - 1}),
        ("out_of_range", {"departed.cabin": "FIRST"}),
        ("timestamp_out_of_range", {"departed.planned": far}),
        ("timestamp_out_of_range", {"event_time": far, "publish_time": far}),
        ("in_the_future", {"publish_time": good["event_time"] - timedelta(seconds=601)}),
    ]
    rows = [good, other]
    for _, change in cases:
        rows += [{**good, **change}, good]
    block = pa.RecordBatch.from_pylist(rows, schema=DECODER.schema)
    ok, rejected = (checked := validate_block(block, SCHEMAS)).ok, checked.rejected
    assert [(r.index, r.reason) for r in rejected] == [
        (2 + 2 * number, reason) for number, (reason, _) in enumerate(cases)
    ]
    assert np.flatnonzero(~ok).tolist() == [r.index for r in rejected]
    assert validate_block(block.slice(0, 2), SCHEMAS).ok.tolist() == [True, True]
    assert validate_block(block.slice(0, 0), SCHEMAS).rejected == []
    unknown = {**good, "publish_time": None}
    assert validate_block(pa.RecordBatch.from_pylist([unknown], schema=DECODER.schema), SCHEMAS).ok.all()


def test_history_of_another_shape_is_told() -> None:
    block = DECODER.decode([departed()]).block
    with pytest.raises(HistoryError, match=r"'departed.delay' of the events must be double, got no such column"):
        validate_block(block.drop_columns(["departed.delay"]), SCHEMAS)
    text = block.set_column(block.schema.get_field_index("departed.delay"), "departed.delay", pa.array(["late"]))
    with pytest.raises(HistoryError, match="must be double, got string"):
        validate_block(text, SCHEMAS)
