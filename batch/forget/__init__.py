"""Deletion of users' data: forget deletes events and rows, merge_users moves events to another id and deletes the old
one, expire removes the markers of deleted users that are no longer needed."""
