"""Traces from publish to reaction, when asked for: OpenTelemetry spans to a collector (OTLP over HTTP) or a file.

A message that bears a context (W3C Trace Context: the attribute ``traceparent``, or ``googclient_traceparent`` of
Google's client) gets a span of its own in its publisher's trace, from the pull to the acknowledgement, and what is
published because of it bears that span's context. What is done to messages together is the span of their work,
linked to theirs, with one span for each step; a work of a single message stands in that message's trace.

Off, nothing of OpenTelemetry is imported, and a work carries None.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, Final

from shared_features.errors import ConfigurationError
from streaming.topics import Message, OutgoingMessage

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

    from streaming.work import Work

TRACEPARENT: Final = "traceparent"
_GOOGLE: Final = "googclient_"
_MOST_LINKS: Final = 1_000
_EXPORT_TIMEOUT_S: Final = 5.0
_EVERY_MS: Final = 1_000.0


class Tracing:
    """Where spans go; one for each process.

    Args:
        target: ``http://HOST:PORT`` of a collector, to which ``/v1/traces`` is added unless there is a path; or the
            path of a file, which gets one JSON object a line.
        service: name of the service, unless ``OTEL_SERVICE_NAME`` gives one.

    Raises:
        ConfigurationError: the file cannot be written.
    """

    def __init__(self, target: str, service: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import SpanLimits, TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": service}
        limits = SpanLimits(max_links=_MOST_LINKS)
        self._provider = TracerProvider(resource=Resource.create(named), span_limits=limits, shutdown_on_exit=False)
        self._file = None if target.startswith(("http://", "https://")) else _open(target)
        exporter = _to_collector(target) if self._file is None else _to_file(self._file)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=_EVERY_MS))
        self._tracer = self._provider.get_tracer("sameriver")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, messages: Sequence[Message], app: str) -> WorkTrace:
        """The trace of a work that begins with these messages; `WorkTrace.end` ends it."""
        from opentelemetry import trace

        spans = [self._of_message(message, app) for message in messages]
        traced = [span for span in spans if span is not None]
        parent = trace.set_span_in_context(traced[0]) if len(traced) == len(messages) == 1 else None
        links = [] if parent is not None else [trace.Link(span.get_span_context()) for span in traced]
        said: dict[str, Any] = {"sameriver.app": app, "messaging.batch.message_count": len(messages)}
        work = self._tracer.start_span(f"{app} work", context=parent, links=links, attributes=said)
        return WorkTrace(self, work, spans)

    def child(self, span: Span, name: str, start_ns: int | None = None, **attributes: Any) -> Span:
        """A span below another one."""
        from opentelemetry import trace

        context = trace.set_span_in_context(span)
        return self._tracer.start_span(name, context=context, start_time=start_ns, attributes=attributes)

    @contextmanager
    def publishing(self, topic: str, messages: Sequence[OutgoingMessage]) -> Iterator[list[OutgoingMessage]]:
        """Messages to publish, each with the context of a span that lasts until the block is left.

        One that bears a context already gets its span in that trace.
        """
        from opentelemetry import trace

        kind, said = trace.SpanKind.PRODUCER, {"messaging.system": "gcp_pubsub", "messaging.destination.name": topic}
        spans = [
            self._tracer.start_span(
                f"publish {topic}", context=self._context(message.attributes), kind=kind, attributes=said
            )
            for message in messages
        ]
        try:
            yield [with_context(message, span) for message, span in zip(messages, spans, strict=True)]
        finally:
            for span in spans:
                span.end()

    def close(self) -> None:
        """Send what is left; returns within some seconds, also where nobody takes it."""
        self._provider.shutdown()
        if self._file is not None:
            self._file.close()

    def _of_message(self, message: Message, app: str) -> Span | None:
        from opentelemetry import trace

        context = self._context(message.attributes)
        if context is None or not trace.get_current_span(context).get_span_context().trace_flags.sampled:
            return None
        said: dict[str, Any] = {
            "messaging.system": "gcp_pubsub",
            "messaging.message.id": message.message_id,
            "messaging.message.body.size": len(message.data),
            "sameriver.publish_time_us": message.publish_time_us,
        }
        name, kind = f"process {app}-events", trace.SpanKind.CONSUMER
        return self._tracer.start_span(name, context=context, kind=kind, attributes=said)

    def _context(self, attributes: Mapping[str, str]) -> Any:
        """The context that a message bears; None if it has none, or one that cannot be read."""
        from opentelemetry import trace
        from opentelemetry.context import Context

        prefix = "" if TRACEPARENT in attributes else _GOOGLE
        if f"{prefix}{TRACEPARENT}" not in attributes:
            return None
        carrier = {name: attributes.get(f"{prefix}{name}", "") for name in (TRACEPARENT, "tracestate")}
        context = self._propagator.extract(carrier, context=Context())
        return context if trace.get_current_span(context).get_span_context().is_valid else None


class WorkTrace:
    """The span of a work, and those of its messages, in their order; None for a message without a context."""

    def __init__(self, tracing: Tracing, work: Span, messages: Sequence[Span | None]) -> None:
        self.tracing, self.work, self.messages = tracing, work, messages

    def step(self, name: str, start_ns: int, end_ns: int | None = None, **attributes: Any) -> None:
        """Note a step of the work that has ended, by default now."""
        self.tracing.child(self.work, name, start_ns, **attributes).end(end_ns)

    def end(self, **attributes: Any) -> None:
        """The work and its messages have ended."""
        self.work.set_attributes(attributes)
        self.work.end()
        for span in self.messages:
            if span is not None:
                span.end()


def step(work: Work, name: str, start_ns: int) -> None:
    """Note a step of the work that ends now, if it is traced."""
    if work.trace is not None:
        work.trace.step(name, start_ns)


def step_until(work: Work, name: str, start_ns: int, answer: Future[Any]) -> None:
    """Note a step of the work that ends when an answer comes, if it is traced."""
    if work.trace is not None:
        answer.add_done_callback(lambda _: step(work, name, start_ns))


def committed(works: Sequence[Work], start_ns: int, archived_ns: int) -> None:
    """The works of one commit have been archived, then published: their traces end."""
    published_ns = time.time_ns()
    for work in works:
        if work.trace is not None:
            work.trace.step("archive", start_ns, archived_ns)
            work.trace.step("publish", archived_ns, published_ns)
            rows = 0 if work.block is None else work.block.num_rows
            work.trace.end(**{"sameriver.events": work.events, "sameriver.rows": rows})


def with_contexts(
    sent: Mapping[str, Sequence[OutgoingMessage]], works: Sequence[Work], reactions: Mapping[str, str]
) -> Mapping[str, Sequence[OutgoingMessage]]:
    """Outgoing messages with the contexts of the events that they are about; a reaction with one of its own.

    Args:
        sent: topic to messages.
        works: of the commit that they were made of.
        reactions: topic of each reaction to its name.
    """
    traces: dict[tuple[str, str], tuple[Tracing, Span]] = {}
    for work in works:
        if work.trace is None or work.block is None or not any(work.trace.messages):
            continue
        types, ids = (work.block.column(name).to_pylist() for name in ("event_type", "event_id"))
        for row, message in enumerate(work.rows):
            span = work.trace.messages[message]
            if span is not None:
                traces[types[row], ids[row]] = work.trace.tracing, span
    if not traces:
        return sent
    return {topic: [_traced(one, traces, reactions.get(topic)) for one in messages] for topic, messages in sent.items()}


def _traced(
    message: OutgoingMessage, traces: Mapping[tuple[str, str], tuple[Tracing, Span]], reaction: str | None
) -> OutgoingMessage:
    found = traces.get((message.attributes.get("event_type", ""), message.attributes.get("event_id", "")))
    if found is None:
        return message
    tracing, span = found
    if reaction is not None:
        span = tracing.child(span, f"reaction {reaction}")
        span.end()
    return with_context(message, span)


def with_context(message: OutgoingMessage, span: Span) -> OutgoingMessage:
    """The message with the context of a span."""
    context = span.get_span_context()
    value = f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
    return message._replace(attributes={**message.attributes, TRACEPARENT: value})


def _to_collector(url: str) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    path = url.split("://", 1)[1].partition("/")[2]
    return OTLPSpanExporter(url if path else f"{url.rstrip('/')}/v1/traces", timeout=_EXPORT_TIMEOUT_S)


def _to_file(file: IO[str]) -> SpanExporter:
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter

    return ConsoleSpanExporter(out=file, formatter=lambda span: f"{span.to_json(indent=None)}\n")


def _open(path: str) -> IO[str]:
    if "://" in path:
        raise ConfigurationError(f"traces cannot go to {path}: give http://HOST:PORT of a collector, or a file")
    try:
        return open(path, "a", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"traces cannot be written to {path} ({error.strerror}): give another file, or http://HOST:PORT"
        ) from None
