"""Layout of the arrays that all of the compiled window pass shares."""

from __future__ import annotations

TIME, IDENTITY, VALUE = range(3)
"""An element of an arena: one retained event, with a value of each track of the group from ``VALUE`` on."""

HOLE = -(2**63)
"""In place of the value of a track that the event did not enter; no encoding of a value reaches it."""

HANDED_OUT, CELLS, RECORDED, LACKING = range(4)
"""What the retained events of a group have used: elements of the arena handed out, cells of the table of counts,
records; and what was lacking when the pass returned early."""
