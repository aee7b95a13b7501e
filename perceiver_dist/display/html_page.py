"""Self-contained HTML pages, rendered from Jinja2 templates.

A template lies in a folder `templates` beside the code that renders it, and extends `display/templates/base.html`,
which holds the colours, the fonts and the content security policy of all pages.
"""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_PAGES = Environment(
    # Templates are named by their path in the package, so that those of one folder can extend those of another.
    loader=PackageLoader("perceiver_dist", package_path=""),
    # Names of shards, samples and runs, and error messages, are untrusted text.
    autoescape=True,
    # A misspelt name in a template is an error, not an empty place on the page.
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render_page(template: str, **values: Any) -> str:
    """Render a page.

    Args:
        template: Path of the template within `perceiver_dist`, such as "search/report/templates/report.html".
        **values: What the template names. All text is escaped, except for `markupsafe.Markup`.

    Returns:
        HTML that needs no other file.
    """
    return _PAGES.get_template(template).render(values)
