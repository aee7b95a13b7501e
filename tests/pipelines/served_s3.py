"""A local S3 server with one bucket."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "perceiver"

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": "a-word",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@contextmanager
def served_s3(local: Path, files: Iterable[Path]) -> Iterator[tuple[str, Any]]:
    """Serve a bucket with some files.

    Args:
        local: Folder to which the files' keys are relative.
        files: The files.

    Yields:
        Endpoint URL of the server, and boto3's S3 client.
    """
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    client = boto3.client(
        "s3",
        endpoint_url=address,
        region_name=CREDENTIALS["AWS_DEFAULT_REGION"],
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
    )
    client.create_bucket(Bucket=BUCKET)
    for file in files:
        client.upload_file(str(file), BUCKET, str(file.relative_to(local)))
    yield address, client
    server.stop()
