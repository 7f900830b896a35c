"""The page about the gateway at ``/docs``: HTML made here, no script, nothing loaded from elsewhere."""

from __future__ import annotations

import html
import json
import shlex

from serving.gateway.openapi import example, filled, required
from shared_features.app import App
from shared_features.schema import EventSchema

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
code, pre { font: 14px/1.5 ui-monospace, monospace; background: #f4f4f2; }
pre { padding: .8rem; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid #ddd; }
@media (prefers-color-scheme: dark) {
  body { background: #1b1b1b; color: #ddd; } code, pre { background: #2a2a2a; } th, td { border-color: #444; }
}
"""


def page(app: App, address: str) -> str:
    """The page.

    Args:
        address: where the gateway is reached, for the example, ``http://127.0.0.1:8600``.
    """
    name = html.escape(app.name)
    body = json.dumps(example(app.predict_on), indent=2, ensure_ascii=False)
    command = f"curl {address}/v1/apps/{app.name}/events -d {shlex.quote(body)}"
    types = "\n".join(_event_type(schema, schema.name == app.predict_on.name) for schema in app.event_types.values())
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{name}</title><link rel="stylesheet" href="/docs/style.css"></head>
<body>
<h1>{name}: events in, predictions out</h1>
<p>POST one event, or a list of events, as JSON. The answer comes when the streaming job has predicted: 200 with
<code>prediction_id</code>, <code>outputs</code> and <code>reactions</code>, or 202 with a place to ask again.
Sent twice with the same identity, an event is counted once and answered alike.
The whole interface as <a href="/openapi.json">OpenAPI</a>.</p>
<pre>{html.escape(command)}</pre>
{types}
</body>
</html>
"""


def _event_type(schema: EventSchema, predicted: bool) -> str:
    needed, defaults = required(schema), filled(schema)
    rows = []
    for field in schema.fields.values():
        default = "required" if field.name in needed else defaults.get(field.name, "missing")
        kind = " | ".join(field.symbols) or field.avro
        cells = (field.name, kind, default, field.doc)
        rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    said = html.escape(str(schema.avro.get("doc", "")))
    note = "It gets a prediction." if predicted else "It gets no prediction by itself; later ones know of it."
    return (
        f"<h2>{html.escape(schema.name)}</h2>\n<p>{said} {note}</p>\n"
        "<table><tr><th>field</th><th>type</th><th>if left out</th><th></th></tr>\n" + "\n".join(rows) + "</table>"
    )
