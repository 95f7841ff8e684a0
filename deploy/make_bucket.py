"""Makes the bucket for MLflow's artifacts unless it exists. docker-compose.yml runs this once, with
MLflow's credentials.

In: the bucket's name, and the variables AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
"""

import contextlib
import sys

import boto3


def main(bucket: str) -> None:
    """Make the bucket, and check that these credentials can reach it."""
    client = boto3.client("s3")
    with contextlib.suppress(
        client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists
    ):
        client.create_bucket(Bucket=bucket)
    # Raises where the bucket belongs to another account and these credentials cannot reach it.
    client.head_bucket(Bucket=bucket)
    print(f"bucket {bucket} exists")


if __name__ == "__main__":
    main(sys.argv[1])
