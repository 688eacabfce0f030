"""`spoor demo`: runs the main job end to end on real data.

run.py runs the steps of steps.py; report.py turns their results into report.html (page.py, report.html.j2,
pictures.py). prepare.py creates the folder and `Demo`, the input of every step; data.py loads the events; processes.py
runs Feast's command line and the worker.
"""
