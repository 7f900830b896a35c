# What Sameriver needs on Google Cloud: topics with schemas and dead letters, subscriptions with ordering, BigQuery
# tables, buckets, accounts with no more rights than they need, alerts. The jobs themselves: deploy/kubernetes.
#
#   terraform init && terraform validate
#   python deploy/terraform/app_variables.py flights > flights.tfvars.json
#   terraform plan -var project=my-project -var-file=flights.tfvars.json
#
# Written where Google's provider could not be had: formatted, but never validated or planned. Read the plan first.

terraform {
  required_version = ">= 1.5"
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 6.0"
    }
  }
}

provider "google" {
  project = var.project
  region  = var.region
}
