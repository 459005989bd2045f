"""Buckets on S3 and its many relatives. Nothing here imports aiobotocore before the first request."""
