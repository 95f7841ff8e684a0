"""A real S3 server on this machine."""

import contextlib
from collections.abc import Iterator

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
"""Credentials in the environment of the server's users."""


def client_of(address: str):
    """A boto3 client of the server."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=address,
        region_name="us-east-1",
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    )


@contextlib.contextmanager
def s3_server(bucket: str = "laser") -> Iterator[str]:
    """The address of a server that has the bucket, until the block ends."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client_of(f"http://{host}:{port}").create_bucket(Bucket=bucket)
    yield f"http://{host}:{port}"
    server.stop()
