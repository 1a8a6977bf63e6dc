"""What a service says does nothing to a terminal, and no message repeats a secret."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from fetch.bad_service import BadService, Peer, greets_with, says, serves
from support.helpers import TENANT, TIMELINE
from support.restore_helpers import directory, make_tar

from bbcache.cli import main
from bbcache.fetch.download import FetchRequest
from bbcache.page_service.protocol import backend

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECRET = "Tr0ub4dor-correct-horse"  # noqa: S105 - of nothing
HOSTILE = "a\x1b[31mb\x9b2Jc\rd\ne\x07f\u202eg\u2066h\u200bi\u2028j\x7fk"
IDS = (str(TENANT), str(TIMELINE))


def fetch(capsys: pytest.CaptureFixture[str], url: str, dest: Path, *options: str) -> str:
    """What the command says on stderr; it must fail, and say nothing on stdout."""
    assert main(["fetch", "--attempts", "2", *options, url, *IDS, str(dest)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


def fields(**texts: str) -> Callable[[Peer], None]:
    """Answer the command with an error of these fields."""

    def script(peer: Peer) -> None:
        peer.let_in()
        text, state = texts.pop("text", "no"), texts.pop("sqlstate", "XX000")
        peer.send(backend.error_response("ERROR", state, text, **texts), backend.READY_FOR_QUERY)
        peer.wait_gone()
        texts.update(text=text, sqlstate=state)

    return script


@pytest.mark.parametrize(
    "script",
    [
        says(HOSTILE),
        greets_with(HOSTILE, "XX000"),
        greets_with(f"JWT authentication error{HOSTILE}", "28000"),
        says(f"not found{HOSTILE}"),
        says("no", HOSTILE),
        fields(detail=HOSTILE),
        fields(hint=HOSTILE),
        serves(make_tar(directory(HOSTILE), directory(HOSTILE))),
        serves(make_tar(directory(f"no/{HOSTILE}"))),
    ],
    ids=[
        *("error", "greeting", "lasting greeting", "lasting error", "sqlstate", "detail", "hint"),
        *("a member twice", "a member without a directory"),
    ],
)
def test_no_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], script: Callable[[Peer], None]
) -> None:
    """C0 and C1, escapes, marks of direction and line ends become text, in progress as well."""
    with BadService(script) as server:
        server.listen()
        err = fetch(capsys, server.url, tmp_path / "pgdata")
    lines = err.removesuffix("\n").split("\n")
    assert all(line.isprintable() for line in lines), ascii(err)
    assert all(line.startswith(("bbcache: ", "hint: ")) for line in lines), err


@pytest.mark.parametrize("script", [says("x" * 100_000), greets_with("x" * 20_000, "XX000")])
def test_a_long_text_is_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], script: Callable[[Peer], None]
) -> None:
    """Its beginning is told, and that there is more."""
    with BadService(script) as server:
        server.listen()
        err = fetch(capsys, server.url, tmp_path / "pgdata")
    assert len(err) < 2500
    assert f"{'x' * 300}" in err
    assert "..." in err


@pytest.mark.parametrize("script", [says(f"bad {SECRET}!"), greets_with(f"no {SECRET}", "XX000")])
@pytest.mark.parametrize("where", ["token file", "URL", "PGPASSWORD", "password file"])
def test_a_service_that_repeats_the_token(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    script: Callable[[Peer], None],
    where: str,
) -> None:
    """Wherever the token comes from, what a service says of it is told without it."""
    path = tmp_path / "secret"
    options: list[str] = []

    def wants_password(peer: Peer) -> None:
        peer.begin()
        peer.send(backend.CLEARTEXT_PASSWORD_WANTED)
        assert peer.message().rstrip(b"\0").decode() == SECRET
        peer.begin = lambda: None  # type: ignore[method-assign]  # the rest is as without one
        script(peer)

    with BadService(wants_password) as server:
        server.listen()
        url = server.url
        if where == "token file":
            path.write_text(SECRET)
            options = ["--token-file", str(path)]
        elif where == "URL":
            url = url.replace("://", f"://u:{SECRET}@")
        elif where == "PGPASSWORD":
            monkeypatch.setenv("PGPASSWORD", SECRET)
        else:
            path.write_text(f"*:*:*:*:{SECRET}\n")
            path.chmod(0o600)
            monkeypatch.setenv("PGPASSFILE", str(path))
        err = fetch(capsys, url, tmp_path / "pgdata", *options)
    assert "***" in err
    assert SECRET not in err


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:{}%zz@127.0.0.1:1/",
        "postgresql://u:{}@more@127.0.0.1:1/",
        "postgresql://u:x/{}@127.0.0.1:1/",
        "postgresql://u:{}/x@127.0.0.1:1/",
        "postgresql://u:{}#x@[127.0.0.1:1/",
        "postgresql://u:{}",
        "postgresql://u@127.0.0.1:{}/",
        "postgresql://u@127.0.0.1:1/?{}",
        "postgresql://u@127.0.0.1:1/?{}=1",
        "postgresql://u@127.0.0.1:1/?connect_timeout={}",
        "postgresql://u:{}\udcff@127.0.0.1:1/",
        "host=127.0.0.1 password=my {}",
        "host=127.0.0.1 password='{}",
        'host=127.0.0.1 password=a"b {}"c',
        "{}",
        "host=127.0.0.1 port={}",
        "host=127.0.0.1 {}=1",
    ],
)
def test_a_url_that_cannot_be_understood(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    """Nothing of it is repeated: the part that is wrong may be the password."""
    err = fetch(capsys, url.format(SECRET), tmp_path / "pgdata")
    assert re.match(r"bbcache: error: (the URL|connect_timeout) ", err), err
    for at in range(len(SECRET) - 5):
        assert SECRET[at : at + 6] not in err


@pytest.mark.parametrize(
    "argv",
    [
        ["--token", SECRET, "postgresql://127.0.0.1:1/", *IDS, "d"],
        [f"--token={SECRET}", "postgresql://127.0.0.1:1/", *IDS, "d"],
        ["--password", SECRET, "postgresql://127.0.0.1:1/", *IDS, "d"],
        [IDS[0], f"postgresql://u:{SECRET}@127.0.0.1:1/", IDS[1], "d"],
        [*IDS, f"postgresql://u:{SECRET}@127.0.0.1:1/", "0/10", "d"],
        ["x", *IDS, f"host=h password={SECRET}", "d"],
        ["x", *IDS, f"{SECRET}{'x' * 40}", "d"],
    ],
)
def test_a_secret_in_the_wrong_place(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    """The usage error names the argument, not what was given for it."""
    with pytest.raises(SystemExit) as ended:
        main(["fetch", *argv])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert "argument " in err
    assert SECRET not in err
    if "-" in argv[0]:
        assert "use --token-file or PGPASSWORD" in err


def test_a_token_in_the_place_of_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name as long as a token's is not told; one of a file is."""
    token = f"eyJhbGciOiJFZERTQSJ9.{'e' * 60}.{'s' * 80}"
    err = fetch(capsys, "postgresql://127.0.0.1:1/", tmp_path / "d", "--token-file", token)
    assert (
        err == "bbcache: error: cannot read the token in --token-file: No such file or directory\n"
    )
    err = fetch(capsys, "postgresql://127.0.0.1:1/", tmp_path / "d", "--token-file", "/nowhere")
    assert "cannot read the token in /nowhere: No such file" in err


def test_a_request_does_not_show_its_secrets() -> None:
    """Its repr is for logs and debuggers."""
    request = FetchRequest(f"postgresql://u:{SECRET}@h/", TENANT, TIMELINE, token=SECRET)
    assert SECRET not in repr(request)
