"""Check that no option holds a password or key: options are written to config.yaml, MLflow, logs and dashboards."""

import re
from collections.abc import Iterator, Mapping, Sequence

from perceiver_dist.errors import UserError

_PASSWORD = re.compile(r"://[^/?#@\s:]*:(?!\d+(?:[/?#]|$))[^\s]+@")
"""`://user:password@`. A port, as in `://host:5000/path@2`, is not a password."""
_QUERY = re.compile(r"[?&;]([^=&;?\s]+)=[^&;\s]")
"""Name of a query parameter that has a value."""
_SECRET_NAMES = re.compile(
    r"^sig$|secret|token$|signature|passw|pwd$|credential|access_?key|account_?key|api_?key|private_?key",
    re.I,
)
"""Names of options and query parameters that hold secrets; `sig` is that of Azure's signed URLs."""
_REMEDIES = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "gcs": "GOOGLE_APPLICATION_CREDENTIALS",
    "postgresql": "PGPASSWORD, or ~/.pgpass",
}
_TRACKING_REMEDY = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
_OTHER_REMEDY = (
    "environment variables or files that its client reads (for https:// FSSPEC_HTTPS, a JSON of options)"
)


def refuse_credentials(options: Mapping[str, object]) -> None:
    """Check that no option holds a password or a key.

    Args:
        options: Options as nested mappings.

    Raises:
        UserError: An option does. The message says where the secret belongs instead, and does not repeat it.
    """
    for name, value in _texts(options, ""):
        if _is_secret(name, value):
            raise UserError(
                f"{name} holds a password or key, and options are written to config.yaml, MLflow and logs; remove it, "
                f"and provide it by {_remedy(name, value)}"
            )


def _texts(tree: object, name: str) -> Iterator[tuple[str, str]]:
    """Yield the dotted name and value of every string. A list entry goes by its "name" if it has one."""
    if isinstance(tree, str):
        yield name, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _texts(value, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, Sequence):
        for number, value in enumerate(tree):
            label = value.get("name", number) if isinstance(value, Mapping) else number
            yield from _texts(value, f"{name}.{label}")


def _is_secret(name: str, value: str) -> bool:
    own_name = name.rpartition(".")[2]
    in_query = any(_SECRET_NAMES.search(key) for key in _QUERY.findall(value))
    return bool(value and _SECRET_NAMES.search(own_name)) or in_query or _PASSWORD.search(value) is not None


def _remedy(name: str, value: str) -> str:
    scheme = re.split(r"[:+]", value, maxsplit=1)[0].lower()
    if name in ("tracking.uri", "MLFLOW_TRACKING_URI") and scheme in ("http", "https"):
        return _TRACKING_REMEDY
    return _REMEDIES.get(scheme, _OTHER_REMEDY)
