"""Does this locator belong to this ULID? Pure. ``judge`` is the door, ``dns`` one method."""
