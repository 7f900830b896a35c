"""The graph that Dataflow would get: what is native, what is keyed how, what keeps its name, and what travels in it.

Beam's runner for Dataflow makes it, with all that it puts in place of Beam's own transforms, and sends it nowhere.
"""

from __future__ import annotations

import base64
import bz2
import pickletools
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from apache_beam.portability import common_urns, python_urns
from apache_beam.portability.api import beam_runner_api_pb2 as api
from click.testing import CliRunner, Result
from google.protobuf import json_format
from google.protobuf.wrappers_pb2 import BytesValue

from cli import main
from shared_features import load_app

SHOP = str(Path(__file__).parent / "shop")
GOLDEN = Path(__file__).parent / "dataflow_graph.txt"
"""What an update of a running job must find again, or its state is lost: change it only with a reason."""

IMAGE = "us-docker.pkg.dev/my-project/images/sameriver-dataflow:1"
OF_BEAM = ("Events/", "Rows/", "Commit/", "To ")
SECRET = "token-that-must-not-travel"


def submitted(graph: Path, *options: str) -> Result:
    """`sameriver stream --runner dataflow --dry-run`."""
    given = ["--runner", "dataflow", "--app", SHOP, "--project", "my-project", "--dry-run", str(graph)]
    return CliRunner().invoke(main, ["stream", *given, *options])


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> api.Pipeline:
    """With all tables, and with a token in a file that the options name."""
    folder = tmp_path_factory.mktemp("graph")
    (folder / "token").write_text(SECRET)
    tables = [f"--{kind}-table=bq://my-project.river.{kind}" for kind in ("archive", "prediction", "reaction")]
    beam = ["--region=us-central1", "--temp_location=gs://my-bucket/temp", f"--sdk_container_image={IMAGE}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMERIVER_TEST_TOKEN", SECRET)
        done = submitted(
            folder / "graph.json",
            *tables,
            *(f"--beam={one}" for one in beam),
            "--model-token-file",
            str(folder / "token"),
        )
    assert done.exit_code == 0, done.output
    return json_format.Parse((folder / "graph.json").read_text(), api.Pipeline())


def steps(graph: api.Pipeline) -> dict[str, api.PTransform]:
    """The transforms that do something, by name."""
    return {one.unique_name: one for one in graph.components.transforms.values() if not one.subtransforms}


def payload(step: api.PTransform) -> api.ParDoPayload:
    return api.ParDoPayload.FromString(step.spec.payload)


def coder(graph: api.Pipeline, coder_id: str) -> str:
    """A coder in words: the last part of its name, its parts in brackets, or the class of one of ours."""
    found = graph.components.coders[coder_id]
    name = found.spec.urn.split(":")[-2]
    if name == "pickled_python":
        name = pickled_coder(found)[0].decode()
    parts = ", ".join(coder(graph, part) for part in found.component_coder_ids)
    return f"{name}({parts})" if parts else name


def pickled_coder(found: api.Coder) -> tuple[bytes, bytes]:
    """The class of a coder that Beam pickles, and its pickle."""
    name, _, pickle = BytesValue.FromString(found.spec.payload).value.partition(b"$")
    return name, pickle


def outline(graph: api.Pipeline) -> str:
    """A line for each step: name, kind, what goes in, the cells of its state."""
    lines = []
    for name, step in sorted(steps(graph).items()):
        inputs = [coder(graph, graph.components.pcollections[one].coder_id) for one in step.inputs.values()]
        words = [re.sub(r"of [0-9a-f]{12}$", "of FINGERPRINT", name), step.spec.urn.split(":")[-2], *inputs]
        if step.spec.urn == common_urns.primitives.PAR_DO.urn:
            words += [f"{cell} {spec.WhichOneof('spec')}" for cell, spec in sorted(payload(step).state_specs.items())]
        lines.append(" | ".join(words))
    return "\n".join(lines) + "\n"


def test_names_coders_and_state_are_those_that_running_jobs_have(graph: api.Pipeline) -> None:
    assert outline(graph) == GOLDEN.read_text(encoding="utf-8")


def test_all_steps_run_in_the_image(graph: api.Pipeline) -> None:
    (environment,) = graph.components.environments.values()
    assert api.DockerPayload.FromString(environment.payload).container_image == IMAGE


def test_pubsub_is_dataflows_own(graph: api.Pipeline) -> None:
    read = steps(graph)["Events/Read"]
    assert read.spec.urn == common_urns.composites.PUBSUB_READ.urn
    asked = api.PubSubReadPayload.FromString(read.spec.payload)
    assert asked.subscription == "projects/my-project/subscriptions/shop-events-sameriver"
    assert asked.with_attributes
    assert not asked.timestamp_attribute, "an element's time is its publish time"
    written = {
        api.PubSubWritePayload.FromString(one.spec.payload).topic.rpartition("/")[2]
        for one in steps(graph).values()
        if one.spec.urn == common_urns.composites.PUBSUB_WRITE.urn
    }
    assert written == {"shop-predictions", "shop-dead-letters", "shop-reaction-praise"}


def test_what_remembers_is_keyed_by_a_number_of_the_shard(graph: api.Pipeline) -> None:
    """Equal shards must have equal bytes as keys."""
    remembering = {
        name: step
        for name, step in steps(graph).items()
        if step.spec.urn == common_urns.primitives.PAR_DO.urn and payload(step).state_specs
    }
    fingerprint = load_app(SHOP).fingerprint[:12]
    assert set(remembering) == {f"Fold {one}, 32 shards of {fingerprint}" for one in ("once", "shop", "till")}
    for step in remembering.values():
        (collection,) = step.inputs.values()
        assert coder(graph, graph.components.pcollections[collection].coder_id) == "kv(varint, PieceCoder)"


def test_elements_are_never_pickled(graph: api.Pipeline) -> None:
    """A fallback coder stands only where no element comes, and for the time of one in Beam's own reshuffle."""
    read = {one for step in graph.components.transforms.values() for one in step.inputs.values()}
    for name, collection in graph.components.pcollections.items():
        if name in read:
            found = coder(graph, collection.coder_id).replace("nullable(FastPrimitivesCoder), PaneInfoCoder", "")
            assert not re.search(r"FastPrimitives|Pickle|Dill|Fallback|Memoizing", found), (name, found)


def pickles(graph: api.Pipeline) -> Iterator[tuple[str, bytes]]:
    """Every pickle that travels: of steps, by their names, and of coders."""
    for name, step in steps(graph).items():
        if step.spec.urn == common_urns.primitives.PAR_DO.urn:
            yield name, unpacked(payload(step).do_fn.payload)
    for name, one in graph.components.coders.items():
        if one.spec.urn == python_urns.PICKLED_CODER:
            yield name, unpacked(pickled_coder(one)[1])


def unpacked(text: bytes) -> bytes:
    data = base64.b64decode(text)
    return zlib.decompress(data) if data[:1] == b"\x78" else bz2.decompress(data)


def named(pickle: bytes) -> set[str]:
    """Texts of a pickle, the names of modules and classes among them."""
    return {argument for _, argument, _ in pickletools.genops(pickle) if isinstance(argument, str)}


def test_nothing_alive_travels(graph: api.Pipeline) -> None:
    """Steps of ours are named, not copied, with their description; no client, model, credential or code goes along."""
    for name, pickle in pickles(graph):
        texts = named(pickle)
        modules = {text.partition(".")[0] for text in texts if re.fullmatch(r"[a-z_0-9]+(\.[a-z_0-9]+)+", text)}
        assert not modules & {"grpc", "google", "tensorflow", "keras", "serving", "threading", "socket"}, name
        if not name.startswith(OF_BEAM) and "/Written/" not in name:
            assert "_make_function" not in texts, name
            assert "_make_skeleton_class" not in texts, name


def test_no_secret_and_nothing_of_this_machine_travels(graph: api.Pipeline) -> None:
    whole = b"".join(pickle for _, pickle in pickles(graph)) + graph.SerializeToString()
    assert SECRET.encode() not in whole
    assert b"pickled_main_session" not in whole
    assert b"var/archive" not in whole


def test_what_is_missing_is_said_in_a_sentence(tmp_path: Path) -> None:
    done = submitted(tmp_path / "graph.json")
    assert done.exit_code == 2
    assert "give --archive-table bq://project.dataset.table" in done.output
    done = submitted(tmp_path / "graph.json", "--archive-table=bq://my-project.river.archive")
    assert done.exit_code == 2
    assert "Missing required option: region" in done.output
