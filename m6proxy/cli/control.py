"""Asks a running daemon: HTTP over its control socket, with nothing but the standard library."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from m6proxy.errors import SetupError

RUN_DIRECTORY = Path("/run/m6proxy")
TIMEOUT_S = 5.0
ANSWER_LIMIT_OCTETS = 256 * 1024 * 1024


class _UnixConnection(http.client.HTTPConnection):
    """HTTP whose transport is a UNIX stream socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def find_socket(given: Path | None, directory: Path = RUN_DIRECTORY) -> Path:
    """The socket that was given, or the only one in ``directory``. Raises SetupError."""
    if given is not None:
        return given
    found = sorted(directory.glob("*.sock"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise SetupError(
            f"no daemon runs here: {directory} holds no socket; "
            "start one with m6proxy run, or name its socket with --control"
        )
    names = ", ".join(str(path) for path in found)
    raise SetupError(f"several daemons may run here ({names}); name one with --control")


def ask(control: Path | None, path: str, timeout_s: float = TIMEOUT_S) -> Any:
    """GET ``path`` from the daemon and return the JSON value of its answer.

    Raises SetupError when there is no daemon, or it refuses, or answers what is not JSON.
    """
    return _talk(control, "GET", path, None, timeout_s)


def tell(control: Path | None, path: str, value: object, timeout_s: float = TIMEOUT_S) -> Any:
    """POST a value as JSON to ``path`` and return the answer's; raises as ``ask`` does."""
    return _talk(control, "POST", path, json.dumps(value), timeout_s)


def _talk(
    control: Path | None, method: str, path: str, body_out: str | None, timeout_s: float
) -> Any:
    where = find_socket(control)
    asked = path.partition("?")[0]
    connection = _UnixConnection(where, timeout_s)
    try:
        connection.request(method, path, body_out)
        response = connection.getresponse()
        body = response.read(ANSWER_LIMIT_OCTETS)
    except (FileNotFoundError, ConnectionRefusedError):
        raise SetupError(
            f"no daemon answers on {where}; start it with m6proxy run, or look at its log"
        ) from None
    except TimeoutError:
        raise SetupError(f"the daemon on {where} is silent for {timeout_s:g} s") from None
    except (OSError, http.client.HTTPException) as error:
        what = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise SetupError(f"the daemon on {where} cannot be asked: {what}") from None
    finally:
        connection.close()
    try:
        value = json.loads(body)
    except ValueError:
        raise SetupError(
            f"what listens on {where} is not m6proxy: its answer to {asked} is not JSON"
        ) from None
    if response.status != http.HTTPStatus.OK:
        said = value.get("error", body) if isinstance(value, dict) else value
        raise SetupError(f"the daemon on {where} refused {asked}: {said}")
    return value
