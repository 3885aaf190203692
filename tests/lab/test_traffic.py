"""The two ends of the stream agree on what each packet holds."""

from __future__ import annotations

from pathlib import Path

from m6proxy.lab.servers import nginx_config, ssh_command, sshd_config
from m6proxy.lab.traffic import PAYLOAD_OCTETS, payload


def test_payloads_have_one_length_and_differ() -> None:
    assert {len(payload(n)) for n in range(100)} == {PAYLOAD_OCTETS}
    assert len({payload(n) for n in range(100)}) == 100
    assert payload(7)[:8] == (7).to_bytes(8)


def test_servers_keep_to_their_folder() -> None:
    folder = Path("/nowhere")
    nginx = nginx_config(folder, "2001:db8:b1:1::10", 1 << 20)
    assert "listen [2001:db8:b1:1::10]:80;" in nginx
    assert "limit_rate 1048576;" in nginx
    assert "/var" not in nginx
    sshd = sshd_config(folder, "2001:db8:b1:1::20", pam=False)
    assert "HostKey /nowhere/host_key" in sshd
    assert "PasswordAuthentication no" in sshd
    client = ssh_command(folder, "b2.beta.example")
    assert client[-2:] == ["root@b2.beta.example", "exec cat"]
    assert "UserKnownHostsFile=/nowhere/known_hosts" in client
