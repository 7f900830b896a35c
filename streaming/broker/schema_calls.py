"""google.pubsub.v1.SchemaService, and the IAM calls of the resources."""

from __future__ import annotations

import secrets
from typing import Any

from google.iam.v1 import iam_policy_pb2, policy_pb2
from google.protobuf.empty_pb2 import Empty
from google.pubsub_v1 import types

from streaming.broker.calls import Calls
from streaming.broker.core import page
from streaming.broker.errors import RefusedError
from streaming.broker.names import bad_name
from streaming.broker.schemas import parse


class SchemaCalls(Calls):
    """The calls of SchemaService."""

    async def create_schema(self, request: Any) -> Any:
        made = self.core.schemas.create(request.parent, request.schema_id, request.schema)
        await self.commits.durable()
        return made

    async def get_schema(self, request: Any) -> Any:
        return self.core.schemas.get(request.name, request.view)

    async def list_schemas(self, request: Any) -> Any:
        found = self.core.schemas.of_project(request.parent, request.view)
        names, token = page(found, "", request.page_size, request.page_token)
        return types.ListSchemasResponse.pb()(schemas=[found[name] for name in names], next_page_token=token)

    async def list_schema_revisions(self, request: Any) -> Any:
        found = {f"{n:06}": one for n, one in enumerate(self.core.schemas.revisions(request.name, request.view))}
        names, token = page(found, "", request.page_size, request.page_token)
        response = types.ListSchemaRevisionsResponse.pb()
        return response(schemas=[found[name] for name in names], next_page_token=token)

    async def commit_schema(self, request: Any) -> Any:
        made = self.core.schemas.commit(request.name, request.schema)
        await self.commits.durable()
        return made

    async def rollback_schema(self, request: Any) -> Any:
        made = self.core.schemas.rollback(request.name, request.revision_id)
        await self.commits.durable()
        return made

    async def delete_schema_revision(self, request: Any) -> Any:
        gone = self.core.schemas.delete_revision(request.name, request.revision_id)
        await self.commits.durable()
        return gone

    async def delete_schema(self, request: Any) -> Any:
        self.core.schemas.delete(request.name)
        await self.commits.durable()
        return Empty()

    async def validate_schema(self, request: Any) -> Any:
        parse(request.schema)
        return types.ValidateSchemaResponse.pb()()

    async def validate_message(self, request: Any) -> Any:
        name = request.name if request.WhichOneof("schema_spec") == "name" else ""
        self.core.schemas.check_message(name, request.schema, request.message, request.encoding)
        return types.ValidateMessageResponse.pb()()


class PolicyCalls(Calls):
    """The calls of google.iam.v1.IAMPolicy: policies are kept while the broker runs, and all is permitted to all."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._policies: dict[str, Any] = {}

    async def set_iam_policy(self, request: Any) -> Any:
        self._check_resource(request.resource)
        known = self._policies.get(request.resource)
        if request.policy.etag and known is not None and request.policy.etag != known.etag:
            raise RefusedError("ABORTED", "There were concurrent policy changes: read the policy again.")
        made = policy_pb2.Policy()
        made.CopyFrom(request.policy)
        made.etag = secrets.token_bytes(8)
        self._policies[request.resource] = made
        return made

    async def get_iam_policy(self, request: Any) -> Any:
        self._check_resource(request.resource)
        return self._policies.get(request.resource) or policy_pb2.Policy(etag=b"\0\x20\1")

    async def test_iam_permissions(self, request: Any) -> Any:
        self._check_resource(request.resource)
        return iam_policy_pb2.TestIamPermissionsResponse(permissions=request.permissions)

    def _check_resource(self, name: str) -> None:
        parts = name.split("/")
        kind = parts[2] if len(parts) == 4 else ""
        if kind == "topics":
            self.core.topic(name)
        elif kind == "subscriptions":
            self.core.subscription(name)
        elif kind == "snapshots":
            self.snapshots.get(name)
        elif kind == "schemas":
            self.core.schemas.get(name)
        else:
            raise bad_name(name)
