"""``--site FILE`` (or HPCRL_SITE): a site's settings from YAML over the built-in defaults. Torch-free."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hpcrl.config.explain import broken_sections, explain
from hpcrl.config.site import Site
from hpcrl.config.yaml_file import Layer, read_mapping
from hpcrl.types import HpcrlError

SITE = "HPCRL_SITE"
_SECRET_NAME = re.compile(
    r"passw|secret|token|credential|api_?key|service_role|private_key|database_url", re.I
)
_SECRET_VALUE = re.compile(
    r"eyJ[\w-]{10,}"  # a JWT
    r"|\bsb_secret_|-----BEGIN|\bAKIA[0-9A-Z]{12}"
    r"|\w+://[^\s/@:]*:[^\s/@]+@"  # a URL with a password
    r"|\bpassword=",
    re.I,
)


def load_site(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Site:
    """The site of ``path``, else of HPCRL_SITE's file, else the defaults. HpcrlError names the key."""
    if path is None and environ.get(SITE):
        path = Path(environ[SITE])
    if path is None:
        return Site()
    tree = read_mapping(path)
    return site_of(tree, f"site {path}")


def site_of(tree: dict[Any, Any], origin: str) -> Site:
    """The tree as a Site; ``origin`` names it in errors."""
    secret = next(_secrets(tree), None)
    if secret is not None:  # before anything that would show the value
        raise HpcrlError(
            f"{origin}: {secret} looks like a secret; a site file is shared and its values go into scripts: "
            "put secrets into a .env of mode 600, and name that file by env_file"
        )
    broken = list(broken_sections(tree, Site))
    if broken:
        raise HpcrlError(f"{origin}: {'; '.join(broken)}")
    try:
        return Site.model_validate(tree)
    except ValidationError as error:
        raise HpcrlError(explain(error.errors(), [Layer(origin, tree)], origin, Site)) from None


def looks_secret(text: str) -> bool:
    """Whether a text holds what keys and passwords look like; a safeguard, it cannot know them all."""
    return _SECRET_VALUE.search(text) is not None


def _secrets(value: Any, key: str = "") -> Iterator[str]:
    """Dotted keys whose name or value is that of a secret."""
    if isinstance(value, dict):
        for name, each in value.items():
            dotted = f"{key}.{name}".lstrip(".")
            if _SECRET_NAME.search(str(name)) or looks_secret(str(name)):
                yield dotted if not looks_secret(str(name)) else f"a key of {key or 'the file'}"
            else:
                yield from _secrets(each, dotted)
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _secrets(each, f"{key}[{index}]")
    elif isinstance(value, str) and looks_secret(value):
        yield key
