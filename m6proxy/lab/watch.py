"""What a gateway's m6proxy reports, read from its control socket, as events of the story."""

from __future__ import annotations

from pathlib import Path

import aiohttp

from m6proxy.lab.sessions import Stopwatch
from m6proxy.lab.story import StoryEvent

ANSWER_DEADLINE_S = 2.0
UNTOLD = frozenset({"state"})
"""Steps inside the protocol that the story does without; the daemon's log has them."""
_BASE = "http://m6proxy"


class GatewayWatch:
    """A reader of one daemon's events; it remembers how far it read."""

    def __init__(self, site: str, control: Path) -> None:
        self.site = site
        self._control = control
        self._after = 0

    async def answers(self) -> bool:
        """Tell whether the daemon answers on its control socket."""
        return self._control.exists() and await self._get("/v1/contexts") is not None

    async def new_events(self, watch: Stopwatch) -> list[StoryEvent]:
        """Return what the daemon reported since the last call, empty when it does not answer."""
        answer = await self._get(f"/v1/events?after={self._after}")
        found = []
        for entry in answer if isinstance(answer, list) else []:
            self._after = max(self._after, int(entry["seq"]))
            if entry["what"] in UNTOLD:
                continue
            detail = " ".join(part for part in (_pair(entry), entry["detail"]) if part)
            found.append(
                StoryEvent(
                    float(entry["time"]) - watch.zero_wall_s,
                    str(entry["what"]),
                    f"{self.site}: {detail}",
                )
            )
        return found

    async def _get(self, path: str) -> object:
        timeout = aiohttp.ClientTimeout(total=ANSWER_DEADLINE_S)
        connector = aiohttp.UnixConnector(path=str(self._control))
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                session.get(_BASE + path) as response,
            ):
                if response.status != 200:
                    return None
                answer: object = await response.json(content_type=None)
                return answer
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError):
            return None


def _pair(entry: dict[str, str | None]) -> str:
    if not entry["local_ulid"] or not entry["peer_ulid"]:
        return ""
    return f"{entry['local_ulid']} <-> {entry['peer_ulid']}"
