"""Signed addresses: the parameters of a query that grant access to a file and change each time it is signed."""

import re

_SIGNED = re.compile(r"[?&](x-amz-signature|x-goog-signature|signature|sig|token|[a-z_-]*token)=", re.I)
"""A query with one of these parameters is signed. `sig` is Azure's."""

_PARAMETER = re.compile(
    r"(?<=[?&])(x-amz-[a-z0-9-]*|x-goog-[a-z0-9-]*|expires|signature|policy|key-pair-id|awsaccesskeyid|googleaccessid"
    r"|sig|s[eprtvi]p?|sk[eostv]|skoid|sktid|srt|spr|token|[a-z_-]*token)=[^&#\s'\")]*&?",
    re.I,
)
"""Parameters of signatures of S3 (both versions), GCS, CloudFront and Azure, and tokens."""


def hide_signatures(text: str) -> str:
    """Return a URI, or a message that contains some, without the parameters of signatures.

    What is left names the same file, now and when the file is signed again. Other parameters of a query stay, since
    they may say which file is meant.

    Args:
        text: A URI or a message.
    """
    if not _SIGNED.search(text):
        return text
    return re.sub(r"[?&]+(?=$|[#\s'\")])", "", _PARAMETER.sub("", text))
