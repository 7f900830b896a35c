"""Terraform's variables from an app's definitions: python deploy/terraform/app_variables.py APP > app.tfvars.json."""

from __future__ import annotations

import json
import sys
from typing import Any

from shared_features import load_app


def variables(app_name: str) -> dict[str, Any]:
    """Name, Avro schemas and reactions of an app, as the variables of ``variables.tf``.

    A topic enforces one schema, so only an app with one event type has its enforced; and then by JSON, which leaves no
    place for blocks: give ``-var event_schema=null`` where blocks are to be published.
    """
    app = load_app(app_name)
    schemas = {name: json.dumps(schema.avro) for name, schema in app.event_types.items()}
    found: dict[str, Any] = {"app": app.name, "schemas": schemas, "reactions": [one.name for one in app.reactions]}
    if len(schemas) == 1:
        found["event_schema"] = next(iter(schemas))
    return found


if __name__ == "__main__":
    print(json.dumps(variables(sys.argv[1]), indent=2))
