variable "project" {
  description = "Google Cloud project."
  type        = string
}

variable "region" {
  description = "Where buckets are, and messages may be stored."
  type        = string
  default     = "us-central1"
}

variable "app" {
  description = "Name of the app: topics, subscription, dataset and buckets bear it."
  type        = string
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,30}$", var.app))
    error_message = "An app's name has lower-case letters, digits and hyphens."
  }
}

variable "schemas" {
  description = "Avro schema of each event type, as JSON text, by name."
  type        = map(string)
}

variable "event_schema" {
  description = "The Avro schema that the events topic enforces, a name in schemas; null where several types share it."
  type        = string
  default     = null
}

variable "reactions" {
  description = "Names of the app's reactions."
  type        = set(string)
  default     = []
}

variable "kubernetes_namespace" {
  description = "Namespace of deploy/kubernetes, whose service accounts get the rights below (Workload Identity)."
  type        = string
  default     = "sameriver"
}

variable "notification_channels" {
  description = "Who is told of an alert: projects/PROJECT/notificationChannels/ID."
  type        = list(string)
  default     = []
}

variable "history_days" {
  description = "How long events are kept in BigQuery; null for ever."
  type        = number
  default     = null
}

variable "dataflow_template" {
  description = "Flex Template that runs the job on Dataflow, gs://BUCKET/TEMPLATE.json; null: the job runs elsewhere."
  type        = string
  default     = null
}

variable "dataflow_image" {
  description = "Image of the template, which is its workers' image, too."
  type        = string
  default     = null
}

variable "dataflow_workers" {
  description = "Workers at most. Shards are 8 times as many, so that a change of it wants a job with tables of its own."
  type        = number
  default     = 4
}

variable "model_server" {
  description = "Model servers as workers of Dataflow reach them, HOST:PORT; empty where rules alone predict."
  type        = string
  default     = ""
}
