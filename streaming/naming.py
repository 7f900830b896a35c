"""Names of an app's topics and subscription: known here and nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared_features.app import App


def topic(app_name: str, role: str) -> str:
    """The topic of a role: ``events``, ``predictions``, ``dead-letters`` or ``reaction-<name>``."""
    return f"{app_name}-{role}"


def reaction_topics(app: App) -> dict[str, str]:
    """Reaction name to its topic."""
    return {reaction.name: topic(app.name, f"reaction-{reaction.name}") for reaction in app.reactions}


def topics_of(app: App) -> dict[str, str]:
    """Role to topic name, for every role."""
    roles = ["events", "predictions", "dead-letters", *(f"reaction-{reaction.name}" for reaction in app.reactions)]
    return {role: topic(app.name, role) for role in roles}


def subscription_of(app: App) -> str:
    """The subscription that the job pulls."""
    return topic(app.name, "events-sameriver")


def dead_letters_of(app: App) -> str:
    """The subscription that keeps dead letters until someone is done with them."""
    return topic(app.name, "dead-letters-sameriver")
