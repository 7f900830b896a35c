"""Layout of the arrays that all of the compiled window pass shares."""

from __future__ import annotations

TIME, IDENTITY, VALUE = range(3)
"""An element of an arena: one retained event. See `shared_features.arena`."""

HANDED_OUT, CELLS, RECORDED, LACKING = range(4)
"""What a partition has used: elements of its arena handed out, cells of its table of counts, records; and what was
lacking when the pass returned early."""
