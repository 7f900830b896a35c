"""Whether each event was predicted by the version that its promotion says: the same decision, made again.

The archive names, of each prediction, the revision of the promotion by which it was routed; the model's folder holds
all revisions; and the decision is a stable hash of the event's key. So it can be said again, at any time, who ought to
have predicted. A negative revision says that the server was behind or ahead of the job, or that a candidate failed:
then another version may have answered, and the row names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from serving.promotion import Promotion
from shared_features.app import App
from streaming import results


@dataclass(slots=True)
class Routes:
    """Counts of predictions.

    Attributes:
        checked: routed by a revision that the folder knows.
        aside: of a negative or unknown revision, which says nothing of the version.
        mismatches: predicted by another version than their revision says.
        first_mismatch: the first of these, in words.
    """

    checked: int = 0
    aside: int = 0
    mismatches: int = 0
    first_mismatch: str | None = None


def compare_routes(app: App, served: pa.RecordBatch, promotions: Mapping[str, Sequence[Promotion]]) -> Routes:
    """Compare archived rows with what their promotions say.

    Args:
        served: rows of the archive.
        promotions: by model, every state of its versions; see `serving.promotion.read_history`.
    """
    found = Routes()
    for model in results.models_of(app, served):
        if f"route.{model.name}" not in served.schema.names:
            continue
        column = served.column(f"route.{model.name}")
        rows = np.flatnonzero(np.asarray(column.is_valid()))
        routes = column.take(pa.array(rows)).to_numpy()
        versions = served.column(f"version.{model.name}").take(pa.array(rows)).to_numpy()
        known = {one.revision: one for one in promotions.get(model.name, ())}
        for revision in np.unique(routes).tolist():
            mine = np.flatnonzero(routes == revision)
            promotion = known.get(revision)
            if promotion is None:
                found.aside += len(mine)
                continue
            found.checked += len(mine)
            wanted = np.full(len(mine), promotion.champion)
            if promotion.stage == "canary":
                keys = results.key_values(app, served, rows[mine], promotion.by)
                wanted[promotion.to_candidate(keys)] = promotion.candidate
            differs = np.flatnonzero(versions[mine] != wanted)
            found.mismatches += len(differs)
            if len(differs) and found.first_mismatch is None:
                row = int(rows[mine[differs[0]]])
                found.first_mismatch = (
                    f"event {served.column('event_id')[row]} was predicted by version {versions[mine][differs[0]]} of "
                    f"model {model.name!r}, but revision {revision} of its promotion says {wanted[differs[0]]}"
                )
    return found
