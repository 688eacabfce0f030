"""What an operator asks of a group: control (orders and reports), steering (a worker follows orders and reports),
handover (where a group begins), replay (dead letters sent again)."""
