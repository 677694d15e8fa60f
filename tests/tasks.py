"""Waiting for what threads do, from a trio task."""

import trio

TIMEOUT = 20


async def until(condition):
    """Wait for a condition, never for a time."""
    with trio.fail_after(TIMEOUT):
        while not condition():  # noqa: ASYNC110 - threads have no trio.Event
            await trio.sleep(0.001)
