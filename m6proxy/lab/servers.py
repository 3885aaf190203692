"""The real servers of the demo: nginx on b1 with a file to fetch, OpenSSH's sshd on b2.

Each runs in the foreground with a configuration, keys and logs of its own in the demo's
temporary folder; nothing of the machine's own configuration is read or changed.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from m6proxy.errors import SetupError
from m6proxy.lab import traffic
from m6proxy.lab.sessions import Programs
from m6proxy.lab.topology import Host

FILE_NAME = "story.bin"
LINES_PORT = "7007"
READY_DEADLINE_S = 10.0
_BLOCK_OCTETS = 1 << 20
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


@dataclass(frozen=True, slots=True)
class Assets:
    """What both runs share: the file, its sum, the keys; all in one temporary folder."""

    folder: Path
    sha256: str
    """Of the file, hexadecimal."""
    ssh: bool
    """Whether OpenSSH is there; otherwise the dialogue is line by line over plain TCP."""


def program(name: str) -> str | None:
    """Return where a program is, the system directories included."""
    return shutil.which(name) or shutil.which(name, path=_SBIN)


def require_programs() -> None:
    """Raise SetupError, one line, when a program that the demo cannot do without is missing."""
    packages = {"nginx": "nginx-light", "curl": "curl", "knotd": "knot", "kdig": "knot-dnsutils"}
    missing = [package for name, package in packages.items() if program(name) is None]
    if missing:
        raise SetupError(f"missing programs: apt-get install {' '.join(missing)}")


def make_assets(folder: Path, size_octets: int) -> Assets:
    """Write the file (random octets) and, with OpenSSH, the keys into ``folder``."""
    digest = hashlib.sha256()
    with (folder / FILE_NAME).open("wb") as file:
        left = size_octets
        while left:
            block = os.urandom(min(left, _BLOCK_OCTETS))
            file.write(block)
            digest.update(block)
            left -= len(block)
    ssh = all(program(name) for name in ("sshd", "ssh", "ssh-keygen"))
    if ssh:
        for key in ("host_key", "user_key"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", key, "-f", folder / key],
                check=True, stdin=subprocess.DEVNULL,
            )  # fmt: skip
    return Assets(folder, digest.hexdigest(), ssh)


def nginx_config(folder: Path, address: str, rate_octets_s: int) -> str:
    """Return the configuration of nginx: one process, one file, everything in ``folder``.

    The server limits the rate, in pieces of a 64th of a second: curl's own limit lets 10 MiB
    pass at once and then pauses for longer than a second, which would look like an outage.
    """
    chunk_octets = max(4096, rate_octets_s // 64)
    return (
        "daemon off;\nmaster_process off;\n"
        f"pid {folder}/nginx.pid;\nerror_log {folder}/nginx.log;\n"
        "events {}\n"
        "http {\n"
        "    access_log off;\n    sendfile on;\n"
        f"    sendfile_max_chunk {chunk_octets};\n    limit_rate {rate_octets_s};\n"
        + "".join(
            f"    {kind}_temp_path {folder}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        + "    server {\n"
        f"        listen [{address}]:80;\n"
        f"        location = /{FILE_NAME} {{ root {folder}; }}\n"
        "    }\n}\n"
    )


def sshd_config(folder: Path, address: str, *, pam: bool) -> str:
    """Return the configuration of sshd: root by the demo's own key, from nowhere else."""
    return (
        f"ListenAddress [{address}]:22\n"
        f"HostKey {folder}/host_key\n"
        f"AuthorizedKeysFile {folder}/user_key.pub\n"
        "StrictModes no\n"
        "PidFile none\n"
        f"UsePAM {'yes' if pam else 'no'}\n"
        "PermitRootLogin prohibit-password\n"
        "PasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\n"
        "UseDNS no\n"
        "PrintMotd no\n"
    )


def ssh_command(folder: Path, name: str) -> list[str]:
    """Return the client's command: an echo of every line at the far end, no terminal record."""
    options = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": f"{folder}/known_hosts",
        "GlobalKnownHostsFile": "/dev/null",
        "IdentityFile": f"{folder}/user_key",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "ConnectTimeout": "10",
    }
    words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    return ["ssh", "-F", "none", "-T", *words, f"root@{name}", "exec cat"]


async def start_web(programs: Programs, assets: Assets, host: Host, rate_octets_s: int) -> None:
    """Serve the file on a host at this rate; returns once the server answers."""
    folder = assets.folder
    config = folder / "nginx.conf"
    config.write_text(nginx_config(folder, host.address, rate_octets_s))
    nginx = program("nginx") or "nginx"
    await programs.start(
        host.node, nginx, "-c", str(config), "-p", str(folder), log=folder / "nginx.log"
    )
    await _ready(programs, host, 80, "nginx", folder / "nginx.log")


async def start_ssh(programs: Programs, assets: Assets, host: Host, name: str) -> None:
    """Serve logins on a host; returns once the server answers."""
    folder = assets.folder
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd insists; Debian makes it at boot
    (folder / "known_hosts").write_text(f"{name} {(folder / 'host_key.pub').read_text()}")
    config = folder / "sshd.conf"
    config.write_text(sshd_config(folder, host.address, pam=_root_is_locked()))
    sshd = program("sshd") or "sshd"
    await programs.start(host.node, sshd, "-D", "-e", "-f", str(config), log=folder / "sshd.log")
    await _ready(programs, host, 22, "sshd", folder / "sshd.log")


async def start_lines(programs: Programs, assets: Assets, host: Host) -> None:
    """Echo lines on a host over plain TCP, for machines without OpenSSH."""
    log = assets.folder / "lines.log"
    command = [sys.executable, "-m", traffic.__name__, "serve-lines", host.address, LINES_PORT]
    await programs.start(host.node, *command, log=log)
    await _ready(programs, host, int(LINES_PORT), "the echo of lines", log)


def _root_is_locked() -> bool:
    """sshd without PAM refuses an account whose password field begins with ``!``."""
    try:
        lines = Path("/etc/shadow").read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith("root:!") for line in lines)


async def _ready(programs: Programs, host: Host, port: int, what: str, log: Path) -> None:
    """Wait until something listens on the port, seen in the host's own socket table."""
    ending = f":{port:04X}"
    clock = asyncio.get_running_loop()
    deadline_s = clock.time() + READY_DEADLINE_S
    while clock.time() < deadline_s:
        table = await programs.read(host.node, "cat", "/proc/net/tcp6")
        rows = [line.split() for line in table.splitlines()[1:]]
        if any(row[1].endswith(ending) and row[3] == "0A" for row in rows):
            return
        await asyncio.sleep(0.05)
    words = log.read_text(errors="replace").splitlines() if log.exists() else []
    raise SetupError(f"{what} does not listen: {words[-1] if words else 'it said nothing'}")
