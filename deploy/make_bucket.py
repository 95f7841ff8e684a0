"""Make the bucket that MLflow keeps artifacts in, unless it is there: docker-compose runs this once, with MLflow's own credentials.

In: the bucket's name, and the variables AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
"""

import contextlib
import sys

import boto3


def main(bucket: str) -> None:
    client = boto3.client("s3")
    with contextlib.suppress(
        client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists
    ):
        client.create_bucket(Bucket=bucket)
    client.head_bucket(
        Bucket=bucket
    )  # also when it is another's: raises, if these credentials do not reach it
    print(f"bucket {bucket} is there")


if __name__ == "__main__":
    main(sys.argv[1])
