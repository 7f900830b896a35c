"""Reactions that remember: hysteresis, only on change, rate limits; drawn as timelines, and against a slow reading.

In a drawing a column is a second; the score of key ``a`` at that second, then where the reaction fires.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch.replay import served_chunks
from batch.verify import verify
from shared_features import App, Key, Reaction, Rule, prediction
from shared_features.compute import compute_block
from shared_features.errors import DefinitionError, HistoryError
from shared_features.plan import make_plan
from shared_features.reactions import reaction_stages
from streaming import results
from streaming.messages import plain
from streaming.topics import Message
from tests.histories import block_of, event
from tests.serving_steps import serve, to_messages
from tests.shop.app import sale

HIGH, LOW = prediction() > 0.6, prediction() < 0.3
BY_SHOP = Key("shop", sale.shop)
BY_TILL = Key("till", sale.till)


def app_of(*reactions: Reaction) -> App:
    return App(
        name="reacting",
        event_types=[sale],
        predict_on=sale,
        features={"amount": sale.amount, "units": sale.units},
        models=[Rule("score", sale.amount * 1.0), Rule("other", sale.amount * 2.0)],
        reactions=list(reactions),
    )


def fold(app: App, sales: list[dict[str, Any]], cuts: tuple[int, ...] = ()) -> dict[str, list[Any]]:
    """The columns of the reactions of sales in this order, folded in blocks that end at ``cuts``."""
    block = block_of([event("sale", one.pop("at"), shop=one.pop("shop", "a"), **one) for one in map(dict, sales)])
    stages = reaction_stages(app)
    found: dict[str, list[Any]] = {}
    for start, end in zip((0, *cuts), (*cuts, block.num_rows), strict=True):
        part = compute_block(make_plan(app), block.slice(start, end - start))
        answers = {model.name: results.apply_rule(app, model, part) for model in app.models if isinstance(model, Rule)}
        whole = results.with_results(app, part, answers, stages)
        for name in whole.schema.names:
            if name.startswith(("reaction.", "started.", "stage.")):
                found.setdefault(name, []).extend(whole.column(name).to_pylist())
    return found


def fires(reaction: Reaction, scores: list[float | None], times: list[int] | None = None) -> str:
    """The reaction's firings over the scores of one key, one a second: ``x`` where it fires."""
    times = times or list(range(len(scores)))
    found = fold(app_of(reaction), [{"at": at, "amount": score} for at, score in zip(times, scores, strict=True)])
    return "".join("x" if fired else "." for fired in found[f"reaction.{reaction.name}"])


SCORES: list[float | None] = [0.1, 0.7, 0.9, 0.5, 0.7, 0.2, 0.1, 0.5, 0.8]


@pytest.mark.parametrize(
    ("announce", "drawn"),
    [
        # 0.1 0.7 0.9 0.5 0.7 0.2 0.1 0.5 0.8
        ("start", ".x......x"),
        ("end", ".....x..."),
        ("both", ".x...x..x"),
    ],
)
def test_hysteresis_switches_at_one_limit_and_back_at_another(announce: Any, drawn: str) -> None:
    assert fires(Reaction("r", when=HIGH, until=LOW, by=BY_SHOP, announce=announce), SCORES) == drawn


def test_only_a_change_fires() -> None:
    band = Reaction("r", when=prediction() >= 0.0, changes=prediction().bucket([0.3, 0.6]), by=BY_SHOP)
    # 0.1 0.7 0.9 0.5 0.7 0.2 0.1 0.5 0.8
    assert fires(band, SCORES) == "xx.xxx.xx"


def test_a_null_is_no_change_and_is_not_remembered() -> None:
    kind = Reaction("r", when=prediction() >= 0.0, changes=sale.units, by=BY_SHOP)
    sales = [{"at": at, "amount": 1.0, "units": units} for at, units in enumerate([None, 1, None, 1, 2])]
    assert fold(app_of(kind), sales)["reaction.r"] == [False, True, False, False, True]


@pytest.mark.parametrize(
    ("at_most", "drawn"),
    [
        # a firing counts for three seconds: at 3 s the one at 0 s is over
        (1, "x..x..x.."),
        (2, "xx.xx.xx."),
    ],
)
def test_a_rate_limit_counts_the_firings_of_the_last_while(at_most: int, drawn: str) -> None:
    assert fires(Reaction("r", when=prediction() >= 0.0, at_most=at_most, every="3s", by=BY_SHOP), SCORES) == drawn


def test_options_are_asked_in_order() -> None:
    """A start that the limit keeps back is a start all the same."""
    one = Reaction("r", when=HIGH, until=LOW, at_most=1, every="10s", by=BY_SHOP)
    assert fires(one, [0.7, 0.1, 0.7, 0.7, 0.1], [0, 1, 2, 20, 21]) == "x...."


def test_a_late_event_neither_fires_nor_changes_anything() -> None:
    one = Reaction("r", when=HIGH, until=LOW, by=BY_SHOP, announce="both")
    assert fires(one, [0.7, 0.1, 0.1, 0.7], [10, 9, 10, 11]) == "x.xx"  # equal times count


def test_what_has_no_key_or_no_prediction_takes_no_part() -> None:
    one = Reaction("r", when=HIGH, until=LOW, by=BY_TILL)
    sales: list[dict[str, Any]] = [
        {"at": 0, "amount": 0.9, "till": None},
        {"at": 1, "amount": None, "till": 1},
        {"at": 2, "amount": 0.9, "till": 1},
        {"at": 3, "amount": 0.9, "till": 2},
    ]
    found = fold(app_of(one), sales)
    assert found["reaction.r"] == [False, False, True, True]
    assert found["started.r"] == [None, None, True, True]
    assert found["stage.till.reactions.position"] == [None, None, 0, 1]


def slow(one: Reaction, sales: list[dict[str, Any]]) -> list[bool]:
    """The same by the letter of the docstring, from the whole past of each event's key."""
    fired: list[bool] = []
    for row, now in enumerate(sales):
        past = [
            (i, sales[i]) for i in range(row + 1) if sales[i]["shop"] == now["shop"] and sales[i]["amount"] is not None
        ]
        live = [(i, s) for n, (i, s) in enumerate(past) if all(s["at"] >= before["at"] for _, before in past[:n])]
        on, last, times, fires_now = False, None, list[int](), False
        for _, one_sale in live:
            score = one_sale["amount"]
            fires_now = score > 0.6 if one.until is None else (score < 0.3 if on else score > 0.6)
            if one.until is not None and fires_now:
                on = not on
                fires_now = one.announce == "both" or on == (one.announce == "start")
            if one.changes is not None and fires_now:
                fires_now = one_sale["units"] is not None and one_sale["units"] != last
                last = one_sale["units"] if fires_now else last
            if one.at_most is not None and fires_now:
                recent = [at for at in times if at > one_sale["at"] - (one.every_us or 0) // 1_000_000]
                fires_now = len(recent) < one.at_most
                times += [one_sale["at"]] * fires_now
        fired.append(bool(live) and live[-1][0] == row and fires_now)
    return fired


SALES = st.lists(
    st.fixed_dictionaries(
        {
            "at": st.integers(0, 12),
            "shop": st.sampled_from(["a", "b", None]),
            "amount": st.sampled_from([None, 0.1, 0.2, 0.5, 0.7, 0.9]),
            "units": st.sampled_from([None, 1, 2]),
        }
    ),
    min_size=1,
    max_size=14,
)
KINDS: list[dict[str, Any]] = [
    {"until": LOW, "announce": "start"},
    {"until": LOW, "announce": "end"},
    {"changes": sale.units},
    {"at_most": 2, "every": "4s"},
    {"until": LOW, "announce": "both", "changes": sale.units, "at_most": 1, "every": "5s"},
]


@given(SALES, st.integers(0, 14), st.data())
@settings(max_examples=60, deadline=None)
def test_any_cut_gives_what_the_definition_says(sales: list[dict[str, Any]], cut: int, data: st.DataObject) -> None:
    one = Reaction("r", when=HIGH, by=BY_SHOP, **data.draw(st.sampled_from(KINDS)))
    keyed = [sale if sale["shop"] is not None else {**sale, "amount": None} for sale in sales]
    found = fold(app_of(one), sales, (min(cut, len(sales)),))
    assert found["reaction.r"] == slow(one, keyed)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "memory without a key": ({"until": LOW}, "got by=None, wanted a key"),
    "a key without memory": ({"by": BY_SHOP}, "got by=a key, wanted a key exactly if"),
    "a limit without a time": ({"by": BY_SHOP, "at_most": 1}, "at_most=1 and every=None, wanted"),
    "a limit of none": ({"by": BY_SHOP, "at_most": 0, "every": "1h"}, "at_most=0 and every='1h', wanted"),
    "an end without until": ({"by": BY_SHOP, "announce": "end", "at_most": 1, "every": "1h"}, "and until= with it"),
    "until of no boolean": ({"by": BY_SHOP, "until": sale.amount}, "got a float64 as until="),
    "a payload that says started": (
        {"by": BY_SHOP, "until": LOW, "payload": {"started": sale.amount}},
        "'started' in its payload",
    ),
}


@pytest.mark.parametrize(("options", "says"), REFUSED.values(), ids=list(REFUSED))
def test_what_makes_no_sense_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(DefinitionError, match="reaction 'r'") as refused:
        Reaction("r", when=HIGH, **options)
    assert says in str(refused.value)


def test_several_models_answer_or_none() -> None:
    """A row is predicted when all models have answered; one refusal fails it, and names the model."""
    app = app_of(Reaction("r", when=prediction(model="other") > 1.0))
    block = compute_block(make_plan(app), block_of([event("sale", at, shop="a", amount=0.6) for at in range(2)]))
    values = np.array([0.5, 1.5])
    answers = {
        "score": results.Answer({"probability": values}, {}, 3),
        "other": results.Answer({"probability": values}, {0: "it is odd"}, 4),
    }
    found = results.with_results(app, block, answers, reaction_stages(app))
    assert found.column("outcome").to_pylist() == ["prediction_failed", "predicted"]
    assert found.column("failure").to_pylist() == ["other: it is odd", None]
    assert found.column("version.score").to_pylist() == [None, 3]
    assert found.column("prediction.other.probability").to_pylist() == [None, 1.5]
    assert found.column("reaction.r").to_pylist() == [False, True]
    assert [model.name for model in results.models_of(app, found)] == ["score", "other"]


def live_app() -> App:
    """Two rules and three reactions that remember, by two keys."""
    return app_of(
        Reaction("plain", when=prediction(model="other") > 1.0, payload={"amount": sale.amount}),
        Reaction("busy", when=HIGH, until=LOW, announce="both", by=BY_SHOP),
        Reaction("units", when=prediction() > 0.0, changes=sale.units, at_most=2, every="30s", by=BY_TILL),
    )


def served_sales(app: App, count: int = 120) -> list[Message]:
    rng = np.random.default_rng(3)
    scores = [round(float(score), 2) for score in rng.uniform(0, 1, count)]
    units = rng.integers(0, 3, count).tolist()
    rows = [
        event("sale", at - 3 * (at % 7 == 0), shop="abc"[at % 3], till=at % 2, amount=score, units=units[at])
        for at, score in enumerate(scores)
    ]
    return to_messages(app, block_of(rows))


@pytest.mark.parametrize("restart_at", [0, 50])
def test_what_was_remembered_survives_a_restart_and_is_verified(tmp_path: Path, restart_at: int) -> None:
    app = live_app()
    messages = served_sales(app)
    whole = serve(app, messages, tmp_path / "whole")
    parts = [serve(app, part, tmp_path / "parts") for part in (messages[:restart_at], messages[restart_at:])]
    for topic, sent in whole.sent.items():
        again = [one.data for part in parts for one in part.sent.get(topic, [])]
        assert sorted(again) == sorted(one.data for one in sent)
    assert {len(whole.sent[f"reacting-reaction-{name}"]) > 5 for name in ("plain", "busy", "units")} == {True}
    report = verify(app, tmp_path / "parts")
    assert (report.predictions, report.reaction_mismatches, report.mismatches) == (120, 0, 0)
    started = [plain(one.data)["payload"]["started"] for one in whole.sent["reacting-reaction-busy"]]
    assert True in started
    assert False in started


def test_a_memory_that_was_lost_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = live_app()
    messages = served_sales(app)
    serve(app, messages[:50], tmp_path)
    monkeypatch.setattr("streaming.recovery.react_again", lambda *_: None)
    serve(app, messages[50:], tmp_path)
    report = verify(app, tmp_path)
    assert report.reaction_mismatches > 0
    assert "replay gives" in str(report.first_mismatch)


def test_each_model_has_its_message_and_the_first_names_the_reactions(tmp_path: Path) -> None:
    app = live_app()
    sent = serve(app, served_sales(app, 20), tmp_path).sent
    records = [plain(one.data) for one in sent["reacting-predictions"]]
    assert [record["model"] for record in records].count("other") == 20
    assert len({record["prediction_id"] for record in records}) == 40
    named = {(one["prediction_id"], name) for one in records if one["model"] == "score" for name in one["reactions"]}
    reactions = [plain(one.data) for name in app.reactions for one in sent.get(f"reacting-reaction-{name.name}", [])]
    told = {(one["prediction_id"], one["reaction"]) for one in reactions}
    assert named == told
    assert all(one["reactions"] == [] for one in records if one["model"] == "other")


@pytest.mark.parametrize("cut", [1, 17, 60])
def test_what_is_remembered_comes_back_from_disk_as_it_was(tmp_path: Path, cut: int) -> None:
    app = live_app()
    serve(app, served_sales(app, 80), tmp_path)
    chunks = list(served_chunks(tmp_path))
    (chunk,) = chunks
    parts = [chunk.slice(0, cut), chunk.slice(cut)]
    for stage, again in zip(reaction_stages(app), reaction_stages(app), strict=True):
        results.reactions(app, [stage], parts[0], results.ended_columns(parts[0]))
        again.load(stage.save())
        assert again.nbytes == stage.nbytes
        whole, loaded = (
            results.reactions(app, [one], parts[1], results.ended_columns(parts[1])) for one in (stage, again)
        )
        assert loaded == whole
        assert again.save() == stage.save()


def test_what_another_reaction_remembered_is_refused() -> None:
    """Another limit is another reaction; another payload is not."""
    first = Reaction("r", when=HIGH, until=LOW, by=BY_SHOP)
    told = Reaction("r", when=HIGH, until=LOW, by=BY_SHOP, payload={"amount": sale.amount})
    other = Reaction("r", when=HIGH, until=prediction() < 0.2, by=BY_SHOP)
    saved = reaction_stages(app_of(first))[1].save()
    reaction_stages(app_of(told))[1].load(saved)
    with pytest.raises(HistoryError, match="what reaction 'r' remembered is of another reaction"):
        reaction_stages(app_of(other))[1].load(saved)
