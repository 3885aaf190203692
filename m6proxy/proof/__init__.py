"""Does this locator belong to this ULID? Pure. The door is ``judge``."""
