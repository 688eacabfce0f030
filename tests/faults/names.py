"""What the scenarios' events are about. The releases do not know the last items, actions and surfaces."""

ITEMS = [f"item-{n}" for n in range(50)]
ACTIONS, SURFACES = ("view", "like", "save"), ("home", "search")
