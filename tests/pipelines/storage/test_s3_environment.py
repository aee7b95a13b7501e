"""Environment variables of S3, seen by real servers that stand for endpoints and a proxy."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from pipelines.storage.files import file_info

VARIABLES = [
    *(
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_PROFILE",
        "AWS_CA_BUNDLE",
    ),
    *("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"),
]


class Bucket(BaseHTTPRequestHandler):
    """Server with one object; records the addresses and signatures of requests."""

    seen: list[tuple[str, str]]

    def do_HEAD(self) -> None:
        self.seen.append((self.path, self.headers.get("Authorization", "")))
        self.send_response(200)
        self.send_header("Content-Length", "7")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class Endpoint:
    """A running server, and what it has seen."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        handler = type("Handler", (Bucket,), {"seen": self.seen})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def endpoints(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Endpoint, Endpoint]]:
    """Start two servers, with an environment that names the first as the endpoint of all AWS services."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    first, second = Endpoint(), Endpoint()
    monkeypatch.setenv("AWS_ENDPOINT_URL", first.address)
    yield first, second
    for endpoint in (first, second):
        endpoint.server.shutdown()
        endpoint.server.server_close()


def test_the_endpoint_of_s3_wins_over_that_of_all_services(
    endpoints: tuple[Endpoint, Endpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert file_info("s3a://bucket/a b#c é%20.tar").size == 7
    assert endpoints[0].seen[0][0] == "/bucket/a%20b%23c%20%C3%A9%20.tar"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoints[1].address)
    file_info("s3://bucket/x.tar")
    assert [path for path, _ in endpoints[1].seen] == ["/bucket/x.tar"]


@pytest.mark.parametrize("variable", ["AWS_REGION", "AWS_DEFAULT_REGION"])
def test_requests_are_signed_for_the_region(
    endpoints: tuple[Endpoint, Endpoint], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "eu-west-3")
    file_info("s3://bucket/x.tar")
    assert "/eu-west-3/s3/" in endpoints[0].seen[0][1]


def test_credentials_are_those_of_the_profile_or_none(
    endpoints: tuple[Endpoint, Endpoint], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = LAB\naws_secret_access_key = x\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "missing"))
    file_info("s3://bucket/public.tar")
    assert endpoints[0].seen[-1][1] == ""
    monkeypatch.setenv("AWS_PROFILE", "lab")
    file_info("s3://bucket/x.tar")
    assert "Credential=LAB/" in endpoints[0].seen[-1][1]


def test_the_proxy_is_used_unless_the_endpoint_is_left_out(
    endpoints: tuple[Endpoint, Endpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", endpoints[1].address)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://no.such.host")
    assert file_info("s3://bucket/a b%20c.tar").size == 7
    assert [path for path, _ in endpoints[1].seen] == ["http://no.such.host/bucket/a%20b%20c.tar"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoints[0].address)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    file_info("s3://bucket/y.tar")
    assert [path for path, _ in endpoints[0].seen] == ["/bucket/y.tar"]
