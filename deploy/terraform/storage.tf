resource "google_bigquery_dataset" "river" {
  dataset_id                 = replace(var.app, "-", "_")
  location                   = var.region
  delete_contents_on_destroy = false
}

# `sameriver archive export` adds the columns of the app's features and outputs as it meets them; these are the ones
# that every app has, with the partitions and clusters that cannot be changed afterwards.
locals {
  tables = {
    events      = { identity = "archive", more = ["archive_commit", "archive_row"] }
    predictions = { identity = "prediction_id", more = [] }
    reactions   = { identity = "reaction_id", more = [] }
  }
}

resource "google_bigquery_table" "results" {
  for_each            = local.tables
  dataset_id          = google_bigquery_dataset.river.dataset_id
  table_id            = each.key
  deletion_protection = true

  time_partitioning {
    type          = "DAY"
    field         = "publish_time"
    expiration_ms = var.history_days == null ? null : var.history_days * 86400000
  }

  clustering = ["event_time"]

  schema = jsonencode(concat(
    [
      { name = "publish_time", type = "TIMESTAMP", mode = "NULLABLE" },
      { name = "event_time", type = "TIMESTAMP", mode = "NULLABLE" },
      { name = each.value.identity, type = "STRING", mode = "NULLABLE" },
    ],
    [for name in each.value.more : { name = name, type = "INTEGER", mode = "NULLABLE" }],
  ))

  lifecycle {
    ignore_changes = [schema]
  }
}

resource "google_storage_bucket" "models" {
  name                        = "${var.project}-${var.app}-models"
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  versioning {
    enabled = true
  }
}

resource "google_storage_bucket" "lake" {
  name                        = "${var.project}-${var.app}-lake"
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  lifecycle_rule {
    condition {
      age = 90
    }
    action {
      type          = "SetStorageClass"
      storage_class = "NEARLINE"
    }
  }
}
