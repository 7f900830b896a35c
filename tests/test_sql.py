"""`sameriver sql`: the tables are what is on disk, nothing else can be read or written, answers come in every form."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from google.cloud import bigquery as google_bigquery

from batch import bigquery
from batch.bigquery import Endpoints
from batch.bigquery_service import rest_client
from batch.sql import Database, archive_table, opened, parquet_table, training_table
from batch.sql_output import histogram, rows_of, write_csv
from cli import main
from shared_features.errors import ConfigurationError, HistoryError
from streaming.archive import compact_archive
from tests.bigquery_server import PROJECT, environment
from tests.histories import write
from tests.serving_steps import serve, to_messages
from tests.shop.app import app
from tests.test_verify import sales


@pytest.fixture(scope="module")
def var(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A history, training rows, and an archive that is half Parquet and half log."""
    folder = tmp_path_factory.mktemp("var")
    block = sales(60)
    write(folder / "history" / "shop", block, files=3)
    messages = to_messages(app, block)
    serve(app, messages[:40], folder / "archive" / "shop")
    compact_archive(folder / "archive" / "shop")
    serve(app, messages[40:], folder / "archive" / "shop")
    for split, amounts in (("train", [1.0, 2.0, None, 900.0]), ("test", [3.0])):
        rows = pa.table({"amount": amounts, "label": [one != 2.0 for one in amounts]})
        (folder / "training" / "shop" / split).mkdir(parents=True)
        pq.write_table(rows, folder / "training" / "shop" / split / "2023-11.parquet")
    (folder / "outside.csv").write_text("a,b\n1,2\n")
    return folder


@pytest.fixture
def database(var: Path) -> Iterator[Database]:
    tables = [
        parquet_table("history", var / "history" / "shop"),
        training_table(var / "training" / "shop"),
        archive_table(var / "archive" / "shop"),
    ]
    with opened([table for table in tables if table is not None]) as found:
        yield found


def answer(database: Database, sql: str) -> list[tuple[Any, ...]]:
    rows, count = rows_of(database.query(sql), None)
    assert count == len(rows)
    return [tuple(row.values()) for row in rows]


def test_each_table_has_all_of_its_rows(database: Database) -> None:
    assert answer(database, "SELECT count(*), count(DISTINCT event_id) FROM history") == [(60, 60)]
    assert answer(database, "SELECT split, count(*) FROM training GROUP BY 1 ORDER BY 1") == [("test", 1), ("train", 4)]
    assert answer(database, "SELECT count(*), max(stage.shop.position) FROM archive") == [(60, 59)]
    by_shop = "SELECT sale.shop, sum(sale.amount)::DECIMAL(9, 2) FROM {} GROUP BY 1 ORDER BY 1 NULLS LAST"
    assert answer(database, by_shop.format("archive")) == answer(database, by_shop.format("history"))
    assert answer(database, "SELECT avg(prediction.big_sale.probability) BETWEEN 0 AND 1 FROM archive") == [(True,)]
    assert answer(database, "SELECT hour(event_time) FROM history LIMIT 1") == [(22,)]  # UTC
    assert {"event_time", "sale", "visit", "feature", "reaction"} <= {name for name, _ in database.tables()["archive"]}


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("SELECT * FROM read_text('{var}/outside.csv')", "Cannot access file"),
        ("SELECT * FROM '{var}/outside.csv'", "Cannot access file"),
        ("SELECT * FROM read_parquet('{var}/training/shop/*/*.parquet')", "Cannot access file"),
        ("SELECT * FROM glob('/etc/*')", "Cannot access"),
        ("SELECT * FROM read_csv('https://example.com/x.csv')", "Cannot access file"),
        ("SELECT * FROM tables", "does not exist"),  # a variable of ours
        ("COPY history TO '{var}/out.csv'", "wanted a SELECT"),
        ("ATTACH '{var}/out.db'", "wanted a SELECT"),
        ("INSTALL httpfs", "wanted a SELECT"),
        ("LOAD httpfs", "wanted a SELECT"),
        ("SET enable_external_access = true", "wanted a SELECT"),
        ("CREATE TABLE t AS SELECT 1", "wanted a SELECT"),
        ("SELECT 1; DROP VIEW history", "2 statements"),
        ("", "0 statements"),
        ("SELEC 1", "syntax error"),
        ("SELECT nowhere FROM history", "there are the tables history, training, archive"),
        ("SELECT 1 // 0 FROM nothing", "nothing does not exist"),
        ("SELECT error('while it runs') FROM history", "while it runs"),
    ],
)
def test_nothing_else_can_be_read_or_written(database: Database, var: Path, sql: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        answer(database, sql.format(var=var))
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not list(var.glob("out*.*db")) + list(var.glob("out.csv"))


def test_csv_files_are_of_a_bounded_size_and_hold_everything(database: Database, tmp_path: Path) -> None:
    sql = "SELECT event_id, sale, feature.amounts_20s FROM archive, range(300) ORDER BY event_time"
    parts = write_csv(database.query(sql), tmp_path / "out", most_bytes=100_000)
    assert len(parts) > 3
    texts = [part.read_text() for part in parts]
    assert all(len(text) < 600_000 for text in texts)
    headings = {text.splitlines()[0] for text in texts}
    assert len(headings) == 1
    assert '"event_id","sale.shop"' in headings.pop()
    assert sum(len(text.splitlines()) - 1 for text in texts) == 60 * 300
    with pytest.raises(ConfigurationError, match="is not empty"):
        write_csv(database.query("SELECT 1"), tmp_path / "out", most_bytes=1)
    (empty,) = write_csv(database.query("SELECT event_id FROM history LIMIT 0"), tmp_path / "none", most_bytes=1)
    assert empty.read_text() == '"event_id"\n'


def test_a_histogram_counts_each_group(database: Database) -> None:
    found = histogram(database.query("SELECT amount, label FROM training"))
    assert {one: int(counts.sum()) for one, counts in found.counts.items()} == {"true": 3, "false": 1}
    assert found.missing == {"true": 1, "false": 0}
    many = histogram(database.query("SELECT i % 5 AS value, i % 9 AS part FROM range(900) t(i)"))
    assert list(many.counts)[-1] == "others"
    assert len(many.counts) == 6
    assert sum(int(counts.sum()) for counts in many.counts.values()) == 900
    assert many.edges.tolist() == [-0.5, 0.5, 1.5, 2.5, 3.5, 4.5]
    with pytest.raises(ConfigurationError, match="wants numbers"):
        histogram(database.query("SELECT event_id FROM history"))
    with pytest.raises(ConfigurationError, match="has no values"):
        histogram(database.query("SELECT amount FROM training WHERE amount IS NULL"))


# -- the command --------------------------------------------------------------------------------------------
@pytest.fixture
def sql(var: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(var)
    folders = [f"--{name}={var / name / 'shop'}" for name in ("history", "training", "archive")]
    return lambda *more: CliRunner().invoke(main, ["sql", "--app", str(SHOP), *folders, *map(str, more)])


SHOP = Path(__file__).parent / "shop"
COUNTS = "SELECT event_type, count(*) AS n FROM history GROUP BY ALL ORDER BY ALL"


def test_answers_for_people_and_machines(sql: Callable[..., Result]) -> None:
    assert sql(COUNTS).output.splitlines() == ["event_type   n", "sale        45", "visit       15"]
    told = json.loads(sql(COUNTS, "--json").stdout)
    assert told == {
        "columns": ["event_type", "n"],
        "rows": [{"event_type": "sale", "n": 45}, {"event_type": "visit", "n": 15}],
        "count": 2,
    }
    assert "… and 1 more rows" in sql(COUNTS, "--rows", 1).output
    assert "nan" in sql("SELECT 'nan'::DOUBLE AS x", "--json").output
    listed = sql()
    assert listed.output.startswith("history\n  event_type")
    assert set(json.loads(sql("--json").stdout)["tables"]) == {"history", "training", "archive"}


def test_pictures_and_files(sql: Callable[..., Result], tmp_path: Path) -> None:
    picture = tmp_path / "amounts.png"
    told = sql("SELECT amount, label FROM training", "--plot", picture)
    assert told.exit_code == 0, told.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    files = sql(COUNTS, "--csv", tmp_path / "csv", "--json")
    assert json.loads(files.stdout)["files"] == [str(tmp_path / "csv" / "part-00000.csv")]
    rows = tmp_path / "more.parquet"
    pq.write_table(pa.table({"shop": ["a"], "city": ["Oslo"]}), rows)
    joined = sql("SELECT city FROM history JOIN more ON sale.shop = more.shop LIMIT 1", "--table", f"more={rows}")
    assert joined.output.splitlines() == ["city", "Oslo"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["SELECT 1", "--csv", "x", "--plot", "y"], "do not go together"),
        (["--plot", "y"], "a query is missing"),
        (["SELECT 1", "--dataset", "d"], "goes with --bigquery"),
        (["SELECT 1", "--table", "x"], "wanted NAME=PATH"),
        (["SELECT 1", "--table", "history=."], "is a table already"),
        (["SELECT 1", "--table", "x=nowhere"], "is no Parquet file"),
        (["SELECT 1", "--history", "nowhere"], "has no rows to ask"),
        (["SELECT 1", "--bigquery", "no project"], "project's name"),
    ],
)
def test_what_cannot_work_is_told(sql: Callable[..., Result], options: list[str], words: str) -> None:
    told = sql(*options)
    assert told.exit_code == 2
    assert words in told.stderr


# -- BigQuery -----------------------------------------------------------------------------------------------
@pytest.fixture
def dataset(bigquery_endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch) -> str:
    """A dataset with a table ``sales`` of three rows, in an emulator that the environment names."""
    for name, value in environment(bigquery_endpoints).items():
        monkeypatch.setenv(name, value)
    rows = pa.table({"kind": ["tea", "tea", "jam"], "amount": [1.5, 2.5, None]})
    with rest_client(PROJECT, bigquery_endpoints) as client:
        client.create_dataset(google_bigquery.Dataset(f"{PROJECT}.questions"), exists_ok=True)
    bigquery.load_table(f"bq://{PROJECT}.questions.sales", rows)
    return "questions"


def test_bigquery_answers_the_same_command(sql: Callable[..., Result], dataset: str, tmp_path: Path) -> None:
    question = "SELECT kind, COUNT(*) AS n, SUM(amount) AS amount FROM questions.sales GROUP BY kind ORDER BY kind"
    told = sql(question, "--bigquery", PROJECT)
    assert told.exit_code == 0, told.output
    assert told.output.splitlines() == ["kind  n  amount", "jam   1    null", "tea   2       4"]
    machine = json.loads(sql(question, "--bigquery", PROJECT, "--dataset", dataset, "--json").stdout)
    assert machine["rows"] == [{"kind": "jam", "n": 1, "amount": None}, {"kind": "tea", "n": 2, "amount": 4.0}]
    files = sql(question, "--bigquery", PROJECT, "--csv", tmp_path / "csv")
    assert files.exit_code == 0, files.output
    assert (tmp_path / "csv" / "part-00000.csv").read_text().splitlines()[1:] == ['"jam",1,', '"tea",2,4']
    nothing = sql("SELECT kind FROM questions.sales WHERE kind = 'salt'", "--bigquery", PROJECT, "--json")
    assert json.loads(nothing.stdout)["count"] == 0
    refused = sql("SELECT kind FROM questions.nowhere", "--bigquery", PROJECT)
    assert refused.exit_code == 2
    assert "the query on BigQuery in project sameriver failed" in refused.stderr
    assert sql("DELETE FROM questions.sales WHERE TRUE", "--bigquery", PROJECT).exit_code == 2
    kept = sql("SELECT COUNT(*) AS n FROM questions.sales", "--bigquery", PROJECT, "--json")
    assert json.loads(kept.stdout)["rows"] == [{"n": 3}]


def test_a_column_that_others_go_on_from_keeps_its_name(tmp_path: Path) -> None:
    """As an archive has them while a version is in the shadow."""
    pq.write_table(pa.table({"shadow.m.probability": [0.5], "shadow.m": [2], "version.m": [1]}), tmp_path / "x.parquet")
    table = parquet_table("x", tmp_path)
    assert table is not None
    with opened([table]) as found:
        assert answer(found, 'SELECT "shadow.m", shadow.m.probability, version.m FROM x') == [(2, 0.5, 1)]


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("no")
    table = parquet_table("x", tmp_path)
    assert table is not None
    with pytest.raises(HistoryError, match=r"x.parquet cannot be read as Parquet"), opened([table]):
        pass
