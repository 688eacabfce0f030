"""The commands of `spoor`, by the room they call. Heavy imports stay inside the functions."""
