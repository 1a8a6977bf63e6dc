"""``bbcache tier check``, and ``bbcache verify`` of a bucket."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from bbcache.cli.arguments import NoCacheError
from bbcache.cli.off_main import off_main_thread
from bbcache.errors import ConfigError, printable
from bbcache.setting_rows import settings_of
from bbcache.storage.verify import Finding, Verdict
from bbcache.tier_config import TierConfig

if TYPE_CHECKING:
    from collections.abc import Callable

_SETTINGS: Final = settings_of(TierConfig)
_EPILOG: Final = """\
Credentials are those of the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY,
or of a role of the machine.

exit codes: 0 a tier works there, 1 a step has failed, 2 wrong arguments
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the ``tier`` command."""
    parser = commands.add_parser(
        "tier",
        help="try the bucket of a second tier",
        description="Try the bucket of a second tier.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    check = actions.add_parser(
        "check",
        help="make each request that a tier makes",
        description="List, put, get and delete one object of 64 kB in the bucket, as a tier does, "
        "with the time of each step. The object is removed again.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("url", metavar="URL", help=_SETTINGS["url"].text.replace("`", ""))
    add_bucket_options(check)
    check.add_argument("--json", action="store_true", help="print the steps as JSON")
    check.set_defaults(run=run_check)


def add_bucket_options(parser: argparse._ActionsContainer) -> None:
    """Add the options that say how a bucket is reached."""
    parser.add_argument(
        "--epoch",
        default=_SETTINGS["epoch"].default,
        help="the epoch of the objects (default: %(default)s)",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        type=_option,
        metavar="NAME=VALUE",
        help="an option of the object store, such as region=eu-central-1; several times",
    )


def run_check(options: argparse.Namespace) -> bool:
    """Try the bucket, and print each step.

    Returns:
        Whether a tier works there.

    Raises:
        ConfigError: the URL or an option is wrong.
    """
    config = tier_config(options, allow_unsigned=True)
    from bbcache.tier import audit, start_check  # noqa: PLC0415 - they need an extra

    def run(is_stopped: Callable[[], bool]) -> list[Any]:
        found = []
        for trial in audit.probe(config):
            found.append(trial)
            if not options.json:
                result = trial.problem or "ok"
                print(f"{trial.what}: {printable(result)} ({1e3 * trial.seconds:.1f} ms)")
            if is_stopped():
                break
        return found

    trials = off_main_thread(run)
    has_failed = any(trial.is_fatal for trial in trials)
    if options.json:
        print(json.dumps([trial._asdict() for trial in trials], indent=2))
    elif has_failed:
        print(f"hint: {start_check.hint_for(config.url)}")
    return not has_failed


def run_verify(options: argparse.Namespace) -> bool:
    """Check every object of a bucket, and print what is found.

    Returns:
        Whether every object is good.

    Raises:
        NoCacheError: there is no object of the epoch.
        BbcacheError: the bucket cannot be listed, a key cannot be used, or none is named.
    """
    if not (options.key_file or options.allow_unsigned):
        raise ConfigError(
            "no key is named, so no signature can be checked\n"
            "hint: Name the keys of the nodes by --key-file, or give --allow-unsigned."
        )
    config = tier_config(
        options, key_files=tuple(options.key_file), allow_unsigned=options.allow_unsigned
    )
    from bbcache.tier import audit  # noqa: PLC0415 - needs an extra

    def run(is_stopped: Callable[[], bool]) -> list[Finding]:
        checked = audit.BucketAudit(config)
        objects = checked.objects()
        size_bytes = sum(each for _, each in objects)
        print(
            f"{len(objects)} objects of {size_bytes / 1e6:.1f} MB are read: "
            f"{len(objects)} GET requests, after {1 + len(objects) // 1000} to list them",
            file=sys.stderr,
        )
        found: list[Finding] = []
        for finding in checked.run(objects):
            found.append(finding)
            if is_stopped():
                break
        return found

    findings = off_main_thread(run)
    counts = Counter(finding.verdict for finding in findings)
    if options.json:
        _print_json(config, findings, counts)
    else:
        _print_text(findings, counts)
    if len(findings) == counts[Verdict.FOREIGN]:
        raise NoCacheError(
            f"{config.url} has no basebackup of epoch {config.epoch}\n"
            "hint: Are the prefix and the epoch those of the nodes?"
        )
    return counts[Verdict.BAD] == counts[Verdict.UNREADABLE] == 0


def _print_json(config: TierConfig, findings: list[Finding], counts: Counter[Verdict]) -> None:
    document = {
        "url": config.url,
        "counts": {verdict: counts[verdict] for verdict in Verdict},
        "objects": [
            {
                "name": each.path,
                "verdict": each.verdict,
                "size_bytes": each.size_bytes,
                "reason": each.reason,
            }
            for each in findings
        ],
    }
    print(json.dumps(document, indent=2))


def _print_text(findings: list[Finding], counts: Counter[Verdict]) -> None:
    for name, verdict, size_bytes, reason, _ in findings:
        if verdict is not Verdict.GOOD:
            print(f"{verdict}: {name!r} ({size_bytes} bytes): {printable(reason)}")
    names = {Verdict.FOREIGN: "foreign"}
    print(", ".join(f"{counts[each]} {names.get(each, each)}" for each in Verdict))


def tier_config(options: argparse.Namespace, **settings: Any) -> TierConfig:
    """The settings in the options of a command; raises `ConfigError` for a bad one."""
    return TierConfig(
        url=str(options.url), epoch=options.epoch, options=dict(options.option), **settings
    )


def _option(text: str) -> tuple[str, str | bool]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, {"true": True, "false": False}.get(value, value)
