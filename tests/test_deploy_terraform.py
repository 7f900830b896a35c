"""Terraform's files: formatted, and with the names that the programs look for. No provider is needed, or here."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

from shared_features import load_app
from streaming.naming import dead_letters_of, subscription_of, topics_of
from tests import repository
from tests.repository import ROOT

FOLDER = ROOT / "deploy" / "terraform"
TEXT = "\n".join(path.read_text() for path in sorted(FOLDER.glob("*.tf")))


def test_it_is_formatted() -> None:
    if shutil.which("terraform") is None:
        pytest.skip("terraform is not on this machine")
    done = subprocess.run(["terraform", "fmt", "-check", "-recursive", str(FOLDER)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.soak
def test_the_provider_takes_it(tmp_path: Path) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "terraform")
    if shutil.which("terraform") is None:
        pytest.skip("terraform is not on this machine")
    command = ["terraform", f"-chdir={folder}"]
    made = subprocess.run(
        [*command, "init", "-backend=false", "-input=false", "-no-color"], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"Google's provider cannot be had here: {made.stderr.strip()[:200]}")
    done = subprocess.run([*command, "validate", "-no-color"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_job_on_dataflow_gets_the_templates_parameters() -> None:
    block = re.search(r"  parameters = \{\n(.*?)\n  \}", (FOLDER / "dataflow.tf").read_text(), re.DOTALL)
    assert block is not None
    given = set(re.findall(r"^    (\w+) +=", block[1], re.MULTILINE))
    metadata = json.loads((ROOT / "deploy" / "dataflow" / "metadata.json").read_text())["parameters"]
    assert given <= {one["name"] for one in metadata}
    assert given >= {one["name"] for one in metadata if not one.get("isOptional")}


def test_names_are_those_that_the_job_looks_for() -> None:
    app = load_app("flights")
    wanted = {*topics_of(app).values(), subscription_of(app), dead_letters_of(app)}
    said = {name.replace("${var.app}", app.name) for name in re.findall(r'"(\$\{var\.app\}-[^"]+)"', TEXT)}
    said |= {f"{app.name}-reaction-{reaction.name}" for reaction in app.reactions}
    assert wanted <= said


def test_tables_have_the_columns_that_an_export_looks_for() -> None:
    exported = repository.text(Path("docs/bigquery.md"))
    for name in ("archive_commit", "archive_row", "prediction_id", "reaction_id", "publish_time", "event_time"):
        assert f'"{name}"' in TEXT
        assert f"`{name}`" in exported


def test_variables_are_made_of_the_app() -> None:
    found = runpy.run_path(str(FOLDER / "app_variables.py"))["variables"]("flights")
    assert set(found) <= set(re.findall(r'^variable "(\w+)"', TEXT, re.MULTILINE))
    app = load_app("flights")
    assert (found["app"], set(found["schemas"])) == ("flights", set(app.event_types))
    assert json.loads(found["schemas"]["departed"])["type"] == "record"


def test_nobody_has_more_rights_than_needed() -> None:
    roles = set(re.findall(r"roles/[\w.]+", TEXT))
    assert not {role for role in roles if re.search(r"owner|editor$|\.admin$", role)}
    of_project = re.findall(r'resource "google_project_iam_member" "(\w+)"', TEXT)
    assert set(of_project) == {"viewers", "queries", "gateway", "dataflow"}
    assert "google_service_account_key" not in TEXT
