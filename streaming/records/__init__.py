"""Pure functions on records: core (decode, group by user), dead_letters (the form of a dead letter)."""
