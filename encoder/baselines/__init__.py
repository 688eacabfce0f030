"""Baselines of a trained encoder: four rules without training, and a plain SASRec.

Each baseline is a scorer (encoder/evaluation/scoring.py) and reads no release. by_name.py makes them by name;
evaluate_file.py runs `spoor evaluate` with a release and baselines.
"""
