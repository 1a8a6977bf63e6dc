"""``bbcache verify``: check every archive of a cache directory."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from typing import TYPE_CHECKING, Final

from bbcache.cli import arguments, tier
from bbcache.cli.arguments import NoCacheError
from bbcache.errors import ConfigError
from bbcache.storage.dirlock import LOCK_NAME
from bbcache.storage.verify import Audit, Finding, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_DESCRIPTION = """\
Check every archive in a cache directory: the seal and the digest of those that
bbcache has written, the whole gzip stream of the others. A cache may be running on
the directory.

Of a second tier, check the signature and the seal of every object of the epoch. All of
them are read: how many requests that takes is said first.
"""
_EPILOG = """\
examples:
  bbcache verify /srv/pageserver/basebackup_cache
  bbcache verify s3://bucket/prefix --key-file tier.key --option region=eu-central-1

exit codes: 0 every archive is good, 1 an archive is bad or cannot be read, 2 the directory
or the bucket cannot be listed, 3 the directory is not a cache: it has neither an archive nor
.bbcache.lock; or the bucket has no object of the epoch
"""
CACHE_DIR_NAME: Final = "basebackup_cache"  # in a pageserver's directory


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the ``verify`` command."""
    parser = commands.add_parser(
        "verify",
        help="check every archive in a cache directory, or in a second tier",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "dir",
        type=_place,
        metavar="DIR|URL",
        help="the cache's data directory; or the URL of a second tier, such as s3://bucket/prefix",
    )
    parser.add_argument(
        "--quarantine", action="store_true", help="move bad archives into DIR/quarantine"
    )
    parser.add_argument("--json", action="store_true", help="print every file as JSON")
    group = parser.add_argument_group("of a second tier")
    tier.add_bucket_options(group)
    group.add_argument(
        "--key-file",
        action="append",
        default=[],
        metavar="FILE",
        help="a key by which objects were signed; several times",
    )
    group.add_argument(
        "--allow-unsigned",
        action="store_true",
        help="accept objects without a signature, if their seal is right",
    )
    parser.set_defaults(run=run)


def _place(text: str) -> Path | str:
    """A URL, or the path of a directory."""
    return text if "://" in text else arguments.path(text)


def run(options: argparse.Namespace) -> bool:
    """Check the directory, or the bucket, and print what is found.

    Returns:
        Whether every archive is good.

    Raises:
        NoCacheError: the directory is not that of a cache, or the bucket has nothing of one.
        OSError: the directory cannot be listed, or a bad archive cannot be moved.
        ConfigError: of a second tier, the URL, a key or an option is wrong.
    """
    if isinstance(options.dir, str):
        if options.quarantine:
            raise ConfigError(f"--quarantine moves files of a directory, not of {options.dir}")
        options.url = options.dir
        return tier.run_verify(options)
    audit = Audit(options.dir)
    if not audit.is_cache:
        raise NoCacheError(f"{options.dir} is not a cache: {_what_is_missing(options.dir)}")
    findings = list(_with_progress(audit.run(quarantine=options.quarantine), len(audit)))
    counts = Counter(finding.verdict for finding in findings)
    if options.json:
        document = {
            "dir": str(options.dir),
            "counts": {verdict: counts[verdict] for verdict in Verdict},
            "files": [finding._asdict() for finding in findings],
        }
        print(json.dumps(document, indent=2))
    else:
        _print(findings, counts)
    return counts[Verdict.BAD] == counts[Verdict.UNREADABLE] == 0


def _what_is_missing(directory: Path) -> str:
    missing = f"it has neither an archive nor {LOCK_NAME}"
    inner = directory / CACHE_DIR_NAME
    hint = f"Name {inner}." if inner.is_dir() else "Is the file system mounted?"
    return f"{missing}\nhint: {hint}"


def _with_progress(findings: Iterable[Finding], total: int) -> Iterator[Finding]:
    is_shown = sys.stderr.isatty()
    for number, finding in enumerate(findings, 1):
        if is_shown:
            print(f"\r{min(number, total)} of {total} checked", end="", file=sys.stderr)
        yield finding
    if is_shown:
        print("\r\033[K", end="", file=sys.stderr)


def _print(findings: Iterable[Finding], counts: Counter[Verdict]) -> None:
    for path, verdict, size_bytes, reason, is_quarantined in findings:
        if verdict is not Verdict.GOOD:
            moved = ", moved to quarantine" if is_quarantined else ""
            print(f"{verdict}: {path!r} ({size_bytes} bytes): {reason}{moved}")
    print(", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict))
