"""How a package was installed."""

from __future__ import annotations


def install_facts(app: str) -> dict[str, str]:
    """Return ``install`` and ``installer`` of a package. The place it came from is not read: it may be a path."""
    from importlib import metadata

    try:
        found = metadata.distribution(app)
        if found.read_text("RECORD") is None:  # metadata that a build has left in a folder of sources
            return {"install": "source"}
        direct = any(file.name == "direct_url.json" for file in found.files or ())
        installer = (found.read_text("INSTALLER") or "").split()
    except (metadata.PackageNotFoundError, ValueError, OSError):
        return {"install": "source"}
    return {"install": "direct" if direct else "index", **({"installer": installer[0].lower()} if installer else {})}
