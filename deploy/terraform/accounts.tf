data "google_project" "this" {}

locals {
  accounts = {
    job          = "pulls events, publishes what comes of them, writes to BigQuery"
    gateway      = "publishes events, follows predictions"
    model-server = "reads models"
    trainer      = "reads history, writes models"
  }

  pubsub_agent = "serviceAccount:service-${data.google_project.this.number}@gcp-sa-pubsub.iam.gserviceaccount.com"
}

resource "google_service_account" "of" {
  for_each     = local.accounts
  account_id   = "${var.app}-${each.key}"
  display_name = "Sameriver ${var.app}: ${each.value}"
}

resource "google_service_account_iam_member" "workload_identity" {
  for_each           = toset(["job", "gateway", "model-server"])
  service_account_id = google_service_account.of[each.key].name
  role               = "roles/iam.workloadIdentityUser"
  member             = "serviceAccount:${var.project}.svc.id.goog[${var.kubernetes_namespace}/${each.key}]"
}

# The job: its own subscription, its own topics, nothing else of the project.
resource "google_pubsub_subscription_iam_member" "job" {
  subscription = google_pubsub_subscription.events.name
  role         = "roles/pubsub.subscriber"
  member       = google_service_account.of["job"].member
}

resource "google_pubsub_topic_iam_member" "job" {
  for_each = merge(
    { predictions = google_pubsub_topic.predictions.name, dead_letters = google_pubsub_topic.dead_letters.name },
    { for name, topic in google_pubsub_topic.reactions : "reaction-${name}" => topic.name },
  )
  topic  = each.value
  role   = "roles/pubsub.publisher"
  member = google_service_account.of["job"].member
}

# It looks whether its topics, subscription and schemas are there before it begins.
resource "google_project_iam_member" "viewers" {
  for_each = toset(["job", "gateway"])
  project  = var.project
  role     = "roles/pubsub.viewer"
  member   = google_service_account.of[each.key].member
}

resource "google_bigquery_dataset_iam_member" "job" {
  dataset_id = google_bigquery_dataset.river.dataset_id
  role       = "roles/bigquery.dataEditor"
  member     = google_service_account.of["job"].member
}

resource "google_bigquery_dataset_iam_member" "trainer" {
  dataset_id = google_bigquery_dataset.river.dataset_id
  role       = "roles/bigquery.dataViewer"
  member     = google_service_account.of["trainer"].member
}

# Looking for identities before writing is a query; reading history is a session of the Storage Read API.
resource "google_project_iam_member" "queries" {
  for_each = { job = "roles/bigquery.jobUser", trainer = "roles/bigquery.readSessionUser" }
  project  = var.project
  role     = each.value
  member   = google_service_account.of[each.key].member
}

# The gateway makes subscriptions of its own to what the job publishes, and publishes events.
resource "google_pubsub_topic_iam_member" "gateway_publishes" {
  topic  = google_pubsub_topic.events.name
  role   = "roles/pubsub.publisher"
  member = google_service_account.of["gateway"].member
}

resource "google_pubsub_topic_iam_member" "gateway_follows" {
  for_each = merge(
    { predictions = google_pubsub_topic.predictions.name, dead_letters = google_pubsub_topic.dead_letters.name },
    { for name, topic in google_pubsub_topic.reactions : "reaction-${name}" => topic.name },
  )
  topic  = each.value
  role   = "roles/pubsub.subscriber"
  member = google_service_account.of["gateway"].member
}

resource "google_project_iam_custom_role" "gateway" {
  role_id     = "${replace(var.app, "-", "_")}_gateway"
  title       = "Sameriver gateway of ${var.app}"
  permissions = ["pubsub.subscriptions.create", "pubsub.subscriptions.consume", "pubsub.subscriptions.delete"]
}

resource "google_project_iam_member" "gateway" {
  project = var.project
  role    = google_project_iam_custom_role.gateway.id
  member  = google_service_account.of["gateway"].member
}

resource "google_storage_bucket_iam_member" "models" {
  for_each = { model-server = "roles/storage.objectViewer", trainer = "roles/storage.objectAdmin" }
  bucket   = google_storage_bucket.models.name
  role     = each.value
  member   = google_service_account.of[each.key].member
}

resource "google_storage_bucket_iam_member" "lake" {
  for_each = { job = "roles/storage.objectAdmin", trainer = "roles/storage.objectViewer" }
  bucket   = google_storage_bucket.lake.name
  role     = each.value
  member   = google_service_account.of[each.key].member
}

# Pub/Sub itself moves what cannot be delivered to the dead letters.
resource "google_pubsub_topic_iam_member" "dead_letters" {
  topic  = google_pubsub_topic.dead_letters.name
  role   = "roles/pubsub.publisher"
  member = local.pubsub_agent
}

resource "google_pubsub_subscription_iam_member" "dead_letters" {
  subscription = google_pubsub_subscription.events.name
  role         = "roles/pubsub.subscriber"
  member       = local.pubsub_agent
}
