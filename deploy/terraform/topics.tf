locals {
  reaction_topics = { for name in var.reactions : name => "${var.app}-reaction-${name}" }
}

resource "google_pubsub_schema" "event" {
  for_each   = var.schemas
  name       = "${var.app}-${each.key}"
  type       = "AVRO"
  definition = each.value
}

resource "google_pubsub_topic" "events" {
  name                       = "${var.app}-events"
  message_retention_duration = "604800s"

  message_storage_policy {
    allowed_persistence_regions = [var.region]
  }

  # A topic enforces one schema. Where several event types share it, the job checks each message by its type.
  dynamic "schema_settings" {
    for_each = var.event_schema == null ? [] : [var.event_schema]
    content {
      schema   = google_pubsub_schema.event[schema_settings.value].id
      encoding = "JSON"
    }
  }
}

resource "google_pubsub_topic" "predictions" {
  name = "${var.app}-predictions"
}

resource "google_pubsub_topic" "dead_letters" {
  name                       = "${var.app}-dead-letters"
  message_retention_duration = "2678400s"
}

resource "google_pubsub_topic" "reactions" {
  for_each = local.reaction_topics
  name     = each.value
}

# The job acknowledges what it cannot use only after it has published it to the dead letters itself. The policy is for
# what no job can take: a message that ends every process that reads it.
resource "google_pubsub_subscription" "events" {
  name                         = "${var.app}-events-sameriver"
  topic                        = google_pubsub_topic.events.id
  enable_message_ordering      = true
  enable_exactly_once_delivery = false
  ack_deadline_seconds         = 60
  message_retention_duration   = "604800s"

  expiration_policy {
    ttl = ""
  }

  retry_policy {
    minimum_backoff = "1s"
    maximum_backoff = "60s"
  }

  dead_letter_policy {
    dead_letter_topic     = google_pubsub_topic.dead_letters.id
    max_delivery_attempts = 100
  }
}

resource "google_pubsub_subscription" "dead_letters" {
  name                       = "${var.app}-dead-letters-sameriver"
  topic                      = google_pubsub_topic.dead_letters.id
  message_retention_duration = "2678400s"

  expiration_policy {
    ttl = ""
  }
}
