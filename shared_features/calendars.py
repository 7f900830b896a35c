"""Parts of the wall clock of a timestamp in a named time zone."""

from __future__ import annotations

import numpy as np

from shared_features import timezones
from shared_features.columns import Column, Evaluator
from shared_features.errors import DefinitionError
from shared_features.expressions import Expression

_DAY_US = 86_400_000_000
_HOUR_US = 3_600_000_000
_MINUTE_US = 60_000_000


class LocalTime(Expression):
    """Microseconds since 1970-01-01 00:00 by the wall clock of a zone: what all parts of one time are made of."""

    dtype = "int64"

    def __init__(self, part: Expression, zone: str) -> None:
        self.part, self.zone = part, zone
        self.definition = ["local_time", part.definition, zone]

    def parts(self) -> tuple[Expression, ...]:
        return (self.part,)

    def evaluate(self, of: Evaluator) -> Column:
        column = of.column(self.part)
        return Column(timezones.to_local_us(column.values, self.zone), column.valid)


class Calendar(Expression):
    """A part of the wall clock of a timestamp in a named time zone; int64."""

    dtype = "int64"

    def __init__(self, unit: str, part: Expression, zone: str) -> None:
        self.unit, self.part, self.zone = unit, part, zone
        self.definition = [unit, part.definition, zone]
        if part.dtype != "timestamp":
            raise DefinitionError(f"{unit} in {self.key} got {part.dtype}, wanted a timestamp")
        timezones.check_zone(zone)
        self._local = LocalTime(part, zone)

    def parts(self) -> tuple[Expression, ...]:
        return (self.part,)

    def evaluate(self, of: Evaluator) -> Column:
        local_us, valid = of.column(self._local)
        if self.unit == "hour":
            values = local_us % _DAY_US // _HOUR_US
        elif self.unit == "minute_of_day":
            values = local_us % _DAY_US // _MINUTE_US
        else:
            days = local_us // _DAY_US
            if self.unit == "weekday":
                values = (days + 3) % 7  # 1970-01-01 was a Thursday
            elif self.unit == "month":
                values = days.view("datetime64[D]").astype("datetime64[M]").view(np.int64) % 12 + 1
            else:
                new_year = days.view("datetime64[D]").astype("datetime64[Y]").astype("datetime64[D]")
                values = days - new_year.view(np.int64) + 1
        return Column(values, valid)
