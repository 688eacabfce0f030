"""Operations of commands that use several rooms.

releases.py promotes and retires releases; compare.py compares two releases on users of the store (probe.py); orders.py
gives orders to running workers; simulate.py sends events; show.py shows a user.
"""
