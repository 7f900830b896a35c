"""The streaming graph: one stage after the source's restriction is split, explicit coders, no shuffle."""

from __future__ import annotations

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns, python_urns
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.fn_api_runner.translations import Stage

from shared_features.plan import make_plan
from streaming.job import build
from streaming.source import PullTracker
from streaming.topics import Message
from streaming.work import Work, WorkCoder
from tests.shop.app import app


def make_pipeline() -> beam.Pipeline:
    pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([]))
    build(pipeline, make_plan(app), b"job")
    return pipeline


def optimised_stages() -> list[Stage]:
    _, stages = FnApiRunner().create_stages(make_pipeline().to_runner_api())
    return list(stages)


def test_everything_after_the_source_is_one_stage() -> None:
    """A second stage would starve until the source ends, which is never."""
    running = [
        stage
        for stage in optimised_stages()
        if any(transform.spec.urn != common_urns.primitives.IMPULSE.urn for transform in stage.transforms)
    ]
    urns = [[transform.spec.urn for transform in stage.transforms] for stage in running]
    process = common_urns.sdf_components.PROCESS_SIZED_ELEMENTS_AND_RESTRICTIONS.urn
    with_source = [stage for stage, found in zip(running, urns, strict=True) if process in found]
    assert len(with_source) == 1
    names = " ".join(transform.unique_name for transform in with_source[0].transforms)
    for step in ("Decode", "Stage shop", "Stage till", "Features", "Deliver"):
        assert step in names


def test_no_step_shuffles() -> None:
    urns = {t.spec.urn for t in make_pipeline().to_runner_api().components.transforms.values()}
    assert common_urns.primitives.GROUP_BY_KEY.urn not in urns
    assert common_urns.composites.RESHUFFLE.urn not in urns


def test_elements_between_steps_have_explicit_coders() -> None:
    components = make_pipeline().to_runner_api().components
    for step in ("Pull", "Decode", "Stage shop", "Stage till", "Features"):
        transform = next(t for t in components.transforms.values() if t.unique_name == step)
        (output,) = transform.outputs.values()
        coder = components.coders[components.pcollections[output].coder_id]
        used = [components.coders[part] for part in coder.component_coder_ids]
        assert used[0].spec.urn == common_urns.coders.BYTES.urn, step
        assert used[1].spec.urn != python_urns.PICKLED_CODER or b"WorkCoder" in used[1].spec.payload, step


def test_a_work_is_sized_without_being_encoded() -> None:
    work = Work([Message(b"1234", {}, "m1", 17), Message(b"12", {}, "m2", 18)])
    assert WorkCoder().estimate_size(work) == 6
    with pytest.raises(TypeError, match="fused"):
        WorkCoder().encode(work)


def test_the_tracker_hands_over_what_is_live_once() -> None:
    tracker = PullTracker("live")
    assert tracker.try_claim(None)
    assert tracker.try_split(0) == ("done", "live")
    assert not tracker.try_claim(None)
    assert tracker.try_split(0) is None
    assert tracker.check_done()
