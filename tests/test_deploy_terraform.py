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
    assert set(of_project) == {"viewers", "queries", "gateway"}
    assert "google_service_account_key" not in TEXT
