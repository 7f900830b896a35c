# What Google's own metrics can say; the job's metrics have alerts of their own in deploy/monitoring/alerts.yml.
locals {
  alerts = {
    backlog = {
      title        = "${var.app}: events wait for more than a minute"
      subscription = google_pubsub_subscription.events.name
      metric       = "pubsub.googleapis.com/subscription/oldest_unacked_message_age"
      above        = 60
      seconds      = 300
    }
    dead_letters = {
      title        = "${var.app}: dead letters that nobody has looked at"
      subscription = google_pubsub_subscription.dead_letters.name
      metric       = "pubsub.googleapis.com/subscription/num_undelivered_messages"
      above        = 0
      seconds      = 600
    }
  }
}

resource "google_monitoring_alert_policy" "of" {
  for_each              = local.alerts
  display_name          = each.value.title
  combiner              = "OR"
  notification_channels = var.notification_channels

  conditions {
    display_name = each.value.title

    condition_threshold {
      filter = join(" AND ", [
        "resource.type = \"pubsub_subscription\"",
        "resource.labels.subscription_id = \"${each.value.subscription}\"",
        "metric.type = \"${each.value.metric}\"",
      ])
      comparison      = "COMPARISON_GT"
      threshold_value = each.value.above
      duration        = "${each.value.seconds}s"

      aggregations {
        alignment_period   = "60s"
        per_series_aligner = "ALIGN_MAX"
      }
    }
  }
}

output "topics" {
  description = "Names, as `sameriver stream --project` looks for them."
  value = concat(
    [for topic in [google_pubsub_topic.events, google_pubsub_topic.predictions, google_pubsub_topic.dead_letters] : topic.name],
    values(local.reaction_topics),
  )
}

output "accounts" {
  description = "To annotate the service accounts of deploy/kubernetes with (iam.gke.io/gcp-service-account)."
  value       = { for name, account in google_service_account.of : name => account.email }
}
