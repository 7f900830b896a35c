# The job on Dataflow, in place of the one on Kubernetes, from the Flex Template that docs/dataflow.md builds. Its workers
# are the account `job`, which may do what any job may, and what a worker of Dataflow must.
locals {
  on_dataflow = var.dataflow_template == null ? [] : [var.dataflow_template]
  dataset     = "bq://${var.project}.${google_bigquery_dataset.river.dataset_id}"
}

resource "google_project_iam_member" "dataflow" {
  for_each = toset(local.on_dataflow)
  project  = var.project
  role     = "roles/dataflow.worker"
  member   = google_service_account.of["job"].member
}

# Names of steps stand for state: `on_delete` drains, and a change of parameters updates the running job.
resource "google_dataflow_flex_template_job" "job" {
  provider                = google-beta
  for_each                = toset(local.on_dataflow)
  name                    = var.app
  region                  = var.region
  container_spec_gcs_path = each.value
  sdk_container_image     = var.dataflow_image
  service_account_email   = google_service_account.of["job"].email
  temp_location           = "${google_storage_bucket.lake.url}/dataflow"
  enable_streaming_engine = true
  max_workers             = var.dataflow_workers
  on_delete               = "drain"

  parameters = {
    app              = var.app
    model_server     = var.model_server
    archive_table    = "${local.dataset}.${google_bigquery_table.results["events"].table_id}"
    prediction_table = "${local.dataset}.${google_bigquery_table.results["predictions"].table_id}"
    reaction_table   = "${local.dataset}.${google_bigquery_table.results["reactions"].table_id}"
    subscription     = google_pubsub_subscription.events.name
    shards           = tostring(8 * var.dataflow_workers)
  }

  depends_on = [
    google_project_iam_member.dataflow,
    google_bigquery_dataset_iam_member.job,
    google_pubsub_topic_iam_member.job,
    google_pubsub_subscription_iam_member.job,
    google_storage_bucket_iam_member.lake,
  ]
}
