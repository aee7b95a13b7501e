"""Shards that patterns, joined patterns and lists name, and addresses that cannot be read."""

from functools import partial
from pathlib import Path

import pytest

from pipelines.errors import ShardError
from pipelines.storage.shard_list import check_hosts, expand_shards
from pipelines.storage.signatures import hide_signatures


def test_braces_and_globs_expand_in_a_fixed_order(tmp_path: Path) -> None:
    for name in ("b-2.tar", "b-1.tar", "b-1.txt", "a-7.tar"):
        (tmp_path / name).touch()
    expand = partial(expand_shards, source="speech")
    assert expand(f"{tmp_path}/x-{{08..11}}.tar") == [
        f"{tmp_path}/x-{n}.tar" for n in ("08", "09", "10", "11")
    ]
    assert expand(f"{tmp_path}/*.tar") == [f"{tmp_path}/{name}.tar" for name in ("a-7", "b-1", "b-2")]
    assert expand(f"{tmp_path}/{{b,a}}-[0-9].tar") == [
        f"{tmp_path}/{name}.tar" for name in ("b-1", "b-2", "a-7")
    ]


@pytest.mark.parametrize("folder", ["", "missing/"])
def test_glob_without_match_is_an_error(tmp_path: Path, folder: str) -> None:
    with pytest.raises(ShardError) as caught:
        expand_shards(f"{tmp_path}/{folder}*.tar", "speech")
    assert str(caught.value) == (
        f"source 'speech': no file matches {tmp_path}/{folder}*.tar; write or copy the shards there first"
    )


def test_unclosed_brace_is_an_error() -> None:
    with pytest.raises(ShardError) as caught:
        expand_shards("train-{0..3.tar", "speech")
    assert str(caught.value) == "source 'speech': shards is 'train-{0..3.tar'; close every brace it opens"


def test_patterns_are_joined_as_webdataset_joins_them() -> None:
    assert expand_shards("/a/{1..2}.tar::s3://b/c.tar", "speech") == ["/a/1.tar", "/a/2.tar", "s3://b/c.tar"]


def test_a_list_names_shards_relative_to_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train.txt").write_text(
        "# first half\nx-{0..1}.tar\n\n/there/y.tar \ns3://b/z.tar::w.tar\n"
    )
    monkeypatch.chdir(tmp_path)
    folder = f"{tmp_path}/lists"
    assert expand_shards("@lists/train.txt", "speech") == [
        *(f"{folder}/x-{number}.tar" for number in range(2)),
        "/there/y.tar",
        "s3://b/z.tar",
        f"{folder}/w.tar",
    ]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "does not exist; write a text file with one shard per line"),
        (b"# nothing\n", "names no shard; write a text file with one shard per line"),
        (b"\xff\xfe", "is not UTF-8 text; list one shard per line"),
        (b"@other.txt", "names another list, @other.txt; list shards only"),
    ],
)
def test_a_list_that_names_no_shards_is_an_error(tmp_path: Path, content: bytes | None, fault: str) -> None:
    if content is not None:
        (tmp_path / "list").write_bytes(content)
    with pytest.raises(ShardError) as caught:
        expand_shards(f"@{tmp_path}/list", "speech")
    assert str(caught.value) == f"source 'speech': {tmp_path}/list {fault}"


@pytest.mark.parametrize(
    ("pattern", "part"),
    [
        ("pipe:aws s3 cp s3://b/x.tar -", "pipe:aws s3 cp s3://b/x.tar -"),
        ("simplecache::s3://b/x.tar", "simplecache"),
        ("/a/b.tar::demo:fashion_mnist/*.tar", "demo:fashion_mnist/*.tar"),
        ("s3:b/x.tar", "s3:b/x.tar"),
        ("http:/host/x.tar", "http:/host/x.tar"),
    ],
)
def test_what_is_no_address_is_named(pattern: str, part: str) -> None:
    with pytest.raises(ShardError) as caught:
        expand_shards(pattern, "speech")
    assert str(caught.value).startswith(
        f"source 'speech': shards is '{pattern}', and '{part}' is not an address that can be read; use a path, "
    )


def test_files_may_be_called_like_globs(tmp_path: Path) -> None:
    for name in ("train[1].tar", "what?.tar", "50% #1 é.tar"):
        (tmp_path / name).touch()
        assert expand_shards(f"{tmp_path}/{name}", "speech") == [f"{tmp_path}/{name}"]


def test_a_question_mark_in_a_url_begins_a_query() -> None:
    uri = "https://host/{1..2}.tar?download=1&name=*"
    assert expand_shards(uri, "speech") == [f"https://host/{n}.tar?download=1&name=*" for n in (1, 2)]
    with pytest.raises(ShardError, match=r"has a glob and a query; name the files by braces or in a list"):
        expand_shards("https://host/*.tar?download=1", "speech")


@pytest.mark.parametrize(
    ("signed", "shown"),
    [
        ("https://h/x.tar?X-Amz-Date=2&X-Amz-Signature=ab%2F", "https://h/x.tar"),
        ("https://h/x.tar?AWSAccessKeyId=A&Expires=1&Signature=b%3D", "https://h/x.tar"),
        ("https://h/get?id=7&X-Goog-Signature=ab&part=2", "https://h/get?id=7&part=2"),
        ("https://h/x.tar?sv=2&st=1&se=3&sr=b&sp=r&sig=ab", "https://h/x.tar"),
        ("https://h/x.tar?Policy=p&Signature=s&Key-Pair-Id=K", "https://h/x.tar"),
        ("https://h/x.tar?access_token=hf_1", "https://h/x.tar"),
        ("403, url='https://h/x?a=1&token=t' (b)", "403, url='https://h/x?a=1' (b)"),
        ("https://h/x.tar?download=1&expires=7", "https://h/x.tar?download=1&expires=7"),
        ("/a/b?c.tar", "/a/b?c.tar"),
    ],
)
def test_signatures_are_left_out(signed: str, shown: str) -> None:
    assert hide_signatures(signed) == shown


def test_a_web_server_that_does_not_exist_is_named_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shards = ["/data/x.tar", "s3://bucket/x.tar", "http://127.0.0.1:1/x.tar"]
    check_hosts(shards, "speech")
    with pytest.raises(
        ShardError, match=r"source 'speech': there is no server called no\.such\.host\.invalid \("
    ):
        check_hosts([*shards, "https://no.such.host.invalid/a/x.tar?sig=1"], "speech")
    # A proxy may know it.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    check_hosts(["https://no.such.host.invalid/a/x.tar"], "speech")
