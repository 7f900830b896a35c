"""What an app's hand-written rules say of training rows, so that they stand in reports beside the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shared_features.app import App, Rule
from streaming.results import apply_rule


def rule_probabilities(app: App, rows: Path) -> pa.Table | None:
    """``event_id`` and one column for each of the app's rules, null where the rule says nothing.

    Args:
        rows: folder of one split of training rows.

    A rule that reads more than the features cannot be applied to training rows and is left out; None if no
    rule is left.
    """
    rules = [*(model for model in app.models if isinstance(model, Rule)), *app.baselines]
    if not rules:
        return None
    table = pq.read_table(rows).combine_chunks()
    columns = {f"feature.{name}": table[name].combine_chunks() for name in app.features}
    columns["event_type"] = pa.repeat(app.predict_on.name, table.num_rows)
    block = pa.RecordBatch.from_pydict(columns)
    found = {"event_id": table["event_id"]}
    for rule in rules:
        try:
            answer = apply_rule(app, rule, block)
        except KeyError:
            continue
        missing = np.zeros(table.num_rows, bool)
        missing[list(answer.refused)] = True
        found[rule.name] = pa.array(answer.outputs["probability"], mask=missing)
    return pa.table(found) if len(found) > 1 else None
