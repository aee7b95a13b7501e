"""pyarrow's file system of S3, with the proxies and certificates of the environment, which it would ignore.

pyarrow itself reads AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS_REGION, AWS_DEFAULT_REGION, AWS_PROFILE and the other
sources of credentials. Without credentials requests are not signed, as public buckets need it.
"""

import os
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from pyarrow import fs


def open_s3(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a URI and the path within it.

    Args:
        uri: `s3://BUCKET/KEY`, with pyarrow's options in the query.

    Raises:
        ValueError: The URI is wrong.
        OSError: The region of the bucket cannot be looked up.
    """
    proxy, authorities = _proxy(), os.environ.get("AWS_CA_BUNDLE")
    # A URI with options says what to do itself.
    if not (proxy or authorities) or "?" in uri or "@" in uri:
        return fs.FileSystem.from_uri(uri)
    endpoint = urlsplit(_endpoint())
    filesystem = fs.S3FileSystem(
        scheme=endpoint.scheme,
        endpoint_override=endpoint.netloc if _endpoint() != _AWS else None,
        proxy_options=proxy,
        tls_ca_file_path=authorities,
    )
    return filesystem, unquote(uri.removeprefix("s3://"))


_AWS = "https://s3.amazonaws.com"


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or _AWS


def _proxy() -> str | None:
    """Return the proxy that HTTPS_PROXY or HTTP_PROXY sets for the endpoint, unless NO_PROXY leaves it out."""
    endpoint = urlsplit(_endpoint())
    return None if proxy_bypass(endpoint.netloc) else getproxies().get(endpoint.scheme)
