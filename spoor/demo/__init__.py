"""`spoor demo`: the main job end to end on real data.

run.py goes through steps.py; report.py turns what the steps recorded into report.html (page.py, report.html.j2,
pictures.py). prepare.py makes the folder and `Demo`, which every step is given; data.py loads the events; processes.py
runs Feast's command line and the worker.
"""
