"""The command as a whole: help, version, exit codes, and `dns record`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import dns.zone
import pytest
from click.testing import CliRunner, Result

from m6proxy import __version__
from m6proxy.cli.main import m6proxy
from m6proxy.errors import SetupError

CONF = Path(__file__).parent.parent.parent / "conf"
ALPHA = str(CONF / "alpha.yaml")


def run(*words: str) -> Result:
    return CliRunner().invoke(m6proxy, words)


def run_program(*words: str) -> subprocess.CompletedProcess[str]:
    program = "from m6proxy.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False
    )


def test_help_names_every_command() -> None:
    output = run("--help").output
    for name in ("check", "run", "status", "contexts", "peers", "uplinks", "drops", "events"):
        assert f"  {name} " in output
    for name in ("dns", "lab", "demo"):
        assert f"  {name} " in output


def test_every_command_can_be_loaded() -> None:
    context = click.Context(m6proxy)
    for name in m6proxy.list_commands(context):
        assert m6proxy.get_command(context, name) is not None
    assert m6proxy.get_command(context, "nonsense") is None


def test_version() -> None:
    assert run("--version").output == f"m6proxy, version {__version__}\n"


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_wrong_configuration_is_one_line_for_each_problem(command: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text((CONF / "beta.yaml").read_text().replace("prefix:", "prefx:"))
    result = run_program(command, "-c", str(path))
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"{path}:{line}: uplinks.isp{line - 4}.{text}"
        for line in (5, 6)
        for text in (
            'prefix: is missing; add `prefix: "2001:db8:a1::/48"`',
            "prefx: unknown key; did you mean `prefix`?",
        )
    ]


def test_a_daemon_that_does_not_run_is_exit_code_2(tmp_path: Path) -> None:
    result = run_program("status", "--control", str(tmp_path / "no.sock"))
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "no daemon answers" in result.stderr


def test_a_record_for_a_host_in_the_site() -> None:
    result = run(
        *("dns", "record", "-c", ALPHA, "--host", "New.alpha.example."),
        *("--address", "2001:db8:a2::77", "--ttl", "60"),
    )
    assert result.exit_code == 0, result.output
    records = [line for line in result.output.splitlines() if not line.startswith(";")]
    assert len(records) == 5
    assert records[0].startswith("_m6proxy.new.alpha.example. 60 IN SVCB ")
    assert records[1:3] == [
        "new.alpha.example. 60 IN AAAA 2001:db8:a1::77",
        "new.alpha.example. 60 IN AAAA 2001:db8:a2::77",
    ]
    assert all(line.endswith(" 60 IN PTR new.alpha.example.") for line in records[3:])
    dns.zone.from_text(result.output, origin=".", check_origin=False, relativize=False)


def test_a_record_without_an_address_says_nothing_of_addresses() -> None:
    result = run("dns", "record", "-c", ALPHA, "--host", "c.alpha.example")
    records = [line for line in result.output.splitlines() if not line.startswith(";")]
    assert len(records) == 1


def test_a_record_of_a_host_outside_needs_it_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"neither in the site's domain alpha\.example nor"):
        CliRunner().invoke(
            m6proxy,
            ["dns", "record", "-c", ALPHA, "--host", "www.example"],
            catch_exceptions=False,
        )
    path = tmp_path / "named.yaml"
    text = (CONF / "beta.yaml").read_text()
    path.write_text(text + 'hosts: {www.example: "2001:db8:b1::80"}\n')
    result = run("dns", "record", "-c", str(path), "--host", "www.example")
    assert "www.example. 3600 IN AAAA 2001:db8:b2::80" in result.output


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--host", "a b.alpha.example"), "--host: 'a b.alpha.example'"),
        (("--host", "a1.alpha.example", "--address", "x"), "--address: 'x' is not an IPv6"),
        (
            ("--host", "a1.alpha.example", "--address", "2001:db8:ee::1"),
            "in none of the uplinks' prefixes",
        ),
    ],
)
def test_a_record_that_cannot_be_right_is_refused(words: tuple[str, ...], complaint: str) -> None:
    result = run_program("dns", "record", "-c", ALPHA, *words)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert complaint in result.stderr
