# What Sameriver needs on Google Cloud: topics with schemas and dead letters, subscriptions with ordering, BigQuery
# tables, buckets, accounts with no more rights than they need, alerts, the job on Dataflow if it is wanted. Jobs
# elsewhere: deploy/kubernetes.
#
#   terraform init && terraform validate
#   python deploy/terraform/app_variables.py flights > flights.tfvars.json
#   terraform plan -var project=my-project -var-file=flights.tfvars.json
#
# Never planned or applied where it was made (docs/deployment.md says what was checked). Read the plan first.

terraform {
  required_version = ">= 1.5"
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 6.0"
    }
    google-beta = { # for Flex Templates alone
      source  = "hashicorp/google-beta"
      version = "~> 6.0"
    }
  }
}

provider "google" {
  project = var.project
  region  = var.region
}

provider "google-beta" {
  project = var.project
  region  = var.region
}
