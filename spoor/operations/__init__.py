"""What commands do that takes several rooms.

releases.py promotes and retires; compare.py compares two releases on users of the store (probe.py); orders.py gives
orders to running workers; kafka_admin.py makes topics; simulate.py sends events; show.py shows a user.
"""
